"""How every export is written: beside its place, checked against PyTorch, then put into its place."""

import json
import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dragoman.engines.engine import Engine
from dragoman.engines.export_check import Check, compare
from dragoman.engines.exported import EXPORT, FORMAT
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import ModelFolderError
from dragoman.model.building import load_network
from dragoman.model.transformer import Transformer
from dragoman.model_folder.folder import WEIGHTS, Bundle
from dragoman.model_folder.folder_files import check_folder
from dragoman.storage import sha256, staged_folder, sweep


def write_export(
    path: Path,
    name: str,
    bundle: Bundle,
    write: Callable[[Transformer, Path], dict[str, Any]],
    load: Callable[[Path], Engine],
    *,
    must_be_equal: bool = True,
) -> Check:
    """Write the folder `name` into the model folder `path`, and return how it compares with PyTorch.

    The rows that are compared are held-out ones that `fit` kept with the model. An export that
    stands there already is replaced, or, where this one fails, left as it was.

    Args:
        bundle: The content of `path`.
        write: Writes the network into a folder, and returns what `export.json` tells of it beside
            the version, the fingerprint of the weights, and the check.
        load: Returns the engine that runs what was written into a folder.
        must_be_equal: An export whose outputs are not PyTorch's is refused.

    Raises:
        ModelFolderError: It cannot be written, or is refused.
    """
    check_folder(path / name)  # a link would let the folder that it leads to be replaced
    network = load_network(bundle.settings.model, bundle.tokenizer, bundle.read_weights())
    weights = bundle.weights_file
    folder = path / name
    try:
        sweep(folder)
        with staged_folder(folder) as partial:
            told = {
                "version": version("dragoman"),
                "format": FORMAT,
                "weights": weights.fingerprint if weights else sha256(path / WEIGHTS),
                **write(network, partial),
            }
            _write_json(partial / EXPORT, told)  # the engine reads it
            check = compare(TorchEngine([network], "cpu"), load(partial), bundle)
            if not math.isfinite(check.largest_difference):
                raise ModelFolderError(
                    f"{path}: the model or the export gives what is no number, as where weights are "
                    "none: it is not kept; train the model again"
                )
            if must_be_equal and not check.is_equal:
                raise ModelFolderError(
                    f"{path}: the export does not say what the model says ({check}); it is not "
                    "kept: this is a fault of dragoman, report it with this message"
                )
            _write_json(partial / EXPORT, {**told, "check": check.to_dict()})
            _check_place(path, bundle)
    except (OSError, ModelFolderError) as error:
        _check_place(path, bundle)  # if it was replaced, that is why
        if isinstance(error, ModelFolderError):
            raise
        raise ModelFolderError(f"{folder}: cannot be written: {error}") from error
    return check


def _check_place(path: Path, bundle: Bundle) -> None:
    """Refuse to put the export of one model into the folder of another.

    Raises:
        ModelFolderError: Another one has taken the place of the model that was read.
    """
    if bundle.weights_file is not None and not bundle.weights_file.is_in_place():
        raise ModelFolderError(
            f"{path}: another model took its place while it was exported; export that one"
        )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
