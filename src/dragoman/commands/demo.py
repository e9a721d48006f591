"""`dragoman demo`: trains a small model that turns written dates into ISO 8601, and uses it.

Names of months and days, and the order of the parts, are those of Unicode CLDR (copyright Unicode,
Inc., Unicode License v3), taken from Babel when the pairs are written.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal, NamedTuple

from dragoman.errors import DragomanError, name_extra
from dragoman.settings import Settings
from dragoman.storage import staged_file

if TYPE_CHECKING:
    from babel import Locale
    from babel.dates import DateTimePattern

EXAMPLES = (
    "<de> am 3. Oktober 2024",
    "<en-GB> 3/10/2024",
    "<en-US> 3/10/2024",
    "<fr> le mardi 31 décembre 2030",
    "<ja> 2041年3月23日(土)",
)
"""Sources to show after the training; their days are in the test split."""

SETTINGS = {
    "preset": "tiny",
    "model": {
        "d_model": 128,
        "dim_feedforward": 512,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "positions": "sinusoidal",
        "dropout": 0.0,
    },
    "optimization": {"learning_rate": 2e-3, "warmup_steps": 100, "label_smoothing": 0.0},
    "training": {"batch_tokens": 2048, "max_steps": 1200, "valid_every": 200, "valid_rows": 300},
}
"""A small model and a short schedule, without regularisation: every target is certain."""
Split = Literal["train", "valid", "test"]

NUM_ROWS: dict[Split, int] = {"train": 24_000, "valid": 1_000, "test": 1_000}

_FIRST_DAY, _LAST_DAY = date(1900, 1, 1), date(2099, 12, 31)
_SHORT_YEARS = range(1970, 2070)  # the only years that are written with two digits
_HELD_OUT = 0.05  # fraction of the days for validation; the same for the test
# The first number that puts both 2024-10-03 and 2024-03-10 among the days of the test: what a
# Briton and an American read in "3/10/2024", so that the demo shows only unseen days.
_SALT = "dates-10"

_LOCALES = ("en_US", "en_GB", "de", "fr", "es", "it", "pt", "nl", "pl", "ja")
_Length = Literal["short", "medium", "long", "full"]
_LENGTHS: tuple[_Length, ...] = ("short", "medium", "long", "full")
_SKELETONS = ("yMd", "yMMMd", "yMMMMd", "yMMMEd", "yMMMMEEEEd")
_PREFIXES = {
    "de": "am ",
    "en": "on ",
    "es": "el ",
    "fr": "le ",
    "it": "in data ",  # "il" would be l' before 8 and 11
    "nl": "op ",
    "pl": "dnia ",
    "pt": "em ",
}
_NO_PREFIX_BEFORE_WEEKDAY = ("it", "pl", "pt")


def demo(folder: Path) -> None:
    """Write the pairs, train, score and predict, all in `folder`; print what the model learned.

    Raises: DragomanError, when a package is not installed, or `folder` holds something else.
    """
    if folder.exists() and not (folder / "pairs" / "train.tsv").exists():
        raise DragomanError(f"{folder}: not a folder of this demo; choose another")
    pairs, out = write_date_pairs(folder / "pairs"), folder / "model"
    # After Babel: the error without packages names the extra that has all.
    from dragoman.commands.fit import fit

    data = {"valid": (str(pairs.valid),), "test": (str(pairs.test),), "cache": "none"}
    settings = Settings.model_validate({**SETTINGS, "data": data})
    model = fit(pairs.train, out, settings, overwrite=True)

    scores = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["test"]
    print(f"test: {scores['exact_match']:.1f}% of {scores['rows']:,} unseen dates exactly right")
    for source, text in zip(EXAMPLES, model.predict(EXAMPLES), strict=True):
        print(f"{source} -> {text}")
    print(
        f"try a line of your own: echo '<en-GB> 1 April 2027' | "
        f"{sys.executable} -m dragoman predict {out}"
    )


@dataclass(frozen=True, kw_only=True)
class DatePairs:
    """Files of pairs without header: the tagged written date, a tab, the ISO date."""

    train: Path
    valid: Path
    test: Path


def write_date_pairs(folder: Path) -> DatePairs:
    """Write `train.tsv`, `valid.tsv` and `test.tsv` into `folder`: the same files at each call.

    Each day is in one split only; no source occurs twice. Overwrites files of these names.

    Raises: MissingPackageError, when Babel is not installed.
    """
    forms = read_forms()
    days = split_days()
    random = Random("dates")
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[Split, Path] = {}
    for split, num_rows in NUM_ROWS.items():
        paths[split] = folder / f"{split}.tsv"
        with (
            staged_file(paths[split]) as path,
            path.open("w", encoding="utf-8", newline="\n") as file,
        ):
            file.writelines(make_rows(forms, days[split], num_rows, random))
    return DatePairs(**paths)


class Form(NamedTuple):
    """One way to write a date."""

    tag: str
    prefix: str
    pattern: "DateTimePattern"
    locale: "Locale"

    def can_write(self, day: date) -> bool:
        """Whether the year is unambiguous in this form."""
        return "yy" not in self.pattern.pattern or day.year in _SHORT_YEARS

    def write(self, day: date) -> str:
        """Return the tag and the date; CLDR's special spaces become plain ones."""
        text = f"{self.prefix}{self.pattern.apply(day, self.locale)}"
        return f"<{self.tag}> {' '.join(text.split())}"


