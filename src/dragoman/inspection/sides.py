"""Sides that do not belong together: swapped columns, and very unequal lengths."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dragoman.inspection.findings import Finding, describe_share, show_rows
from dragoman.inspection.lengths import count_characters
from dragoman.inspection.rows import SplitRows

_NUM_BUCKETS = 1 << 16  # character bigrams are counted by a hash
_SMOOTHING = 0.5
_MOST_CHARACTERS = 20_000_000  # of each side, that the bigrams are counted on
# Chosen on 22 real sets with one row in a thousand swapped: none of 1.1 million rows, but two of
# half a million short program texts, was named wrongly; 27 of 29 captions were found.
_LEAST_EVIDENCE = 30.0  # nats, over the whole row
_LEAST_DIFFERENCE = 0.1  # nats per character, of the median row: below, the sides are alike
_MOST_SWAPPED = 0.1  # of the training rows: more is typical of the data
_CHUNK_ROWS = 4096
# Sides of unequal lengths.
_LONG = 60  # characters of the longer side: short texts may have any ratio
_FEWEST_ROWS = 200
_MOST_SPREAD = 0.5  # standard deviation of the logarithm of the ratio: above, it says nothing
_LEAST_FACTOR = 6.0  # times longer or shorter than usual
_LEAST_DEVIATIONS = 6.0
_MOST_ODD = 0.005  # of the rows: more is typical of the data


def find_swapped(files: Mapping[str, SplitRows]) -> Iterator[Finding]:
    """Find rows whose sides are likely swapped, by the log-odds of their character bigrams.

    Bigrams are counted on the training rows; where both sides look alike, nothing is found. A
    whole file of validation or test pairs may be swapped.
    """
    train = files["train"]
    difference = np.log(_count_bigrams(train.sources)) - np.log(_count_bigrams(train.targets))
    evidence = difference.astype(np.float32)
    usual_source = float(np.median(_weigh(train.sources, evidence)[1]))
    usual_target = float(np.median(-_weigh(train.targets, evidence)[1]))
    if min(usual_source, usual_target) < _LEAST_DIFFERENCE:
        return
    for name, rows in files.items():
        source, source_mean = _weigh(rows.sources, evidence)
        target, target_mean = _weigh(rows.targets, evidence)
        found = np.flatnonzero(
            (source - target < -_LEAST_EVIDENCE)
            & (source_mean < -0.5 * usual_target)
            & (-target_mean < -0.5 * usual_source)
        )
        if len(found) and (name != "train" or len(found) <= _MOST_SWAPPED * len(rows)):
            yield Finding(
                kind="swapped",
                title=f"likely swapped columns in {rows.shown}",
                severity="warning",
                count=len(found),
                message=f"{describe_share(len(found), rows)} have a source that looks like a "
                "target, and a target that looks like a source",
                remedy="check these rows, and swap their columns",
                examples=show_rows(rows, found),
            )


def find_odd_lengths(files: Mapping[str, SplitRows]) -> Iterator[Finding]:
    """Find long rows with sides of very unequal lengths, where those of other rows are similar."""
    for rows in files.values():
        if len(rows) < _FEWEST_ROWS:
            continue
        source, target = count_characters(rows.sources), count_characters(rows.targets)
        ratio = np.log(target / source)
        usual = np.median(ratio)
        deviation = 1.4826 * np.median(np.abs(ratio - usual))
        longest = np.maximum(source * np.exp(usual), target)
        least = max(np.log(_LEAST_FACTOR), _LEAST_DEVIATIONS * deviation)
        found = np.flatnonzero((longest >= _LONG) & (np.abs(ratio - usual) > least))
        if deviation > _MOST_SPREAD or not 0 < len(found) <= max(1, _MOST_ODD * len(rows)):
            continue
        yield Finding(
            kind="odd_lengths",
            title=f"sides of very unequal lengths in {rows.shown}",
            severity="note",
            count=len(found),
            message=f"{describe_share(len(found), rows)} have a target more than "
            f"{np.exp(least):.0f} times longer or shorter than expected from the source (usual: "
            f"{np.exp(usual):.2f} times the source)",
            remedy="check whether the sides belong together, or one is truncated",
            examples=show_rows(rows, found),
        )


def _count_bigrams(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the smoothed frequency of each bucket, (_NUM_BUCKETS,)."""
    counts = np.full(_NUM_BUCKETS, _SMOOTHING)
    total = 0
    for buckets, _ in _read_bigrams(texts):
        counts += np.bincount(buckets, minlength=_NUM_BUCKETS)
        total += len(buckets)
        if total > _MOST_CHARACTERS:
            break
    return np.asarray(counts / counts.sum(), np.float64)


def _weigh(
    texts: Sequence[str], evidence: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the evidence that each text is a source, in nats, in all and per character, (N,) each."""
    sums = [np.add.reduceat(evidence[buckets], starts) for buckets, starts in _read_bigrams(texts)]
    total = np.concatenate(sums).astype(np.float64)
    return total, total / count_characters(texts)


def _read_bigrams(
    texts: Sequence[str],
) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.int64]]]:
    """Yield, for some texts at a time, the bucket of each bigram, and where each text starts.

    A bigram is a character and the one before it; the first one has none before it.
    """
    for first in range(0, len(texts), _CHUNK_ROWS):
        rows = texts[first : first + _CHUNK_ROWS]
        lengths = count_characters(rows)
        starts = np.cumsum(lengths) - lengths
        codes = np.frombuffer("".join(rows).encode("utf-32-le"), np.uint32)
        before = np.empty_like(codes)
        before[1:] = codes[:-1]
        before[starts] = 0
        mixed = (before * np.uint32(0x9E3779B1)) ^ (codes * np.uint32(0x85EBCA6B))
        yield (mixed >> np.uint32(7)) % np.uint32(_NUM_BUCKETS), starts
