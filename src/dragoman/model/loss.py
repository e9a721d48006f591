"""The loss of a batch: sums over its tokens; the caller divides once, by the global token count.

The projection to the vocabulary and the cross-entropy are fused: logits are computed a few rows at
a time, and their gradient in the same pass. With a large vocabulary, all logits and their softmax
in float32 would be the largest tensors in memory, and reading and writing them takes most time.

On the CPU a batch is computed by micro-batches, one per core. Most operations of a batch are too
small to split among cores, which would wait for each other after each operation. Instead each core
computes a whole micro-batch, forward and backward. The gradients are summed in the order of the
micro-batches, so the sum does not depend on which finished first.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx

from dragoman.data.dataset import Batch
from dragoman.model.block import (
    Layers,
    Mask,
    Weights,
    decode,
    encode,
    make_layers,
    start_decoder,
)
from dragoman.model.cpu_training import Dropout
from dragoman.model.transformer import Transformer

Implementation = Literal["fused", "reference"]
Found = TypeVar("Found")
Projection = tuple[Tensor, Tensor, Tensor | None]
"""States (N, D), and weight (R, D) and bias (R,) of the output layer, which make them logits."""
_Soft = Float[Tensor, "n R"] | None

_GUIDED_LAYER = -2  # the last but one, as in the paper; of one layer, that
_IGNORED = -100

# Logits (rows x tokens) in float32 at a time. On a CPU they fit its caches (8 to 64 times less, or
# 8 times more, is slower); a GPU needs larger chunks.
_CHUNK_LOGITS = {"cpu": 2**20, "other": 2**25}
_MIN_CHUNK_ROWS = 32  # products with fewer rows are slow
# Rows whose gradients by the logits are kept, in the dtype of the products, for one product.
_BLOCK_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class LossSums:
    """Sums over the labelled tokens of a batch: scalar tensors on the model's device."""

    loss: Float[Tensor, ""]  # the objective in nats, with smoothing, distillation and guidance
    nll: Float[Tensor, ""]  # cross-entropy without smoothing in nats, for perplexity
    num_correct: Int[Tensor, ""]  # tokens whose label has the highest logit; ties count
    num_tokens: Int[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Guided attention: the model is told where in the source a target token stands.

    One head of the cross-attention, before it emits one of the ids from `first` to `stop` - 1,
    learns to attend to the place of the same id in the source: `weight` times its cross-entropy is
    added to the loss.
    Source: Garg et al. 2019 (arXiv 1909.02074), supervision of one head.
    """

    first: int
    stop: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Distillation of tokens: the model learns how probable `teachers` find each token at a position.

    `weight` of the label there is the mean of their probabilities, given the same ids; the rest is
    the label of the pair. They are frozen, in evaluation, and no part of the model that learns.
    Source: Hinton et al. 2015, section 2; Kim and Rush 2016 (arXiv 1606.07947), section 3.1.
    """

    teachers: tuple[Transformer, ...]  # with the vocabularies of the model
    weight: float
    layers: tuple[Layers, ...] = ()  # of the teachers, for a step: see `prepare`

    def __post_init__(self) -> None:
        for teacher in self.teachers:
            teacher.eval().requires_grad_(False)

    def __deepcopy__(self, memo: object) -> "Distillation":
        """Return it: the average of the weights, a copy of the model, needs no more teachers."""
        return self

    def prepare(self, dtype: torch.dtype, *, is_cpu_training: bool = False) -> "Distillation":
        """Return it with the layers of the teachers, cast once for all micro-batches."""
        make = partial(make_layers, dropout=Dropout(0.0), is_cpu_training=is_cpu_training)
        return replace(self, layers=tuple(make(one, Weights(dtype)) for one in self.teachers))


def sum_losses(
    model: Transformer,
    source_ids: Int[Tensor, "B S"],
    target_ids: Int[Tensor, "B T"],
    label_smoothing: float = 0.0,
    implementation: Implementation = "fused",
    *,
    guidance: Guidance | None = None,
    distillation: Distillation | None = None,
) -> LossSums:
    """Return the sums over all tokens of `target_ids` (begin, tokens, end, padding) but the first.

    Padding adds nothing; on the CPU, no logits are computed for it. Both implementations compute
    the same function.
    """
    if implementation == "reference":
        return _sum_by_reference(
            model, source_ids, target_ids, label_smoothing, guidance, distillation
        )
    weights = Weights(find_dtype(model))
    with torch.autocast(source_ids.device.type, enabled=False):
        layers = make_layers(model, weights, draw_dropout(model))
        taught = distillation and distillation.prepare(weights.dtype)
        return sum_losses_of_layers(
            layers, source_ids, target_ids, label_smoothing, guidance, taught
        )


def find_dtype(model: Transformer) -> torch.dtype:
    """Return the dtype of products: that of autocast, if it is on, or of the parameters."""
    weight = model.target_embedding.weight
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def draw_dropout(model: Transformer) -> Dropout:
    """Return the dropout of one forward pass; in evaluation it drops nothing."""
    return Dropout(model.dropout.p if model.training else 0.0)


def sum_losses_of_layers(
    layers: Layers,
    source_ids: Int[Tensor, "B S"],
    target_ids: Int[Tensor, "B T"],
    label_smoothing: float,
    guidance: Guidance | None = None,
    distillation: Distillation | None = None,
) -> LossSums:
    """Return the sums of `sum_losses`, given the layers over some weights; without autocast.

    `distillation`: prepared.
    """
    model = layers.model
    queries = list[Tensor]()
    if guidance is not None:
        layers = _record_queries(layers, queries)
    cache = start_decoder(layers, encode(layers, source_ids))
    states = decode(layers, target_ids[:, :-1], cache).flatten(0, 1)  # (B, T, D) -> (N, D)
    labels = target_ids[:, 1:].flatten()
    pad_id: int | None = model.pad_id
    kept: Bool[Tensor, " M"] | slice = slice(None)
    if states.device.type == "cpu":  # on a GPU, the selection would wait for the number of tokens
        kept, pad_id = labels.ne(model.pad_id), None
    soft_labels = None
    if distillation is not None:
        soft_labels = _find_soft_labels(distillation, source_ids, target_ids, kept)
    sums = sum_cross_entropy(
        *_find_projection(layers, states[kept]),
        labels[kept],
        pad_id=pad_id,
        vocab_size=model.target_vocab_size,
        label_smoothing=label_smoothing,
        soft_labels=soft_labels,
    )
    if guidance is None:
        return sums
    key = cache.source[_find_guided(len(cache.source))]
    guided = _sum_guidance(
        guidance, model, queries[0], key, cache.source_mask, source_ids, target_ids
    )
    return replace(sums, loss=sums.loss + guided)


def _find_projection(layers: Layers, states: Float[Tensor, "N D"]) -> Projection:
    """Return what gives the logits of `states`, in the dtype of products."""
    model, weights = layers.model, layers.weights
    output = model.target_embedding if model.output is None else model.output
    return (
        states.to(weights.dtype),
        weights.matmul_weight(output.weight),
        None if model.output is None else weights.matmul_weight(model.output.bias),
    )


def _find_soft_labels(
    distillation: Distillation,
    source_ids: Int[Tensor, "B S"],
    target_ids: Int[Tensor, "B T"],
    kept: Bool[Tensor, " M"] | slice,
) -> "SoftLabels":
    found = list[Projection]()
    for layers in distillation.layers:
        cache = start_decoder(layers, encode(layers, source_ids))
        states = decode(layers, target_ids[:, :-1], cache).flatten(0, 1)  # (B, T, D) -> (M, D)
        found.append(_find_projection(layers, states[kept]))
    return SoftLabels(found, distillation.weight)


def _find_guided(num_layers: int) -> int:
    return max(_GUIDED_LAYER, -num_layers)


def _record_queries(layers: Layers, queries: list[Tensor]) -> Layers:
    """Return `layers`, which append the queries of the guided cross-attention to `queries`."""
    place = _find_guided(len(layers.decoder))
    layer = layers.decoder[place]
    cross, decoder = layer.cross, list(layers.decoder)
    assert cross is not None

    def query(x: Tensor) -> Tensor:
        queries.append(cross.query(x))
        return queries[-1]

    decoder[place] = replace(layer, cross=replace(cross, query=query))
    return replace(layers, decoder=tuple(decoder))


def _sum_guidance(
    guidance: Guidance,
    model: Transformer,
    query: Float[Tensor, "B T D"],
    key: Float[Tensor, "B S W"],
    mask: Mask,
    source_ids: Int[Tensor, "B S"],
    target_ids: Int[Tensor, "B T1"],
) -> Float[Tensor, ""]:
    """Return the weighted loss of the first head; W: at least the keys of all heads, D."""
    width = query.shape[-1] // model.transformer.nhead
    scores = (query[..., :width] * width**-0.5) @ key[..., :width].transpose(1, 2)  # (B, T, S)
    if mask.bias is not None:
        scores = scores + mask.bias[:, 0, :, : scores.shape[-1]]  # (B, 1, 1, K) -> (B, 1, S)
    labels = target_ids[:, 1:, None]
    stands = (labels == source_ids[:, None]) & (labels >= guidance.first) & (labels < guidance.stop)
    places = stands.int().argmax(dim=2).masked_fill(~stands.any(dim=2), _IGNORED)
    return guidance.weight * F.cross_entropy(
        scores.flatten(0, 1).float(), places.flatten(), reduction="sum", ignore_index=_IGNORED
    )


def _sum_by_reference(
    model: Transformer,
    source_ids: Int[Tensor, "B S"],
    target_ids: Int[Tensor, "B T"],
    label_smoothing: float,
    guidance: Guidance | None,
    distillation: Distillation | None,
) -> LossSums:
    """Return the sums as computed by torch's own modules and functions."""
    memory = model.encode(source_ids)
    stack = model.transformer.decoder.layers
    attention = stack[_find_guided(len(stack))].multihead_attn
    given = list[Tensor]()
    with attention.register_forward_pre_hook(lambda _, inputs: given.extend(inputs)):
        states = model.decode_states(target_ids[:, :-1], memory)
    labels = target_ids[:, 1:]
    has_label = labels != model.pad_id
    logits, labels = model.project(states[has_label]).float(), labels[has_label]
    loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    if distillation is not None:
        teachers, weight = distillation.teachers, distillation.weight
        found = [one.decode(target_ids[:, :-1], one.encode(source_ids)) for one in teachers]
        probs = torch.stack([one[has_label].float().softmax(dim=-1) for one in found]).mean(dim=0)
        taught = F.cross_entropy(logits, probs, reduction="sum")
        loss = (1.0 - weight) * loss + weight * taught
    if guidance is not None:
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        query, key = (F.linear(given[i], weights[i], biases[i]) for i in (0, 1))
        bias = torch.zeros_like(memory.is_token, dtype=query.dtype)
        mask = Mask(bias.masked_fill_(~memory.is_token, -torch.inf)[:, None, None])
        loss = loss + _sum_guidance(guidance, model, query, key, mask, source_ids, target_ids)
    return LossSums(
        loss=loss,
        nll=F.cross_entropy(logits.detach(), labels, reduction="sum"),
        num_correct=(logits.detach().argmax(dim=-1) == labels).sum(),
        num_tokens=has_label.sum(),
    )


def sum_cross_entropy(
    states: Float[Tensor, "N D"],
    weight: Float[Tensor, "R D"],
    bias: Float[Tensor, " R"] | None,
    labels: Int[Tensor, " N"],
    *,
    vocab_size: int,
    pad_id: int | None = None,
    label_smoothing: float = 0.0,
    soft_labels: "SoftLabels | None" = None,
) -> LossSums:
    """Return the sums of cross-entropy of the logits `states @ weight.T + bias` against `labels`.

    With smoothing e, the label has weight 1 - e + e / V and every other token e / V. Of that,
    `soft_labels` replace a part. Products have the dtype of `states`; softmax, logarithms and sums
    are float32.
    Source: Szegedy et al. 2016, section 7.

    Args:
        weight: A row for each token of the vocabulary; rows from `vocab_size` on are ignored.
        pad_id: Rows with this label add nothing; None: all rows count.
    """
    loss, nll, num_correct = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        *(states, weight, bias, labels),
        _Rows(vocab_size, pad_id, label_smoothing, soft_labels),
    )
    if pad_id is None:
        num_tokens = torch.full((), labels.numel(), device=labels.device)
    else:
        num_tokens = (labels != pad_id).sum()
    return LossSums(loss=loss, nll=nll, num_correct=num_correct, num_tokens=num_tokens)


