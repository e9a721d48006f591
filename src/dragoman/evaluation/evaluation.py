"""An evaluation: scores with intervals, their breakdown, confusions, confidence; kept in a folder.

rows.jsonl     a source, its references, the output and its own scores, an object a line
scores.json    all figures over the rows
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman.errors import DataError, ModelFolderError
from dragoman.evaluation.breakdown import (
    Group,
    describe_groups,
    group_by_feature,
    group_by_length,
    group_by_rarity,
)
from dragoman.evaluation.confidence import Calibration
from dragoman.evaluation.confusions import Confusion, find_confusions
from dragoman.evaluation.intervals import estimate_all
from dragoman.evaluation.metrics import Metric, choose_metrics, find_task
from dragoman.evaluation.rows import Row, read_rows, write_rows
from dragoman.evaluation.scores import Scores, check_rows, collect, score_statistics
from dragoman.model_folder.folder import EVALUATION
from dragoman.model_folder.folder_files import FolderFile, parse_json, read_file
from dragoman.settings import EvaluationSettings
from dragoman.storage import consistent_read, staged_folder

ROWS, SCORES = "rows.jsonl", "scores.json"
_LARGEST_SCORES_BYTES, _LARGEST_ROWS_BYTES = 1 << 26, 1 << 31
_MOST_RESAMPLES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How targets are cut into tokens, where a model says so."""

    separator: str = " "
    has_symbols: bool = False  # tokens are symbols, such as phones


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is known of the outputs of some rows."""

    rows: Sequence[Row]
    scores: Scores
    row_scores: Mapping[str, NDArray[np.float64]]  # of each row, (N,), by name
    breakdown: Mapping[str, list[dict[str, Any]]]
    confusions: Sequence[Confusion]
    settings: EvaluationSettings
    cut: Cut
    confidence: Calibration | None = None
    speed: Mapping[str, Any] = field(default_factory=dict)  # rows_per_s, seconds, engine
    model: Mapping[str, Any] = field(default_factory=dict)  # which one, and how it decoded

    def to_dict(self) -> dict[str, Any]:
        """Return the content of scores.json."""
        return {
            "version": version("dragoman"),
            "rows": len(self.rows),
            "test_rows_digest": digest_rows(self.rows),
            "data": {"files": list(dict.fromkeys(row.file for row in self.rows if row.file))},
            "settings": self.settings.model_dump(mode="json"),
            "cut": {"separator": self.cut.separator, "has_symbols": self.cut.has_symbols},
            "model": dict(self.model),
            "scores": self.scores.to_dict(),
            "breakdown": dict(self.breakdown),
            "confusions": [one.to_dict() for one in self.confusions],
            "confidence": None if self.confidence is None else self.confidence.to_dict(),
            "speed": dict(self.speed),
        }


def evaluate_rows(
    rows: Sequence[Row],
    settings: EvaluationSettings,
    cut: Cut | None = None,
    *,
    rarest: Sequence[int] = (),
    confidence: Calibration | None = None,
    speed: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Return all that can be told of `rows`.

    Args:
        rarest: How often the rarest token of each source stood in the training pairs; empty: that
            is not known.
        confidence: What was measured of the confidence of these rows.
        speed: How long the outputs took.
        model: What made them.

    Raises:
        ValueError: There are no rows, or one has no reference.
    """
    cut = cut or Cut()
    hypotheses = [row.hypothesis for row in rows]
    references = [row.references for row in rows]
    check_rows(hypotheses, references)
    metrics = choose_metrics(
        settings, references, separator=cut.separator, has_symbols=cut.has_symbols
    )
    statistics = collect(metrics, hypotheses, references)
    task = find_task(settings, references, has_symbols=cut.has_symbols)
    return Evaluation(
        rows=rows,
        scores=score_statistics(metrics, statistics, settings),
        row_scores={
            metric.name: metric.combine(statistics[metric.name])
            for metric in metrics
            if metric.by_row
        },
        breakdown=_break_down(rows, metrics, statistics, settings, rarest),
        confusions=find_confusions(rows, separator=cut.separator if task == "phones" else None),
        settings=settings,
        cut=cut,
        confidence=confidence,
        speed=speed or {},
        model=model or {},
    )


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write the folder under a temporary name, then rename it; one that stands there is replaced.

    Raises:
        DataError: It cannot be written, or what stands there is no evaluation.
    """
    if folder.exists() and not (folder / SCORES).is_file():
        raise DataError(f"{folder}: not an evaluation, so it is left alone; choose another --out")
    if folder.parent.name == EVALUATION and (folder.is_symlink() or folder.parent.is_symlink()):
        raise DataError(f"{folder}: a link leads out of the model folder; choose another --out")
    try:
        with staged_folder(folder) as partial:
            write_rows(partial / ROWS, evaluation.rows, evaluation.row_scores)
            content = evaluation.to_dict()
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            (partial / SCORES).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written: {error.strerror}; choose a folder with --out"
        ) from error


def read_evaluation(folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows and the content of scores.json of a folder that `write_evaluation` wrote.

    It may come from a stranger, as the model folder around it, and be replaced meanwhile.

    Raises:
        DataError: It is missing, broken, or larger than an evaluation.
    """
    try:
        with consistent_read(folder):
            return _read_evaluation(folder)
    except ModelFolderError as error:
        raise DataError(str(error)) from error


