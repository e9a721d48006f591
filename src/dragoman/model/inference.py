"""Inference: weights packed for the processor, and one decoder step at a time.

A cache is a value: `start` makes one, `step` takes one and returns the next, `select` reorders,
repeats or drops rows. A step writes into the buffers of its cache, so only the newest cache of a
sequence may be stepped.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dragoman.model import block
from dragoman.model.transformer import Transformer

_ACTIVATIONS: dict[object, str] = {None: "none", F.relu: "relu", F.gelu: "gelu"}  # oneDNN's names
_FIRST_CAPACITY = 16  # target positions; doubled when full


@dataclass(frozen=True, kw_only=True)
class PackedModel:
    """A model with packed weights: a copy, valid until the parameters change."""

    layers: block.Layers
    project: block.Function  # to the logits over the target's vocabulary


class PackedWeights(block.Weights):
    """The parameters without gradients, each matrix in a layout for the processor."""

    def matmul_weight(self, parameter: Tensor) -> Tensor:
        """Return a parameter; autocast casts it, if it is on."""
        return parameter.detach()

    def linear(
        self, weight: Tensor, bias: Tensor, activation: block.Function | None = None
    ) -> block.Function:
        """Return the function x -> activation(x @ weight.T + bias)."""
        return packed_linear(weight, bias, activation)


def pack(model: Transformer) -> PackedModel:
    """Return `model` with packed weights; takes milliseconds, and as much memory as the model."""
    size = model.target_vocab_size  # without the rows that round the matrix up
    weights = PackedWeights(model.target_embedding.weight.dtype)
    output = model.target_embedding if model.output is None else model.output
    bias = None if model.output is None else model.output.bias[:size]
    return PackedModel(
        layers=block.make_layers(model, weights, block.Dropout(0.0), is_inference=True),
        project=packed_linear(output.weight[:size], bias),
    )


def start(packed: PackedModel, source_ids: Int[Tensor, "N S"]) -> block.DecoderCache:
    """Encode the sources; return the cache before the first target token."""
    cache = block.start_decoder(packed.layers, block.encode(packed.layers, source_ids))
    buffers = tuple(
        source.new_zeros(len(source), _FIRST_CAPACITY, source.shape[-1]) for source in cache.source
    )
    return replace(cache, target=buffers)


def step(
    packed: PackedModel, ids: Int[Tensor, " R"], cache: block.DecoderCache
) -> tuple[Float[Tensor, "R V"], block.DecoderCache]:
    """Return the logits of the token after `ids`, and the cache that includes `ids`."""
    if cache.length == cache.target[0].shape[1]:  # full: double the capacity
        larger = tuple(torch.cat((kept, torch.zeros_like(kept)), dim=1) for kept in cache.target)
        cache = replace(cache, target=larger)
    logits = packed.project(block.decode(packed.layers, ids[:, None], cache))
    return logits, replace(cache, length=cache.length + 1)


def select(
    cache: block.DecoderCache, rows: Int[Tensor, " R2"], sources: Int[Tensor, " N2"] | None = None
) -> block.DecoderCache:
    """Return the cache of the given rows, in their order; rows may be repeated or dropped.

    `sources` are the sources of the new rows, with an equal number of rows each. None: each row
    has its own source, so they are `rows`.
    """
    if sources is None:
        sources = rows
    is_same = len(sources) == len(cache.source[0]) and bool(
        (sources == torch.arange(len(sources), device=sources.device)).all()
    )
    target = tuple(_select_past(kept, rows, cache.length) for kept in cache.target)
    if is_same:
        return replace(cache, target=target)
    bias = cache.source_mask.bias
    return replace(
        cache,
        target=target,
        source=tuple(kept.index_select(0, sources) for kept in cache.source),
        source_mask=block.Mask(None if bias is None else bias.index_select(0, sources)),
    )


def _select_past(
    target: Float[Tensor, "R C W"], rows: Int[Tensor, " R2"], length: int
) -> Float[Tensor, "R2 C W"]:
    """Return the rows; only the `length` positions in use are copied."""
    chosen = target.new_empty(len(rows), *target.shape[1:])
    chosen[:, :length] = target[:, :length].index_select(0, rows)
    return chosen


def packed_linear(
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None,
    activation: block.Function | None = None,
) -> block.Function:
    """Return the function x -> activation(x @ weight.T + bias), with a packed copy of `weight`.

    A search multiplies a few rows by the same matrices at every step. On the CPU, oneDNN with the
    matrices in its own layout is faster at that than MKL.
    """
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if not _can_pack(weight):
        if activation is not None:
            return lambda x: activation(F.linear(x, weight, bias))
        return lambda x: F.linear(x, weight, bias)
    # The operators behind torch's own compiler (2.13): there is no public way to keep the layout.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    name = _ACTIVATIONS[activation]
    algorithm = "none" if name == "gelu" else ""  # gelu: exact, not by tanh

    def apply(x: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, name, [], algorithm)
        return y

    return apply


def _can_pack(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")  # autocast is faster, with fewer bits
        and _has_packing()
    )


@cache
def _has_packing() -> bool:
    """Whether this build of torch, on this processor, has the operators of oneDNN."""
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.ones(8, 8), None)
        found = torch.ops.mkldnn._linear_pointwise(torch.ones(1, 8), packed, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return bool((found == 8.0).all())
