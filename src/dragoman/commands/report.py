"""What the report of a model shows: its evaluations, training, data, attention and settings."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dragoman.configuration import flatten_settings, merge_settings
from dragoman.engines.engine import UnsupportedError
from dragoman.evaluation.evaluation import Evaluation
from dragoman.evaluation.rows import Row
from dragoman.predictor import Predictor
from dragoman.reading.pairs import Source
from dragoman.reporting.content import ReportContent

_NUM_ATTENTION, _SHORT_SOURCE = 3, 24  # outputs whose attention is shown; characters
_LIBRARIES = ("dragoman", "torch", "lightning", "tokenizers", "ctranslate2", "sacrebleu")


def make_report(
    model: Predictor,
    name: str,
    evaluations: Mapping[str, Evaluation],
    *,
    metrics: Mapping[str, Any] | None = None,
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    inspection: Mapping[str, Any] | None = None,
) -> ReportContent:
    """Return what the report of a model shows.

    Args:
        evaluations: By name.
        metrics: The content of metrics.json, for what the training took and was made from.
        curves: Those of the training, if it was here.
        inspection: What was found in the data.
    """
    rows = {split: one.rows for split, one in evaluations.items()}
    return ReportContent(
        name=name,
        created=_tell_time(),
        curves=curves or {},
        inspection=inspection,
        evaluations={split: one.to_dict() for split, one in evaluations.items()},
        rows=rows,
        attention=attend(model, next(reversed(rows.values()), ())),
        settings=flatten_settings(model.settings),
        versions={library: _find_version(library) for library in _LIBRARIES},
        facts=_list_facts(metrics or {}),
    )


def report_outputs(name: str, evaluation: Evaluation) -> ReportContent:
    """Return what a report shows of outputs that came from files."""
    return ReportContent(
        name=name,
        created=_tell_time(),
        evaluations={name: evaluation.to_dict()},
        rows={name: evaluation.rows},
        versions={library: _find_version(library) for library in ("dragoman", "sacrebleu")},
    )


def attend(model: Predictor, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return where the model looked for a few of the shorter outputs; nothing if it cannot tell."""
    short = sorted(rows, key=lambda row: abs(len(row.source) - _SHORT_SOURCE))[:_NUM_ATTENTION]
    settings = merge_settings(model.settings, {"decoding.alignment": True}, overrule=True)
    attending = Predictor(model.engine, model.tokenizer, settings, model.bundles)
    sources = [Source(row.source, row.features, row.line) for row in short]
    try:
        found = list(attending.predict_rows(sources))
    except UnsupportedError:
        return []
    return [
        {
            "source": row.source,
            "source_tokens": best.source_tokens,
            "tokens": best.tokens,
            "weights": best.alignment,
        }
        for row, (_, (best, *_)) in zip(short, found, strict=True)
    ]


def _list_facts(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return what is told of a training, by what it is for people."""
    facts: dict[str, str] = {}
    if "minutes" in metrics:
        facts["time"] = f"{metrics['minutes']:.1f} minutes, {metrics['num_steps']:,} updates"
        facts["precision"] = f"{metrics['precision']}"
        facts["parameters"] = f"{metrics['num_parameters']:,}"
    if "peak_memory_mib" in metrics:
        facts["memory"] = f"{metrics['peak_memory_mib']:,} MiB at the most"
    for path, digest in metrics.get("data", {}).get("sha256", {}).items():
        facts[f"SHA-256 of {path}"] = digest
    return facts


def _tell_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _find_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
