"""Export a model for other programs, into its folder, and check it against PyTorch."""

import json
import math
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from dragoman.engines.ctranslate2_engine import CTranslate2Engine
from dragoman.engines.ctranslate2_export import convert_model
from dragoman.engines.engine import Engine, Quantization
from dragoman.engines.parity import Check, compare
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import ModelFolderError, SettingsError
from dragoman.model.building import load_network
from dragoman.model_folder.folder import WEIGHTS, ModelFolder
from dragoman.storage import sha256, staged_folder, sweep

Target = Literal["ctranslate2", "onnx"]
EXPORT = "export.json"
_FORMAT = 2  # of an export


def export(
    path: str | Path, to: Target = "ctranslate2", quantization: Quantization = "float32"
) -> Check:
    """Write the model in `path` into its folder `ctranslate2` or `onnx`; return how it compares.

    The outputs of both are compared on held-out rows that `fit` kept with the model. An earlier
    export is overwritten, or, if this one fails, left as it was. `predict` does not read exports.

    Args:
        quantization: Number format of the weights, for CTranslate2.

    Raises:
        ModelFolderError: The folder is no model, cannot be exported, or the outputs differ from
            PyTorch's although the weights are float32.
        SettingsError: A package is missing, or the quantization is not possible.
    """
    if to == "onnx" and quantization != "float32":
        raise SettingsError("--quantization: is for --to ctranslate2; ONNX is float32")
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if to == "onnx" and missing:
        raise SettingsError(
            f"--to onnx: {' and '.join(missing)} not installed: "
            '`pip install "dragoman[onnx]"` installs what it needs'
        )
    path = Path(path)
    model_folder = ModelFolder.read(path)
    parts = (model_folder.settings.model, model_folder.tokenizer, model_folder.weights)
    network = load_network(*parts)
    try:
        sweep(path / to)
        with staged_folder(path / to) as folder:
            about: dict[str, Any] = {
                "version": version("dragoman"),
                "format": _FORMAT,
                "weights": sha256(path / WEIGHTS),
            }
            engine: Engine
            if to == "onnx":
                from dragoman.engines.onnx_export import OnnxModel, write_onnx

                about.update(write_onnx(network, folder))
                engine = OnnxModel(folder, network.longest_target)
            else:
                about["quantization"] = quantization
                for name, content in convert_model(*parts, quantization).items():
                    (folder / name).write_bytes(content)
                engine = CTranslate2Engine(*parts, device="cpu", quantization=quantization)
            check = compare(TorchEngine([network], "cpu"), engine, model_folder)
            if not math.isfinite(check.largest_difference):
                raise ModelFolderError(
                    f"{path}: not exported: the model or the export produced NaN; train it again"
                )
            if quantization == "float32" and not check.is_equal:
                raise ModelFolderError(
                    f"{path}: not exported: its outputs differ from the model's ({check}); this is "
                    "a bug of dragoman, report it with this message"
                )
            about["check"] = check.to_dict()
            (folder / EXPORT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ModelFolderError(f"{path / to}: cannot be written: {error}") from error
    return check
