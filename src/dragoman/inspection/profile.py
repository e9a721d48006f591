"""The characters of one side: how often each stands in each split, and what is in each row."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dragoman.inspection.characters import (
    count_characters,
    find_script,
    join_verdicts,
    judge_characters,
)
from dragoman.inspection.hidden import is_suspect
from dragoman.inspection.rows import SplitRows

HIDDEN: Final = 1  # a control or format character, which may be in its place
REPLACEMENT: Final = 2  # U+FFFD
UNSETTLED: Final = 4  # a mark, a jamo, or another character that has a second spelling
_FIRST_SCRIPT = 8  # bits from here on: one a script
_MOST_SCRIPTS = 64 - _FIRST_SCRIPT


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One side. `counts` (NUM_CODES,) and `flags` (N,) are by split; `scripts` gives a bit each."""

    side: str
    counts: Mapping[str, NDArray[np.int64]]
    flags: Mapping[str, NDArray[np.uint64]]
    scripts: Mapping[str, int]

    @property
    def all_counts(self) -> NDArray[np.int64]:
        """How often each code point stands in all splits, (NUM_CODES,)."""
        return _add(self.counts)

    def find(self, split: str, flag: int) -> NDArray[np.int64]:
        """Return the rows of a split that have any of the bits of `flag`."""
        return np.flatnonzero(self.flags[split] & np.uint64(flag))


def make_profile(splits: Mapping[str, SplitRows], side: str) -> Profile:
    """Return the profile of "source" or "target" over all splits."""
    counts = {name: count_characters(rows.side(side)) for name, rows in splits.items()}
    total = _add(counts)
    letters: dict[str, int] = {}
    for code in np.flatnonzero(total):
        if script := find_script(chr(code)):
            letters[script] = letters.get(script, 0) + int(total[code])
    frequent = sorted(letters, key=lambda script: -letters[script])[:_MOST_SCRIPTS]
    scripts = {script: 1 << _FIRST_SCRIPT + place for place, script in enumerate(frequent)}

    def judge(character: str) -> int:
        verdict = scripts.get(find_script(character), 0)
        if is_suspect(character):
            verdict |= HIDDEN
        if character == "\ufffd":
            verdict |= REPLACEMENT
        if _is_unsettled(character):
            verdict |= UNSETTLED
        return verdict

    table = judge_characters(total, judge)
    flags = {name: join_verdicts(rows.side(side), table) for name, rows in splits.items()}
    return Profile(side=side, counts=counts, flags=flags, scripts=scripts)


def _add(counts: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.asarray(np.sum(list(counts.values()), axis=0), np.int64)


def _is_unsettled(character: str) -> bool:
    return (
        unicodedata.category(character)[0] == "M"
        or "\u1160" <= character <= "\u11ff"
        or not unicodedata.is_normalized("NFC", character)
    )
