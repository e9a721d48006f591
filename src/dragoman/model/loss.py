"""The loss of a batch: sums over its real tokens, to be divided once, by whoever knows them all."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from dragoman.model.cross_entropy import LossSums, sum_cross_entropy
from dragoman.model.fast import FastPass, draw_dropout, find_dtype
from dragoman.model.operands import Parameters
from dragoman.model.transformer import Transformer

Implementation = Literal["fused", "reference"]


def sum_losses(
    model: Transformer,
    source_ids: Int[Tensor, "B S"],
    target_ids: Int[Tensor, "B T"],
    label_smoothing: float = 0.0,
    implementation: Implementation = "fused",
) -> LossSums:
    """Return the sums over all tokens of `target_ids` (begin, tokens, end, padding) but the first.

    Padding adds nothing; on the CPU, no logits are made for it. Both implementations compute the same.
    """
    if implementation == "reference":
        return _sum_by_reference(model, source_ids, target_ids, label_smoothing)
    operands = Parameters(find_dtype(model))
    with torch.autocast(source_ids.device.type, enabled=False):
        fast_pass = FastPass(model, operands, draw_dropout(model))
        return sum_by_fast_pass(fast_pass, source_ids, target_ids, label_smoothing)


def sum_by_fast_pass(
    fast_pass: FastPass,
    source_ids: Int[Tensor, "B S"],
    target_ids: Int[Tensor, "B T"],
    label_smoothing: float,
) -> LossSums:
    """Return the sums of `sum_losses`, from parameters given as operands; without autocast."""
    model, operands = fast_pass.model, fast_pass.operands
    states = fast_pass.compute(source_ids, target_ids[:, :-1]).flatten(0, 1)  # (B, T, D) -> (N, D)
    labels = target_ids[:, 1:].flatten()
    pad_id: int | None = model.pad_id
    if states.device.type == "cpu":  # a GPU would have to be waited for, to know how many there are
        has_label = labels != pad_id
        states, labels, pad_id = states[has_label], labels[has_label], None
    output = model.target_embedding if model.output is None else model.output
    return sum_cross_entropy(
        states.to(operands.dtype),
        operands.factor(output.weight),
        None if model.output is None else operands.factor(model.output.bias),
        labels,
        pad_id=pad_id,
        vocab_size=model.target_vocab_size,
        label_smoothing=label_smoothing,
    )


def _sum_by_reference(
    model: Transformer,
    source_ids: Int[Tensor, "B S"],
    target_ids: Int[Tensor, "B T"],
    label_smoothing: float,
) -> LossSums:
    """Return the sums as torch's own modules and functions make them."""
    states = model.decode_states(target_ids[:, :-1], model.encode(source_ids))
    labels = target_ids[:, 1:]
    has_label = labels != model.pad_id
    logits, labels = model.project(states[has_label]).float(), labels[has_label]
    loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    return LossSums(
        loss=loss,
        nll=F.cross_entropy(logits.detach(), labels, reduction="sum"),
        num_correct=(logits.detach().argmax(dim=-1) == labels).sum(),
        num_tokens=torch.tensor(labels.numel(), device=labels.device),
    )
