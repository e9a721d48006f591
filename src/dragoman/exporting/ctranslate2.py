"""Export to CTranslate2: the stock parameters in its layout, checked against PyTorch.

Its specification of a Transformer is that of `nn.Transformer`, but for names, for the order of the
layers' parts, and for what is done here: our positions, and padding and begin that are never said.
"""

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from ctranslate2.specs import TransformerSpec, common_spec, transformer_spec
from numpy.typing import NDArray

from dragoman.decoding.plan import SearchPlan
from dragoman.engines.ctranslate2 import EXPORT, CTranslate2Engine, fingerprint
from dragoman.engines.pytorch import TorchEngine
from dragoman.errors import ModelFolderError
from dragoman.exporting.check import Check, compare, greedy
from dragoman.model.building import build_network, load_weights
from dragoman.model.positions import LearnedPositions, sinusoidal_positions
from dragoman.model.transformer import Transformer
from dragoman.text.bundle import CTRANSLATE2, WEIGHTS, Bundle, read_bundle
from dragoman.text.pair_tokenizer import PairTokenizer
from dragoman.text.special_ids import BOS_ID, EOS_ID, PAD_ID, UNKNOWN_ID

Quantization = Literal["float32", "int8", "int8_float32", "float16", "bfloat16"]
QUANTIZATIONS = get_args(Quantization)

_POSITIONS = 4096  # sinusoidal positions that are written: the longest source or output
_NEVER = -1e9  # the logit of a token that is never said

Array = NDArray[np.float32]


