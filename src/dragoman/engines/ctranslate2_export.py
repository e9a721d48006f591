"""Export to CTranslate2: the stock parameters in its layout, checked against PyTorch.

Its specification of a Transformer is that of `nn.Transformer`, but for names, for the order of the
layers' parts, and for what is done here: our positions, and padding and begin that are never said.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from ctranslate2.specs import TransformerSpec, common_spec, transformer_spec
from numpy.typing import NDArray

from dragoman.engines.ctranslate2_engine import CTranslate2Engine
from dragoman.engines.export import write_export
from dragoman.engines.export_check import Check
from dragoman.errors import ModelFolderError
from dragoman.model.building import copy_weights
from dragoman.model.transformer import LearnedPositions, Transformer, sinusoidal_positions
from dragoman.model_folder.folder import CTRANSLATE2, Bundle, read_bundle
from dragoman.tokenizers.pair_tokenizer import PairTokenizer
from dragoman.tokenizers.special_ids import BOS_ID, EOS_ID, PAD_ID, UNKNOWN_ID, find_free_name

Quantization = Literal["float32", "int8", "int8_float32", "int8_float16", "float16", "bfloat16"]

_POSITIONS = 4096  # sinusoidal positions that are written: the longest source or output
_NEVER = -6e4  # the logit of a token that is never said; float16 can hold it

Array = NDArray[np.float32]


def export_ctranslate2(
    path: Path, quantization: Quantization = "float32", bundle: Bundle | None = None
) -> Check:
    """Write `ctranslate2/` into the model folder `path`, and return how it compares with PyTorch.

    An export in float32 whose outputs are not PyTorch's is not kept; with fewer bits, the number of
    those that are is in the returned check.

    Args:
        bundle: The content of `path`, where it is at hand.

    Raises:
        ModelFolderError: The folder is no model, or cannot be exported; says why.
    """
    bundle = read_bundle(path) if bundle is None else bundle
    tokenizer = bundle.tokenizer

    def write(network: Transformer, folder: Path) -> dict[str, Any]:
        return write_model(network, tokenizer, folder, quantization)

    def load(folder: Path) -> CTranslate2Engine:
        return CTranslate2Engine(folder, device="cpu")

    is_exact = quantization == "float32"
    return write_export(path, CTRANSLATE2, bundle, write, load, must_be_equal=is_exact)


def write_model(
    network: Transformer,
    tokenizer: PairTokenizer,
    folder: Path,
    quantization: Quantization = "float32",
) -> dict[str, Any]:
    """Write `network` to `folder` as CTranslate2 reads it; return what export.json tells of it.

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
    state = copy_weights(network)
    _fill(spec, network, state)

    source_names, target_names = tokenizer.source_names(), tokenizer.target_names()
    # A source of nothing but its end: CTranslate2 4.8.5 answers it by nothing, without asking the
    # model (skip_translation). It knows the end by its name, so the source's has another one.
    source_names[EOS_ID] = find_free_name(source_names[EOS_ID], set(source_names))
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
    return {
        "quantization": quantization,
        "positions": network.longest_target or _POSITIONS,
        "has_learned_positions": network.longest_target is not None,
    }


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
    # Copies, here and below: CTranslate2 4.8.5 quantizes in place, and what is tied lies in one.
    spec.encoder.embeddings[0].weight = source[: sizes[0]].copy()
    spec.decoder.embeddings.weight = target[: sizes[1]].copy()
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
    spec.weight, spec.bias = weight.copy(), bias.copy()


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
