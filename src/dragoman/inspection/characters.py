"""Characters of many texts at once: each distinct one is judged once, rows are folded in numpy."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

NUM_CODES = 0x110000
_CHUNK_ROWS = 16_384
_MOST_CHUNK_CHARACTERS = 1 << 22


def count_characters(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return how often each code point stands in `texts`, (NUM_CODES,)."""
    counts = np.zeros(NUM_CODES, np.int64)
    for _, codes, _ in read_codes(texts):
        found = np.bincount(codes)
        counts[: len(found)] += found
    return counts


def judge_characters(counts: NDArray[np.int64], judge: Callable[[str], int]) -> NDArray[np.uint64]:
    """Return a table with the verdict of `judge` on each character that is there."""
    table = np.zeros(NUM_CODES, np.uint64)
    for code in np.flatnonzero(counts):
        table[code] = judge(chr(code))
    return table


def join_verdicts(texts: Sequence[str], table: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the bits that any character of each text has in the table, (N,); no text is empty."""
    folded = np.zeros(len(texts), np.uint64)
    for first, codes, starts in read_codes(texts):
        folded[first : first + len(starts)] = np.bitwise_or.reduceat(table[codes], starts)
    return folded


def find_rows(texts: Sequence[str], table: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the indices of the texts with a character that the table marks."""
    return np.flatnonzero(join_verdicts(texts, table.astype(np.uint64)))


def read_codes(
    texts: Sequence[str],
) -> Iterator[tuple[int, NDArray[np.uint32], NDArray[np.int64]]]:
    """Yield, for some rows at a time: the first row, all code points, and where each row starts."""
    first = 0
    while first < len(texts):
        rows = texts[first : first + _CHUNK_ROWS]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ends = np.cumsum(lengths)
        if ends[-1] > _MOST_CHUNK_CHARACTERS:  # documents: fewer rows at a time
            kept = max(1, int(np.searchsorted(ends, _MOST_CHUNK_CHARACTERS)))
            rows, lengths, ends = rows[:kept], lengths[:kept], ends[:kept]
        codes = np.frombuffer("".join(rows).encode("utf-32-le"), np.uint32)
        yield first, codes, ends - lengths
        first += len(rows)


@cache
def find_script(character: str) -> str:
    """Return the four letters of the script of a letter, such as "Cyrl"; "" for what is no letter.

    A mark has the script of its letters, or none.
    """
    from fontTools import unicodedata as scripts  # type: ignore[import-untyped]

    if unicodedata.category(character)[0] not in "LM":
        return ""
    script = str(scripts.script(character))
    return "" if script in ("Zyyy", "Zinh", "Zzzz") else script
