"""Models at work: the average of their next-token probabilities, one step at a time; usually one model.

The weights are packed for the processor. The caches of keys and values are buffers: `step` and
`select` write into those of the cache that they take, so only the newest cache may be used.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dragoman.model import block
from dragoman.model.block import DecoderCache
from dragoman.model.cpu_training import Dropout
from dragoman.model.transformer import Transformer

_ACTIVATIONS: dict[object, str] = {None: "none", F.relu: "relu", F.gelu: "gelu"}  # oneDNN's names
_FIRST_CAPACITY = 16  # target positions; doubled when full
_NARROW = 128  # oneDNN takes longer to start than MKL; wider matrices make up for it
_MOST_MOVED = 0.25  # of the rows: these are copied twice, all rows otherwise once

Caches = tuple[DecoderCache, ...]
Rule = Callable[[Float[Tensor, "R V"]], Float[Tensor, "R V"]]


class Ensemble:
    """Models with one vocabulary, stepped together over the same rows.

    The weights are packed at the first search: a later change of the parameters is not seen.
    """

    def __init__(self, models: Sequence[Transformer]) -> None:
        self.models = tuple(models)
        first = self.models[0]
        self.pad_id, self.bos_id, self.eos_id = first.pad_id, first.bos_id, first.eos_id
        self.never_emitted = first.never_emitted
        self.vocab_size = first.target_vocab_size
        longest = [m.longest_target for m in self.models if m.longest_target is not None]
        self.longest_target = min(longest, default=None)

    @cached_property
    def _packed(self) -> "tuple[PackedModel, ...]":
        return tuple(pack(model) for model in self.models)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch dropout and gradients off in the context, then restore the mode of each model."""
        training = [model for model in self.models if model.training]
        try:
            for model in training:
                model.eval()
            with torch.inference_mode():
                yield
        finally:
            for model in training:
                model.train()

    def start(self, source_ids: Int[Tensor, "N S"]) -> Caches:
        """Return the caches before the first token, a row a source."""
        return tuple(start_cache(packed, source_ids) for packed in self._packed)

    def step(
        self, ids: Int[Tensor, " R"], caches: Caches, rule: Rule | None = None
    ) -> tuple[Float[Tensor, "R V"], Caches]:
        """Return the log-probabilities of the token after `ids`, and the caches that include `ids`.

        The log-probability of `Transformer.never_emitted` is -inf. `rule` changes the logits of
        each model before the softmax.
        """
        by_model, following = [], []
        for packed, old in zip(self._packed, caches, strict=True):
            logits, new = step_cache(packed, ids, old)
            logits = mask_tokens(logits.float(), self.never_emitted)
            by_model.append(torch.log_softmax(logits if rule is None else rule(logits), dim=-1))
            following.append(new)
        return average(by_model), tuple(following)

    def select(
        self, caches: Caches, rows: Int[Tensor, " R2"], sources: Int[Tensor, " N2"] | None = None
    ) -> Caches:
        """Return the caches of the given rows; the old ones are used up: see `select_rows`."""
        return tuple(select_rows(one, rows, sources) for one in caches)


def mask_tokens(logits: Float[Tensor, "*N V"], ids: Sequence[int]) -> Float[Tensor, "*N V"]:
    """Set the logits of `ids` to -inf, in place, and return `logits`."""
    for id_ in ids:  # an index of all ids would be copied to the device, which waits for it
        logits[..., id_] = -torch.inf
    return logits


def average(log_probs: Sequence[Float[Tensor, "*N V"]]) -> Float[Tensor, "*N V"]:
    """Return the log of the mean of the probabilities."""
    if len(log_probs) == 1:
        return log_probs[0]
    return torch.logsumexp(torch.stack(list(log_probs)), dim=0) - math.log(len(log_probs))


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
        layers=block.make_layers(model, weights, Dropout(0.0), is_inference=True),
        project=packed_linear(output.weight[:size], bias),
    )


def start_cache(packed: PackedModel, source_ids: Int[Tensor, "N S"]) -> DecoderCache:
    """Encode the sources; return the cache before the first target token."""
    cache = block.start_decoder(packed.layers, block.encode(packed.layers, source_ids))
    sizes = (len(source_ids), _FIRST_CAPACITY, 2 * packed.layers.model.d_model)
    return replace(cache, target=tuple(source.new_empty(sizes) for source in cache.source))


def step_cache(
    packed: PackedModel, ids: Int[Tensor, " R"], cache: DecoderCache
) -> tuple[Float[Tensor, "R V"], DecoderCache]:
    """Return the logits of the token after `ids`, and the cache that includes `ids`."""
    if cache.length == cache.target[0].shape[1]:  # full: double the capacity
        larger = tuple(torch.cat((kept, torch.empty_like(kept)), dim=1) for kept in cache.target)
        cache = replace(cache, target=larger, spare=())
    logits = packed.project(block.decode(packed.layers, ids[:, None], cache))
    return logits, replace(cache, length=cache.length + 1)


def select_rows(
    cache: DecoderCache, rows: Int[Tensor, " R2"], sources: Int[Tensor, " N2"] | None = None
) -> DecoderCache:
    """Return the cache of the given rows, in their order; rows may be repeated or dropped.

    `sources`: the sources of the new rows, with an equal number of rows each; None: all, as before.
    """
    cache = _select_past(cache, rows)
    if sources is None:
        return cache
    bias = cache.source_mask.bias
    moved = _find_moved(sources)
    return replace(
        cache,
        source=tuple(_move(kept, 1, sources, moved) for kept in cache.source),
        source_mask=block.Mask(None if bias is None else _move(bias, 0, sources, moved)),
    )


def _select_past(cache: DecoderCache, rows: Int[Tensor, " R2"]) -> DecoderCache:
    """Return the cache with the past of the rows; only the positions in use are copied."""
    count, length, target, spare = len(rows), cache.length, cache.target, cache.spare
    if rows.device.type == "cpu" and count <= len(target[0]):
        moved = _find_moved(rows)
        if len(moved) <= _MOST_MOVED * count:
            for kept in target:
                _move(kept[:, :length], 0, rows, moved)
            return replace(cache, target=tuple(kept[:count] for kept in target))
    if not spare or len(spare[0]) < count:
        spare = tuple(kept.new_empty(count, *kept.shape[1:]) for kept in target)
    chosen = tuple(kept[:count] for kept in spare)
    for old, new in zip(target, chosen, strict=True):
        torch.index_select(old[:, :length], 0, rows, out=new[:, :length])
    return replace(cache, target=chosen, spare=target)


def _find_moved(rows: Int[Tensor, " R2"]) -> Int[Tensor, " M"]:
    return (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]


def _move(
    kept: Float[Tensor, "..."], dim: int, rows: Int[Tensor, " R2"], moved: Int[Tensor, " M"]
) -> Float[Tensor, "..."]:
    """Return `kept` with `rows` in this dimension, in place: only those that move are copied."""
    if len(moved):
        kept.index_copy_(dim, moved, kept.index_select(dim, rows[moved]))
    return kept.narrow(dim, 0, len(rows))


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
        and min(weight.shape) > _NARROW
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
