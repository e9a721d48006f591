"""Whether one system is better than another on the same rows, or only luckier with them.

Two tests, both paired, on any metric: by rows that are drawn again (paired bootstrap), which also
gives the interval of the difference, and by outputs that change sides (approximate randomisation).
A system is one run, or several that differ by their seed only; its score is their mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dragoman.errors import DataError
from dragoman.evaluation.chance import (
    bound_unseen,
    draw_chance,
    find_p_value,
    resample_scores,
    subtract_means,
    swap_rows,
)
from dragoman.evaluation.metrics import Metric, Statistics
from dragoman.evaluation.rows import Row
from dragoman.settings import EvaluationSettings


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
    low: float  # of the interval of the difference
    high: float
    bootstrap_p: float  # two-sided
    randomization_p: float  # two-sided

    @property
    def is_better(self) -> bool:
        """Whether the other system has the better score, by luck or not."""
        return self.difference > 0 if self.is_higher_better else self.difference < 0


@dataclass(frozen=True, kw_only=True)
class DifferentRow:
    """A row on which two systems differ; their outputs are those of their first runs."""

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

    rows: int
    baseline_runs: int
    other_runs: int
    differences: dict[str, Difference]  # by the name of the metric
    different_by: str  # name of the metric that chose `different_rows`
    different_rows: tuple[DifferentRow, ...]  # the most different first

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "rows": self.rows,
            "baseline_runs": self.baseline_runs,
            "other_runs": self.other_runs,
            "scores": {name: asdict(one) for name, one in self.differences.items()},
            "different_by": self.different_by,
            "different_rows": [
                {**asdict(row), "references": list(row.references)} for row in self.different_rows
            ],
        }


def compare(
    baseline: Sequence[Sequence[Row]],
    other: Sequence[Sequence[Row]],
    metrics: Sequence[Metric],
    settings: EvaluationSettings | None = None,
    *,
    names: tuple[str, str] = ("baseline", "other"),
    num_rows: int = 10,
) -> Comparison:
    """Return how `other` differs from `baseline`: each the rows of one run or more.

    The bootstrap draws rows, the same ones for all runs of both systems. Where a system has several
    runs, the interval and its p-value are also about other seeds: to the difference of each
    resample an error of the means over seeds is added, drawn from Student's t, with the spread of
    the scores among runs of one system, pooled over both. Of one run each they are about these two
    models, not about what other seeds would give. Randomisation swaps, row by row, what all runs of
    one system say with what those of the other say, so its p-value is always about these very runs:
    where seeds differ much it is too small for a claim about the two ways of training.

    One p-value is for one metric, chosen beforehand: of six metrics one is below 0.05 by luck alone
    more often than once in twenty times.

    Args:
        baseline: Its runs; the rows of each in the same order.
        other: Its runs, over the same rows.
        metrics: What to compare, at least one metric.
        settings: Level, number of resamples, and seed.
        names: What errors call the two.
        num_rows: Rows to return, of those that differ most.

    Raises:
        DataError: The test rows are not the same; names the first that differs.

    Source: Koehn 2004 (paired bootstrap), Riezler and Maxwell 2005 (randomisation; with the
    statistic of the rows themselves in the count: never a p-value of 0).
    """
    settings = settings or EvaluationSettings()
    check_same_rows(baseline, other, names)
    statistics = _collect(metrics, [*baseline, *other])
    resampled = resample_scores(metrics, statistics, settings)
    swapped = swap_rows(metrics, statistics, len(baseline), settings)
    by = next((metric for metric in metrics if metric.by_row), metrics[0])
    return Comparison(
        rows=len(baseline[0]),
        baseline_runs=len(baseline),
        other_runs=len(other),
        differences={
            metric.name: _describe(
                metric,
                statistics[metric.name],
                resampled[metric.name],
                swapped[metric.name],
                len(baseline),
                settings,
            )
            for metric in metrics
        },
        different_by=by.name,
        different_rows=_find_different_rows(baseline, other, by, statistics[by.name], num_rows),
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
            told = f"{name}, run {number}" if len(runs) > 1 else name
            for place, (row, known) in enumerate(zip(rows, first, strict=False), start=1):
                for what in ("source", "features", "references"):
                    value, expected = getattr(row, what), getattr(known, what)
                    if value != expected:
                        raise DataError(
                            f"{told}: row {place}{_locate(row)} has the {what} {_show(value)}, "
                            f"{names[0]} has {_show(expected)}{_locate(known)}; runs are compared "
                            "over the same test rows only"
                        )
            if len(rows) != len(first):
                raise DataError(
                    f"{told}: {len(rows):,} test rows, {names[0]} has {len(first):,}: row "
                    f"{min(len(rows), len(first)) + 1} is the first that only one has; runs are "
                    "compared over the same test rows only"
                )
    if not first:
        raise DataError(f"{names[0]}: there are no rows to compare")


def _describe(
    metric: Metric,
    rows: Statistics,
    resampled: Statistics,
    swapped: Statistics,
    num_baseline: int,
    settings: EvaluationSettings,
) -> Difference:
    """Return the difference of one score.

    Args:
        metric: Which score.
        rows: Statistics of all runs, (runs, N, k).
        resampled: Scores of the runs over rows drawn again, (runs, resamples).
        swapped: Differences when rows change sides, (resamples,).
        num_baseline: How many of the runs, the first ones, are the baseline's.
        settings: Level and seed.
    """
    scores = metric.combine(rows.sum(axis=1))  # (runs,)
    difference = float(subtract_means(scores, num_baseline))
    chance = draw_chance(scores, resampled, num_baseline, settings.seed)
    # Alike on both sides, as the p-value takes it: one is below 0.05 where the other leaves out 0.
    half = float(np.quantile(np.abs(chance), settings.confidence_level))
    half = max(half, bound_unseen(metric, rows, settings.confidence_level))
    return Difference(
        title=metric.title,
        is_higher_better=metric.is_higher_better,
        baseline=float(scores[:num_baseline].mean()),
        other=float(scores[num_baseline:].mean()),
        baseline_by_run=tuple(map(float, scores[:num_baseline])),
        other_by_run=tuple(map(float, scores[num_baseline:])),
        difference=difference,
        low=difference - half,
        high=difference + half,
        bootstrap_p=find_p_value(chance, difference),
        randomization_p=find_p_value(swapped, difference),
    )


def _locate(row: Row) -> str:
    return f" ({row.file}:{row.line})" if row.file and row.line else ""


def _show(value: object) -> str:
    text = repr(list(value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _collect(metrics: Sequence[Metric], runs: Sequence[Sequence[Row]]) -> dict[str, Statistics]:
    """Return the statistics of each metric: (runs, N, k); metrics may share them."""
    known: dict[Callable[..., Statistics], Statistics] = {}
    references = [row.references for row in runs[0]]
    for metric in metrics:
        if metric.collect not in known:
            known[metric.collect] = np.stack(
                [metric.collect([row.hypothesis for row in rows], references) for rows in runs]
            )
    return {metric.name: known[metric.collect] for metric in metrics}


def _find_different_rows(
    baseline: Sequence[Sequence[Row]],
    other: Sequence[Sequence[Row]],
    metric: Metric,
    statistics: Statistics,
    num_rows: int,
) -> tuple[DifferentRow, ...]:
    """Return the rows whose own scores, means over runs, differ most; none that is the same."""
    scores = metric.combine(statistics)  # (runs, N)
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
