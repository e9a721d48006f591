"""The embedded example: dates as people of several languages write them -> ISO 8601.

Names of months and days, and the order of the parts, are those of Unicode CLDR (copyright Unicode,
Inc., Unicode License v3), taken from Babel when the pairs are written.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal, NamedTuple

from dragoman.errors import DragomanError
from dragoman.reading.statistics import split_of

if TYPE_CHECKING:
    from babel import Locale
    from babel.dates import DateTimePattern

Split = Literal["train", "valid", "test"]

EXAMPLES = (
    "<de> am 3. Oktober 2024",
    "<en-GB> 3/10/2024",
    "<en-US> 3/10/2024",
    "<fr> le mardi 31 décembre 2030",
    "<ja> 2041年3月23日(土)",
)
"""Sources to show after the training; their days are none that the model was trained on."""

SETTINGS = {
    "preset": "tiny",
    "model.dropout": 0.0,
    "optimization.learning_rate": 2e-3,
    "optimization.schedule": "linear",
    "optimization.warmup_steps": 100,
    "optimization.label_smoothing": 0.0,
    "training.batch_tokens": 2048,
    "training.max_steps": 1200,
    "training.valid_every": 200,
    "training.valid_rows": 300,
    "data.cache": "none",
}
"""A small model and a short schedule: every target is certain, so nothing holds learning back.

Nothing is left outside the demo's folder.
"""

NUM_ROWS: dict[Split, int] = {"train": 24_000, "valid": 1_000, "test": 1_000}

_FIRST_DAY, _LAST_DAY = date(1900, 1, 1), date(2099, 12, 31)
_SHORT_YEARS = range(1970, 2070)  # the only years that are written with two digits
_HELD_OUT = 0.05  # part of the days for validation, and as much for the test
# The first number that puts both 2024-10-03 and 2024-03-10 among the days of the test: what a
# Briton and an American read in "3/10/2024", so that EXAMPLES shows only unseen days.
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
    "it": "in data ",  # not "il", which is l' before 8 and 11
    "nl": "op ",
    "pl": "dnia ",
    "pt": "em ",
}
_NO_PREFIX_BEFORE_WEEKDAY = ("it", "pl", "pt")


@dataclass(frozen=True, kw_only=True)
class DatePairs:
    """Files of pairs without header: the tagged written date, a tab, the ISO date."""

    train: Path
    valid: Path
    test: Path


def write_date_pairs(folder: Path) -> DatePairs:
    """Write `train.tsv`, `valid.tsv` and `test.tsv` into `folder`, the same at each call.

    A day stands in one of them only, and no source twice. Replaces files of these names.

    Raises:
        DragomanError: Babel is not installed.
    """
    forms = read_forms()
    days = _split_days()
    random = Random("dates")
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[Split, Path] = {}
    for split, num_rows in NUM_ROWS.items():
        rows = _make_rows(forms, days[split], num_rows, random)
        paths[split] = _write(folder / f"{split}.tsv", rows)
    return DatePairs(**paths)


class Form(NamedTuple):
    """One way to write a date."""

    tag: str
    prefix: str
    pattern: "DateTimePattern"
    locale: "Locale"

    def can_write(self, day: date) -> bool:
        """Return whether the written date tells its century."""
        return "yy" not in self.pattern.pattern or day.year in _SHORT_YEARS

    def write(self, day: date) -> str:
        """Return the tag and the date, as typed: CLDR's narrow and fixed spaces are plain ones."""
        text = f"{self.prefix}{self.pattern.apply(day, self.locale)}"
        return f"<{self.tag}> {' '.join(text.split())}"


def read_forms() -> list[list[Form]]:
    """Return the ways to write a date, a list for each locale.

    Raises:
        DragomanError: Babel is not installed.
    """
    try:
        from babel import Locale
    except ModuleNotFoundError as error:
        raise DragomanError(
            "the dates of the demo are written by Babel, which is not installed: "
            'pip install "dragoman[demo]"'
        ) from error
    return [_read_forms_of(Locale.parse(name)) for name in _LOCALES]


def split_of_day(day: date) -> Split:
    """Return the split in which `day` stands, whatever its language and form."""
    return split_of(f"{_SALT} {day}", (), _HELD_OUT, _HELD_OUT)


def _read_forms_of(locale: "Locale") -> list[Form]:
    from babel.dates import get_date_format, parse_pattern

    skeletons = locale.datetime_skeletons
    patterns = [get_date_format(length, locale).pattern for length in _LENGTHS]
    patterns += [skeletons[name].pattern for name in _SKELETONS if name in skeletons]
    # In figures, people leave the leading zeros out, whatever their locale says.
    patterns += [re.sub(r"MM|dd", lambda m: m[0][0], p) for p in patterns if "MMM" not in p]
    prefix = _PREFIXES.get(locale.language)
    forms = []
    for text in dict.fromkeys(patterns):
        pattern, tag = parse_pattern(text), str(locale).replace("_", "-")
        forms.append(Form(tag, "", pattern, locale))
        if prefix and not ("E" in text and locale.language in _NO_PREFIX_BEFORE_WEEKDAY):
            forms.append(Form(tag, prefix, pattern, locale))
    return forms


def _split_days() -> dict[Split, list[date]]:
    days: dict[Split, list[date]] = {split: [] for split in NUM_ROWS}
    for number in range((_LAST_DAY - _FIRST_DAY).days + 1):
        day = _FIRST_DAY + timedelta(days=number)
        days[split_of_day(day)].append(day)
    return days


def _make_rows(
    forms: list[list[Form]], days: list[date], num_rows: int, random: Random
) -> Iterator[str]:
    """Yield `num_rows` rows with distinct sources, the languages in equal parts."""
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


def _write(path: Path, rows: Iterator[str]) -> Path:
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(rows)
    unfinished.replace(path)
    return path