class _CrossEntropy(torch.autograd.Function):
    """Loss, nll and number of correct rows, with the gradients of the loss in the same pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        states: Float[Tensor, "N D"],
        weight: Float[Tensor, "R D"],
        bias: Float[Tensor, " R"] | None,
        labels: Int[Tensor, " N"],
        rows: "_Rows",
    ) -> tuple[Tensor, Tensor, Tensor]:
        chunk_logits = _CHUNK_LOGITS["cpu" if states.device.type == "cpu" else "other"]
        chunk = max(_MIN_CHUNK_ROWS, chunk_logits // len(weight))
        needs_grad = any(ctx.needs_input_grad)  # type: ignore[attr-defined]
        gradients = _LossGradients(states, weight, bias) if needs_grad else None
        sums = torch.zeros(3, device=states.device)
        for start in range(0, len(states), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            count = len(states[block])
            by_logits = states.new_empty(count if needs_grad else 0, len(weight))
            for first in range(0, count, chunk):
                these = slice(start + first, start + min(first + chunk, count))
                soft = rows.find_soft(these)
                logits = _project(states[these], weight, bias)
                found, probs = rows.sum(logits, labels[these], soft)
                sums += found
                if needs_grad:
                    by_logits[first : first + chunk] = rows.differentiate(
                        probs, labels[these], soft
                    )
            if gradients is not None:
                gradients.add(block, by_logits)
        ctx.gradients = gradients  # type: ignore[attr-defined]
        loss, nll, num_correct = sums.unbind()
        num_correct = num_correct.long()
        ctx.mark_non_differentiable(nll, num_correct)
        return loss, nll, num_correct

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found: _LossGradients = ctx.gradients  # type: ignore[attr-defined]
        by_bias = None if found.by_bias is None else found.by_bias * grads[0]
        return found.by_states * grads[0], found.by_weight * grads[0], by_bias, None, None


def _project(
    states: Float[Tensor, "n D"], weight: Float[Tensor, "R D"], bias: Float[Tensor, " R"] | None
) -> Float[Tensor, "n R"]:
    return states @ weight.t() if bias is None else torch.addmm(bias, states, weight.t())


@dataclass(frozen=True)
class SoftLabels:
    """`weight` of each label is the mean of the softmax of the projections of `teachers`."""

    teachers: Sequence[Projection]
    weight: float


@dataclass(frozen=True)
class _Rows:
    """The cross-entropy of a chunk of rows of logits, and its gradient."""

    vocab_size: int
    pad_id: int | None
    label_smoothing: float
    soft_labels: SoftLabels | None

    @property
    def hard(self) -> float:
        """The weight of the labels of the pairs."""
        return 1.0 if self.soft_labels is None else 1.0 - self.soft_labels.weight

    def find_soft(self, rows: slice) -> _Soft:
        """Return what `soft_labels` give for these rows, if there are any."""
        if self.soft_labels is None:
            return None
        by_teacher = list[Tensor]()
        for states, weight, bias in self.soft_labels.teachers:
            logits = _project(states[rows], weight, bias).float()
            logits[:, self.vocab_size :] = -torch.inf
            by_teacher.append(logits.softmax(dim=1))
        share = self.soft_labels.weight / len(by_teacher)
        return reduce(torch.add, by_teacher).mul_(share)  # of one teacher, without a copy

    def sum(
        self, logits: Float[Tensor, "n R"], labels: Int[Tensor, " n"], soft: _Soft
    ) -> tuple[Float[Tensor, " 3"], Float[Tensor, "n R"]]:
        """Return the sums of loss, nll and correct rows; and the probabilities."""
        wide, smoothing = logits.float(), self.label_smoothing
        wide[:, self.vocab_size :] = -torch.inf
        highest = wide.amax(dim=1, keepdim=True)  # (n, 1), as all below
        at_label = wide.gather(1, labels[:, None])
        probs = wide.softmax(dim=1)
        # The highest probability is exp(highest - log_sum): log_sum needs no pass over the logits.
        log_sum = highest - probs.amax(dim=1, keepdim=True).log()
        nll = log_sum - at_label
        loss = nll
        if smoothing > 0.0:
            uniform = log_sum - wide[:, : self.vocab_size].mean(dim=1, keepdim=True)
            loss = (1.0 - smoothing) * nll + smoothing * uniform
        if soft is not None:
            expected = (soft * wide)[:, : self.vocab_size].sum(dim=1, keepdim=True)
            loss = self.hard * loss + (1.0 - self.hard) * log_sum - expected
        each = torch.cat((loss, nll, at_label >= highest), dim=1)  # (n, 3)
        if self.pad_id is not None:
            each = each.masked_fill((labels == self.pad_id)[:, None], 0.0)
        return each.sum(dim=0), probs

    def differentiate(
        self, probs: Float[Tensor, "n R"], labels: Int[Tensor, " n"], soft: _Soft
    ) -> Float[Tensor, "n R"]:
        """Return the gradient of the loss by the logits, computed in place of `probs`."""
        smoothing = self.hard * self.label_smoothing
        if smoothing > 0.0:
            probs[:, : self.vocab_size] -= smoothing / self.vocab_size
        at_label = labels[:, None]
        probs.scatter_add_(1, at_label, probs.new_full(at_label.shape, smoothing - self.hard))
        if soft is not None:
            probs -= soft
        if self.pad_id is not None:
            probs.masked_fill_((labels == self.pad_id)[:, None], 0.0)
        return probs


class _LossGradients:
    """The gradients of the summed loss, accumulated over blocks of rows."""

    def __init__(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self._states, self._weight = states, weight
        self.by_states = torch.empty_like(states)
        self.by_weight = torch.zeros_like(weight)
        self.by_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)

    def add(self, block: slice, by_logits: Float[Tensor, "N R"]) -> None:
        """Add those of a block, given those by its logits; sums over blocks are float32."""
        torch.mm(by_logits, self._weight, out=self.by_states[block])
        by_weight = by_logits.t() @ self._states[block]
        is_first = block.start == 0
        self.by_weight = by_weight if is_first else self.by_weight.float() + by_weight
        if self.by_bias is not None:
            self.by_bias += by_logits.sum(dim=0, dtype=torch.float32)


def sum_losses_by_microbatches(
    model: Transformer,
    microbatches: Sequence[Batch],
    label_smoothing: float = 0.0,
    *,
    guidance: Guidance | None = None,
    distillation: Distillation | None = None,
) -> LossSums:
    """Return the sums of `sum_losses` over all `microbatches`.

    The gradients are computed here; `loss.backward()` gives them to the parameters, and can be
    called once. The same micro-batches give the same bits on any number of cores, up to one each.
    """
    dtype = find_dtype(model)
    dropouts = [draw_dropout(model) for _ in microbatches]  # seeds in order
    scales = find_scales(model, dropouts[0].scale)
    cast = cast_weights(model, dtype, scales)
    taught = distillation and distillation.prepare(dtype, is_cpu_training=True)

    sums = list[LossSums]()

    def run(number: int) -> tuple[LossSums, Gradients]:
        leaves, batch = Leaves(dtype, cast), microbatches[number]
        layers = make_layers(model, leaves, dropouts[number], is_cpu_training=True)
        found = sum_losses_of_layers(
            *(layers, batch.source_ids, batch.target_ids),
            *(label_smoothing, guidance, taught),
        )
        return found, leaves.differentiate(found.loss)

    def take() -> Iterator[Gradients]:  # each is added as soon as it is there
        for found, gradients in _run_in_parallel(run, len(microbatches)):
            sums.append(found)
            yield gradients

    by_parameter = _add_up(take())
    for parameter, scale in scales.items():
        by_parameter[parameter] *= scale
    loss: Tensor = _KnownGradients.apply(  # type: ignore[no-untyped-call]
        torch.stack([one.loss.detach() for one in sums]).sum(),
        list(by_parameter.values()),
        *by_parameter,
    )
    return LossSums(
        loss=loss,
        nll=torch.stack([one.nll for one in sums]).sum(),
        num_correct=torch.stack([one.num_correct for one in sums]).sum(),
        num_tokens=torch.stack([one.num_tokens for one in sums]).sum(),
    )


def cast_weights(
    model: Transformer, dtype: torch.dtype, scales: Mapping[Tensor, float]
) -> dict[Tensor, Tensor]:
    """Return the parameters, with their factors of `find_scales`, in the dtype of products."""
    return {
        p: (p.detach() * scales[p] if p in scales else p.detach()).to(dtype)
        for p in model.parameters()
    }


def find_scales(model: Transformer, scale: float) -> dict[Tensor, float]:
    """Return the factors on parameters that replace the dropout's `scale` of elements.

    What such a layer reads is masked (its weights of attention, its hidden states), and so is what
    it gives.
    """
    scales: dict[Tensor, float] = {}
    stacks = (model.transformer.encoder.layers, model.transformer.decoder.layers)
    for layer in itertools.chain(*stacks):
        attentions = (layer.self_attn, getattr(layer, "multihead_attn", layer.self_attn))
        for linear in (layer.linear2, *(attention.out_proj for attention in attentions)):
            scales |= {linear.weight: scale**2, linear.bias: scale}
    return scales if scale != 1.0 else {}


def _run_in_parallel(run: Callable[[int], Found], count: int) -> Iterator[Found]:
    """Yield `run` of 0 to `count` - 1, in order; the workers share the cores."""
    num_threads = torch.get_num_threads()
    num_workers = min(count, num_threads)
    if num_workers <= 1:
        yield from map(run, range(count))
        return
    try:
        torch.set_num_threads(1)  # the sums meanwhile must not wait for busy cores
        with ThreadPoolExecutor(
            num_workers, initializer=torch.set_num_threads, initargs=(num_threads // num_workers,)
        ) as pool:
            yield from pool.map(run, range(count))
    finally:
        torch.set_num_threads(num_threads)


class _KnownGradients(torch.autograd.Function):
    """A loss whose gradients are already known: the backward pass returns them."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, loss: Float[Tensor, ""], gradients: list[Tensor], *_: Tensor
    ) -> Tensor:
        ctx.gradients = gradients  # type: ignore[attr-defined]
        return loss

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients  # type: ignore[attr-defined]
        ctx.gradients = None  # type: ignore[attr-defined]
        torch._foreach_mul_(gradients, grads[0])
        return None, None, *gradients


