"""One decoder step at a time: the function of `Transformer.decode`, with keys and values kept.

The parameters are those of the stock `nn.Transformer`, read in place. A cache is a value: `start`
makes one, `step` takes one and returns the next, `select` reorders or drops rows. A step writes
into the buffers of the cache that it is given, so only the newest cache of a line may be stepped.

Several rows may continue one source, as in a beam: N sources, and R rows, R / N of each source.
Keys and values of a source are kept once, and its rows attend to them together.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dragoman.model.transformer import Memory, Transformer

_FIRST_CAPACITY = 16  # target positions; doubled when they are full


@dataclass(frozen=True, kw_only=True)
class LayerCache:
    """Keys and values of one decoder layer, by head (Dh is D / H); C is the capacity."""

    target_keys: Float[Tensor, "R H C Dh"]
    target_values: Float[Tensor, "R H C Dh"]
    source_keys: Float[Tensor, "N H S Dh"]
    source_values: Float[Tensor, "N H S Dh"]


@dataclass(frozen=True, kw_only=True)
class DecoderCache:
    """All that a step needs of the past: `length` target tokens have been taken in."""

    layers: tuple[LayerCache, ...]
    may_attend: Bool[Tensor, "N 1 1 S"]
    length: int


def start(model: Transformer, memory: Memory) -> DecoderCache:
    """Return the cache before the first target token; projects the source once for all steps."""
    layers = []
    for layer in model.transformer.decoder.layers:
        keys, values = _project_source(layer.multihead_attn, memory.states)
        batch, heads, _, width = keys.shape
        empty = keys.new_zeros(batch, heads, _FIRST_CAPACITY, width)
        layers.append(
            LayerCache(
                target_keys=empty,
                target_values=empty.clone(),
                source_keys=keys,
                source_values=values,
            )
        )
    return DecoderCache(
        layers=tuple(layers), may_attend=memory.is_token[:, None, None, :], length=0
    )


def step(
    model: Transformer, ids: Int[Tensor, " R"], cache: DecoderCache
) -> tuple[Float[Tensor, "R V"], DecoderCache]:
    """Return the logits of the token after `ids`, and the cache with `ids` taken in."""
    position = cache.length
    x = model.embed(ids[:, None], model.target_embedding, model.target_positions, start=position)
    layers = []
    for layer, kept in zip(model.transformer.decoder.layers, cache.layers, strict=True):
        kept = _with_room(kept, position)
        x = _decoder_layer(layer, x, kept, position, cache.may_attend)
        layers.append(kept)
    x = model.transformer.decoder.norm(x)
    return model.project(x[:, 0]), replace(cache, layers=tuple(layers), length=position + 1)


def select(
    cache: DecoderCache, rows: Int[Tensor, " R2"], sources: Int[Tensor, " N2"] | None = None
) -> DecoderCache:
    """Return the cache of the given rows, in their order; a row may be repeated or left out.

    `sources` are the sources of the new rows, an equal number of rows of each; None: where every
    row has a source of its own, those of `rows`.
    """
    if sources is None:
        sources = rows
    is_same = len(sources) == len(cache.may_attend) and bool(
        (sources == torch.arange(len(sources), device=sources.device)).all()
    )
    layers = tuple(
        LayerCache(
            target_keys=layer.target_keys[rows],
            target_values=layer.target_values[rows],
            source_keys=layer.source_keys if is_same else layer.source_keys[sources],
            source_values=layer.source_values if is_same else layer.source_values[sources],
        )
        for layer in cache.layers
    )
    return replace(
        cache, layers=layers, may_attend=cache.may_attend if is_same else cache.may_attend[sources]
    )


def _decoder_layer(
    layer: nn.TransformerDecoderLayer,
    x: Float[Tensor, "R 1 D"],
    kept: LayerCache,
    position: int,
    may_attend: Bool[Tensor, "N 1 1 S"],
) -> Float[Tensor, "R 1 D"]:
    """Return `layer` applied to the token at `position`; writes its key and value into `kept`."""
    if layer.norm_first:
        x = x + _attend_to_target(layer.self_attn, layer.norm1(x), kept, position)
        x = x + _attend_to_source(layer.multihead_attn, layer.norm2(x), kept, may_attend)
        return x + _feed_forward(layer, layer.norm3(x))
    x = layer.norm1(x + _attend_to_target(layer.self_attn, x, kept, position))
    x = layer.norm2(x + _attend_to_source(layer.multihead_attn, x, kept, may_attend))
    normed: Tensor = layer.norm3(x + _feed_forward(layer, x))
    return normed


def _attend_to_target(
    attention: nn.MultiheadAttention, x: Float[Tensor, "R 1 D"], kept: LayerCache, position: int
) -> Float[Tensor, "R 1 D"]:
    assert attention.in_proj_weight is not None
    projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = (_split_heads(part, attention) for part in projected.chunk(3, dim=-1))
    kept.target_keys[:, :, position : position + 1] = key
    kept.target_values[:, :, position : position + 1] = value
    mixed = F.scaled_dot_product_attention(
        query,
        kept.target_keys[:, :, : position + 1],
        kept.target_values[:, :, : position + 1],
    )
    return _join_heads(mixed, attention)


def _attend_to_source(
    attention: nn.MultiheadAttention,
    x: Float[Tensor, "R 1 D"],
    kept: LayerCache,
    may_attend: Bool[Tensor, "N 1 1 S"],
) -> Float[Tensor, "R 1 D"]:
    width = attention.embed_dim
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    assert weight is not None
    query = F.linear(x, weight[:width], None if bias is None else bias[:width])
    together = query.view(len(may_attend), -1, width)  # (R, 1, D) -> (N, R/N, D)
    mixed = F.scaled_dot_product_attention(
        _split_heads(together, attention),
        kept.source_keys,
        kept.source_values,
        attn_mask=may_attend,
    )
    return _join_heads(mixed, attention).view_as(x)  # (N, R/N, D) -> (R, 1, D)


def _feed_forward(
    layer: nn.TransformerDecoderLayer, x: Float[Tensor, "R 1 D"]
) -> Float[Tensor, "R 1 D"]:
    widened: Tensor = layer.linear2(layer.activation(layer.linear1(x)))
    return widened


def _project_source(
    attention: nn.MultiheadAttention, states: Float[Tensor, "B S D"]
) -> tuple[Float[Tensor, "B H S Dh"], Float[Tensor, "B H S Dh"]]:
    """Return the keys and the values of the source: the last two thirds of the projection."""
    width = attention.embed_dim
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    assert weight is not None
    projected = F.linear(states, weight[width:], None if bias is None else bias[width:])
    keys, values = projected.chunk(2, dim=-1)
    return _split_heads(keys, attention), _split_heads(values, attention)


def _split_heads(
    x: Float[Tensor, "B L D"], attention: nn.MultiheadAttention
) -> Float[Tensor, "B H L Dh"]:
    by_head = x.view(*x.shape[:2], attention.num_heads, -1)  # (B, L, D) -> (B, L, H, Dh)
    return by_head.transpose(1, 2)


def _join_heads(
    mixed: Float[Tensor, "B H L Dh"], attention: nn.MultiheadAttention
) -> Float[Tensor, "B L D"]:
    joined: Tensor = attention.out_proj(
        mixed.transpose(1, 2).flatten(2)
    )  # (B, H, L, Dh) -> (B, L, D)
    return joined


def _with_room(kept: LayerCache, position: int) -> LayerCache:
    """Return `kept` with room for a token at `position`: its capacity doubled if it is full."""
    if position < kept.target_keys.shape[2]:
        return kept
    return replace(
        kept,
        target_keys=torch.cat((kept.target_keys, torch.zeros_like(kept.target_keys)), dim=2),
        target_values=torch.cat((kept.target_values, torch.zeros_like(kept.target_values)), dim=2),
    )
