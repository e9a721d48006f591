"""The model folder: the unit that people keep, copy and serve; written whole, read with checks.

    model.safetensors   weights
    config.yaml         every setting, resolved, with the version that wrote it
    tokenizer.json      the tokens of both sides
    metrics.json        scores, sizes, and what it was trained on
    README.md           a model card
    token_counts.json   how often each source token stood in the training pairs
    calibration.json    what makes its log-probabilities confidences, once calibrated
    choices.txt, schema.json, grammar.lark   what its outputs must match, if a file says so
    ctranslate2/        the model for CTranslate2, once exported; onnx/ likewise
    evaluation/         by name, outputs and scores of an evaluation; report.html shows them

It may come from a stranger. Nothing in it is pickled, and reading it runs none of it; no file of it
is a link; no size that a file claims is believed before it is compared with the file itself and with
the settings; no other file is read because a setting names it. Any other file in it is left alone,
checkpoints above all.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

import dragoman.storage as atomic
from dragoman.configuration import FORMAT, parse_config
from dragoman.errors import ModelFolderError, SettingsError
from dragoman.model_folder.calibration import (
    CALIBRATION,
    StoredCalibration,
    read_calibration,
    write_calibration,
)
from dragoman.model_folder.constraint_files import find_constraint_files, keep_constraint_files
from dragoman.model_folder.weights import StoredWeights
from dragoman.settings import Settings
from dragoman.tokenizers.pair_tokenizer import PairTokenizer
from dragoman.versions import is_later

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.yaml", "tokenizer.json"
METRICS, CARD, TOKEN_COUNTS = "metrics.json", "README.md", "token_counts.json"
CTRANSLATE2, ONNX = "ctranslate2", "onnx"  # folders in it, once exported
EVALUATION, REPORT = "evaluation", "report.html"
_FOLDED = "\x85\u2028\u2029\ufeff"  # ends of lines, and a byte order mark
_NEEDED = (WEIGHTS, CONFIG, TOKENIZER, METRICS)

_MAX_CONFIG_BYTES = 1 << 20
_MAX_METRICS_BYTES = 1 << 28  # 64 samples, which may be long
_MAX_TOKEN_COUNTS_BYTES = 1 << 25


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The content of a model folder."""

    settings: Settings
    tokenizer: PairTokenizer
    weights: Mapping[str, NDArray[np.float32]]
    metrics: dict[str, Any]
    card: str
    calibration: StoredCalibration | None = None
    source_counts: tuple[int, ...] = ()  # by source id: how often it stood in the training pairs

    @property
    def weights_file(self) -> StoredWeights | None:
        """The weights as they were read; None: the model was not read from a folder."""
        return self.weights if isinstance(self.weights, StoredWeights) else None

    def read_weights(self) -> dict[str, NDArray[np.float32]]:
        """Return all weights, in memory."""
        return dict(self.weights)


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`; what is in it at the end takes the place of `path`.

    All that belongs to a model may be written into it, and comes into its place at one stroke. A
    folder that stood there is removed. Where the body or the writing fails, `path` is as it was.

    Raises:
        ModelFolderError: It cannot be written.
    """
    try:
        with atomic.staged_folder(path) as folder:
            yield folder
    except (OSError, SafetensorError) as error:  # the latter: a full disk, as safetensors tells it
        raise ModelFolderError(f"{path}: the model folder cannot be written: {error}") from error


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Write the model folder beside `path`, then put it into its place.

    A folder that stands at `path` is replaced.

    Raises:
        ModelFolderError: It cannot be written; what stood at `path` is as it was.
    """
    with staged_folder(path) as folder:
        fill_folder(folder, bundle)


def fill_folder(folder: Path, bundle: Bundle) -> None:
    """Write a model into `folder`, which is there and empty, as that of `staged_folder` is.

    Raises:
        OSError: A file cannot be written.
        ModelFolderError: A file that the outputs must match cannot be taken along.
    """
    settings = keep_constraint_files(folder, bundle.settings)
    save_file(bundle.read_weights(), folder / WEIGHTS)
    (folder / CONFIG).write_text(dump_settings(settings), encoding="utf-8")
    # safetensors 0.8 lets nobody but the owner read its file, whatever the umask.
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)
    bundle.tokenizer.save(folder / TOKENIZER)
    metrics = json.dumps(bundle.metrics, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / METRICS).write_text(metrics + "\n", encoding="utf-8")
    (folder / CARD).write_text(bundle.card, encoding="utf-8")
    if bundle.source_counts:
        counts = json.dumps({"source": bundle.source_counts}, separators=(",", ":"))
        (folder / TOKEN_COUNTS).write_text(counts + "\n", encoding="utf-8")
    if bundle.calibration is not None:
        write_calibration(folder, bundle.calibration)


def read_bundle(path: Path) -> Bundle:
    """Return the content of the model folder at `path`, which may be replaced meanwhile.

    Raises:
        ModelFolderError: It is missing, incomplete, cut short, foreign or too large; says which
            file.
    """
    with atomic.consistent_read(path):
        return _read_bundle(path)


def sweep_leftovers(path: Path) -> None:
    """Remove what killed processes left of a model folder at `path`, beside it and in it.

    Only temporary names of dragoman's own are touched, and no folder that a living process of this
    machine writes. Where `path` is missing because its writer was killed while it replaced it, the
    whole copy beside it is put back.

    Raises:
        ModelFolderError: That copy cannot be put back.
    """
    try:
        atomic.sweep(path)
        inner, evaluations = [path / n for n in (CTRANSLATE2, ONNX, CALIBRATION)], path / EVALUATION
        if evaluations.is_dir() and not evaluations.is_symlink():
            inner += list(evaluations.iterdir())
        for one in inner:
            if not one.is_symlink():  # it leads elsewhere
                atomic.sweep(one)
    except OSError as error:
        raise ModelFolderError(
            f"{path}: what a killed process left beside it cannot be put back: {error}"
        ) from error


def is_model_folder(path: Path) -> bool:
    """Return whether `path` holds what only a model folder does."""
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()


def dump_settings(settings: Settings) -> str:
    """Return every setting as YAML that `read_settings` takes."""
    content = {"format": FORMAT, **settings.model_dump(mode="json")}
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if any(
        mark in text for mark in _FOLDED
    ):  # PyYAML 6 writes these as they are, and reads a space
        text = yaml.safe_dump(content, sort_keys=False)
    return text


def _read_bundle(path: Path) -> Bundle:
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise ModelFolderError(f"{path}: expected a model folder (as fit writes), found {found}")
    if missing := [name for name in _NEEDED if not os.path.lexists(path / name)]:
        raise ModelFolderError(
            f"{path}: not a whole model folder: {', '.join(missing)} missing; copy it again, or "
            "train it again with `dragoman fit`"
        )
    settings = _read_settings(path / CONFIG)
    card = path / CARD
    return Bundle(
        settings=find_constraint_files(path, settings),
        tokenizer=PairTokenizer.load(path / TOKENIZER),
        weights=StoredWeights(path / WEIGHTS),
        metrics=_read_metrics(path / METRICS),
        card=card.read_text("utf-8", errors="replace") if card.is_file() else "",
        calibration=read_calibration(path),
        source_counts=_read_token_counts(path / TOKEN_COUNTS),
    )


def _read_settings(path: Path) -> Settings:
    content = atomic.read_bytes(path, _MAX_CONFIG_BYTES)
    try:
        settings = parse_config(content, str(path))
    except SettingsError as error:
        named = re.search(rb"^version: ['\"]?([0-9.]{1,30})", content, re.MULTILINE)
        if named and is_later(written_by := named[1].decode()):
            raise ModelFolderError(
                f"{path}: dragoman {written_by} wrote it, and this is an older one, that does not "
                f"know all of it; upgrade with `pip install --upgrade dragoman` ({error})"
            ) from error
        raise ModelFolderError(f"{path}: not settings of this version: {error}") from error
    return settings


def _read_metrics(path: Path) -> dict[str, Any]:
    metrics = atomic.read_json(path, _MAX_METRICS_BYTES)
    if not isinstance(metrics, dict):
        raise ModelFolderError(f"{path}: expected a JSON object, found {type(metrics).__name__}")
    return metrics


def _read_token_counts(path: Path) -> tuple[int, ...]:
    """Return how often each source token was in the training pairs, by id; (): not known."""
    if not path.exists():
        return ()
    content = atomic.read_json(path, _MAX_TOKEN_COUNTS_BYTES)
    counts = content.get("source") if isinstance(content, dict) else None
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise ModelFolderError(f'{path}: expected {{"source": [counts of the tokens]}}')
    return tuple(counts)
