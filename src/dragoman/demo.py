"""The embedded example: dates as people write them in several languages, to ISO 8601.

A pair is `<de> am 3. Oktober 2024` and `2024-10-03`. The formats and the names of months and days
are those of the Unicode CLDR, which the package babel carries (Unicode licence).
"""

import datetime
import hashlib
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dragoman.errors import DragomanError

if TYPE_CHECKING:
    from babel import Locale

PAIRS_A_LANGUAGE = {"train": 2500, "valid": 100, "test": 100}
LOCALES = ("en_US", "en_GB", "de", "fr", "es", "it", "pt", "nl", "pl", "ja")

# Before a date with the name of its month, as in running text.
_PREFIXES = {
    "en_US": ("on ",), "en_GB": ("on ",), "de": ("am ", "den "), "fr": ("le ",), "es": ("el ",),
    "it": ("il ",), "pt": ("em ",), "nl": ("op ",), "pl": ("dnia ",),
}  # fmt: skip
_FIRST_DAY, _LAST_DAY = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
_FORMATS = ("short", "medium", "long", "full")
_SKELETONS = ("yMd", "yMMMd", "yMMMMd", "yMMMEd", "yMMMMEEEEd")

# What is shown after the training: 3 October 2024, 5 April and 4 May 2031 are days of the test, by
# the hash of `_split_of`, whose salt was chosen for that.
EXAMPLES = (
    "<de> am 3. Oktober 2024",
    "<en-US> 4/5/2031",
    "<en-GB> 04/05/2031",
    "<fr> jeudi 3 octobre 2024",
    "<ja> 2024年10月3日",
)
_SALT = "364"


class DateFiles(NamedTuple):
    """The files of pairs."""

    train: Path
    valid: Path
    test: Path


def write_date_pairs(folder: Path) -> DateFiles:
    """Write the pairs of each split to a TSV file in `folder`; the same ones on every machine.

    The days are split first, by a hash, so that no day of valid or test is in train.

    Raises:
        DragomanError: The package babel is not installed.
    """
    try:
        from babel import Locale
    except ImportError as error:
        raise DragomanError(
            'the example needs the package babel: pip install "dragoman[demo]"'
        ) from error
    rows: dict[str, list[str]] = {split: [] for split in PAIRS_A_LANGUAGE}
    for name in LOCALES:
        for split, pairs in _make_pairs(name, Locale.parse(name)).items():
            rows[split] += pairs
    files = DateFiles(*(folder / f"{split}.tsv" for split in DateFiles._fields))
    for split, file in zip(DateFiles._fields, files, strict=True):
        random.Random(f"dates/{split}").shuffle(rows[split])
        file.write_text("".join(rows[split]), encoding="utf-8", newline="\n")
    return files


def _make_pairs(name: str, locale: "Locale") -> dict[str, list[str]]:
    """Return the rows of each split for one language, no source twice."""
    chance = random.Random(f"dates/{name}")
    writers = list(_date_writers(name, locale))
    pairs: dict[str, dict[str, str]] = {split: {} for split in PAIRS_A_LANGUAGE}
    while any(len(pairs[split]) < count for split, count in PAIRS_A_LANGUAGE.items()):
        day = _FIRST_DAY + datetime.timedelta(chance.randrange((_LAST_DAY - _FIRST_DAY).days + 1))
        split = _split_of(day)
        write, has_short_year = chance.choice(writers)
        if len(pairs[split]) == PAIRS_A_LANGUAGE[split]:
            continue
        if has_short_year and not 1970 <= day.year <= 2069:  # two digits would be ambiguous
            continue
        source = f"<{name.replace('_', '-')}> {write(day)}"
        pairs[split][source] = day.isoformat()
    return {
        split: [f"{source}\t{target}\n" for source, target in found.items()]
        for split, found in pairs.items()
    }


def _date_writers(
    name: str, locale: "Locale"
) -> Iterator[tuple[Callable[[datetime.date], str], bool]]:
    """Yield each way to write a date, and whether it has a year of two digits."""
    from babel.dates import parse_pattern

    patterns = [locale.date_formats[style] for style in _FORMATS]
    patterns += [parse_pattern(locale.datetime_skeletons[s]) for s in _SKELETONS if s in locale.datetime_skeletons]  # fmt: skip
    for pattern in patterns:
        has_short_year = "yy" in pattern.pattern and "yyyy" not in pattern.pattern
        yield partial(_write, pattern.apply, locale, ""), has_short_year
        if "MMM" in pattern.pattern and "E" not in pattern.pattern:
            for prefix in _PREFIXES.get(name, ()):
                yield partial(_write, pattern.apply, locale, prefix), has_short_year


def _write(
    apply: Callable[[datetime.date, "Locale"], str],
    locale: "Locale",
    prefix: str,
    day: datetime.date,
) -> str:
    # CLDR has narrow and unbreakable spaces where a person types a plain one.
    return prefix + " ".join(apply(day, locale).split())


def _split_of(day: datetime.date) -> str:
    digest = hashlib.sha256(f"{_SALT}/{day.isoformat()}".encode()).digest()
    return {0: "test", 1: "valid"}.get(digest[0] % 10, "train")
