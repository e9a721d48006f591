"""Chance in a comparison of two systems: rows drawn again, rows that change sides, other seeds.

Arrays begin with all runs: those of the first system, then those of the second.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from dragoman.evaluation.intervals import bound_share, draw_counts, draw_halves
from dragoman.evaluation.metrics import Metric, Statistics
from dragoman.settings import EvaluationSettings

_FEW_ROWS = 4  # that differ, below which a resample may well have none of them


def resample_scores(
    metrics: Sequence[Metric], statistics: Mapping[str, Statistics], settings: EvaluationSettings
) -> dict[str, Statistics]:
    """Return the scores of all runs on the same resampled rows: (runs, resamples)."""
    num_rows = next(iter(statistics.values())).shape[1]
    found: dict[str, list[Statistics]] = {metric.name: [] for metric in metrics}
    generator = np.random.default_rng(settings.seed)
    counts = draw_counts(num_rows, settings.resamples, generator)
    for sums in _weigh(_distinct(statistics), counts):
        for metric in metrics:
            found[metric.name].append(metric.combine(sums[id(statistics[metric.name])]))
    return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}


def swap_rows(
    metrics: Sequence[Metric],
    statistics: Mapping[str, Statistics],
    num_baseline: int,
    settings: EvaluationSettings,
) -> dict[str, Statistics]:
    """Return the differences of the scores when the systems swap some of their rows: (resamples,).

    If one system has more runs than the other, both are repeated until they have as many, which
    changes no mean.
    """
    num_runs, num_rows = next(iter(statistics.values())).shape[:2]
    pairs = np.arange(math.lcm(num_baseline, num_runs - num_baseline))
    first, second = pairs % num_baseline, num_baseline + pairs % (num_runs - num_baseline)
    gaps = {key: rows[second] - rows[first] for key, rows in _distinct(statistics).items()}
    found: dict[str, list[Statistics]] = {metric.name: [] for metric in metrics}
    generator = np.random.default_rng(settings.seed)
    swaps = draw_halves(num_rows, settings.resamples, generator)
    for moved in _weigh(gaps, swaps):
        for metric in metrics:
            key = id(statistics[metric.name])
            sums = statistics[metric.name].sum(axis=1)[:, None]  # (runs, 1, k)
            baseline = metric.combine(sums[first] + moved[key]).mean(axis=0)
            other = metric.combine(sums[second] - moved[key]).mean(axis=0)
            found[metric.name].append(other - baseline)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def draw_chance(
    scores: Statistics, resampled: Statistics, num_baseline: int, seed: int
) -> Statistics:
    """Return how far the difference of the mean scores may be off by chance: (resamples,).

    Of one run each it is the differences over resampled rows, less that over the rows themselves.
    With more runs an error of the means over seeds is added, in Student's t: of scores that have a
    variance of 0.8 among the runs of one system, pooled over both, with 3 and 3 runs it has the
    variance 0.8 * (1 / 3 + 1 / 3) and 3 + 3 - 2 = 4 degrees of freedom. As what a seed makes of
    these very rows is in both, it is taken off the former: drawing rows has raised the variance
    among runs by as much.

    Args:
        scores: Of the runs, (runs,).
        resampled: The same over rows drawn again, (runs, resamples).
        num_baseline: How many runs are of the first system.
        seed: Of the drawing.
    """
    drawn = subtract_means(resampled, num_baseline)
    chance = drawn - float(subtract_means(scores, num_baseline))
    freedom = len(scores) - 2
    if freedom == 0:
        return chance
    runs = 1 / num_baseline + 1 / (len(scores) - num_baseline)
    variance = float(_pool_variance(scores[:, None], num_baseline)[0])
    of_both = max(0.0, float(_pool_variance(resampled, num_baseline).mean()) - variance) * runs
    of_rows = float(drawn.var())
    rest = math.sqrt(max(0.0, 1 - of_both / of_rows)) if of_rows > 0 else 0.0
    errors = np.random.default_rng([seed, 1]).standard_t(freedom, size=len(drawn))
    return rest * chance + math.sqrt(variance * runs) * errors


def bound_unseen(metric: Metric, rows: Statistics, level: float) -> float:
    """Return how large a difference may be that these rows, (runs, N, k), do not show.

    0 unless the outputs differ in next to no row, so that rows drawn again often differ in none.
    Then as many more may differ as Wilson's interval allows, right in one and wrong in the other.
    """
    num_different = int((rows != rows[0]).any(axis=(0, 2)).sum())
    if num_different >= _FEW_ROWS or metric.suppose_right is None or metric.suppose_wrong is None:
        return 0.0
    num_rows = rows.shape[1]
    part = bound_share(num_different, num_rows, level)[1] - num_different / num_rows
    right, wrong = metric.suppose_right(rows[0]), metric.suppose_wrong(rows[0])
    supposed = [
        metric.combine((1 - part) * rows[0].sum(axis=0) + part * each.sum(axis=0))
        for each in (right, wrong)
    ]
    return float(np.abs(supposed[0] - supposed[1]))


def find_p_value(chance: Statistics, difference: float) -> float:
    """Return how often `chance` is as far from zero as `difference`, which itself counts once."""
    edge = abs(difference) - 1e-9  # equal but for rounding is equal
    return float(1 + np.count_nonzero(np.abs(chance) >= edge)) / (1 + len(chance))


def subtract_means(scores: Statistics, num_baseline: int) -> Statistics:
    """Return the mean score of the later runs less that of the first ones: (runs, ...) -> (...)."""
    return np.asarray(scores[num_baseline:].mean(axis=0) - scores[:num_baseline].mean(axis=0))


def _pool_variance(scores: Statistics, num_baseline: int) -> Statistics:
    """Return the variance among runs of one system, pooled over both: (runs, n) -> (n,)."""
    sides = scores[:num_baseline], scores[num_baseline:]
    squares = [((side - side.mean(axis=0)) ** 2).sum(axis=0) for side in sides]
    return np.asarray((squares[0] + squares[1]) / (len(scores) - 2))


def _distinct(statistics: Mapping[str, Statistics]) -> dict[int, Statistics]:
    return {id(rows): rows for rows in statistics.values()}


def _weigh(
    arrays: Mapping[int, Statistics], weights: Iterable[Statistics]
) -> Iterator[dict[int, Statistics]]:
    """Yield the weighted sums of `arrays`, (runs, N, k), for each (chunk, N) of `weights`.

    They are (runs, chunk, k). All columns are multiplied at once: one by one, most of the time
    would go into reading the weights again.
    """
    flat = [rows.transpose(1, 0, 2).reshape(rows.shape[1], -1) for rows in arrays.values()]
    joined = np.concatenate(flat, axis=1)
    ends = np.cumsum([part.shape[1] for part in flat])[:-1]
    for chunk in weights:
        parts = np.split(chunk @ joined, ends, axis=1)
        yield {
            key: part.reshape(len(chunk), len(rows), -1).transpose(1, 0, 2)
            for (key, rows), part in zip(arrays.items(), parts, strict=True)
        }