def _read_evaluation(folder: Path) -> tuple[list[Row], dict[str, Any]]:
    path = folder / SCORES
    try:
        content = parse_json(read_file(path, _LARGEST_SCORES_BYTES))
        FolderFile(folder / ROWS, _LARGEST_ROWS_BYTES)  # a plain file, and of this size at most
    except FileNotFoundError as error:
        raise DataError(f"{folder / ROWS}: there is no such file") from error
    except ModelFolderError as error:
        raise DataError(str(error)) from error
    except ValueError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object, found {type(content).__name__}")
    if fault := _find_fault(content):
        raise DataError(f"{path}: {fault}; evaluate the model again")
    return read_rows(folder / ROWS), content


def _find_fault(content: Mapping[str, Any]) -> str:
    """Return what is wrong with what others read in a scores.json, or ""."""
    cut, settings = content.get("cut", {}), content.get("settings", {})
    if not isinstance(cut, dict) or not isinstance(settings, dict):
        return "cut or settings is no object"
    separator, has_symbols = cut.get("separator", ""), cut.get("has_symbols", False)
    if not isinstance(separator, str) or not isinstance(has_symbols, bool):
        return "cut holds what is neither a separator nor has_symbols"
    resamples = settings.get("resamples", 0)
    if type(resamples) is not int or not 0 <= resamples <= _MOST_RESAMPLES:
        return f"settings.resamples is no number from 0 to {_MOST_RESAMPLES:,}"
    return ""


def digest_rows(rows: Sequence[Row]) -> str:
    """Return what tells these sources and references, in their order, from others."""
    digest = hashlib.sha256()
    for row in rows:
        text = json.dumps((row.features, row.source, row.references))
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def _break_down(
    rows: Sequence[Row],
    metrics: Sequence[Metric],
    statistics: Mapping[str, NDArray[np.float64]],
    settings: EvaluationSettings,
    rarest: Sequence[int],
) -> dict[str, list[dict[str, Any]]]:
    kinds: dict[str, list[Group]] = {
        "source length": group_by_length(rows) if any(row.source for row in rows) else [],
        "feature": group_by_feature(rows),
        "rare symbols": group_by_rarity(rarest) if len(rarest) else [],
    }
    shown = [metric for metric in metrics if metric.by_group]
    return {
        kind: describe_groups(
            groups,
            [
                estimate_all(
                    shown, {one.name: statistics[one.name][group.rows] for one in shown}, settings
                )
                for group in groups
            ],
        )
        for kind, groups in kinds.items()
        if len(groups) > 1
    }
