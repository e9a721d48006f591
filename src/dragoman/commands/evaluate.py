"""From a model and pairs to an evaluation, and from a folder to the evaluation in it."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dragoman.errors import DataError
from dragoman.evaluation.breakdown import count_rarest
from dragoman.evaluation.confidence import Calibration, calibrate, find_confidence, measure
from dragoman.evaluation.evaluation import (
    ROWS,
    SCORES,
    Evaluation,
    TargetTokenization,
    evaluate_rows,
    read_evaluation,
)
from dragoman.evaluation.rows import Row, group_references, read_rows
from dragoman.evaluation.scores import Scores, score
from dragoman.model_folder.folder import EVALUATION, is_model_folder
from dragoman.predictor import PRODUCED_NAN, Predictor
from dragoman.reading.pairs import InvalidRow, Pair, Source

_CLAIMS = ("is_exact", "is_complete")


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
    rows = predict_pairs(model, pairs)
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
        TargetTokenization(separator=target.separator, has_symbols=target.kind == "symbols"),
        rarest=count_rarest(rows, model.tokenizer, counts) if counts else (),
        confidence=confidence,
        speed={
            "rows_per_s": round(len(rows) / seconds, 2),
            "seconds": round(seconds, 3),
            "engine": model.engine.name,
        },
        model={"decoding": settings.decoding.model_dump(mode="json")},
    )
    return evaluation, confidence


def score_pairs(model: Predictor, pairs: Iterable[Pair]) -> Scores:
    """Return the scores of `model` on `pairs`; rows with the same source are its references.

    A truncated output is scored as it is, without the truncation mark.

    Raises:
        DataError: There are no pairs, or one is too long for the model.
        DragomanError: The model produced NaN.
    """
    rows, target = predict_pairs(model, pairs), model.settings.tokenizer.target
    return score(
        [row.hypothesis for row in rows],
        [row.references for row in rows],
        target.separator,
        settings=model.settings.evaluation,
        has_symbols=target.kind == "symbols",
    )


def predict_pairs(model: Predictor, pairs: Iterable[Pair]) -> list[Row]:
    """Return a row for each source of `pairs`, with all its references and the best output.

    Raises:
        DataError: A pair is too long for the model.
        DragomanError: The model produced NaN.
    """
    rows = group_references(pairs)
    sources = [Source(row.source, row.features, row.line) for row in rows]
    found: list[Row] = []
    for row, (source, best_first) in zip(rows, model.predict_rows(sources), strict=True):
        if isinstance(source, InvalidRow) and source.reason == PRODUCED_NAN:
            raise model.nan_error()
        if isinstance(source, InvalidRow):
            raise DataError(
                f"{row.file}:{row.line}: the source cannot be predicted: {source.reason}; "
                "remove it from the pairs"
            )
        best = best_first[0]
        found.append(
            replace(
                row,
                hypothesis=best.text,
                is_complete=best.is_complete,
                score=best.score,
                confidence=best.confidence,
            )
        )
    return found


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
        is_whole = path.name == ROWS and path.with_name(SCORES).is_file()
        return read_evaluation(path.parent) if is_whole else (read_rows(path), {})
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
