"""Inference: packed weights, the encoder without work for padding, the decoder with a cache.

The parameters are those of the stock `nn.Transformer`; what is packed is good until they change.

A cache is a value: `start` makes one, `step` takes one and returns the next, `select` reorders or
drops rows. A step writes into the buffers of the cache that it is given, so only the newest cache
of a line may be stepped. Several rows may continue one source, as in a beam: N sources, and R rows,
R / N of each source. Keys and values of a source are kept once, and its rows attend to them
together.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dragoman.model.transformer import Memory, Transformer

Activation = Literal["none", "relu", "gelu"]
Product = Callable[[Float[Tensor, "*N I"]], Float[Tensor, "*N O"]]


def make_product(
    weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None, activation: Activation = "none"
) -> Product:
    """Return the function from x to activation(x @ weight.T + bias)."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if not _can_pack(weight):
        return lambda x: _activate(F.linear(x, weight, bias), activation)
    # The operators behind torch's own compiler (2.13): there is no public way to keep the layout.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    algorithm = "none" if activation == "gelu" else ""  # of the gelu: exact, not by tanh

    def multiply(x: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], algorithm)
        return y

    return multiply


def _activate(y: Float[Tensor, "*N O"], activation: Activation) -> Float[Tensor, "*N O"]:
    match activation:
        case "relu":
            return F.relu(y)
        case "gelu":
            return F.gelu(y)
    return y


def _can_pack(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")  # it would compute in fewer bits, and quicker
        and _has_packing()
    )


@cache
def _has_packing() -> bool:
    """Return whether this build of torch, on this processor, has what is used of oneDNN."""
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.ones(8, 8), None)
        found = torch.ops.mkldnn._linear_pointwise(torch.ones(1, 8), packed, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return bool((found == 8.0).all())


_ACTIVATIONS: dict[object, Activation] = {F.relu: "relu", F.gelu: "gelu"}


@dataclass(frozen=True, kw_only=True)
class PreparedLayer:
    """What a layer of the encoder and one of the decoder have: norms, and products by purpose."""

    norm_first: bool
    num_heads: int
    norms: tuple[nn.Module, ...]
    own: Product
    """Of the attention of a sequence to itself: to query, key and value."""
    own_output: Product
    widen: Product
    """To the feed-forward width, through the activation."""
    narrow: Product


@dataclass(frozen=True, kw_only=True)
class PreparedDecoderLayer(PreparedLayer):
    """A layer of the decoder, which attends to the source as well."""

    query: Product
    source: Product
    """To key and value of the source."""
    source_output: Product


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model with its layers and its projection to the target's vocabulary prepared."""

    model: Transformer
    encoder: tuple[PreparedLayer, ...]
    decoder: tuple[PreparedDecoderLayer, ...]
    project: Product


def prepare(model: Transformer) -> Prepared:
    """Return `model` laid out for inference; takes milliseconds, and memory as the model does."""
    size = model.target_vocab_size  # the rows that round the matrix up are left out
    output = model.target_embedding if model.output is None else model.output
    bias = None if model.output is None else model.output.bias[:size]
    return Prepared(
        model=model,
        encoder=tuple(_prepare_layer(layer) for layer in model.transformer.encoder.layers),
        decoder=tuple(_prepare_decoder_layer(layer) for layer in model.transformer.decoder.layers),
        project=make_product(output.weight[:size], bias),
    )


def split_heads(x: Float[Tensor, "B L D"], num_heads: int) -> Float[Tensor, "B H L Dh"]:
    """Return `x` by head, without a copy."""
    return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)  # (B, L, D) -> (B, L, H, Dh) -> ...


def _prepare_layer(layer: nn.TransformerEncoderLayer) -> PreparedLayer:
    own = layer.self_attn
    assert own.in_proj_weight is not None
    return PreparedLayer(
        norm_first=layer.norm_first,
        num_heads=own.num_heads,
        norms=(layer.norm1, layer.norm2),
        own=make_product(own.in_proj_weight, own.in_proj_bias),
        own_output=make_product(own.out_proj.weight, own.out_proj.bias),
        widen=_make_widening(layer),
        narrow=make_product(layer.linear2.weight, layer.linear2.bias),
    )


