"""The model folder: the unit that people keep, copy and serve; written whole, read with checks.

    model.safetensors   weights
    config.yaml         every setting, resolved, with the version that wrote it
    tokenizer.json      the tokens of both sides
    metrics.json        scores, sizes, and what it was trained on
    README.md           a model card
    token_counts.json   how often each source token stood in the training pairs
    calibration.json    what makes its log-probabilities confidences, once calibrated
    ctranslate2/        the model for CTranslate2, once exported; onnx/ likewise
    evaluation/         by name, outputs and scores of an evaluation; report.html shows them

Nothing in it is pickled, and reading it runs none of it.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dragoman.configuration import read_settings
from dragoman.errors import ModelFolderError, SettingsError
from dragoman.settings import Settings
from dragoman.text.calibration import StoredCalibration, read_calibration, write_calibration
from dragoman.text.pair_tokenizer import PairTokenizer
from dragoman.text.token_counts import read_token_counts, write_token_counts

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.yaml", "tokenizer.json"
METRICS, CARD = "metrics.json", "README.md"
CTRANSLATE2, ONNX = "ctranslate2", "onnx"  # folders in it, once exported
EVALUATION, REPORT = "evaluation", "report.html"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The content of a model folder."""

    settings: Settings
    tokenizer: PairTokenizer
    weights: dict[str, NDArray[np.float32]]
    metrics: dict[str, Any]
    card: str
    calibration: StoredCalibration | None = None
    source_counts: tuple[int, ...] = ()  # by source id: how often it stood in the training pairs


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Write the model folder under a temporary name beside `path`, then rename it.

    A folder that stands at `path` is replaced.

    Raises:
        ModelFolderError: It cannot be written; what stood at `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        save_file(bundle.weights, partial / WEIGHTS)
        (partial / CONFIG).write_text(dump_settings(bundle.settings), encoding="utf-8")
        # safetensors 0.8 lets nobody but the owner read its file, whatever the umask.
        shutil.copymode(partial / CONFIG, partial / WEIGHTS)
        bundle.tokenizer.save(partial / TOKENIZER)
        metrics = json.dumps(bundle.metrics, indent=2, ensure_ascii=False, allow_nan=False)
        (partial / METRICS).write_text(metrics + "\n", encoding="utf-8")
        (partial / CARD).write_text(bundle.card, encoding="utf-8")
        if bundle.source_counts:
            write_token_counts(partial, bundle.source_counts)
        if bundle.calibration is not None:
            write_calibration(partial, bundle.calibration)
        replace_folder(path, partial)
    except OSError as error:
        raise ModelFolderError(f"{path}: the model folder cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_bundle(path: Path, *, with_weights: bool = True) -> Bundle:
    """Return the content of the model folder at `path`.

    Args:
        with_weights: False: its `weights` are empty, as where an exported model has its own.

    Raises:
        ModelFolderError: It is missing, incomplete, cut short or foreign; says which file.
    """
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise ModelFolderError(f"{path}: expected a model folder (as fit writes), found {found}")
    names = (WEIGHTS, CONFIG, TOKENIZER, METRICS)
    if missing := [name for name in names if not (path / name).is_file()]:
        raise ModelFolderError(
            f"{path}: not a whole model folder: {', '.join(missing)} missing; copy it again, or "
            "train it again with `dragoman fit`"
        )
    try:
        settings = read_settings(path / CONFIG)
    except SettingsError as error:
        raise ModelFolderError(f"{path / CONFIG}: not settings of this version: {error}") from error
    return Bundle(
        settings=settings,
        tokenizer=PairTokenizer.load(path / TOKENIZER),
        weights=_read_weights(path / WEIGHTS) if with_weights else {},
        metrics=_read_metrics(path / METRICS),
        card=(path / CARD).read_text(encoding="utf-8", errors="replace")
        if (path / CARD).is_file()
        else "",
        calibration=read_calibration(path),
        source_counts=read_token_counts(path),
    )


def replace_folder(path: Path, partial: Path) -> None:
    """Put the folder `partial` in the place of `path`, which may stand there or not."""
    if not path.exists():
        partial.rename(path)
        return
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)


def fingerprint(path: Path) -> str:
    """Return what tells a file, such as one of weights, from others: its SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_model_folder(path: Path) -> bool:
    """Return whether `path` holds what only a model folder does."""
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()


def dump_settings(settings: Settings) -> str:
    """Return every setting as YAML that `read_settings` takes."""
    text: str = yaml.safe_dump(
        settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True
    )
    return text


def _read_weights(path: Path) -> dict[str, NDArray[np.float32]]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a dtype unknown to numpy
        raise ModelFolderError(
            f"{path}: the weights cannot be read, as if cut short or foreign: {error}"
        ) from error


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path}: the metrics cannot be read: {error}") from error
    if not isinstance(metrics, dict):
        raise ModelFolderError(f"{path}: expected a JSON object, found {type(metrics).__name__}")
    return metrics
