"""A model in CTranslate2's format, built from its weights without torch: for memory or a folder.

`model.bin` has CTranslate2's binary version 6, as `ctranslate2.specs` 4.8 writes it. It is written
here because that module imports torch (0.9 s) and can only write to a file.
"""

import json
import math
import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dragoman.engines.engine import Quantization, UnsupportedError
from dragoman.errors import ModelFolderError
from dragoman.settings import ModelSettings
from dragoman.tokenizers.tokenizer import BOS_ID, EOS_ID, UNKNOWN_ID, PairTokenizer, find_free_name

Array = NDArray[np.float32]

_MASKED = -6e4  # logit of a token that is never emitted; float16 can hold it
_ROUNDED_ROWS = 8  # the matrices of a vocabulary are rounded up to a multiple of it: `Transformer`
_BINARY_VERSION, _SPECIFICATION, _REVISION = 6, "TransformerSpec", 7
_TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")  # ids by their order
_ACTIVATIONS = {"relu": 0, "gelu": 3}  # ctranslate2.specs.common_spec.Activation


def convert_model(
    model: ModelSettings,
    tokenizer: PairTokenizer,
    weights: Mapping[str, Array],
    quantization: Quantization = "float32",
    num_positions: int = 4096,
) -> dict[str, bytes]:
    """Return the files of a CTranslate2 model, by name.

    Args:
        weights: By the names of `Transformer`; they are not changed.
        num_positions: Sinusoidal positions to write: the longest source or output. Learned
            positions are written as they are.

    Raises:
        ModelFolderError: An array is missing, or its shape is not that of the settings.
        UnsupportedError: Two tokens have the same name.
    """
    source_names, target_names = list_token_names(tokenizer)
    about = {
        "unk_token": target_names[UNKNOWN_ID],
        "bos_token": target_names[BOS_ID],
        "eos_token": target_names[EOS_ID],
        "decoder_start_token": target_names[BOS_ID],
        "add_source_bos": False,
        "add_source_eos": False,  # our sources have their end
        "layer_norm_epsilon": 1e-5,
        "multi_query_attention": False,
    }
    arrays = _map_weights(model, tokenizer, weights, num_positions)
    return {
        "model.bin": _serialize(_list_flags(model), arrays, quantization),
        "config.json": json.dumps(about, indent=2).encode(),
        "source_vocabulary.json": json.dumps(source_names).encode(),
        "target_vocabulary.json": json.dumps(target_names).encode(),
    }


def list_token_names(tokenizer: PairTokenizer) -> tuple[list[str], list[str]]:
    """Return the names of the source's and the target's tokens in CTranslate2, by id.

    Raises: UnsupportedError, when two tokens have the same name.
    """
    source_names, target_names = tokenizer.source_names(), tokenizer.target_names()
    # CTranslate2 4.8.5 answers a source of only the end token with an empty output, without running
    # the model (skip_translation). It finds the end by its name, so here the source's has another.
    source_names[EOS_ID] = find_free_name(source_names[EOS_ID], set(source_names))
    for names in (source_names, target_names):
        if len(set(names)) != len(names):
            raise UnsupportedError(
                "two tokens have the same name, and CTranslate2 knows them by name"
            )
    return source_names, target_names


