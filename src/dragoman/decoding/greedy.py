"""Greedy search: at each step the most probable token."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragoman.decoding.hypothesis import Hypothesis
from dragoman.model import incremental
from dragoman.model.transformer import Transformer


@torch.no_grad()
def search_greedily(
    model: Transformer, source_ids: Int[Tensor, "B S"], max_lengths: Sequence[int]
) -> list[Hypothesis]:
    """Return the greedy hypothesis of each source.

    `max_lengths` bounds each output in tokens, its end included (each >= 1); an output that did not
    end within it is cut, and says so. Dropout is off whatever the model's mode, which is kept.
    Rows leave the batch once they have ended, so the cost follows the lengths of the outputs.
    """
    was_training = model.training
    model.eval()
    try:
        return _search(model, source_ids, max_lengths)
    finally:
        model.train(was_training)


def _search(
    model: Transformer, source_ids: Int[Tensor, "B S"], max_lengths: Sequence[int]
) -> list[Hypothesis]:
    num_rows, device = len(source_ids), source_ids.device
    if num_rows == 0:
        return []
    limits = torch.as_tensor(max_lengths, device=device)
    if model.longest_target is not None:
        limits = limits.clamp(max=model.longest_target)
    tokens = torch.full((num_rows, int(limits.max())), model.pad_id, device=device)
    scores = torch.zeros(num_rows, device=device)
    has_ended = torch.zeros(num_rows, dtype=torch.bool, device=device)

    cache = incremental.start(model, model.encode(source_ids))
    rows = torch.arange(num_rows, device=device)  # the rows that are still in the batch
    ids = torch.full((num_rows,), model.bos_id, device=device)
    for position in range(tokens.shape[1]):
        logits, cache = incremental.step(model, ids, cache)
        log_probs = _allowed_log_probs(model, logits)
        best, ids = log_probs.max(dim=-1)
        tokens[rows, position] = ids
        scores[rows] += best
        has_ended[rows] = ids == model.eos_id
        goes_on = (ids != model.eos_id) & (position + 1 < limits[rows])
        staying = goes_on.nonzero()[:, 0]
        if len(staying) == 0:
            break
        if len(staying) < len(rows):
            rows, ids = rows[staying], ids[staying]
            cache = incremental.select(cache, staying)
    return _hypotheses(model, tokens, scores, has_ended)


def _allowed_log_probs(model: Transformer, logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """Return the log-probabilities over all tokens but padding and begin, which are no output."""
    logits = logits.float()
    logits[:, [model.pad_id, model.bos_id]] = -torch.inf
    return torch.log_softmax(logits, dim=-1)


def _hypotheses(
    model: Transformer, tokens: Tensor, scores: Tensor, has_ended: Tensor
) -> list[Hypothesis]:
    lengths = ((tokens != model.pad_id) & (tokens != model.eos_id)).sum(dim=1)
    return [
        Hypothesis(
            ids=tuple(row[:length]),
            score=score,
            normalized_score=score / (length + is_complete),
            is_complete=is_complete,
        )
        for row, length, score, is_complete in zip(
            tokens.tolist(), lengths.tolist(), scores.tolist(), has_ended.tolist(), strict=True
        )
    ]