class Leaves(Weights):
    """Copies of the parameters as leaves of one micro-batch's graph, so its gradients stay apart.

    They share the memory of the parameters.

    `cast`: the parameters in `dtype`, cast once for all micro-batches.
    """

    def __init__(self, dtype: torch.dtype, cast: Mapping[Tensor, Tensor]) -> None:
        super().__init__(dtype)
        self._shared = cast
        self._leaves: dict[Tensor, Tensor] = {}
        self._rows: list[tuple[Tensor, Int[Tensor, ...], Tensor]] = []

    def matmul_weight(self, parameter: Tensor) -> Tensor:
        """Return the leaf of a parameter, in the dtype of matrix products."""
        return self._make_leaf(parameter, self._shared[parameter])

    def norm_weight(self, parameter: Tensor) -> Tensor:
        """Return the leaf of a norm's parameter, in its own dtype."""
        return self._make_leaf(parameter, parameter)

    def embedding_rows(self, table: Tensor, ids: Int[Tensor, "*L"]) -> Float[Tensor, "*L D"]:
        """Return the rows `ids` of an embedding as a leaf: the gradient has these rows only."""
        rows = F.embedding(ids, table.detach()).requires_grad_()
        self._rows.append((table, ids, rows))
        return rows

    def differentiate(self, loss: Float[Tensor, ""]) -> "Gradients":
        """Return the gradients of `loss` with respect to all leaves."""
        leaves = [*self._leaves.values(), *(rows for _, _, rows in self._rows)]
        found = torch.autograd.grad(loss, leaves)
        count = len(self._leaves)
        return Gradients(
            by_parameter=list(zip(self._leaves, found[:count], strict=True)),
            by_rows=[
                (table, ids.flatten(), gradient.flatten(0, -2))  # (*L, D) -> (N, D)
                for (table, ids, _), gradient in zip(self._rows, found[count:], strict=True)
            ],
        )

    def _make_leaf(self, parameter: Tensor, value: Tensor) -> Tensor:
        if parameter not in self._leaves:
            self._leaves[parameter] = value.detach().requires_grad_()
        return self._leaves[parameter]


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """The gradients of one micro-batch: of whole parameters, and of rows of embeddings."""

    by_parameter: list[tuple[Tensor, Tensor]]
    by_rows: list[tuple[Tensor, Tensor, Tensor]]  # embedding, ids (N,), gradients (N, D)


def _add_up(all_gradients: Iterable[Gradients]) -> dict[Tensor, Tensor]:
    """Return the sum for each parameter, in its dtype, in the order of the micro-batches."""
    totals: dict[Tensor, Tensor] = {}
    by_table: dict[Tensor, list[tuple[Tensor, Tensor]]] = {}  # ids, and gradients by row
    for gradients in all_gradients:
        for parameter, gradient in gradients.by_parameter:
            if parameter in totals:
                totals[parameter] += gradient
            else:
                totals[parameter] = gradient.to(parameter.dtype)
        for table, ids, by_row in gradients.by_rows:
            by_table.setdefault(table, []).append((ids, by_row))
    for table, rows in by_table.items():
        ids, by_row = (torch.cat(each) for each in zip(*rows, strict=True))
        # Autograd's own function for embeddings: it adds the rows one by one, in order.
        dense = torch.ops.aten.embedding_dense_backward(by_row, ids, len(table), -1, False)
        totals[table] = totals[table] + dense if table in totals else dense
    return totals
