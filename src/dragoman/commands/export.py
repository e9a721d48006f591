"""Export a model for other programs, into its folder, and check it against PyTorch."""

import json
import math
import re
import runpy
import shutil
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast, get_args

from safetensors.torch import save_file

from dragoman.engines.ctranslate2_engine import CTranslate2Engine
from dragoman.engines.ctranslate2_export import convert_model
from dragoman.engines.engine import Engine, Quantization
from dragoman.engines.html_export import (
    NAMES,
    BrowserError,
    HtmlModel,
    HtmlQuantization,
    find_browser,
    find_html_errors,
    open_page,
    write_html,
)
from dragoman.engines.parity import Check, ExportedModel, compare
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import ModelFolderError, SettingsError, name_extra
from dragoman.model.building import load_network
from dragoman.model.transformer import LearnedPositions, Transformer
from dragoman.model_folder.folder import WEIGHTS, ModelFolder
from dragoman.settings import ModelSettings
from dragoman.storage import sha256, staged_folder, sweep
from dragoman.tokenizers.tokenizer import BOS_ID

Target = Literal["ctranslate2", "onnx", "html", "pytorch"]
EXPORT = "export.json"
_FORMAT = 2  # of an export
NO_MEMORY = (
    "without the model's memory: it answers by the model alone, where predict gives known sources "
    "the target of training"
)
_QUANTIZATIONS: dict[Target, tuple[Quantization, ...]] = {  # the first is the default
    "ctranslate2": get_args(Quantization),
    "onnx": ("float32",),
    "html": ("float16", "int8"),
    "pytorch": ("float32",),
}
_SCRIPT = "decode.py"