def export_ctranslate2(
    path: Path, quantization: Quantization = "float32", bundle: Bundle | None = None
) -> Check:
    """Write `ctranslate2/` into the model folder `path`, and return how it compares with PyTorch.

    The rows that are compared are held-out ones that `fit` kept with the model. An export in
    float32 whose outputs are not PyTorch's is not kept.

    Raises:
        ModelFolderError: The folder is no model, or cannot be exported; says why.
    """
    bundle = read_bundle(path) if bundle is None else bundle
    network = build_network(bundle.settings.model, bundle.tokenizer)
    load_weights(network, bundle.weights)
    folder = path / CTRANSLATE2
    partial = path / f".{CTRANSLATE2}.tmp-{os.getpid()}"
    try:
        partial.mkdir()
        write_model(network, bundle.tokenizer, partial, quantization)
        told = {
            "version": version("dragoman"),
            "quantization": quantization,
            "positions": network.longest_target or _POSITIONS,
            "weights": fingerprint(path / WEIGHTS),
        }
        _write_json(partial / EXPORT, told)
        check = compare(
            TorchEngine([network], "cpu"),
            CTranslate2Engine(partial, device="cpu"),
            bundle,
            SearchPlan(decoding=greedy(bundle.settings.decoding)),
        )
        if quantization == "float32" and not check.is_equal:
            raise ModelFolderError(
                f"{path}: the export does not say what the model says ({check}); it is not kept. "
                "If the scores agree to 1e-4 two outputs are as good as equal; else this is a "
                "fault of dragoman: report it with this message"
            )
        _write_json(partial / EXPORT, {**told, "check": check.to_dict()})
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        raise ModelFolderError(f"{folder}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return check


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_model(
    network: Transformer, tokenizer: PairTokenizer, folder: Path, quantization: Quantization
) -> None:
    """Write `network` to `folder` as CTranslate2 reads it.

    Raises:
        ModelFolderError: The model has a part that CTranslate2 lacks.
    """
    encoder, decoder = network.transformer.encoder.layers, network.transformer.decoder.layers
    norm_first = decoder[0].norm_first
    # Ours has a last norm in post-norm too, which only the pre-norm layout has a place for.
    spec = TransformerSpec.from_config(
        (len(encoder), len(decoder)),
        network.nhead,
        pre_norm=True,
        activation=_find_activation(decoder[0].activation),
        alignment_layer=-1,
        alignment_heads=0,  # the mean of all
    )
    spec.encoder.pre_norm = spec.decoder.pre_norm = norm_first
    state = {name: p.detach().float().cpu().numpy() for name, p in network.named_parameters()}
    _fill(spec, network, state)

    source_names, target_names = tokenizer.source_names(), tokenizer.target_names()
    for names in (source_names, target_names):
        if len(set(names)) != len(names):
            raise ModelFolderError("two tokens have one name: CTranslate2 knows tokens by name")
    spec.register_source_vocabulary(source_names)
    spec.register_target_vocabulary(target_names)
    spec.config.unk_token = target_names[UNKNOWN_ID]
    spec.config.bos_token = target_names[BOS_ID]
    spec.config.eos_token = target_names[EOS_ID]
    spec.config.decoder_start_token = target_names[BOS_ID]
    spec.config.add_source_bos = spec.config.add_source_eos = False  # our sources have their end
    spec.config.layer_norm_epsilon = decoder[0].norm1.eps
    spec.validate()
    spec.optimize(quantization=None if quantization == "float32" else quantization)
    spec.save(str(folder))


def _find_activation(function: object) -> common_spec.Activation:
    import torch.nn.functional as F

    activations = {F.relu: common_spec.Activation.RELU, F.gelu: common_spec.Activation.GELU}
    if function not in activations:
        raise ModelFolderError(
            f"CTranslate2 cannot compute the activation {function}: it has relu and gelu"
        )
    return activations[function]


def _fill(spec: TransformerSpec, network: Transformer, state: dict[str, Array]) -> None:
    """Put the weights into `spec`, whose attributes are CTranslate2's own."""
    sizes = (network.source_vocab_size, network.target_vocab_size)
    target = state["target_embedding.weight"]
    source = state.get("source_embedding.weight", target)
    spec.encoder.embeddings[0].weight = source[: sizes[0]]
    spec.decoder.embeddings.weight = target[: sizes[1]]
    for side, positions in (
        (spec.encoder, network.source_positions),
        (spec.decoder, network.target_positions),
    ):
        side.scale_embeddings = True
        side.position_encodings.encodings = (
            positions.weight.detach().float().cpu().numpy()
            if isinstance(positions, LearnedPositions)
            else sinusoidal_positions(0, _POSITIONS, network.d_model).numpy()
        )
    weight = state.get("output.weight", target)[: sizes[1]]
    bias = state.get("output.bias", np.zeros(len(weight), np.float32))[: sizes[1]].copy()
    bias[[PAD_ID, BOS_ID]] = _NEVER
    weight = weight.copy()
    weight[[PAD_ID, BOS_ID]] = 0.0  # else a huge state could outweigh the bias
    spec.decoder.projection.weight, spec.decoder.projection.bias = weight, bias

    _fill_norm(spec.encoder.layer_norm, state, "transformer.encoder.norm")
    _fill_norm(spec.decoder.layer_norm, state, "transformer.decoder.norm")
    for i, layer in enumerate(spec.encoder.layer):
        name = f"transformer.encoder.layers.{i}"
        _fill_self_attention(layer.self_attention, state, f"{name}.self_attn", f"{name}.norm1")
        _fill_feed_forward(layer.ffn, state, name, f"{name}.norm2")
    for i, layer in enumerate(spec.decoder.layer):
        name = f"transformer.decoder.layers.{i}"
        _fill_self_attention(layer.self_attention, state, f"{name}.self_attn", f"{name}.norm1")
        _fill_cross_attention(layer.attention, state, f"{name}.multihead_attn", f"{name}.norm2")
        _fill_feed_forward(layer.ffn, state, name, f"{name}.norm3")


def _fill_norm(spec: common_spec.LayerNormSpec, state: dict[str, Array], name: str) -> None:
    spec.gamma, spec.beta = state[f"{name}.weight"], state[f"{name}.bias"]


def _fill_linear(spec: common_spec.LinearSpec, weight: Array, bias: Array) -> None:
    spec.weight, spec.bias = np.ascontiguousarray(weight), np.ascontiguousarray(bias)


def _fill_self_attention(
    spec: transformer_spec.attention_spec.MultiHeadAttentionSpec,
    state: dict[str, Array],
    name: str,
    norm: str,
) -> None:
    _fill_norm(spec.layer_norm, state, norm)
    _fill_linear(spec.linear[0], state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"])
    _fill_linear(spec.linear[-1], state[f"{name}.out_proj.weight"], state[f"{name}.out_proj.bias"])


def _fill_cross_attention(
    spec: transformer_spec.attention_spec.MultiHeadAttentionSpec,
    state: dict[str, Array],
    name: str,
    norm: str,
) -> None:
    weight, bias = state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"]
    width = weight.shape[1]
    _fill_norm(spec.layer_norm, state, norm)
    _fill_linear(spec.linear[0], weight[:width], bias[:width])  # queries
    _fill_linear(spec.linear[1], weight[width:], bias[width:])  # keys and values
    _fill_linear(spec.linear[-1], state[f"{name}.out_proj.weight"], state[f"{name}.out_proj.bias"])


def _fill_feed_forward(
    spec: transformer_spec.FeedForwardSpec, state: dict[str, Array], name: str, norm: str
) -> None:
    _fill_norm(spec.layer_norm, state, norm)
    _fill_linear(spec.linear_0, state[f"{name}.linear1.weight"], state[f"{name}.linear1.bias"])
    _fill_linear(spec.linear_1, state[f"{name}.linear2.weight"], state[f"{name}.linear2.bias"])
