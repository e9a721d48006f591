"""Rows whose source looks like a target, and whose target like a source."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from dragoman.inspection.characters import read_codes
from dragoman.inspection.finding import Finding, count_share, show_rows
from dragoman.inspection.rows import SplitRows

_NUM_BUCKETS = 1 << 16  # of pairs of neighbours, by a hash
_SMOOTHING = 0.5
_MOST_CHARACTERS = 20_000_000  # of each side that the statistics are made of
# Chosen on 22 real sets with one row in a thousand swapped: none of 1.1 million rows, but two of
# half a million short program texts, was named wrongly; 27 of 29 captions were found.
_LEAST_EVIDENCE = 30.0  # nats, over the whole row
_LEAST_DIFFERENCE = 0.1  # nats a character, of the median row: else the sides are alike
_MOST_SWAPPED = 0.1  # of the training rows: more is how the data are


def find_swapped(splits: Mapping[str, SplitRows]) -> Iterator[Finding]:
    """Find likely swapped rows by how often neighbouring characters stand on each side.

    Statistics are of the training rows; where both sides are written alike nothing is found. A
    whole file of validation or test pairs may be swapped.
    """
    train = splits["train"]
    if not len(train):
        return
    difference = np.log(_count_pairs(train.sources)) - np.log(_count_pairs(train.targets))
    evidence = difference.astype(np.float32)
    usual = _find_usual(train, evidence)
    if min(usual) < _LEAST_DIFFERENCE:
        return
    for name, rows in splits.items():
        found = _find_in(rows, evidence, usual)
        if len(found) and (name != "train" or len(found) <= _MOST_SWAPPED * len(rows)):
            yield Finding(
                kind="swapped",
                title=f"likely swapped columns in {rows.shown}",
                severity="warning",
                count=len(found),
                told=f"{count_share(len(found), len(rows))} of {rows.shown} have a source that is written "
                "like a target, and a target like a source",
                remedy="look at these rows, and exchange their columns",
                examples=show_rows(rows, found),
            )


def _find_usual(rows: SplitRows, evidence: NDArray[np.float32]) -> tuple[float, float]:
    """Return by how many nats a character the median source, and target, is known for what it is."""
    source, source_size = _weigh(rows.sources, evidence)
    target, target_size = _weigh(rows.targets, evidence)
    return float(np.median(source / source_size)), float(np.median(-target / target_size))


def _find_in(
    rows: SplitRows, evidence: NDArray[np.float32], usual: tuple[float, float]
) -> NDArray[np.int64]:
    source, source_size = _weigh(rows.sources, evidence)
    target, target_size = _weigh(rows.targets, evidence)
    return np.flatnonzero(
        (source - target < -_LEAST_EVIDENCE)
        & (source / source_size < -0.5 * usual[1])
        & (-target / target_size < -0.5 * usual[0])
    )


def _count_pairs(texts: list[str]) -> NDArray[np.float64]:
    """Return the smoothed share of each bucket, (_NUM_BUCKETS,)."""
    counts = np.full(_NUM_BUCKETS, _SMOOTHING)
    total = 0
    for _, codes, starts in read_codes(texts):
        counts += np.bincount(_hash_pairs(codes, starts), minlength=_NUM_BUCKETS)
        total += len(codes)
        if total > _MOST_CHARACTERS:
            break
    return np.asarray(counts / counts.sum(), np.float64)


def _weigh(
    texts: list[str], evidence: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the evidence for a source in each text, in nats, and its characters, (N,) each."""
    sums = np.zeros(len(texts))
    for first, codes, starts in read_codes(texts):
        weights = evidence[_hash_pairs(codes, starts)]
        sums[first : first + len(starts)] = np.add.reduceat(weights, starts)
    return sums, np.fromiter(map(len, texts), np.int64, len(texts))


def _hash_pairs(codes: NDArray[np.uint32], starts: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the bucket of each character with the one before it; the first has none before it."""
    before = np.empty_like(codes)
    before[1:] = codes[:-1]
    before[starts] = 0
    mixed = (before * np.uint32(0x9E3779B1)) ^ (codes * np.uint32(0x85EBCA6B))
    return (mixed >> np.uint32(7)) % np.uint32(_NUM_BUCKETS)
