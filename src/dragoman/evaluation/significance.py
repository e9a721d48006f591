"""How far scores are chance: intervals from resampled rows, and is one system better than another?

The percentiles of a plain bootstrap are too narrow where few rows hold all the errors: with 100
rows, of which 7 are wrong, they hold the true score 90% of the time instead of 95%
(benchmarks/intervals.py). So the difference of a resampled score is taken in units of its standard
error (bootstrap-t); proportions have Wilson's interval. Where fewer than ten rows are wrong, or
right, no resampling shows how much worse, or better, other rows may be: then only proportions have
an interval. So of 100 test sets at most 5 show an interval that misses the true score; the few
unlucky sets with ten wrong rows where seven are expected are among those.

Two paired tests on any metric: rows drawn again (paired bootstrap), which also gives the interval
of the difference, and outputs that swap systems (approximate randomisation). A system is one run,
or several runs that differ only in their seed; its score is their mean.

Arrays over runs hold all runs of the first system, then those of the second.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np

from dragoman.errors import DataError, shorten
from dragoman.evaluation.metrics import CountRows, Metric, Statistics
from dragoman.evaluation.output_rows import Row
from dragoman.reading.row_errors import name_row
from dragoman.settings import EvaluationSettings

Key = TypeVar("Key")

_CHUNK_NUMBERS = 2_000_000  # counts held in memory: 16 MB
_LEAST_ERROR = 0.1  # of a resample, as a fraction of the error of all rows
_FEWEST_ROWS = 10  # wrong ones, and right ones, for an interval
_FEWEST_DIFFERENT = 4  # rows, for an interval: a resample may well have none of fewer


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score with its interval, which holds the score of many more rows of the same kind.

    Without `low` and `high`, too few rows are wrong, or right, for an interval.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def ends(self) -> list[float] | None:
        """Both ends, as scores.json stores them."""
        return None if self.low is None or self.high is None else [self.low, self.high]


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
        # By how much the score rises, times N, with one more row like each: (N,).
        without = metric.from_sums(rows.sum(axis=0) - rows)
        influence = (len(rows) - 1) * (without.mean() - without)
        # Rounding errors are no influence.
        influence = np.where(np.abs(influence) > 1e-9 * len(rows), influence, 0.0)
        if influence.any():
            influences[metric.name] = np.stack([influence, influence**2], axis=1)
            arrays[id(rows)] = rows
            arrays[id(influences[metric.name])] = influences[metric.name]
    sums: dict[int, Statistics] = {}  # (resamples, k) each
    if arrays:
        counts = draw_counts(len(rows), settings.resamples, np.random.default_rng(settings.seed))
        chunks = list(_weigh({key: one[None] for key, one in arrays.items()}, counts))
        sums = {key: np.concatenate([chunk[key][0] for chunk in chunks]) for key in arrays}
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


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One score of two systems. All but the p-values in percent or points of 100."""

    title: str
    is_higher_better: bool
    baseline: float
    other: float
    baseline_by_run: tuple[float, ...]
    other_by_run: tuple[float, ...]
    difference: float  # other - baseline
    low: float | None  # of the interval of the difference; None: too few rows differ for one
    high: float | None
    bootstrap_p: float  # two-sided
    randomization_p: float  # two-sided

    @property
    def is_better(self) -> bool:
        """Whether the other system has the better score, by chance or not."""
        return self.difference > 0 if self.is_higher_better else self.difference < 0


@dataclass(frozen=True, kw_only=True)
class DifferentRow:
    """A row on which two systems differ; the outputs are those of their first runs."""

    row: int  # its place, from 0
    line: int
    file: str
    source: str
    references: tuple[str, ...]
    baseline: str
    other: str
    baseline_score: float  # the mean of the runs
    other_score: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two systems over the same rows."""

    baseline: str  # name
    other: str
    level: float  # confidence level of the intervals
    rows: int
    baseline_runs: int
    other_runs: int
    differences: dict[str, Difference]  # by the name of the metric
    different_settings: Mapping[str, tuple[str, str]]  # values by name, where they are recorded
    different_by: str  # name of the metric that chose `different_rows`
    different_rows: tuple[DifferentRow, ...]  # the most different first

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as `compare --json` prints them."""
        names = {"level": "confidence_level", "differences": "scores"}
        return {names.get(name, name): value for name, value in asdict(self).items()}


