"""One decoder step at a time: the function of `Transformer.decode`, with keys and values kept.

The parameters are those of the stock `nn.Transformer`, prepared for many steps. A cache is a value: `start` makes one, `step` takes one and
returns the next, `select` reorders or drops rows. A step writes into the buffers of the cache that
it is given, so only the newest cache of a line may be stepped.

Several rows may continue one source, as in a beam: N sources, and R rows, R / N of each source.
Keys and values of a source are kept once, and its rows attend to them together.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dragoman.model.prepared import Prepared, PreparedDecoderLayer, split_heads
from dragoman.model.transformer import Memory

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
