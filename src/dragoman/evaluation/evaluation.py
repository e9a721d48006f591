"""An evaluation: scores with intervals, their breakdown, confusions, confidence; kept in a folder.

rows.jsonl     per line a source, its references, the output and its scores
scores.json    all figures over the rows

Of an ensemble of seeds, the score of each model, and where they disagree: `score_seeds`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dragoman.characters import html_table
from dragoman.errors import DataError, ModelFolderError, shorten
from dragoman.evaluation.breakdown import Confusion, break_down, find_confusions
from dragoman.evaluation.confidence import Calibration
from dragoman.evaluation.metrics import (
    CountRows,
    Metric,
    Statistics,
    Task,
    choose_metrics,
    find_task,
)
from dragoman.evaluation.output_rows import Row, read_rows, write_rows
from dragoman.evaluation.significance import Interval, estimate_all, estimate_mean
from dragoman.settings import EvaluationSettings
from dragoman.storage import explain_failed_write, read_json, staged_folder

ROWS, SCORES = "rows.jsonl", "scores.json"
NO_INTERVAL = "too few wrong (or right) rows for an interval"
_NUM_CONFUSIONS, _NUM_GROUPS = 5, 8  # in a summary
_MOST_ROWS = 100  # on which they disagree, kept


class TargetTokenization(BaseModel):
    """How a text of the target becomes the tokens that are compared."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    separator: str = " "
    """Between two tokens; empty: white space."""
    has_symbols: bool = False
    """Tokens are symbols, such as phones."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Scores:
    """Scores of a set of rows by name, in percent or points of 100, each with its interval."""

    rows: int
    intervals: Mapping[str, Interval]  # by name
    titles: Mapping[str, str]  # for people, by name
    is_higher_better: Mapping[str, bool]  # by name
    tiles: Sequence[str]  # names of those at the top of the report
    signatures: Mapping[str, str]  # sacrebleu's: only scores of the same one can be compared

    def __repr__(self) -> str:
        return "\n".join(list_scores(self.to_dict()))

    def _repr_html_(self) -> str:
        intervals = {
            name: "" if one.low is None else f" [{one.low:.2f}, {one.high:.2f}]"
            for name, one in self.intervals.items()
        }
        rows = (
            (self.titles[name], f"{self[name]:.2f}{shown}") for name, shown in intervals.items()
        )
        return html_table(rows)

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
        return {
            **values,
            "intervals": {name: one.ends for name, one in self.intervals.items()},
            "titles": dict(self.titles),
            "is_higher_better": dict(self.is_higher_better),
            "tiles": list(self.tiles),
        }


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """Scores, breakdown, confusions and confidence of the outputs of some rows."""

    rows: Sequence[Row]
    scores: Scores
    row_scores: Mapping[str, NDArray[np.float64]]  # of each row, (N,), by name
    breakdown: Mapping[str, list[dict[str, Any]]]
    confusions: Sequence[Confusion]
    settings: EvaluationSettings
    tokenization: TargetTokenization
    task: Task
    confidence: Calibration | None = None
    # rows_per_s, seconds, engine, quantization.
    speed: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)  # models, and all their settings
    folder: Path | None = None  # where it was written
    emitted_f1: float | None = None  # of fields, before values were left out; None: none were
    seeds: Mapping[str, Any] | None = None  # of an ensemble of seeds: see `score_seeds`

    def __repr__(self) -> str:
        return repr(self.scores)

    def _repr_html_(self) -> str:
        return self.scores._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Return the content of scores.json."""
        return {
            "version": version("dragoman"),
            "task": self.task,
            "rows": len(self.rows),
            "truncated": sum(not row.is_complete for row in self.rows),
            "from_memory": sum(bool(row.memory_row) for row in self.rows),
            "test_rows_digest": digest_rows(self.rows),
            "data": {"files": list(dict.fromkeys(row.file for row in self.rows if row.file))},
            "settings": self.settings.model_dump(mode="json"),
            "cut": self.tokenization.model_dump(),
            "model": dict(self.model),
            "scores": self.scores.to_dict(),
            "breakdown": dict(self.breakdown),
            "confusions": [one.to_dict() for one in self.confusions],
            "confidence": None if self.confidence is None else self.confidence.to_dict(),
            "speed": dict(self.speed),
            "emitted_field_f1": self.emitted_f1,
            "seeds": self.seeds,
        }


