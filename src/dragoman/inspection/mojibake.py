"""Encoding faults: text that was decoded by the wrong table, and U+FFFD in the place of lost text."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dragoman.inspection.characters import NUM_CODES, read_codes
from dragoman.inspection.finding import (
    MOST_EXAMPLES,
    Finding,
    count_share,
    show_row,
    show_text,
)
from dragoman.inspection.profile import REPLACEMENT, Profile
from dragoman.inspection.rows import SplitRows

# Tables by which UTF-8 is read by mistake: those that ftfy undoes.
_ENCODINGS = ("latin-1", "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1257", "iso8859-2", "mac_roman", "cp437")  # fmt: skip
# The bytes of a character in UTF-8: the first, by how many there are (two, three, four); the others.
_LEADS = (range(0xC2, 0xE0), range(0xE0, 0xF0), range(0xF0, 0xF5))
_REST = range(0x80, 0xC0)


def find_mojibake(splits: Mapping[str, SplitRows]) -> Iterator[Finding]:
    """Find rows that ftfy holds for wrongly decoded, and can repair."""
    for rows in splits.values():
        repaired: dict[int, tuple[str, str]] = {}
        for side in ("source", "target"):
            for i, text in _repair(rows.side(side)):
                repaired.setdefault(i, (side, text))
        if repaired:
            yield Finding(
                kind="mojibake",
                title=f"wrongly decoded text in {rows.shown}",
                severity="warning",
                count=len(repaired),
                told=f"{count_share(len(repaired), len(rows))} of {rows.shown} look as if UTF-8 had been "
                "read by another table",
                remedy="make the files anew from where they came, read as UTF-8; or repair them, "
                "as `ftfy FILE` does",
                examples=tuple(
                    show_row(rows, i, note=f"should be: {show_text(repaired[i][1])}")
                    for i in sorted(repaired)[:MOST_EXAMPLES]
                ),
            )


def find_replacements(
    splits: Mapping[str, SplitRows], profiles: Mapping[str, Profile]
) -> Iterator[Finding]:
    """Find rows with U+FFFD, which stands for text that could not be decoded."""
    for rows in splits.values():
        found = np.unique(
            np.concatenate([profile.find(rows.name, REPLACEMENT) for profile in profiles.values()])
        )
        if len(found):
            yield Finding(
                kind="replacement_characters",
                title=f"lost text in {rows.shown}",
                severity="warning",
                count=len(found),
                told=f"{count_share(len(found), len(rows))} of {rows.shown} have U+FFFD (\ufffd), which a "
                "program put where it could not decode the text",
                remedy="make the files anew from where they came, in the right encoding; the text is "
                "not in these any more",
                examples=tuple(show_row(rows, int(i), at="\ufffd") for i in found[:MOST_EXAMPLES]),
            )


def _repair(texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the rows that are likely mojibake, and what they should be."""
    from ftfy import fix_encoding
    from ftfy.badness import badness

    for i in _find_suspects(texts):
        text = texts[i]
        if not badness(text):
            continue
        fixed = fix_encoding(text)
        if len(fixed) < len(text) and badness(fixed) < badness(text):
            yield i, fixed


def _find_suspects(texts: Sequence[str]) -> Iterator[int]:
    """Yield the rows where neighbours could be the bytes of one UTF-8 character, in some table."""
    leads, rest = _make_tables()
    for first, codes, starts in read_codes(texts):
        others = rest[codes]
        others[starts] = 0  # what goes before it is of another row
        seconds = np.flatnonzero(others)
        alike = leads[:, codes[seconds - 1]] & others[seconds]  # (3, seconds): tables, as bits
        for length in (3, 4):
            places = np.minimum(seconds + length - 2, len(codes) - 1)
            alike[length - 2 :] &= others[places]
        hits = seconds[np.any(alike, axis=0)]
        rows = np.unique(np.searchsorted(starts, hits, side="right")) - 1
        yield from (int(first + i) for i in rows)


def _make_tables() -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return for each code point the encodings, a bit each, in which it is such a byte.

    (3, NUM_CODES): the first of a UTF-8 character of two, three and four bytes; (NUM_CODES,): one of
    the others.
    """
    leads, rest = np.zeros((3, NUM_CODES), np.uint16), np.zeros(NUM_CODES, np.uint16)
    tables = [*zip(leads, _LEADS, strict=True), (rest, _REST)]
    for bit, encoding in enumerate(_ENCODINGS):
        for table, numbers in tables:
            for number in numbers:
                try:
                    character = bytes([number]).decode(encoding)
                except UnicodeDecodeError:  # a hole of the table: read as a control character
                    character = chr(number)
                table[ord(character)] |= 1 << bit
    # In Mac Roman the first bytes are quotes and dashes, which stand before letters everywhere.
    for character in "«»…–—“”‘’\u00a0":
        leads[:, ord(character)] &= ~np.uint16(1 << _ENCODINGS.index("mac_roman"))
    return leads, rest
