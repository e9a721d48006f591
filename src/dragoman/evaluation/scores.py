"""Scores of outputs against their references, each with its interval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dragoman.evaluation.intervals import Interval, estimate_all
from dragoman.evaluation.metrics import Metric, Statistics, choose_metrics
from dragoman.settings import EvaluationSettings


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a set of rows by name, in percent or points of 100, each with its interval."""

    rows: int  # distinct sources
    intervals: Mapping[str, Interval]  # by name
    titles: Mapping[str, str]  # for people, by name
    is_higher_better: Mapping[str, bool]  # by name
    tiles: Sequence[str]  # names of those at the top of the report
    signatures: Mapping[str, str]  # sacrebleu's: only scores of the same one can be compared

    def __getitem__(self, name: str) -> float:
        """Return the score of that name, such as "chrf"."""
        return self.intervals[name].value

    @property
    def exact_match(self) -> float:
        """Rows whose hypothesis equals one of their references, in percent."""
        return self["exact_match"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as scores.json stores them."""
        values: dict[str, Any] = {"rows": self.rows}
        for name, interval in self.intervals.items():
            values[name] = interval.value
            if name in self.signatures:
                values[f"{name}_signature"] = self.signatures[name]
        intervals = {
            name: None if one.low is None else [one.low, one.high]
            for name, one in self.intervals.items()
        }
        return {
            **values,
            "intervals": intervals,
            "titles": dict(self.titles),
            "is_higher_better": dict(self.is_higher_better),
            "tiles": list(self.tiles),
        }


def score(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    separator: str = " ",
    *,
    settings: EvaluationSettings | None = None,
    has_symbols: bool = False,
) -> Scores:
    """Return the scores of `hypotheses`; row i may have several `references[i]`.

    Args:
        hypotheses: The outputs.
        references: Of each row, at least one.
        separator: Between two tokens; empty: white space.
        settings: The task, and how intervals are made; None: running text.
        has_symbols: Target tokens are symbols: phones, if the task is auto.

    Raises:
        ValueError: There are no rows, a row has no reference, or the two differ in length.
    """
    check_rows(hypotheses, references)
    settings = settings or EvaluationSettings(task="text")
    metrics = choose_metrics(settings, references, separator=separator, has_symbols=has_symbols)
    return score_statistics(metrics, collect_statistics(metrics, hypotheses, references), settings)


def collect_statistics(
    metrics: Sequence[Metric], hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, Statistics]:
    """Return the statistics of each metric by name, (N, k); which metrics may share.

    `metric.from_sums(statistics)` gives the scores of the single rows, (N,).
    """
    known: dict[Callable[..., Statistics], Statistics] = {}
    for metric in metrics:
        if metric.count_rows not in known:
            known[metric.count_rows] = metric.count_rows(hypotheses, references)
    return {metric.name: known[metric.count_rows] for metric in metrics}


def score_statistics(
    metrics: Sequence[Metric],
    statistics: Mapping[str, Statistics],
    settings: EvaluationSettings,
) -> Scores:
    """Return the scores of the rows with these `statistics`, as `collect_statistics` returns them."""
    return Scores(
        rows=len(statistics[metrics[0].name]),
        intervals=estimate_all(metrics, statistics, settings),
        titles={metric.name: metric.title for metric in metrics},
        is_higher_better={metric.name: metric.is_higher_better for metric in metrics},
        tiles=tuple(metric.name for metric in metrics if metric.is_tile),
        signatures={metric.name: metric.signature for metric in metrics if metric.signature},
    )


def check_rows(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise a ValueError unless there are rows, each with a list of references."""
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses, but references for {len(references)} rows")
    if not references:
        raise ValueError("there are no rows to score")
    for row, texts in enumerate(references):
        if isinstance(texts, str):  # a string is a sequence of strings too: its characters
            raise ValueError(
                f"row {row}: references are a list of strings, not the string {texts!r}"
            )
        if not texts:
            raise ValueError(f"row {row} has no reference")