def export(
    path: str | Path,
    to: Target = "ctranslate2",
    quantization: Quantization | None = None,
    *,
    report: Callable[[str], None] = lambda _: None,
) -> Check | str:
    """Write the model in `path` into its folder `to`; return how it compares.

    The outputs of both are compared on held-out rows that `fit` kept with the model. An earlier
    export is overwritten, or, if this one fails, left as it was. `predict` does not read exports.
    A page needs Chromium for the comparison; without it, the result says why there is none.
    Exports have no memory (decoding.memory): `report` gets a line on one that is left out.

    `quantization`: number format of the weights; None: float32, and float16 for a page.

    Raises:
        ModelFolderError: The folder is no model, cannot be exported, or the outputs differ from
            PyTorch's although the weights are float32.
        SettingsError: A package is missing, or the quantization is not possible.
    """
    if to not in _QUANTIZATIONS:
        raise SettingsError(f"--to {to}: it does not exist; give {', '.join(_QUANTIZATIONS)}")
    known = _QUANTIZATIONS[to]
    quantization = quantization or known[0]
    if quantization not in known:
        raise SettingsError(
            f"--quantization {quantization}: --to {to} has {' and '.join(known)} only"
        )
    if to == "onnx":
        with name_extra("--to onnx"):
            import onnx  # noqa: F401  # before the work
            import onnxruntime  # noqa: F401
    path = Path(path)
    model_folder = ModelFolder.read(path)
    if to == "html" and (errors := find_html_errors(model_folder.settings)):
        raise ModelFolderError(f"{path}: not exported: {'; '.join(errors)}")
    parts = (model_folder.settings.model, model_folder.tokenizer, model_folder.weights)
    network = load_network(*parts)
    reference, check = TorchEngine([network], "cpu"), None
    try:
        sweep(path / to)
        with staged_folder(path / to) as folder:
            about: dict[str, Any] = {
                "version": version("dragoman"),
                "format": _FORMAT,
                "weights": sha256(path / WEIGHTS),
                "quantization": quantization,
            }
            engine: Engine
            if to == "html":
                name = path.resolve().name
                page = folder / f"{name}.html"
                kind = cast(HtmlQuantization, quantization)
                write_html(model_folder, about["weights"], name, kind, page)
                check = _check_page(reference, page, model_folder, quantization)
            elif to == "onnx":
                from dragoman.engines.onnx_export import OnnxModel, write_onnx

                about.update(write_onnx(network, folder))
                engine = OnnxModel(folder, network.longest_target)
            elif to == "pytorch":
                write_pytorch(network, parts[0], folder)
                engine = PytorchModel(folder, network.longest_target)
            else:
                for name, content in convert_model(*parts, quantization).items():
                    (folder / name).write_bytes(content)
                engine = CTranslate2Engine(*parts, device="cpu", quantization=quantization)
            check = check or compare(reference, engine, model_folder)
            if isinstance(check, Check) and not math.isfinite(check.largest_difference):
                raise ModelFolderError(
                    f"{path}: not exported: the model or the export produced NaN; train it again"
                )
            if quantization == "float32" and isinstance(check, Check) and not check.is_equal:
                raise ModelFolderError(
                    f"{path}: not exported: its outputs differ from the model's ({check}); this is "
                    "a bug of dragoman, report it with this message"
                )
            if model_folder.memory is not None and model_folder.settings.decoding.memory == "auto":
                about["memory"] = NO_MEMORY
                report(f"{path / to}: {NO_MEMORY}")
            about["check"] = check if isinstance(check, str) else check.to_dict()
            (folder / EXPORT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ModelFolderError(f"{path / to}: cannot be written: {error}") from error
    return check


def _check_page(
    reference: Engine, page: Path, model_folder: ModelFolder, quantization: Quantization
) -> Check | str:
    """Return how the page compares, in a browser, or why it was not compared."""
    program = find_browser()
    if program is None:
        return f"kept, but not checked: no Chromium is on the path ({', '.join(NAMES)})"
    try:
        with open_page(program, page) as browser:
            model = HtmlModel(browser, quantization)
            model.check_texts(model_folder)
            return compare(reference, model, model_folder)
    except BrowserError as error:
        return f"kept, but not checked: {program}: {error}"


def write_pytorch(network: Transformer, model: ModelSettings, folder: Path) -> None:
    """Write the weights of `network`, its sizes and the script into `folder`."""
    sizes = ("source", network.source_vocab_size), ("target", network.target_vocab_size)
    tensors = {}
    for side, size in sizes:  # without the rows that round the matrices up
        embedding = getattr(network, f"{side}_embedding").weight[:size]
        tensors[f"{side}_embedding"] = embedding * network.d_model**0.5
        positions = getattr(network, f"{side}_positions")
        if isinstance(positions, LearnedPositions):
            tensors[f"{side}_positions"] = positions.weight
    output, size = network.output, network.target_vocab_size
    weight = network.target_embedding.weight if output is None else output.weight
    tensors["output_weight"] = weight[:size]
    bias = weight.new_zeros(size) if output is None else output.bias[:size].detach().clone()
    bias[list(network.never_emitted)] = -math.inf
    tensors["output_bias"] = bias
    state = network.transformer.state_dict()
    for name, content in (("transformer", state), ("embeddings", tensors)):
        # Clones, because safetensors refuses tensors that share memory, as tied ones do.
        save_file(
            {key: tensor.detach().clone() for key, tensor in content.items()},
            folder / f"{name}.safetensors",
        )
    names = (
        "d_model", "nhead", "num_encoder_layers", "num_decoder_layers", "dim_feedforward",
        "activation", "norm_first",
    )  # fmt: skip
    config = {
        "transformer": {name: getattr(model, name) for name in names},
        "bos_id": network.bos_id,
        "eos_id": network.eos_id,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    script = (files("dragoman") / "engines" / "pytorch_decode.py").read_text("utf-8")
    script = re.sub(  # of the parts for kinds of positions, those of this model
        r" *# \[((?:\w| )+)\].*\n((?:.*\n)*?) *# \[end\]\n",
        lambda part: part[2] if model.positions in part[1].split() else "",
        script,
    )
    script = re.sub(r"\n{3,}", "\n\n", script)
    script = script.replace("int = 100", f"int = {min(100, network.longest_target or 100)}")
    (folder / _SCRIPT).write_text(script, encoding="utf-8")
    for path in folder.glob("*.safetensors"):  # created for the owner only, whatever the umask
        shutil.copymode(folder / _SCRIPT, path)


class PytorchModel(ExportedModel):
    """The script in `folder`, run to check it."""

    name = "pytorch"

    def __init__(self, folder: Path, num_positions: int | None = None) -> None:
        super().__init__(num_positions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that pre-norm has no nested tensors
            self._script = runpy.run_path(str(folder / _SCRIPT))

    def decode(self, source: Sequence[int], longest: int) -> list[int]:
        """Return the greedy output of a source."""
        ids: list[int] = self._script["decode"](list(source), longest)
        return ids

    def score_tokens(self, source: Sequence[int], emitted: Sequence[int]) -> list[float]:
        """Return the log-probability of each token of an output."""
        steps = self._script["score"](list(source), [BOS_ID, *emitted[:-1]])
        return [float(step[token]) for step, token in zip(steps, emitted, strict=True)]