def evaluate_rows(
    rows: Sequence[Row],
    settings: EvaluationSettings,
    tokenization: TargetTokenization | None = None,
    *,
    rarest: Sequence[int] = (),
    confidence: Calibration | None = None,
    speed: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Return the evaluation of `rows`, at least one, each with a reference.

    Args:
        tokenization: Of the targets; None: words.
        rarest: Count of the rarest token of each source in the training pairs; empty: unknown.
        speed: `rows_per_s`, `seconds`, `engine` and `quantization`.

    """
    tokenization = tokenization or TargetTokenization()
    hypotheses = [row.hypothesis for row in rows]
    references = [row.references for row in rows]
    metrics = choose_metrics_of(rows, settings, tokenization)
    statistics = collect_statistics(metrics, hypotheses, references)
    task = find_task(settings, references, has_symbols=tokenization.has_symbols)
    emitted_f1, f1 = None, next((one for one in metrics if one.name == "field_f1"), None)
    if f1 is not None and any(row.emitted for row in rows):
        emitted = f1.count_rows([row.emitted or row.hypothesis for row in rows], references)
        emitted_f1 = float(f1.from_sums(emitted.sum(axis=0)))
    return Evaluation(
        rows=rows,
        scores=score_statistics(metrics, statistics, settings),
        row_scores={one.name: one.from_sums(statistics[one.name]) for one in metrics if one.by_row},
        breakdown=break_down(rows, metrics, statistics, settings, rarest),
        confusions=find_confusions(
            rows, separator=(tokenization.separator or " ") if task == "phones" else None
        ),
        settings=settings,
        tokenization=tokenization,
        task=task,
        confidence=confidence,
        speed=speed or {},
        model=model or {},
        emitted_f1=emitted_f1,
    )


def choose_metrics_of(
    rows: Sequence[Row], settings: EvaluationSettings, tokenization: TargetTokenization
) -> list[Metric]:
    """Return the metrics for these rows, the task's own first: see `choose_metrics`."""
    return choose_metrics(
        settings,
        [row.references for row in rows],
        sources=[row.source for row in rows],
        separator=tokenization.separator,
        has_symbols=tokenization.has_symbols,
    )


def collect_statistics(
    metrics: Sequence[Metric], hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, Statistics]:
    """Return the statistics of each metric by name, (N, k); which metrics may share.

    `metric.from_sums(statistics)` gives the scores of the single rows, (N,).
    """
    known: dict[CountRows, Statistics] = {}
    for metric in metrics:
        if metric.count_rows not in known:
            known[metric.count_rows] = metric.count_rows(hypotheses, references)
    return {metric.name: known[metric.count_rows] for metric in metrics}


def score_statistics(
    metrics: Sequence[Metric], statistics: Mapping[str, Statistics], settings: EvaluationSettings
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


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write the folder atomically; an evaluation at this place is replaced.

    Raises: DataError, when it cannot be written, or something else is at this place.
    """
    if folder.exists() and not (folder / SCORES).is_file():
        raise DataError(f"{folder}: exists and is not an evaluation; choose another --out")
    remedy = "; choose a folder with --out"
    with explain_failed_write(folder, DataError, remedy), staged_folder(folder) as partial:
        write_rows(partial / ROWS, evaluation.rows, evaluation.row_scores)
        text = json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        (partial / SCORES).write_text(text + "\n", "utf-8", "replace")


def read_evaluation(folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows and the content of scores.json of a folder that `write_evaluation` wrote.

    Raises: DataError, when it is missing or invalid.
    """
    try:
        content = read_json(folder / SCORES)
    except ModelFolderError as error:
        raise DataError(str(error)) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{folder / SCORES}: expected an object, found {type(content).__name__}; "
            "evaluate the model again"
        )
    return read_rows(folder / ROWS), content


def digest_rows(rows: Sequence[Row]) -> str:
    """Return a digest of the test set: its features, sources and references, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        text = json.dumps((row.features, row.source, row.references))
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def summarize(content: Mapping[str, Any]) -> list[str]:
    """Return the content of a scores.json as lines for the terminal."""
    lines = list_scores(content["scores"]) + list_seeds(content.get("seeds"), content["scores"])
    if num_truncated := content.get("truncated"):
        lines.append(f"  truncated outputs: {num_truncated:,} of {content['rows']:,}")
    if remembered := content.get("from_memory"):
        lines.append(
            f"  {remembered:,} of {content['rows']:,} outputs are targets of the same sources in the "
            "training pairs, not of the model: --decoding.memory none scores the model alone"
        )
    if (before := content.get("emitted_field_f1")) is not None:
        lines.append(
            f"  field F1 before values that do not stand in the source were left out: {before:.2f}"
        )
    for kind, groups in content["breakdown"].items():
        lines += ["", f"by {kind}:", *_list_groups(groups, content["scores"]["titles"])]
    if content["confusions"]:
        lines += ["", "most frequent confusions (expected -> found):"]
        lines += [
            f"  {one['count']:>6,} x {_show(one['from'])} -> {_show(one['to'])}"
            for one in content["confusions"][:_NUM_CONFUSIONS]
        ]
    if unknown := content["model"].get("unknown_features"):
        found = shorten(", ".join(f"{symbol} ({rows:,} rows)" for symbol, rows in unknown.items()))
        lines += ["", f"features that the model has never seen: {found}"]
    if (beyond := content["model"].get("out_of_reach")) and beyond["rows"]:
        lines += [
            "",
            f"{beyond['rows']:,} rows cannot be right: the target's vocabulary lacks symbols of "
            f"their references: {'; '.join(beyond['first'])}",
        ]
    if speed := content["speed"]:
        engine = ", ".join(speed[name] for name in ("engine", "quantization") if name in speed)
        lines += ["", f"{speed['rows_per_s']:,.1f} rows/s ({engine})"]
    return lines


def list_scores(scores: Mapping[str, Any]) -> list[str]:
    """Return `Scores.to_dict()` as lines: title, value and interval of each score."""
    titles, intervals = scores.get("titles", {}), scores.get("intervals", {})
    width = max([len(title) for title in titles.values()], default=0)
    lines = [f"  {'rows':<{width}}  {scores['rows']:>7,}"]
    for name, title in titles.items():
        interval = ""
        if name in intervals:
            found = intervals[name]
            interval = f"  [{found[0]:.2f}, {found[1]:.2f}]" if found else f"  {NO_INTERVAL}"
        lines.append(f"  {title:<{width}}  {scores[name]:>7.2f}{interval}")
    return lines + [
        f"  {title}: {scores[f'{name}_signature']}"
        for name, title in titles.items()
        if f"{name}_signature" in scores
    ]


def list_seeds(seeds: Mapping[str, Any] | None, scores: Mapping[str, Any]) -> list[str]:
    """Return what `score_seeds` found as lines: title, mean, its interval, and each model's score."""
    if seeds is None:
        return []
    width = max(map(len, scores["titles"].values()))
    lines = [f"the {len(seeds['models'])} models of the ensemble, each alone: mean, and by model"]
    for name, one in seeds["scores"].items():
        interval = one["interval"]
        shown = f"[{interval[0]:.2f}, {interval[1]:.2f}]" if interval else NO_INTERVAL
        by_model = ", ".join(f"{score:.2f}" for score in one["by_model"])
        title = scores["titles"][name]
        lines.append(f"  {title:<{width}}  {one['mean']:>7.2f}  {shown}: {by_model}")
    return [
        *lines,
        f"  their outputs differ on {seeds['disagreements']:,} of {scores['rows']:,} rows",
    ]


def _list_groups(groups: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> list[str]:
    shown = groups[:_NUM_GROUPS]
    width = max(len(f"{group['group']}") for group in shown)
    lines = []
    for group in shown:
        figures = []
        for name in [name for name in group if name not in ("group", "rows")]:
            value, low, high = group[name]
            interval = "" if low is None else f" [{low:.1f}, {high:.1f}]"
            figures.append(f"{titles.get(name, name)} {value:.1f}{interval}")
        lines.append(f"  {group['group']:<{width}}  {group['rows']:>6,} rows  {', '.join(figures)}")
    if len(groups) > len(shown):
        lines.append(f"  ... and {len(groups) - len(shown)} more")
    return lines


def _show(text: str) -> str:
    return repr(text) if text else "nothing"


def score_seeds(ensemble: Evaluation, runs: Mapping[str, Sequence[Row]]) -> Evaluation:
    """Return the evaluation of an ensemble with the scores of its models, by name, on its rows.

    Where a label is wrong, or a row hard, seeds disagree: the rows with the fewest models behind the
    most frequent output come first.
    """
    outputs = [Counter(row.hypothesis for row in rows) for rows in zip(*runs.values(), strict=True)]
    places = [place for place, found in enumerate(outputs) if len(found) > 1]
    places.sort(key=lambda place: max(outputs[place].values()))  # ties: in the order of the rows
    metrics = choose_metrics_of(ensemble.rows, ensemble.settings, ensemble.tokenization)
    scores = estimate_mean([*runs.values()], metrics, ensemble.settings)
    return replace(
        ensemble,
        seeds={
            "models": [*runs],
            "scores": {
                name: {
                    "by_model": list(by_run),
                    "mean": mean.value,
                    "interval": mean.ends,
                }
                for name, (by_run, mean) in scores.items()
            },
            "disagreements": len(places),
            "most_disagreed": [
                {"row": place, "outputs": dict(outputs[place].most_common())}
                for place in places[:_MOST_ROWS]
            ],
        },
    )