def read_forms() -> list[list[Form]]:
    """Return the ways to write a date, a list for each locale.

    Raises: MissingPackageError, when Babel is not installed.
    """
    with name_extra("dragoman demo"):
        from babel import Locale
        from babel.dates import get_date_format, parse_pattern
    found = []
    for locale in map(Locale.parse, _LOCALES):
        skeletons = locale.datetime_skeletons
        patterns = [get_date_format(length, locale).pattern for length in _LENGTHS]
        patterns += [skeletons[name].pattern for name in _SKELETONS if name in skeletons]
        # In figures, people leave the leading zeros out, whatever their locale says.
        patterns += [re.sub(r"MM|dd", lambda m: m[0][0], p) for p in patterns if "MMM" not in p]
        tag, prefix = str(locale).replace("_", "-"), _PREFIXES.get(locale.language)
        forms = []
        for text in dict.fromkeys(patterns):
            forms.append(Form(tag, "", parse_pattern(text), locale))
            if prefix and not ("E" in text and locale.language in _NO_PREFIX_BEFORE_WEEKDAY):
                forms.append(Form(tag, prefix, parse_pattern(text), locale))
        found.append(forms)
    return found


def split_of_day(day: date) -> Split:
    """Return the split of `day`, by a hash: the same in every language and form."""
    digest = blake2b(f"{_SALT} {day}".encode(), digest_size=8).digest()
    place = (int.from_bytes(digest, "big") >> 11) / 2**53  # from 0 to 1
    if place < _HELD_OUT:
        return "valid"
    return "test" if place >= 1.0 - _HELD_OUT else "train"


def split_days() -> dict[Split, list[date]]:
    """Return the days of each split."""
    days: dict[Split, list[date]] = {split: [] for split in NUM_ROWS}
    for number in range((_LAST_DAY - _FIRST_DAY).days + 1):
        day = _FIRST_DAY + timedelta(days=number)
        days[split_of_day(day)].append(day)
    return days


def make_rows(
    forms: list[list[Form]], days: list[date], num_rows: int, random: Random
) -> Iterator[str]:
    """Yield `num_rows` rows with distinct sources, each language equally often."""
    seen: set[str] = set()
    while len(seen) < num_rows:
        # random() alone, because its numbers stay the same in all versions of Python.
        of_locale = forms[int(random.random() * len(forms))]
        form = of_locale[int(random.random() * len(of_locale))]
        day = days[int(random.random() * len(days))]
        if not form.can_write(day) or (source := form.write(day)) in seen:
            continue
        seen.add(source)
        yield f"{source}\t{day.isoformat()}\n"