def compare(
    baseline: Sequence[Sequence[Row]],
    other: Sequence[Sequence[Row]],
    metrics: Sequence[Metric],
    settings: EvaluationSettings | None = None,
    *,
    names: tuple[str, str] = ("baseline", "other"),
    num_rows: int = 10,
) -> Comparison:
    """Return how `other` differs from `baseline`; each holds the rows of one or more runs.

    The bootstrap draws rows, the same ones for all runs of both systems. With several runs, the
    interval and its p-value also cover other seeds: an error of the means over seeds is added to
    the difference of each resample, drawn from Student's t, with the spread of the scores among
    runs of one system, pooled over both. With one run each they cover these two models, not other
    seeds. Randomisation swaps, row by row, the outputs of all runs of one system with those of the
    other, so its p-value is always about these very runs: where seeds differ much, it is too small
    for a claim about the two ways of training.

    One p-value is for one metric, chosen beforehand: of six metrics, one is below 0.05 by chance
    more often than once in twenty times.

    Args:
        baseline: Its runs; the rows of each in the same order.
        other: Its runs, over the same rows.

    Raises: DataError, when the test rows are not the same; names the first different one.

    Source: Koehn 2004 (paired bootstrap), Riezler and Maxwell 2005 (randomisation; the observed
    statistic counts too: the p-value is never 0).
    """
    settings = settings or EvaluationSettings()
    check_same_rows(baseline, other, names)
    statistics = _count_runs([*baseline, *other], metrics)
    resampled = _resample_scores(metrics, statistics, settings)
    swapped = _swap_rows(metrics, statistics, len(baseline), settings)
    differences = {}
    for metric in metrics:
        rows = statistics[metric.count_rows]
        scores = metric.from_sums(rows.sum(axis=1))  # (runs,)
        difference = float(_subtract_means(scores, len(baseline)))
        chance = _draw_chance(scores, resampled[metric.name], len(baseline), settings.seed)
        low = high = None
        if np.count_nonzero((rows != rows[0]).any(axis=(0, 2))) >= _FEWEST_DIFFERENT:
            # Symmetric, like the p-value: it is below 0.05 where the interval excludes 0.
            half = float(np.quantile(np.abs(chance), settings.confidence_level))
            low, high = difference - half, difference + half
        differences[metric.name] = Difference(
            title=metric.title,
            is_higher_better=metric.is_higher_better,
            baseline=float(scores[: len(baseline)].mean()),
            other=float(scores[len(baseline) :].mean()),
            baseline_by_run=tuple(map(float, scores[: len(baseline)])),
            other_by_run=tuple(map(float, scores[len(baseline) :])),
            difference=difference,
            low=low,
            high=high,
            bootstrap_p=find_p_value(chance, difference),
            randomization_p=find_p_value(swapped[metric.name], difference),
        )
    by = next((metric for metric in metrics if metric.by_row), metrics[0])
    by_statistics = statistics[by.count_rows]
    return Comparison(
        baseline=names[0],
        other=names[1],
        level=settings.confidence_level,
        rows=len(baseline[0]),
        baseline_runs=len(baseline),
        other_runs=len(other),
        differences=differences,
        different_settings={},
        different_by=by.name,
        different_rows=_find_different_rows(baseline, other, by, by_statistics, num_rows),
    )


def check_same_rows(
    baseline: Sequence[Sequence[Row]],
    other: Sequence[Sequence[Row]],
    names: tuple[str, str] = ("baseline", "other"),
) -> None:
    """Raise a DataError unless all runs are over the same sources, features and references."""
    first = baseline[0]
    for name, runs in zip(names, (baseline, other), strict=True):
        for number, rows in enumerate(runs, start=1):
            run = f"{name}, run {number}" if len(runs) > 1 else name
            for place, (row, known) in enumerate(zip(rows, first, strict=False), start=1):
                for field in ("source", "features", "references"):
                    value, expected = getattr(row, field), getattr(known, field)
                    if value != expected:
                        raise DataError(
                            f"{run}: row {place}{_locate(row)} has the {field} {_show(value)}, "
                            f"{names[0]} has {_show(expected)}{_locate(known)}; only runs over "
                            "the same test rows can be compared"
                        )
            if len(rows) != len(first):
                raise DataError(
                    f"{run}: {len(rows):,} test rows, {names[0]} has {len(first):,}: row "
                    f"{min(len(rows), len(first)) + 1} is the first that only one has; only runs "
                    "over the same test rows can be compared"
                )


