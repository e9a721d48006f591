"""Thresholds of confidence with a promised precision: of the kept rows, so many are exact."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dragoman.model_folder.calibration import Threshold

PRECISIONS = (0.9, 0.95, 0.99)
_STEPS = 100  # thresholds are tried at each hundredth of the rows
_NEGLIGIBLE = 40.0  # nats


def choose_thresholds(
    confidence: NDArray[np.float64],
    is_exact: NDArray[np.bool_],
    *,
    precisions: Sequence[float] = PRECISIONS,
    level: float = 0.95,
) -> list[Threshold]:
    """Return the lowest threshold for each of `precisions`, where one can be promised.

    Of other rows of the same kind, those above the threshold are exact at least as often as its
    precision. For each precision this fails with probability 1 - `level` at most. So more of the
    rows at hand must be exact than the precision: for 0.95, all of 59 rows, or 966 of 1,000. The
    bound is the one-sided one of Clopper and Pearson 1934.

    The lowest of many thresholds that pass would be lucky more often than each of them. So they are
    tested in a fixed order, from the most confident rows down, until one fails (Bauer 1991: then
    none needs a correction). An early error among few rows would end this too soon, so it is
    repeated from twice, four times, ... the rows on; these few starts share the 1 - `level`
    (Angelopoulos et al. 2021, "Learn then Test", section 2.3).

    Args:
        confidence: (N,); a row of confidence 0 is never kept.
        is_exact: (N,).
    """
    values, counts, rights = count_from_the_top(confidence, is_exact)
    values = values[values > 0.0]
    kept = np.cumsum(counts)[: len(values)]
    right = np.cumsum(rights)[: len(values)]
    found = []
    for precision in precisions:
        place = _find_lowest(kept, right, precision, 1.0 - level)
        if place is not None:
            found.append(
                Threshold(
                    precision=precision,
                    threshold=float(values[place]),
                    coverage=float(kept[place] / len(confidence)),
                    exact=float(right[place] / kept[place]),
                )
            )
    return found


def count_from_the_top(
    confidence: NDArray[np.float64], is_exact: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct confidences, falling, with the number of their rows and exact rows."""
    values, places = np.unique(-confidence, return_inverse=True)
    counts = np.bincount(places, minlength=len(values))
    rights = np.bincount(places[is_exact], minlength=len(values))
    return -values, counts, rights


def is_sure(num_right: int, num_kept: int, precision: float, chance: float) -> bool:
    """Return whether the lower bound of Clopper and Pearson is `precision` or more.

    Its level is 1 - `chance`: rows with a lower precision would have so many right ones with a
    probability below `chance`.
    """
    num_wrong = num_kept - num_right
    if num_wrong > num_kept * (1.0 - precision):  # the observed fraction is less
        return False
    log_chances: list[float] = []
    for i in range(num_wrong, -1, -1):  # each is less likely than the one before
        log_chances.append(
            math.lgamma(num_kept + 1) - math.lgamma(i + 1) - math.lgamma(num_kept - i + 1)
            + i * math.log1p(-precision) + (num_kept - i) * math.log(precision)
        )  # fmt: skip
        if log_chances[-1] < log_chances[0] - _NEGLIGIBLE:
            break
    total = sum(math.exp(one - log_chances[0]) for one in log_chances)
    return log_chances[0] + math.log(total) <= math.log(chance)


def _find_lowest(
    kept: NDArray[np.int64], right: NDArray[np.int64], precision: float, chance: float
) -> int | None:
    """Return the last index, that of the most rows kept, with a promise; None: there is none."""
    if not len(kept):
        return None
    num_rows = int(kept[-1])
    starts = _choose_starts(num_rows, precision, chance)
    step = max(1, num_rows // _STEPS)
    best: int | None = None
    for start in starts:
        wanted = [*range(start, num_rows, step), num_rows]
        for place in np.unique(np.searchsorted(kept, wanted)).tolist():
            if not is_sure(int(right[place]), int(kept[place]), precision, chance / len(starts)):
                break
            best = place if best is None else max(best, place)
    return best


def _choose_starts(num_rows: int, precision: float, chance: float) -> list[int]:
    """Return the numbers of rows to start at: the fewest that can pass, if all exact, doubled."""
    starts: list[int] = []
    while True:
        share = chance / (len(starts) + 1)
        fewest = math.ceil(math.log(share) / math.log(precision))
        more = [fewest << times for times in range(len(starts) + 1)]
        if more[-1] > num_rows:
            return starts
        starts = more
