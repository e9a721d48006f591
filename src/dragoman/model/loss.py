"""The loss of a batch: sums over its real tokens, to be divided once, by whoever knows them all."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragoman.model.fast import compute_states
from dragoman.model.transformer import Transformer

Path = Literal["fast", "reference"]


@dataclass(frozen=True, kw_only=True)
class LossSums:
    """Sums over the labelled tokens of a batch; tensors without dimension, on the model's device."""

    loss: Float[Tensor, ""]  # label-smoothed cross-entropy, nats: what is minimised
    nll: Float[Tensor, ""]  # cross-entropy without smoothing, nats: what perplexity is made of
    num_correct: Int[Tensor, ""]  # tokens whose label has the highest logit
    num_tokens: Int[Tensor, ""]


def sum_losses(
    model: Transformer,
    source_ids: Int[Tensor, "B S"],
    target_ids: Int[Tensor, "B T"],
    label_smoothing: float = 0.0,
    path: Path = "fast",
) -> LossSums:
    """Return the sums over all tokens of `target_ids` (begin, tokens, end, padding) but the first.

    Logits are made only where there is a label; padding adds nothing. Both paths compute the same.
    """
    if path == "fast":
        states = compute_states(model, source_ids, target_ids[:, :-1])
    else:
        states = model.decode_states(target_ids[:, :-1], model.encode(source_ids))
    labels = target_ids[:, 1:]
    has_label = labels != model.pad_id
    logits = model.project(states[has_label])  # (B, T, D) -> (N, D) -> (N, V)
    return sum_cross_entropy(logits, labels[has_label], label_smoothing)


def sum_cross_entropy(
    logits: Float[Tensor, "N V"], labels: Int[Tensor, " N"], label_smoothing: float
) -> LossSums:
    """Return the sums of cross-entropy against `labels`; in float32, whatever the logits are.

    With smoothing e, the label has weight 1 - e + e / V and every other token e / V.
    Source: Szegedy et al. 2016, section 7.
    """
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    nll = -log_probs.gather(1, labels[:, None]).sum()
    loss = nll
    if label_smoothing > 0.0:
        uniform = -log_probs.mean(dim=-1).sum()
        loss = (1.0 - label_smoothing) * nll + label_smoothing * uniform
    return LossSums(
        loss=loss,
        nll=nll.detach(),
        num_correct=(logits.detach().argmax(dim=-1) == labels).sum(),
        num_tokens=torch.tensor(labels.numel(), device=labels.device),
    )
