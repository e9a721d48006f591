"""Sides that do not belong together: rows of odd lengths, and stretches that are shifted by lines."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from dragoman.inspection.finding import Finding, count_share, show_rows
from dragoman.inspection.lengths import count_lengths
from dragoman.inspection.rows import SplitRows

_LONG = 60  # characters of the longer side: short texts may be of any ratio
_FEWEST_ROWS = 200
_MOST_SPREAD = 0.5  # of the logarithm of the ratio, as a standard deviation: else it tells nothing
_LEAST_FACTOR = 6.0  # times longer or shorter than usual
_LEAST_DEVIATIONS = 6.0
_MOST_ODD = 0.005  # of the rows: more is how the data are
_WINDOW = 200  # rows
_SHIFTS = (-2, -1, 1, 2)
_LEAST_CORRELATION = 0.6  # of the lengths, when shifted
_MOST_CORRELATION = 0.2  # as they stand


def find_odd_lengths(splits: Mapping[str, SplitRows]) -> Iterator[Finding]:
    """Find long rows whose sides are of very unequal lengths, where the others are alike."""
    for rows in splits.values():
        if len(rows) < _FEWEST_ROWS:
            continue
        source, target = count_lengths(rows.sources), count_lengths(rows.targets)
        ratio = np.log(target / source)
        usual = np.median(ratio)
        spread = 1.4826 * np.median(np.abs(ratio - usual))
        longest = np.maximum(source * np.exp(usual), target)
        least = max(np.log(_LEAST_FACTOR), _LEAST_DEVIATIONS * spread)
        found = np.flatnonzero((longest >= _LONG) & (np.abs(ratio - usual) > least))
        if spread > _MOST_SPREAD or not 0 < len(found) <= max(1, _MOST_ODD * len(rows)):
            continue
        yield Finding(
            kind="odd_lengths",
            title=f"sides of very unequal lengths in {rows.shown}",
            severity="note",
            count=len(found),
            told=f"{count_share(len(found), len(rows))} of {rows.shown} have a target more than "
            f"{np.exp(least):.0f} times longer or shorter than its source lets expect (usual: "
            f"{np.exp(usual):.2f} times the source)",
            remedy="look whether the sides belong together, or one is cut",
            examples=show_rows(rows, found),
        )


def find_shifted(splits: Mapping[str, SplitRows]) -> Iterator[Finding]:
    """Find stretches where lengths agree with those of the next or the last rows, not of their own."""
    for rows in splits.values():
        windows = _find_windows(rows)
        if len(windows) >= 2 or (len(windows) and len(rows) < 2 * _WINDOW):
            first = windows[0] * _WINDOW
            count = int(len(windows) * _WINDOW)
            yield Finding(
                kind="misaligned",
                title=f"likely shifted lines in {rows.shown}",
                severity="warning",
                count=count,
                told=f"in about {count:,} rows of {rows.shown}, from about line {rows.lines[first]:,} on, "
                "the targets fit the sources of lines nearby better than their own: a line is missing "
                "on one side",
                remedy="find the first wrong line, and put the missing one in",
                examples=show_rows(rows, range(int(first), int(first) + 3)),
            )


def _find_windows(rows: SplitRows) -> NDArray[np.int64]:
    """Return the numbers of the windows that are shifted."""
    num_windows = len(rows) // _WINDOW
    if not num_windows:
        return np.empty(0, np.int64)
    source = np.log(count_lengths(rows.sources))
    target = np.log(count_lengths(rows.targets))
    own = _correlate(source, target, num_windows)
    best = np.max([_correlate(source, np.roll(target, shift), num_windows) for shift in _SHIFTS], 0)
    return np.flatnonzero((own < _MOST_CORRELATION) & (best > _LEAST_CORRELATION))


def _correlate(
    left: NDArray[np.float64], right: NDArray[np.float64], num_windows: int
) -> NDArray[np.float64]:
    """Return the correlation within each window, (num_windows,); 0 where a side does not vary."""
    both = []
    for side in (left, right):
        windows = side[: num_windows * _WINDOW].reshape(num_windows, _WINDOW)
        both.append(windows - windows.mean(1, keepdims=True))
    norm = np.sqrt((both[0] ** 2).sum(1) * (both[1] ** 2).sum(1))
    return np.asarray((both[0] * both[1]).sum(1) / np.where(norm > 0, norm, np.inf), np.float64)