def _list_flags(model: ModelSettings) -> dict[str, np.generic]:
    """Return the scalars of a TransformerSpec: sizes, and the options that we do not use as 0."""
    flags: dict[str, np.generic] = {
        "encoder/embeddings_merge": np.int8(0),
        "encoder/multi_query_attention": np.int8(0),
        "decoder/alibi": np.int8(0),
        "decoder/alibi_use_positive_positions": np.int8(0),
        "decoder/scale_alibi": np.int8(0),
        "decoder/start_from_zero_embedding": np.int8(0),
        "decoder/alignment_layer": np.int16(-1),
        "decoder/alignment_heads": np.int16(0),  # the mean of all
    }
    for side in ("encoder", "decoder"):
        flags[f"{side}/activation"] = np.int8(_ACTIVATIONS[model.activation])
        flags[f"{side}/num_heads"] = np.int16(model.nhead)
        flags[f"{side}/pre_norm"] = np.int8(model.norm_first)
        flags[f"{side}/scale_embeddings"] = np.int8(1)
    if model.positions == "rotary":
        for side in ("encoder", "decoder"):
            for i in range(getattr(model, f"num_{side}_layers")):
                place = f"{side}/layer_{i}/self_attention"
                flags[f"{place}/rotary_dim"] = np.int32(model.d_model // model.nhead)
                flags[f"{place}/rotary_interleave"] = np.int8(0)
    return flags


def _map_weights(
    model: ModelSettings, tokenizer: PairTokenizer, weights: Mapping[str, Array], num_positions: int
) -> dict[str, Array]:
    """Return the weights by CTranslate2's names; each shape is checked as it is taken."""
    width, wide = model.d_model, model.dim_feedforward
    num_sources, num_targets = tokenizer.source_vocab_size, tokenizer.target_vocab_size
    mapped: dict[str, Array] = {}

    def take(name: str, *shape: int) -> Array:
        array = weights.get(name)
        found = "nothing" if array is None else array.shape
        if array is None or found != shape:
            raise ModelFolderError(
                f"the weights do not fit the settings, as if from another model: {name}: "
                f"found {found}, expected {shape}"
            )
        return array

    def put_linear(place: str, name: str, rows: int, columns: int) -> None:
        mapped[f"{place}/weight"] = take(f"{name}weight", rows, columns)
        mapped[f"{place}/bias"] = take(f"{name}bias", rows)

    def put_norm(place: str, name: str) -> None:
        mapped[f"{place}/layer_norm/gamma"] = take(f"{name}.weight", width)
        mapped[f"{place}/layer_norm/beta"] = take(f"{name}.bias", width)

    # Embeddings and positions. Shared arrays are the same object, and written once.
    target = take("target_embedding.weight", _round_up(num_targets), width)
    source = target
    if not (tokenizer.is_shared and model.tie_embeddings):
        source = take("source_embedding.weight", _round_up(num_sources), width)
    mapped["decoder/embeddings/weight"] = target[:num_targets]
    mapped["encoder/embeddings_0/weight"] = (
        mapped["decoder/embeddings/weight"] if source is target else source[:num_sources]
    )
    if model.positions != "rotary":
        sinusoids = None if model.positions == "learned" else _sinusoids(num_positions, width)
        for side, name in (("encoder", "source"), ("decoder", "target")):
            table = sinusoids
            if table is None:
                table = take(f"{name}_positions.weight", model.max_positions, width)
            mapped[f"{side}/position_encodings/encodings"] = table

    # The projection to the vocabulary, with a mask. CTranslate2's own options, such as disable_unk,
    # would leave it to each program that loads an export.
    weight, bias = target, np.zeros(num_targets, np.float32)
    if not model.tie_embeddings:
        weight = take("output.weight", _round_up(num_targets), width)
        bias = take("output.bias", _round_up(num_targets))
    weight, bias = weight[:num_targets].copy(), bias[:num_targets].copy()
    masked = list(tokenizer.never_emitted)
    weight[masked] = 0.0  # else a very large state could outweigh the bias
    bias[masked] = _MASKED
    mapped["decoder/projection/weight"], mapped["decoder/projection/bias"] = weight, bias

    # The blocks. Ours end with a norm in post-norm too, as CTranslate2's do where it is given.
    for side in ("encoder", "decoder"):
        put_norm(side, f"transformer.{side}.norm")
        for i in range(getattr(model, f"num_{side}_layers")):
            place, name = f"{side}/layer_{i}", f"transformer.{side}.layers.{i}"
            put_norm(f"{place}/self_attention", f"{name}.norm1")
            put_linear(f"{place}/self_attention/linear_0", f"{name}.self_attn.in_proj_", 3 * width, width)  # fmt: skip
            put_linear(f"{place}/self_attention/linear_1", f"{name}.self_attn.out_proj.", width, width)  # fmt: skip
            if side == "decoder":
                put_norm(f"{place}/attention", f"{name}.norm2")
                weight = take(f"{name}.multihead_attn.in_proj_weight", 3 * width, width)
                bias = take(f"{name}.multihead_attn.in_proj_bias", 3 * width)
                mapped[f"{place}/attention/linear_0/weight"] = weight[:width]  # queries
                mapped[f"{place}/attention/linear_0/bias"] = bias[:width]
                mapped[f"{place}/attention/linear_1/weight"] = weight[width:]  # keys and values
                mapped[f"{place}/attention/linear_1/bias"] = bias[width:]
                put_linear(f"{place}/attention/linear_2", f"{name}.multihead_attn.out_proj.", width, width)  # fmt: skip
            put_norm(f"{place}/ffn", f"{name}.norm3" if side == "decoder" else f"{name}.norm2")
            put_linear(f"{place}/ffn/linear_0", f"{name}.linear1.", wide, width)
            put_linear(f"{place}/ffn/linear_1", f"{name}.linear2.", width, wide)
    return mapped


def _round_up(count: int) -> int:
    return -(-count // _ROUNDED_ROWS) * _ROUNDED_ROWS


def _sinusoids(length: int, width: int) -> Array:
    """Return the table of `model.positions.sinusoidal_positions`, (length, width)."""
    position = np.arange(length, dtype=np.float32)[:, None]
    exponent = np.arange(0, width, 2, dtype=np.float32) * np.float32(-math.log(10000.0) / width)
    # The exponential in float64: rounded, it is torch's more often than numpy's in float32.
    angle = position * np.exp(exponent, dtype=np.float64).astype(np.float32)
    interleaved = np.stack((np.sin(angle), np.cos(angle)), axis=-1).reshape(length, -1)
    return np.ascontiguousarray(interleaved[:, :width])


def _serialize(
    flags: Mapping[str, np.generic], arrays: Mapping[str, Array], quantization: Quantization
) -> bytes:
    """Return `model.bin`: the variables, then aliases for arrays that were written already."""
    first_names: dict[int, str] = {}
    for name, array in arrays.items():
        first_names.setdefault(id(array), name)
    aliases = {n: first_names[id(a)] for n, a in arrays.items() if first_names[id(a)] != n}
    variables: dict[str, NDArray[np.generic]] = {n: np.asarray(v) for n, v in flags.items()}
    for name in first_names.values():
        variables.update(_quantize(name, arrays[name], quantization))

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts: list[bytes | memoryview] = [struct.pack("<I", _BINARY_VERSION), text(_SPECIFICATION)]
    parts.append(struct.pack("<II", _REVISION, len(variables)))
    for name, value in variables.items():
        kind = "bfloat16" if value.dtype == np.uint16 else value.dtype.name
        parts += [text(name), struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)]
        parts.append(struct.pack("<BI", _TYPES.index(kind), value.nbytes))
        parts.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)  # not a copy
    parts.append(struct.pack("<I", len(aliases)))
    for name, first in aliases.items():
        parts += [text(name), text(first)]
    return b"".join(parts)


def _quantize(
    name: str, array: Array, quantization: Quantization
) -> dict[str, NDArray[np.generic]]:
    """Return the variables of an array; int8 is one scale for each row of a matrix.

    In int8, a row of [0.5, -1.0] is [64, -127] with the scale 127.
    """
    is_matrix = name.endswith("/weight")  # not the table of positions
    if quantization.startswith("int8") and is_matrix:
        largest = np.abs(array).max(axis=1)
        # A row of zeros has the scale 1; that of a tiny one stays finite.
        largest[largest == 0.0] = 127.0
        scale = np.float32(127.0) / np.maximum(largest, 127.0 / np.finfo(np.float32).max)
        numbers = np.rint(array * scale[:, None]).astype(np.int8)
        return {name: numbers, f"{name}_scale": scale.astype(np.float32)}
    if quantization.endswith("bfloat16"):
        bits = np.ascontiguousarray(array).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to the nearest, ties to even
        return {name: rounded.astype(np.uint16)}
    if quantization.endswith("float16"):
        return {name: array.astype(np.float16)}
    return {name: array}