def estimate_mean(
    runs: Sequence[Sequence[Row]], metrics: Sequence[Metric], settings: EvaluationSettings
) -> dict[str, tuple[tuple[float, ...], Interval]]:
    """Return by metric the score of each run, and their mean with its interval.

    The runs are of one system with different seeds, at least two, over the same rows. The interval
    covers other rows and other seeds, as that of `compare` does.
    """
    statistics = _count_runs(runs, metrics)
    resampled = _resample_scores(metrics, statistics, settings)
    found = {}
    for metric in metrics:
        rows = statistics[metric.count_rows]
        scores = metric.from_sums(rows.sum(axis=1))  # (runs,)
        value, low, high = float(scores.mean()), None, None
        if has_enough_rows(metric, rows.sum(axis=0)):
            chance = _draw_chance(scores, resampled[metric.name], 0, settings.seed)
            half = float(np.quantile(np.abs(chance), settings.confidence_level))
            most = 100.0 if metric.is_higher_better else math.inf
            low, high = max(0.0, value - half), min(most, value + half)
        by_run = tuple(map(float, scores))
        found[metric.name] = by_run, Interval(value=value, low=low, high=high)
    return found


def _count_runs(
    runs: Sequence[Sequence[Row]], metrics: Sequence[Metric]
) -> dict[CountRows, Statistics]:
    """Return the statistics of all runs over the same rows, each (runs, N, k); metrics may share them."""
    references = [row.references for row in runs[0]]
    return {
        count_rows: np.stack(
            [count_rows([row.hypothesis for row in run], references) for run in runs]
        )
        for count_rows in dict.fromkeys(metric.count_rows for metric in metrics)
    }


def find_p_value(chance: Statistics, difference: float) -> float:
    """Return how often `chance` is as far from zero as `difference`, which itself counts once."""
    edge = abs(difference) - 1e-9  # equal but for rounding is equal
    return float(1 + np.count_nonzero(np.abs(chance) >= edge)) / (1 + len(chance))


def _resample_scores(
    metrics: Sequence[Metric],
    statistics: Mapping[CountRows, Statistics],
    settings: EvaluationSettings,
) -> dict[str, Statistics]:
    """Return the scores of all runs on the same resampled rows: (runs, resamples)."""
    num_rows = next(iter(statistics.values())).shape[1]
    found: dict[str, list[Statistics]] = {metric.name: [] for metric in metrics}
    generator = np.random.default_rng(settings.seed)
    counts = draw_counts(num_rows, settings.resamples, generator)
    for sums in _weigh(statistics, counts):
        for metric in metrics:
            found[metric.name].append(metric.from_sums(sums[metric.count_rows]))
    return {name: np.concatenate(chunks, axis=1) for name, chunks in found.items()}


