"""Confidence intervals of scores, from resampled rows.

The percentiles of a plain bootstrap are too narrow where few rows hold all the errors: with 100
rows, of which 7 are wrong, they hold the true score 90% of the time instead of 95%
(benchmarks/intervals.py). So the difference of a resampled score is taken in units of its standard
error (bootstrap-t); proportions have Wilson's interval. Where fewer than ten rows are wrong, or
right, no resampling shows how much worse, or better, other rows may be: then only proportions have
an interval. So of 100 test sets at most 5 show an interval that misses the true score; the few
unlucky sets with ten wrong rows where seven are expected are among those.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from dragoman.evaluation.metrics import Metric, Statistics
from dragoman.settings import EvaluationSettings

_CHUNK_NUMBERS = 2_000_000  # counts held in memory: 16 MB
_LEAST_ERROR = 0.1  # of a resample, as a fraction of the error of all rows
_FEWEST_ROWS = 10  # wrong ones, and right ones, for an interval


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score with its interval, which holds the score of many more rows of the same kind.

    Without `low` and `high`, too few rows are wrong, or right, for an interval.
    """

    value: float
    low: float | None = None
    high: float | None = None


def estimate_all(
    metrics: Sequence[Metric],
    statistics: Mapping[str, Statistics],
    settings: EvaluationSettings | None = None,
) -> dict[str, Interval]:
    """Return the score of each metric by name, with its interval.

    `statistics`: by the name of the metric, of the same N > 0 rows: (N, k).

    Time grows with rows times resamples, memory with the rows.

    Source: Efron and Tibshirani 1993, chapter 12.5 (bootstrap-t), with the standard error of each
    resample from the influence of each row, as the jackknife of all rows gives it.
    """
    settings = settings or EvaluationSettings()
    level = settings.confidence_level
    arrays: dict[int, Statistics] = {}  # side by side, each array once
    influences: dict[str, Statistics] = {}
    for metric in metrics:
        rows = statistics[metric.name]
        if metric.is_proportion or not has_enough_rows(metric, rows):
            continue
        influence = _find_influence(metric.from_sums, rows)
        if influence.any():
            influences[metric.name] = np.stack([influence, influence**2], axis=1)
            arrays[id(rows)] = rows
            arrays[id(influences[metric.name])] = influences[metric.name]
    sums: dict[int, Statistics] = {}
    if arrays:
        stacked = np.concatenate(list(arrays.values()), axis=1)  # (N, k)
        generator = np.random.default_rng(settings.seed)
        counts = draw_counts(len(stacked), settings.resamples, generator)
        joined = np.concatenate([chunk @ stacked for chunk in counts])  # (resamples, k)
        ends = np.cumsum([array.shape[1] for array in arrays.values()])[:-1]
        sums = dict(zip(arrays, np.split(joined, ends, axis=1), strict=True))
    found = {}
    for metric in metrics:
        rows = statistics[metric.name]
        value = float(metric.from_sums(rows.sum(axis=0)))
        if metric.is_proportion:
            low, high = bound_share(value / 100 * len(rows), len(rows), level)
            low, high = 100 * low, 100 * high
        elif metric.name in influences:
            resampled = metric.from_sums(sums[id(rows)])
            moments = sums[id(influences[metric.name])] / len(rows)
            low, high = _bound_by_students(value, resampled, moments, len(rows), level)
        else:
            found[metric.name] = Interval(value=value)
            continue
        most = 100.0 if metric.is_higher_better else math.inf
        low, high = max(0.0, min(low, value)), max(value, min(most, high))
        found[metric.name] = Interval(value=value, low=low, high=high)
    return found


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
    """Yield 1 or 0 for each row, by a fair coin, in each resample, in chunks: (chunk, num_rows)."""
    most = max(1, _CHUNK_NUMBERS // num_rows)
    for start in range(0, resamples, most):
        size = (min(most, resamples - start), num_rows)
        yield generator.integers(0, 2, size=size).astype(np.float64)


def bound_share(hits: float, rows: float, level: float) -> tuple[float, float]:
    """Return the interval of a share, of which `hits` of `rows` were seen; in [0, 1].

    Of 0 in 50 it is 0 to 0.071.

    Source: Wilson 1927; of the short formulas the one that covers best (Brown et al. 2001).
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = hits / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    spread = math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    half = z * spread / (1 + z * z / rows)
    return max(0.0, middle - half), min(1.0, middle + half)


def has_enough_rows(metric: Metric, rows: Statistics) -> bool:
    """Whether ten rows are wrong, at least in part, and ten are right, at least in part."""
    scores = metric.from_sums(rows)  # (N,)
    best, worst = (100.0, 0.0) if metric.is_higher_better else (0.0, 100.0)
    num_wrong = np.count_nonzero(np.abs(scores - best) > 1e-9)
    is_better = scores > worst + 1e-9 if metric.is_higher_better else scores < worst - 1e-9
    return bool(min(num_wrong, np.count_nonzero(is_better)) >= _FEWEST_ROWS)


def _find_influence(from_sums: Callable[[Statistics], Statistics], rows: Statistics) -> Statistics:
    """Return by how much the score rises, times N, with one more row like each: (N,)."""
    without = from_sums(rows.sum(axis=0) - rows)
    influence = (len(rows) - 1) * (without.mean() - without)
    # Rounding errors are no influence.
    return np.where(np.abs(influence) > 1e-9 * len(rows), influence, 0.0)


def _bound_by_students(
    value: float, resampled: Statistics, moments: Statistics, num_rows: int, level: float
) -> tuple[float, float]:
    """Return the interval by the differences of the resampled scores, in standard errors.

    `moments`: means of the influence and of its square in each resample, (resamples, 2). Over all
    rows the first is zero, and the second the square of the error, times N.
    """
    whole = math.sqrt(np.mean(moments[:, 1]) / num_rows)
    error = np.sqrt(np.maximum(0.0, moments[:, 1] - moments[:, 0] ** 2) / num_rows)
    # A resample without the few rows that differ from the others cannot estimate the error.
    students = (resampled - value) / np.maximum(error, _LEAST_ERROR * whole)
    tails = (0.5 - level / 2, 0.5 + level / 2)
    low, high = np.quantile(students, tails, method="nearest")
    return value - whole * float(high), value - whole * float(low)
