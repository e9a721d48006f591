"""Export to ONNX: two graphs and a loop, for where there is neither PyTorch nor CTranslate2."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dragoman.engines.export import write_export
from dragoman.engines.export_check import Check
from dragoman.engines.onnx_card import write_onnx_card
from dragoman.engines.onnx_engine import DECODER_STEP, ENCODER, OnnxEngine
from dragoman.errors import SettingsError
from dragoman.model.transformer import Transformer
from dragoman.model_folder.folder import CARD, ONNX, Bundle, read_bundle


def export_onnx(path: Path, bundle: Bundle | None = None) -> Check:
    """Write `onnx/` into the model folder `path`, and return how it compares with PyTorch.

    `encoder.onnx` and `decoder_step.onnx` are the model, `export.json` says what they take and
    give, and the README beside them holds a greedy search that needs onnxruntime and numpy alone.
    An export whose outputs are not PyTorch's is not kept.

    Args:
        bundle: The content of `path`, where it is at hand.

    Raises:
        ModelFolderError: The folder is no model, or cannot be exported; says why.
        SettingsError: A package is missing; says which.
    """
    if missing := [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]:
        raise SettingsError(
            f"--to onnx: {' and '.join(missing)} not installed: "
            '`pip install "dragoman[onnx]"` brings what it needs'
        )
    bundle = read_bundle(path) if bundle is None else bundle
    return write_export(path, ONNX, bundle, write_model, OnnxEngine)


def write_model(network: Transformer, folder: Path) -> dict[str, Any]:
    """Write the graphs of `network` and the README to `folder`; return what export.json tells.

    Raises:
        ModelFolderError: The model has a part that the graphs lack.
    """
    # Here, because onnx may be missing.
    from dragoman.engines.onnx_model import build_decoder_step, build_encoder

    encoder, decoder_step = build_encoder(network), build_decoder_step(network)
    encoder.write(folder / ENCODER)
    decoder_step.write(folder / DECODER_STEP)
    about = {
        "positions": network.longest_target,  # null: there is no end
        "source_vocab_size": network.source_vocab_size,
        "target_vocab_size": network.target_vocab_size,
        "pad_id": network.pad_id,
        "bos_id": network.bos_id,
        "eos_id": network.eos_id,
        "heads": network.nhead,
        "head_width": network.d_model // network.nhead,
        "encoder": {"file": ENCODER, **encoder.describe()},
        "decoder_step": {"file": DECODER_STEP, **decoder_step.describe()},
    }
    (folder / CARD).write_text(write_onnx_card(network.longest_target), encoding="utf-8")
    return about