def _prepare_decoder_layer(layer: nn.TransformerDecoderLayer) -> PreparedDecoderLayer:
    own, other, width = layer.self_attn, layer.multihead_attn, layer.self_attn.embed_dim
    weight, bias = other.in_proj_weight, other.in_proj_bias
    assert own.in_proj_weight is not None
    assert weight is not None
    return PreparedDecoderLayer(
        norm_first=layer.norm_first,
        num_heads=own.num_heads,
        norms=(layer.norm1, layer.norm2, layer.norm3),
        own=make_product(own.in_proj_weight, own.in_proj_bias),
        own_output=make_product(own.out_proj.weight, own.out_proj.bias),
        widen=_make_widening(layer),
        narrow=make_product(layer.linear2.weight, layer.linear2.bias),
        query=make_product(weight[:width], None if bias is None else bias[:width]),
        source=make_product(weight[width:], None if bias is None else bias[width:]),
        source_output=make_product(other.out_proj.weight, other.out_proj.bias),
    )


def _make_widening(layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) -> Product:
    wide = layer.linear1
    return make_product(wide.weight, wide.bias, _ACTIVATIONS[layer.activation])


def encode(prepared: Prepared, source_ids: Int[Tensor, "B S"]) -> Memory:
    """Return the states of the sources; those at padding are of no use, and of no sense."""
    model = prepared.model
    is_token = model.find_tokens(source_ids)
    packing = _Packing(is_token)
    x = model.embed(source_ids, model.source_embedding, model.source_positions)
    x = packing.pack(x)
    for layer in prepared.encoder:
        first, second = layer.norms
        if layer.norm_first:
            x = x + _attend(layer, first(x), packing)
            x = x + layer.narrow(layer.widen(second(x)))
        else:
            x = first(x + _attend(layer, x, packing))
            x = second(x + layer.narrow(layer.widen(x)))
    return Memory(states=packing.unpack(model.transformer.encoder.norm(x)), is_token=is_token)


class _Packing:
    """Where the tokens of a padded batch stand."""

    def __init__(self, is_token: Bool[Tensor, "B S"]) -> None:
        self._shape = is_token.shape
        self.may_attend: Bool[Tensor, "B 1 1 S"] | None = None  # None: there is no padding
        if not bool(is_token.all()):
            flat = is_token.flatten()
            self._places = flat.nonzero()[:, 0]
            # At padding stands any token: its states are finite, which is all that matters there.
            self._origins = (flat.cumsum(0) - 1).clamp_(min=0)
            self.may_attend = is_token[:, None, None, :]

    def pack(self, x: Float[Tensor, "B S W"]) -> Float[Tensor, "P W"]:
        """Return the tokens of a padded batch."""
        flat = x.flatten(0, 1)
        return flat if self.may_attend is None else flat.index_select(0, self._places)

    def unpack(self, x: Float[Tensor, "P W"]) -> Float[Tensor, "B S W"]:
        """Return the padded batch of the tokens."""
        padded = x if self.may_attend is None else x.index_select(0, self._origins)
        return padded.view(*self._shape, -1)


def _attend(
    layer: PreparedLayer, x: Float[Tensor, "P D"], packing: _Packing
) -> Float[Tensor, "P D"]:
    query, key, value = packing.unpack(layer.own(x)).chunk(3, dim=-1)
    mixed = F.scaled_dot_product_attention(
        split_heads(query, layer.num_heads),
        split_heads(key, layer.num_heads),
        split_heads(value, layer.num_heads),
        attn_mask=packing.may_attend,
    )
    joined = mixed.transpose(1, 2).flatten(2)  # (B, H, S, D/H) -> (B, S, D)
    return layer.own_output(packing.pack(joined))


_FIRST_CAPACITY = 16  # target positions; doubled when they are full


@dataclass(frozen=True, kw_only=True)
class LayerCache:
    """Keys and values of one decoder layer, side by side: W is 2 D, C the capacity."""

    target: Float[Tensor, "R C W"]
    source: Float[Tensor, "N S W"]


@dataclass(frozen=True, kw_only=True)
class DecoderCache:
    """All that a step needs of the past: `length` target tokens have been taken in."""

    layers: tuple[LayerCache, ...]
    may_attend: Bool[Tensor, "N 1 1 S"] | None
    """None: there is no padding."""
    length: int


def start(prepared: Prepared, memory: Memory) -> DecoderCache:
    """Return the cache before the first target token; projects the source once for all steps."""
    layers = []
    for layer in prepared.decoder:
        source = layer.source(memory.states)
        empty = source.new_zeros(len(source), _FIRST_CAPACITY, source.shape[-1])
        layers.append(LayerCache(target=empty, source=source))
    may_attend = None if bool(memory.is_token.all()) else memory.is_token[:, None, None, :]
    return DecoderCache(layers=tuple(layers), may_attend=may_attend, length=0)


