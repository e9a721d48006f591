"""From a model and pairs, or from files alone, to an evaluation that is kept, and shown as a page."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dragoman.configuration import flatten_settings
from dragoman.errors import DataError
from dragoman.evaluation.confidence import Calibration, calibrate, find_confidence, measure
from dragoman.evaluation.evaluation import (
    SCORES,
    Cut,
    Evaluation,
    evaluate_rows,
    read_evaluation,
)
from dragoman.evaluation.rows import Row, read_rows
from dragoman.predictor import Predictor
from dragoman.reporting.content import ReportContent
from dragoman.text.bundle import EVALUATION, is_model_folder
from dragoman.text.pairs import Pair, Source

_NUM_ATTENTION, _SHORT_SOURCE = 3, 24  # outputs whose attention is shown; characters
_CLAIMS = ("is_exact", "is_complete")
_LIBRARIES = ("dragoman", "torch", "lightning", "tokenizers", "ctranslate2", "sacrebleu")


def evaluate_model(
    model: Predictor,
    pairs: Iterable[Pair],
    *,
    counts: Sequence[int] = (),
    calibrates: bool = False,
) -> tuple[Evaluation, Calibration]:
    """Return what is known of the outputs of `model` for `pairs`, and of their confidence.

    Args:
        counts: How often each source id stood in the training pairs; empty: that is not known.
        calibrates: Find the temperature that makes the confidence right on these pairs; else it is
            the model's, and is measured.

    Raises:
        DataError: There are no pairs, or one is too long for the model.
    """
    start_s = time.perf_counter()
    rows = model.predict_pairs(pairs)
    seconds = time.perf_counter() - start_s
    if not rows:
        raise DataError("there are no pairs to evaluate on")
    confidence = _judge_confidence(model, rows, calibrates=calibrates)
    if calibrates:
        rows = [_set_confidence(row, confidence.temperature) for row in rows]
    settings, target = model.settings, model.settings.tokenizer.target
    evaluation = evaluate_rows(
        rows,
        settings.evaluation,
        Cut(separator=target.separator, has_symbols=target.kind == "symbols"),
        rarest=model.count_rarest(rows, counts) if counts else (),
        confidence=confidence,
        speed={
            "rows_per_s": round(len(rows) / seconds, 2),
            "seconds": round(seconds, 3),
            "engine": model.engine.name,
        },
        model={"decoding": settings.decoding.model_dump(mode="json")},
    )
    return evaluation, confidence


def name_evaluation(paths: Sequence[Path]) -> str:
    """Return the name of an evaluation on files: of "test.tsv.gz", "test"."""
    return paths[0].name.partition(".")[0] or "pairs"


def find_run(path: Path, name: str = "") -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of a run, and the content of its scores.json if it has one.

    Args:
        path: A model folder, a folder that `evaluate` wrote, or a file of rows.
        name: Which evaluation of a model folder; "": test, or the only one.

    Raises:
        DataError: Nothing of the kind is there.
    """
    if path.is_file():
        beside = path.with_name(SCORES)
        return read_evaluation(path.parent) if beside.is_file() else (read_rows(path), {})
    if (path / SCORES).is_file():
        return read_evaluation(path)
    if not is_model_folder(path):
        raise DataError(
            f"{path}: expected a model folder, a folder that evaluate wrote, or a file of rows"
        )
    found = list_evaluations(path)
    chosen = name or ("test" if "test" in found or len(found) != 1 else found[0])
    if chosen not in found:
        known = ", ".join(found) or "none"
        raise DataError(
            f"{path}: it has no evaluation {chosen!r} (it has: {known}); make one with `dragoman "
            f"evaluate {path} PAIRS`, or name another with --on"
        )
    return read_evaluation(path / EVALUATION / chosen)


def list_evaluations(model: Path) -> list[str]:
    """Return the names of the evaluations in a model folder."""
    folder = model / EVALUATION
    return sorted(one.parent.name for one in folder.glob(f"*/{SCORES}"))


def _judge_confidence(model: Predictor, rows: Sequence[Row], *, calibrates: bool) -> Calibration:
    scores = [float("nan") if row.score is None else row.score for row in rows]
    is_exact, is_complete = ([getattr(row, name) for row in rows] for name in _CLAIMS)
    if calibrates:
        level = model.settings.evaluation.confidence_level
        return calibrate(scores, is_exact, is_complete, level=level)
    thresholds = model.calibrations[0].thresholds if len(model.calibrations) == 1 else ()
    return measure(
        scores, is_exact, is_complete, temperature=model.temperature, thresholds=thresholds
    )


def _set_confidence(row: Row, temperature: float) -> Row:
    assert row.score is not None
    found = find_confidence(row.score, temperature, is_complete=row.is_complete)
    return replace(row, confidence=found)


def make_report(
    model: Predictor,
    name: str,
    evaluations: Mapping[str, tuple[Sequence[Row], Mapping[str, Any]]],
    *,
    metrics: Mapping[str, Any] | None = None,
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    inspection: Mapping[str, Any] | None = None,
) -> ReportContent:
    """Return what the report of a model shows.

    Args:
        evaluations: By name, the rows and the content of scores.json.
        metrics: The content of metrics.json, for what the training took and was made from.
        curves: Those of the training, if it was here.
        inspection: What was found in the data.
    """
    rows = {one: found for one, (found, _) in evaluations.items()}
    return ReportContent(
        name=name,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        curves=curves or {},
        inspection=inspection,
        evaluations={one: content for one, (_, content) in evaluations.items()},
        rows=rows,
        attention=attend(model, next(reversed(rows.values()), ())),
        settings=flatten_settings(model.settings),
        versions={name: _find_version(name) for name in _LIBRARIES},
        facts=_list_facts(metrics or {}),
    )


def report_outputs(name: str, evaluation: Evaluation) -> ReportContent:
    """Return what a report shows of outputs that came from files."""
    return ReportContent(
        name=name,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        evaluations={name: evaluation.to_dict()},
        rows={name: evaluation.rows},
        versions={name: _find_version(name) for name in ("dragoman", "sacrebleu")},
    )


def attend(model: Predictor, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return where the model looked for a few of the shorter outputs; nothing if it cannot tell."""
    short = sorted(rows, key=lambda row: abs(len(row.source) - _SHORT_SOURCE))[:_NUM_ATTENTION]
    looking = model.with_alignment()
    if not short or looking is None:
        return []
    found = looking.predict_rows([Source(row.source, row.features, row.line) for row in short])
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


def _find_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
