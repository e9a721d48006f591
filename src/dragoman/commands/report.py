"""Writes the report of a model, or of outputs from files, as one HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dragoman.configuration import flatten_settings, merge_settings
from dragoman.engines.engine import UnsupportedError
from dragoman.evaluation.evaluation import Evaluation
from dragoman.evaluation.output_rows import Row
from dragoman.predictor import Predictor
from dragoman.reading.pairs import Source
from dragoman.reporting.content import ReportContent
from dragoman.reporting.page import write_report

_NUM_ATTENTION = 3  # outputs with a heat map
_ATTENTION_CHARACTERS = 24  # sources of about this length are chosen
_LIBRARIES = ("dragoman", "torch", "lightning", "tokenizers", "ctranslate2", "sacrebleu")


def report_model(
    path: Path,
    model: Predictor,
    name: str,
    evaluations: Mapping[str, Evaluation],
    *,
    metrics: Mapping[str, Any] | None = None,
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    inspection: Mapping[str, Any] | None = None,
) -> None:
    """Write the report of a model.

    Args:
        path: The HTML file.
        model: The model.
        name: Of the model.
        evaluations: By name; the heat maps of attention are of rows of the last one.
        metrics: The content of metrics.json: time, memory and data of the training.
        curves: Those of the training.
        inspection: The findings in the data.

    Raises:
        DragomanError: The file cannot be written.
    """
    rows = {split: one.rows for split, one in evaluations.items()}
    content = ReportContent(
        name=name,
        created=_write_time(),
        curves=curves or {},
        inspection=inspection,
        evaluations={split: one.to_dict() for split, one in evaluations.items()},
        rows=rows,
        attention=find_attention(model, next(reversed(rows.values()), ())),
        settings=flatten_settings(model.settings),
        versions={library: _find_version(library) for library in _LIBRARIES},
        facts=_list_facts(metrics or {}),
    )
    write_report(path, content)


def report_outputs(path: Path, name: str, evaluation: Evaluation) -> None:
    """Write the report of outputs that were read from files.

    Raises:
        DragomanError: The file cannot be written.
    """
    content = ReportContent(
        name=name,
        created=_write_time(),
        evaluations={name: evaluation.to_dict()},
        rows={name: evaluation.rows},
        versions={library: _find_version(library) for library in ("dragoman", "sacrebleu")},
    )
    write_report(path, content)


def find_attention(model: Predictor, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the attention of a few of the shorter outputs; none if the engine cannot give it."""
    short = sorted(rows, key=lambda row: abs(len(row.source) - _ATTENTION_CHARACTERS))
    short = short[:_NUM_ATTENTION]
    settings = merge_settings(model.settings, {"decoding.alignment": True}, overrule=True)
    attending = Predictor(
        model.engine,
        model.tokenizer,
        settings,
        model.model_folders,
        config=replace(model.config, decoding=settings.decoding),
    )
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
    """Return the facts of a training by their labels."""
    facts: dict[str, str] = {}
    if "minutes" in metrics:
        facts["time"] = f"{metrics['minutes']:.1f} minutes, {metrics['num_steps']:,} steps"
        facts["precision"] = f"{metrics['precision']}"
        facts["parameters"] = f"{metrics['num_parameters']:,}"
    if "peak_memory_mib" in metrics:
        facts["peak memory"] = f"{metrics['peak_memory_mib']:,} MiB"
    for path, digest in metrics.get("data", {}).get("sha256", {}).items():
        facts[f"SHA-256 of {path}"] = digest
    return facts


def _write_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _find_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
