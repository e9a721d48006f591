"""How far a score may be from that of more rows of the same kind: intervals from resampled rows.

The percentiles of a bootstrap are too narrow where few rows hold all the errors: 90% in the place
of 95% with 100 rows, of which 7 are wrong (benchmarks/intervals.py). So what is resampled is the score's difference in units
of its standard error (bootstrap-t); proportions have Wilson's interval, and where next to no row is
wrong, or right, the share of such rows is bounded in the same way. None is of no width, unless the
score can be no other: that 50 of 50 rows are right does not say that all are.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from dragoman.evaluation.metrics import Metric, Statistics
from dragoman.settings import EvaluationSettings

_CHUNK_NUMBERS = 2_000_000  # of counts at once: 16 MB
_LEAST_ERROR = 0.1  # of a resample, in parts of the error of all rows
_FEW_ROWS = 10  # wrong ones, or right ones, below which their share is bounded


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value, and the interval that holds what it would be over many more rows."""

    value: float
    low: float
    high: float


def estimate(
    metric: Metric, statistics: Statistics, settings: EvaluationSettings | None = None
) -> Interval:
    """Return the score of the rows with these `statistics` (N, k), N > 0, with its interval."""
    return estimate_all([metric], {metric.name: statistics}, settings)[metric.name]


def estimate_all(
    metrics: Sequence[Metric],
    statistics: Mapping[str, Statistics],
    settings: EvaluationSettings | None = None,
) -> dict[str, Interval]:
    """Return the score of each metric by name, with its interval.

    Args:
        metrics: What to estimate.
        statistics: By the name of the metric, of the same N > 0 rows: (N, k).
        settings: Level, number of resamples, and seed.

    The time grows with rows times resamples, the memory with the rows alone.

    Source: Efron and Tibshirani 1993, chapter 12.5 (bootstrap-t), with the standard error of each
    resample from the influence of each row, as the jackknife of all rows gives it.
    """
    settings = settings or EvaluationSettings()
    level = settings.confidence_level
    columns = _share_columns(metrics, statistics)
    students = {}
    for metric in metrics:
        rows = statistics[metric.name]
        if not metric.is_proportion and len(rows) > 1:
            influence = _find_influence(metric.combine, rows)
            if influence.any():
                students[metric.name] = columns.add(np.stack([influence, influence**2], axis=1))
    sums = None
    if students:
        sums = resample_sums(columns.join(), settings.resamples, settings.seed)
    found = {}
    for metric in metrics:
        rows = statistics[metric.name]
        value = float(metric.combine(rows.sum(axis=0)))
        if metric.is_proportion:
            low, high = bound_share(value / 100 * len(rows), len(rows), level)
            low, high = 100 * low, 100 * high
        elif metric.name in students and sums is not None:
            resampled = metric.combine(sums[:, columns.place_of(rows)])
            moments = sums[:, students[metric.name]] / len(rows)
            low, high = _bound_by_students(value, resampled, moments, len(rows), level)
            low, high = _bound_by_few_rows(metric, rows, (low, high), level)
        else:
            low, high = _bound_by_few_rows(metric, rows, None, level)
        most = 100.0 if metric.is_higher_better else math.inf
        low, high = max(0.0, min(low, value)), min(most, high)
        found[metric.name] = Interval(value=value, low=low, high=max(high, value))
    return found


def resample_sums(statistics: Statistics, resamples: int, seed: int) -> Statistics:
    """Return sums over N rows drawn with replacement from `statistics` (N, k): (resamples, k)."""
    counts = draw_counts(len(statistics), resamples, np.random.default_rng(seed))
    return np.concatenate([chunk @ statistics for chunk in counts])


