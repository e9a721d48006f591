"""Letters of a foreign script: one within a word that only looks right, and whole rows of another."""

import re
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from dragoman.inspection.characters import find_script
from dragoman.inspection.finding import (
    MOST_EXAMPLES,
    Finding,
    count_share,
    show_row,
    show_rows,
)
from dragoman.inspection.profile import Profile
from dragoman.inspection.rows import SplitRows

_MIXED = ("Latn", "Cyrl", "Grek")
_WORD = re.compile(r"[^\W\d_]{3,}")
# What stands in the texts of programs is no part of a word: %s, \n, &amp;, {name}, <b>.
_CODES = re.compile(r"%[-+ #*0-9.$]*[a-zA-Z]|\\[a-zA-Z]|&\w+;|\{[^{}]*\}|<[^<>]*>|\$\w+")
# Letters that look like one of another of the three scripts, by their own script.
_LOOKALIKES = {
    "Latn": set("aceopxyijsABCEHKMOPTXYIJSZNVuv"),
    "Cyrl": set("асеорхуіјѕАВСЕНКМОРТХУІЈЅ"),
    "Grek": set("οινυΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"),
}
_MOST_MIXED = 0.05  # of the rows: more is a notation
_RARE = 0.002  # of the rows of a side: fewer are in a rare script
_FEWEST_ROWS = 1000


def find_mixed_words(
    splits: Mapping[str, SplitRows], profiles: Mapping[str, Profile]
) -> Iterator[Finding]:
    """Find words that have letters of two of Latin, Cyrillic and Greek that look alike."""
    for rows in splits.values():
        found: dict[int, str] = {}
        for profile in profiles.values():
            bits = np.zeros(len(rows), np.int64)
            for script in _MIXED:
                bits += (profile.flags[rows.name] & np.uint64(profile.scripts.get(script, 0))) > 0
            mixed = {
                int(i): word
                for i in np.flatnonzero(bits > 1)
                if (word := find_mixed_word(rows.side(profile.side)[i]))
            }
            if len(mixed) <= _MOST_MIXED * len(rows):
                found = mixed | found
        if found:
            yield Finding(
                kind="mixed_scripts",
                title=f"words of two scripts in {rows.shown}",
                severity="warning",
                count=len(found),
                told=f"{count_share(len(found), len(rows))} of {rows.shown} have a word with letters of "
                "another script that look like its own",
                remedy="write each word in one script: to a model these are rare, different words",
                examples=tuple(
                    show_row(rows, i, at=found[i], note=_spell(found[i]))
                    for i in sorted(found)[:MOST_EXAMPLES]
                ),
            )


def find_mixed_word(text: str) -> str:
    """Return the first word with a few letters that only look like its own script's; "" for none."""
    for match in _WORD.finditer(_CODES.sub(" ", text)):
        word = match[0]
        by_script: dict[str, list[str]] = {}
        for letter in word:
            by_script.setdefault(find_script(letter), []).append(letter)
        if len(by_script) != 2 or not by_script.keys() <= set(_MIXED):
            continue
        _, (script, few) = sorted(by_script.items(), key=lambda item: -len(item[1]))
        # Two scripts side by side, as in "TOCсервер", are meant: a fault has a letter or two, in the
        # case of the word.
        is_even = word in (word.lower(), word.upper(), word.title())
        if 3 * len(few) > len(word) or not is_even or not set(few) <= _LOOKALIKES[script]:
            continue
        # A foreign word with an ending of the sentence's language, as in "Windowsа", may be meant.
        if find_script(word[0]) == "Latn" and word.endswith("".join(few)):
            continue
        return word
    return ""


def find_rare_scripts(
    splits: Mapping[str, SplitRows], profiles: Mapping[str, Profile]
) -> Iterator[Finding]:
    """Find rows of which a whole side is in a script that few rows have."""
    found: dict[str, set[int]] = {name: set() for name in splits}
    scripts: set[str] = set()
    for profile in profiles.values():
        for name, indices in _find_rare(profile):
            found[name].update(indices.tolist())
            here = np.bitwise_or.reduce(profile.flags[name][indices])
            scripts |= {script for script, bit in profile.scripts.items() if int(here) & bit}
    for name, places in found.items():
        if places:
            rows = splits[name]
            yield Finding(
                kind="rare_scripts",
                title=f"texts in a rare script in {rows.shown}",
                severity="note",
                count=len(places),
                told=f"{count_share(len(places), len(rows))} of {rows.shown} have a side wholly in a script "
                f"that few others have ({', '.join(sorted(scripts))})",
                remedy="look whether they belong here: another language, or a wrong column",
                examples=show_rows(rows, sorted(places)),
            )


def _find_rare(profile: Profile) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield, for each split, the rows of one side that have letters of rare scripts only."""
    flags = np.concatenate(list(profile.flags.values()))
    if len(flags) < _FEWEST_ROWS:
        return
    rare, usual = np.uint64(0), np.uint64(0)
    for bit in map(np.uint64, profile.scripts.values()):
        if np.count_nonzero(flags & bit) <= _RARE * len(flags):
            rare |= bit
        else:
            usual |= bit
    for name, here in profile.flags.items():
        rows = np.flatnonzero((here & rare > 0) & (here & usual == 0))
        if len(rows):
            yield name, rows


def _spell(word: str) -> str:
    """Return the letters of the foreign script with their code points."""
    by_script: dict[str, list[str]] = {}
    for letter in word:
        by_script.setdefault(find_script(letter), []).append(letter)
    script, few = min(by_script.items(), key=lambda item: len(item[1]))
    shown = ", ".join(f"{letter} U+{ord(letter):04X}" for letter in dict.fromkeys(few))
    return f"{shown}: {script}"