def _swap_rows(
    metrics: Sequence[Metric],
    statistics: Mapping[CountRows, Statistics],
    num_baseline: int,
    settings: EvaluationSettings,
) -> dict[str, Statistics]:
    """Return the differences of the scores when the systems swap some of their rows: (resamples,).

    If one system has more runs than the other, both are repeated until they have equally many,
    which changes no mean.
    """
    num_runs, num_rows = next(iter(statistics.values())).shape[:2]
    pairs = np.arange(math.lcm(num_baseline, num_runs - num_baseline))
    first, second = pairs % num_baseline, num_baseline + pairs % (num_runs - num_baseline)
    gaps = {key: rows[second] - rows[first] for key, rows in statistics.items()}
    found: dict[str, list[Statistics]] = {metric.name: [] for metric in metrics}
    generator = np.random.default_rng(settings.seed)
    most = max(1, _CHUNK_NUMBERS // num_rows)
    sizes = (min(most, settings.resamples - i) for i in range(0, settings.resamples, most))
    # 1 or 0 for each row, by a fair coin: (chunk, num_rows).
    swaps = (generator.integers(0, 2, size=(size, num_rows)).astype(float) for size in sizes)
    for moved in _weigh(gaps, swaps):
        for metric in metrics:
            key = metric.count_rows
            sums = statistics[key].sum(axis=1)[:, None]  # (runs, 1, k)
            baseline = metric.from_sums(sums[first] + moved[key]).mean(axis=0)
            other = metric.from_sums(sums[second] - moved[key]).mean(axis=0)
            found[metric.name].append(other - baseline)
    return {name: np.concatenate(chunks) for name, chunks in found.items()}


def _draw_chance(
    scores: Statistics, resampled: Statistics, num_baseline: int, seed: int
) -> Statistics:
    """Return errors by chance of the difference of the mean scores: (resamples,).

    With one run each: the differences over resampled rows, minus that over the rows themselves.
    With more runs, an error of the means over seeds is added, in Student's t: of scores with a
    variance of 0.8 among the runs of one system, pooled over both, with 3 and 3 runs it has the
    variance 0.8 * (1 / 3 + 1 / 3) and 3 + 3 - 2 = 4 degrees of freedom. The effect of a seed on
    these very rows is in both, so it is taken off the former: drawing rows has raised the variance
    among runs by as much.

    Args:
        scores: Of the runs, (runs,).
        resampled: The same over rows drawn again, (runs, resamples).
        num_baseline: Number of runs of the first system; 0: all runs are of one, and the errors are
            those of its mean.
    """
    sizes = [size for size in (num_baseline, len(scores) - num_baseline) if size]
    drawn = _subtract_means(resampled, num_baseline)
    chance = drawn - float(_subtract_means(scores, num_baseline))
    freedom = len(scores) - len(sizes)
    if freedom == 0:
        return chance
    runs = sum(1 / size for size in sizes)
    variance = float(_pool_variance(scores[:, None], num_baseline)[0])
    of_both = max(0.0, float(_pool_variance(resampled, num_baseline).mean()) - variance) * runs
    of_rows = float(drawn.var())
    remaining = math.sqrt(max(0.0, 1 - of_both / of_rows)) if of_rows > 0 else 0.0
    errors = np.random.default_rng([seed, 1]).standard_t(freedom, size=len(drawn))
    return remaining * chance + math.sqrt(variance * runs) * errors


def _subtract_means(scores: Statistics, num_baseline: int) -> Statistics:
    """Return the mean score of the later runs minus that of the first: (runs, ...) -> (...)."""
    later = scores[num_baseline:].mean(axis=0)
    return np.asarray(later - scores[:num_baseline].mean(axis=0) if num_baseline else later)


def _pool_variance(scores: Statistics, num_baseline: int) -> Statistics:
    """Return the variance among runs of one system, pooled over both: (runs, n) -> (n,)."""
    sides = [side for side in (scores[:num_baseline], scores[num_baseline:]) if len(side)]
    squares = sum(((side - side.mean(axis=0)) ** 2).sum(axis=0) for side in sides)
    return np.asarray(squares / (len(scores) - len(sides)))


def _weigh(
    arrays: Mapping[Key, Statistics], weights: Iterable[Statistics]
) -> Iterator[dict[Key, Statistics]]:
    """Yield the weighted sums of `arrays`, (runs, N, k), for each (chunk, N) of `weights`.

    They are (runs, chunk, k). All columns are multiplied in one product: one by one, most of the
    time would go into reading the weights again.
    """
    flat = [rows.transpose(1, 0, 2).reshape(rows.shape[1], -1) for rows in arrays.values()]
    joined = np.concatenate(flat, axis=1)
    ends = np.cumsum([columns.shape[1] for columns in flat])[:-1]
    for chunk in weights:
        sums = np.split(chunk @ joined, ends, axis=1)
        yield {
            key: columns.reshape(len(chunk), len(rows), -1).transpose(1, 0, 2)
            for (key, rows), columns in zip(arrays.items(), sums, strict=True)
        }


def _find_different_rows(
    baseline: Sequence[Sequence[Row]],
    other: Sequence[Sequence[Row]],
    metric: Metric,
    statistics: Statistics,
    num_rows: int,
) -> tuple[DifferentRow, ...]:
    """Return the rows whose scores, means over runs, differ most; rows of equal scores never."""
    scores = metric.from_sums(statistics)  # (runs, N)
    sides = scores[: len(baseline)].mean(axis=0), scores[len(baseline) :].mean(axis=0)
    gaps = np.abs(sides[1] - sides[0])
    places = np.argsort(-gaps, kind="stable")[:num_rows]
    return tuple(
        DifferentRow(
            row=int(place),
            line=row.line,
            file=row.file,
            source=row.source,
            references=row.references,
            baseline=row.hypothesis,
            other=other[0][place].hypothesis,
            baseline_score=float(sides[0][place]),
            other_score=float(sides[1][place]),
        )
        for place in places
        if gaps[place] > 1e-9  # a mean of equal numbers may differ in its last digit
        for row in [baseline[0][place]]
    )


def _locate(row: Row) -> str:
    return f" ({name_row(row.file, row.line)})" if row.file and row.line else ""


def _show(value: object) -> str:
    return shorten(repr(list(value)) if isinstance(value, tuple) else repr(value))