def step(
    prepared: Prepared, ids: Int[Tensor, " R"], cache: DecoderCache
) -> tuple[Float[Tensor, "R V"], DecoderCache]:
    """Return the logits of the token after `ids`, and the cache with `ids` taken in."""
    model, position = prepared.model, cache.length
    x = model.embed(ids[:, None], model.target_embedding, model.target_positions, start=position)
    x = x[:, 0]  # (R, 1, D) -> (R, D)
    layers = []
    for layer, kept in zip(prepared.decoder, cache.layers, strict=True):
        kept = _with_room(kept, position)
        x = _decoder_layer(layer, x, kept, position, cache.may_attend)
        layers.append(kept)
    logits = prepared.project(model.transformer.decoder.norm(x))
    return logits, replace(cache, layers=tuple(layers), length=position + 1)


def select(
    cache: DecoderCache, rows: Int[Tensor, " R2"], sources: Int[Tensor, " N2"] | None = None
) -> DecoderCache:
    """Return the cache of the given rows, in their order; a row may be repeated or left out.

    `sources` are the sources of the new rows, an equal number of rows of each; None: where every
    row has a source of its own, those of `rows`.
    """
    if sources is None:
        sources = rows
    is_same = len(sources) == len(cache.layers[0].source) and bool(
        (sources == torch.arange(len(sources), device=sources.device)).all()
    )
    layers = tuple(
        LayerCache(
            target=_select_past(layer.target, rows, cache.length),
            source=layer.source if is_same else layer.source.index_select(0, sources),
        )
        for layer in cache.layers
    )
    may_attend = cache.may_attend
    if may_attend is not None and not is_same:
        may_attend = may_attend.index_select(0, sources)
    return replace(cache, layers=layers, may_attend=may_attend)


def _decoder_layer(
    layer: PreparedDecoderLayer,
    x: Float[Tensor, "R D"],
    kept: LayerCache,
    position: int,
    may_attend: Bool[Tensor, "N 1 1 S"] | None,
) -> Float[Tensor, "R D"]:
    """Return `layer` applied to the token at `position`; writes its key and value into `kept`."""
    first, second, third = layer.norms
    if layer.norm_first:
        x = x + _attend_to_target(layer, first(x), kept, position)
        x = x + _attend_to_source(layer, second(x), kept, may_attend)
        return x + layer.narrow(layer.widen(third(x)))
    x = first(x + _attend_to_target(layer, x, kept, position))
    x = second(x + _attend_to_source(layer, x, kept, may_attend))
    normed: Tensor = third(x + layer.narrow(layer.widen(x)))
    return normed


def _attend_to_target(
    layer: PreparedDecoderLayer, x: Float[Tensor, "R D"], kept: LayerCache, position: int
) -> Float[Tensor, "R D"]:
    width = x.shape[-1]
    projected = layer.own(x)
    kept.target[:, position] = projected[:, width:]
    past = kept.target[:, : position + 1]
    keys, values = past[..., :width], past[..., width:]
    mixed = F.scaled_dot_product_attention(
        split_heads(projected[:, None, :width], layer.num_heads),
        split_heads(keys, layer.num_heads),
        split_heads(values, layer.num_heads),
    )
    return layer.own_output(mixed.transpose(1, 2).reshape(x.shape))  # (R, H, 1, D/H) -> (R, D)


def _attend_to_source(
    layer: PreparedDecoderLayer,
    x: Float[Tensor, "R D"],
    kept: LayerCache,
    may_attend: Bool[Tensor, "N 1 1 S"] | None,
) -> Float[Tensor, "R D"]:
    width = x.shape[-1]
    together = layer.query(x).view(len(kept.source), -1, width)  # (R, D) -> (N, R/N, D)
    keys, values = kept.source[..., :width], kept.source[..., width:]
    mixed = F.scaled_dot_product_attention(
        split_heads(together, layer.num_heads),
        split_heads(keys, layer.num_heads),
        split_heads(values, layer.num_heads),
        attn_mask=may_attend,
    )
    joined = mixed.transpose(1, 2).reshape(x.shape)  # (N, H, R/N, D/H) -> (R, D)
    return layer.source_output(joined)


def _select_past(
    target: Float[Tensor, "R C W"], rows: Int[Tensor, " R2"], length: int
) -> Float[Tensor, "R2 C W"]:
    """Return the rows; only the `length` positions that hold something are copied."""
    chosen = target.new_empty(len(rows), *target.shape[1:])
    chosen[:, :length] = target[:, :length].index_select(0, rows)
    return chosen


def _with_room(kept: LayerCache, position: int) -> LayerCache:
    """Return `kept` with room for a token at `position`: its capacity doubled if it is full."""
    if position < kept.target.shape[1]:
        return kept
    return replace(kept, target=torch.cat((kept.target, torch.zeros_like(kept.target)), dim=1))