def draw_counts(
    num_rows: int, resamples: int, generator: np.random.Generator
) -> Iterator[Statistics]:
    """Yield how often each row is drawn in each resample, in chunks: (chunk, num_rows)."""
    most = max(1, _CHUNK_NUMBERS // num_rows)
    for start in range(0, resamples, most):
        size = min(most, resamples - start)
        drawn = generator.integers(0, num_rows, size=(size, num_rows))
        drawn += np.arange(size)[:, None] * num_rows
        counts = np.bincount(drawn.ravel(), minlength=size * num_rows)
        yield counts.reshape(size, num_rows).astype(np.float64)


def draw_halves(
    num_rows: int, resamples: int, generator: np.random.Generator
) -> Iterator[Statistics]:
    """Yield 1 or 0 for each row, as a coin falls, in each resample, in chunks: (chunk, num_rows)."""
    most = max(1, _CHUNK_NUMBERS // num_rows)
    for start in range(0, resamples, most):
        size = (min(most, resamples - start), num_rows)
        yield generator.integers(0, 2, size=size).astype(np.float64)


def bound_share(hits: float, rows: float, level: float) -> tuple[float, float]:
    """Return between what a share may lie, of which `hits` of `rows` were seen; in [0, 1].

    Of 0 in 50 it is 0 to 0.071.

    Source: Wilson 1927; of the short formulas the one that covers best (Brown et al. 2001).
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = hits / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    spread = math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    half = z * spread / (1 + z * z / rows)
    return max(0.0, middle - half), min(1.0, middle + half)


def _find_influence(combine: Callable[[Statistics], Statistics], rows: Statistics) -> Statistics:
    """Return by how much the score rises, times N, with one more row like each: (N,)."""
    without = combine(rows.sum(axis=0) - rows)
    influence = (len(rows) - 1) * (without.mean() - without)
    # What rounding leaves is no influence.
    return np.where(np.abs(influence) > 1e-9 * len(rows), influence, 0.0)


def _bound_by_students(
    value: float, resampled: Statistics, moments: Statistics, num_rows: int, level: float
) -> tuple[float, float]:
    """Return the limits by the differences of the resampled scores, in standard errors.

    `moments`: means of the influence and of its square in each resample, (resamples, 2). Of all
    rows the first is zero, and the second the square of the error, times N.
    """
    whole = math.sqrt(np.mean(moments[:, 1]) / num_rows)
    error = np.sqrt(np.maximum(0.0, moments[:, 1] - moments[:, 0] ** 2) / num_rows)
    # A resample without the few rows that differ from the others knows nothing of the error.
    students = (resampled - value) / np.maximum(error, _LEAST_ERROR * whole)
    tails = (0.5 - level / 2, 0.5 + level / 2)
    low, high = np.quantile(students, tails, method="nearest")
    return value - whole * float(high), value - whole * float(low)


def _bound_by_few_rows(
    metric: Metric, rows: Statistics, limits: tuple[float, float] | None, level: float
) -> tuple[float, float]:
    """Return `limits`, or, where few rows are wrong, or few have anything right, by how many may.

    The worse limit is then no worse than if the share of wrong rows were as high as it may be, and
    those that were not seen wholly wrong; the better limit likewise. Without `limits`, where all
    rows are alike, the others that were not seen are supposed to be wholly right, or wholly wrong.
    """
    sums = rows.sum(axis=0)
    if metric.suppose_right is None or metric.suppose_wrong is None:
        value = float(metric.combine(sums))
        return limits or (value, value)
    right, wrong = metric.suppose_right(rows), metric.suppose_wrong(rows)

    def suppose(other: Statistics, share: float) -> float:
        return float(metric.combine((1 - share) * sums + share * other.sum(axis=0)))

    is_wrong = (rows != right).any(axis=1)
    num_rows = max(1, int((is_wrong | (right != wrong).any(axis=1)).sum()))  # that say anything
    if limits is None:
        unseen = bound_share(0, num_rows, level)[1]
        supposed = sorted((suppose(right, unseen), suppose(wrong, unseen)))
        return supposed[0], supposed[1]
    sign = 1 if metric.is_higher_better else -1
    has_right = sign * (metric.combine(rows) - metric.combine(wrong)) > 0
    worse, better = limits[::sign]
    for is_rare, other in ((is_wrong, wrong), (has_right, right)):
        count = int(is_rare.sum())
        if count < _FEW_ROWS:
            bound = suppose(other, bound_share(count, num_rows, level)[1] - count / num_rows)
            if other is wrong:
                worse = sign * max(sign * worse, sign * bound)
            else:
                better = sign * min(sign * better, sign * bound)
    low, high = (worse, better)[::sign]
    return low, high


class _Columns:
    """Statistics of the same rows, side by side, each array once."""

    def __init__(self) -> None:
        self._arrays: list[Statistics] = []
        self._places: dict[int, slice] = {}
        self._width = 0

    def add(self, array: Statistics) -> slice:
        """Return where the columns of `array` stand."""
        if id(array) not in self._places:
            self._places[id(array)] = slice(self._width, self._width + array.shape[1])
            self._arrays.append(array)
            self._width += array.shape[1]
        return self._places[id(array)]

    def place_of(self, array: Statistics) -> slice:
        """Return where the columns of an `array` that was added stand."""
        return self._places[id(array)]

    def join(self) -> Statistics:
        """Return all of them: (N, width)."""
        return np.concatenate(self._arrays, axis=1)


def _share_columns(metrics: Sequence[Metric], statistics: Mapping[str, Statistics]) -> _Columns:
    columns = _Columns()
    for metric in metrics:
        if not metric.is_proportion:
            columns.add(statistics[metric.name])
    return columns
