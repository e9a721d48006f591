"""The walk that greedy search and sampling share: a hypothesis a row, one token chosen a step."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragoman.decoding.ensemble import Ensemble
from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.length import normalize
from dragoman.decoding.rules import Rules
from dragoman.settings import DecodingSettings

Choose = Callable[[Float[Tensor, "R V"], Int[Tensor, " R"], int], Int[Tensor, " R"]]
"""The tokens that go on, given the log-probabilities, the number of each row, and the position."""


def walk(
    ensemble: Ensemble,
    source_ids: Int[Tensor, "N S"],
    longest: Sequence[int],
    rules: Rules,
    decoding: DecodingSettings,
    choose: Choose,
) -> list[Hypothesis]:
    """Return the hypothesis of each row.

    `longest` bounds each output in tokens, its end included (each >= 1); an output that did not
    end within it is cut, and says so. Rows leave the batch once they have ended, so the cost
    follows the lengths of the outputs.
    """
    num_rows, device = len(source_ids), source_ids.device
    limits = torch.as_tensor(longest, device=device)
    tokens = torch.full((num_rows, int(limits.max())), ensemble.pad_id, device=device)
    scores = torch.zeros(num_rows, device=device)
    lengths = torch.zeros(num_rows, dtype=torch.long, device=device)  # the end not counted
    has_ended = torch.zeros(num_rows, dtype=torch.bool, device=device)

    caches = ensemble.start(source_ids)
    rows = torch.arange(num_rows, device=device)  # the rows that are still in the batch
    ids = torch.full((num_rows,), ensemble.bos_id, device=device)
    for position in range(tokens.shape[1]):
        rule = partial(rules.change_logits, history=tokens[rows, :position])
        log_probs, caches = ensemble.step(ids, caches, rule)
        log_probs = rules.mask(log_probs, position)
        ids = choose(log_probs, rows, position)
        spoken = log_probs.gather(1, ids[:, None])[:, 0]
        is_end, is_stuck = ids == ensemble.eos_id, spoken.isneginf()  # stuck: nothing may be said
        tokens[rows, position] = ids
        scores[rows] += spoken.masked_fill(is_stuck, 0.0)
        has_ended[rows] = is_end & ~is_stuck
        lengths[rows] += (~is_end & ~is_stuck).long()
        goes_on = ~is_end & ~is_stuck & (position + 1 < limits[rows])
        rules = rules.advance(ids, goes_on)
        staying = goes_on.nonzero()[:, 0]
        if len(staying) == 0:
            break
        if len(staying) < len(rows):
            rows, ids = rows[staying], ids[staying]
            caches, rules = ensemble.select(caches, staying), rules.select(staying)
    return [
        Hypothesis(
            ids=tuple(row[:length]),
            score=score,
            normalized_score=normalize(score, length + is_complete, decoding),
            is_complete=is_complete,
        )
        for row, length, score, is_complete in zip(
            tokens.tolist(), lengths.tolist(), scores.tolist(), has_ended.tolist(), strict=True
        )
    ]
