"""Search with the method that the settings name: greedy search and sampling are here, beams in `beam`.

And the scores of given targets.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dragoman.decoding.beam import search_beam
from dragoman.decoding.ensemble import Ensemble, average, mask_tokens
from dragoman.decoding.hypothesis import Hypothesis, limit_lengths, normalize
from dragoman.decoding.rules import Rules
from dragoman.decoding.search_config import SearchConfig
from dragoman.model.transformer import Transformer
from dragoman.settings import DecodingSettings

Choose = Callable[[Float[Tensor, "R V"], Int[Tensor, " R"], int], Int[Tensor, " R"]]
"""The next tokens, given the log-probabilities, the number of each row, and the position."""


def search(
    models: Sequence[Transformer] | Ensemble,
    source_ids: Int[Tensor, "N S"],
    config: SearchConfig,
    prefixes: Sequence[Sequence[int]] | None = None,
    most_tokens: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Return the hypotheses of each source, best first.

    Dropout is off, whatever the mode of the models; the mode is kept. A hypothesis depends on its
    source alone, not on its batch.

    Args:
        models: One model, or several with one vocabulary. Callers that search often keep an
            `Ensemble`: packing the weights takes milliseconds.
        prefixes: Ids at the start of the output of each source; they raise its longest length.
        most_tokens: A bound on the output of each source, its end included, besides the settings.
    """
    if not len(source_ids):
        return []
    ensemble = models if isinstance(models, Ensemble) else Ensemble(models)
    decoding = config.decoding
    lengths = (source_ids != ensemble.pad_id).sum(dim=1).tolist()
    limits = limit_lengths(lengths, decoding, ensemble.longest_target)
    longest = [limit.longest for limit in limits]
    if most_tokens is not None:
        longest = [min(both) for both in zip(longest, most_tokens, strict=True)]
    if prefixes is not None:
        longest = [most + len(prefix) for most, prefix in zip(longest, prefixes, strict=True)]
        if ensemble.longest_target is not None:
            longest = [min(most, ensemble.longest_target) for most in longest]
    rules = Rules.start(config, ensemble.eos_id, limits, prefixes, source_ids.device)
    with ensemble.evaluating():
        if decoding.method == "sampling":
            return sample(ensemble, source_ids, longest, rules, decoding)
        if decoding.method == "beam" and decoding.beam_size == 1:
            return [[one] for one in decode(ensemble, source_ids, longest, rules, decoding)]
        return search_beam(ensemble, source_ids, longest, rules, decoding)


def sample(
    ensemble: Ensemble,
    source_ids: Int[Tensor, "N S"],
    longest: Sequence[int],
    rules: Rules,
    decoding: DecodingSettings,
) -> list[list[Hypothesis]]:
    """Return the best `decoding.num_searched` samples of each source; some may be equal.

    A sample depends only on the seed, its number and its source: not on the batch or the order.
    Scores are those of the model, whatever the temperature.
    """
    count = decoding.num_samples
    rows = torch.arange(len(source_ids), device=source_ids.device).repeat_interleave(count)
    chances = _draw(source_ids, ensemble.pad_id, longest, decoding)

    def choose(
        log_probs: Float[Tensor, "R V"], live: Int[Tensor, " R"], position: int
    ) -> Int[Tensor, " R"]:
        return pick(sharpen(log_probs, decoding), chances[live, position])

    drawn = decode(
        ensemble,
        source_ids[rows],
        [most for most in longest for _ in range(count)],
        rules.select(rows),
        decoding,
        choose,
    )
    by_source = [drawn[i * count : (i + 1) * count] for i in range(len(source_ids))]
    is_constrained = bool(rules.states)  # then only complete samples match the constraint

    def rank(one: Hypothesis) -> tuple[bool, float]:
        return is_constrained and one.is_complete, one.normalized_score

    return [
        sorted(samples, key=rank, reverse=True)[: decoding.num_searched] for samples in by_source
    ]


def decode(
    ensemble: Ensemble,
    source_ids: Int[Tensor, "N S"],
    longest: Sequence[int],
    rules: Rules,
    decoding: DecodingSettings,
    choose: Choose = lambda log_probs, *_: log_probs.argmax(-1),
) -> list[Hypothesis]:
    """Return one hypothesis per row, each of at most `longest` tokens (>= 1, its end included).

    `choose` gives the next tokens: by default the most probable ones (greedy search). An output without an end by then is truncated (`is_complete` is False). Finished rows leave the
    batch, so the cost follows the lengths of the outputs.
    """
    num_rows, device = len(source_ids), source_ids.device
    rows = torch.arange(num_rows, device=device)  # those still in the batch
    limits, nearest = torch.as_tensor(longest, device=device), min(longest)
    tokens = torch.empty(num_rows, max(longest), dtype=torch.long, device=device)
    scores = torch.zeros(num_rows, device=device)
    ids = torch.full((num_rows,), ensemble.bos_id, device=device)
    caches = ensemble.start(source_ids)
    found: dict[int, Hypothesis] = {}
    for position in range(tokens.shape[1]):
        rule = partial(rules.change_logits, history=tokens[:, :position])
        log_probs, caches = ensemble.step(ids, caches, rule)
        log_probs = rules.mask(log_probs, position)
        ids = choose(log_probs, rows, position)
        emitted = log_probs.gather(1, ids[:, None])[:, 0]
        tokens[:, position] = ids
        scores += emitted.nan_to_num(nan=math.nan, neginf=0.0)
        is_live = (ids != ensemble.eos_id) & ~emitted.isneginf()  # -inf: no token was left
        rules = rules.advance(ids, is_live)
        if position + 1 >= nearest:
            is_live &= position + 1 < limits
        leaving = is_live.logical_not().nonzero()[:, 0]
        if not len(leaving):
            continue
        # Two reads for all of them: each one waits for a GPU.
        numbered = torch.cat((rows[leaving, None], tokens[leaving, : position + 1]), dim=1)
        scored = torch.stack((scores[leaving], emitted[leaving]), dim=1)
        for (row, *past), (score, last) in zip(numbered.tolist(), scored.tolist(), strict=True):
            is_end = past[-1] == ensemble.eos_id
            is_complete = is_end and last != -math.inf
            length = position + (not is_end and last != -math.inf)
            found[row] = Hypothesis(
                ids=tuple(past[:length]),
                score=score,
                normalized_score=normalize(score, length + is_complete, decoding),
                is_complete=is_complete,
            )
        if len(found) == num_rows:
            break
        kept = _fill_holes(is_live, leaving)
        rows, limits, tokens, scores, ids = (
            each[kept] for each in (rows, limits, tokens, scores, ids)
        )
        caches, rules = ensemble.select(caches, kept, kept), rules.select(kept)
    return [found[row] for row in range(num_rows)]


def _fill_holes(is_live: Bool[Tensor, " R"], leaving: Int[Tensor, " L"]) -> Int[Tensor, " R2"]:
    """Return the live rows: the last ones take the places of those that leave, the others stay.

    So few rows of the caches are copied. Of rows 0 to 4, 1 and 4 leave: 0, 3 and 2 remain.
    """
    count = len(is_live) - len(leaving)
    kept = torch.arange(count, device=is_live.device)
    kept[leaving[leaving < count]] = is_live[count:].nonzero()[:, 0] + count
    return kept


def sharpen(log_probs: Float[Tensor, "R V"], decoding: DecodingSettings) -> Float[Tensor, "R V"]:
    """Return the log-probabilities of the sampling distribution, not normalized."""
    sharpened = log_probs / decoding.temperature
    if decoding.top_k:
        sharpened = keep_top_k(sharpened, decoding.top_k)
    if decoding.top_p < 1.0:
        sharpened = keep_top_p(sharpened, decoding.top_p)
    return sharpened


def keep_top_k(log_probs: Float[Tensor, "R V"], count: int) -> Float[Tensor, "R V"]:
    """Mask all but the `count` most probable tokens. Source: Fan et al. 2018."""
    least = log_probs.topk(min(count, log_probs.shape[1]), dim=1).values[:, -1:]
    return log_probs.masked_fill(log_probs < least, -torch.inf)


def keep_top_p(log_probs: Float[Tensor, "R V"], mass: float) -> Float[Tensor, "R V"]:
    """Mask all but the fewest most probable tokens that reach `mass` of the probability.

    Of 0.5, 0.3 and 0.2, mass 0.7 keeps the first two. Source: Holtzman et al. 2020, section 3.1.
    """
    ranked, order = torch.softmax(log_probs, dim=1).sort(dim=1, descending=True, stable=True)
    is_beyond = ranked.cumsum(dim=1) - ranked >= mass  # the tokens before it reach the mass
    return log_probs.masked_fill(
        torch.empty_like(is_beyond).scatter_(1, order, is_beyond), -torch.inf
    )


def pick(log_probs: Float[Tensor, "R V"], chances: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
    """Return the token of each row at which the summed probabilities pass `chances` in [0, 1)."""
    sums = torch.softmax(log_probs.double(), dim=1).nan_to_num(0.0).cumsum(dim=1)
    passed = sums > (chances.double() * sums[:, -1])[:, None]
    return passed.long().argmax(dim=1)


def _draw(
    source_ids: Int[Tensor, "N S"],
    pad_id: int,
    longest: Sequence[int],
    decoding: DecodingSettings,
) -> Float[Tensor, "R T"]:
    """Return a number in [0, 1) for each step of each sample, from the seed and the source."""
    chances = np.zeros((len(source_ids) * decoding.num_samples, max(longest)))
    row = 0
    for ids, steps in zip(source_ids.tolist(), longest, strict=True):
        tokens = [token for token in ids if token != pad_id]
        for number in range(decoding.num_samples):
            key = np.random.SeedSequence([decoding.seed, number, *tokens])
            chances[row, :steps] = np.random.Generator(np.random.Philox(key)).random(steps)
            row += 1
    # Rounded to 32 bits, the highest would be 1.
    return torch.from_numpy(chances).to(source_ids.device, torch.float32).clamp(max=1 - 2**-24)


def score_targets(
    models: Sequence[Transformer],
    source_ids: Int[Tensor, "B S"],
    targets: Sequence[Sequence[int]],
    decoding: DecodingSettings,
) -> list[Hypothesis]:
    """Return each of `targets`, ids without begin and end, as a complete hypothesis.

    What is never emitted is masked, so the score is that of a search without rules. With several
    models, their probabilities are averaged.
    """
    if not len(targets):
        return []
    ensemble = Ensemble(models)
    device = source_ids.device
    rows = [
        torch.tensor([ensemble.bos_id, *ids, ensemble.eos_id], device=device) for ids in targets
    ]
    target_ids = torch.nn.utils.rnn.pad_sequence(
        rows, batch_first=True, padding_value=ensemble.pad_id
    )
    with ensemble.evaluating():
        by_model, alignment = [], None
        for model in ensemble.models:
            memory = model.encode(source_ids)
            logits = model.decode(target_ids[:, :-1], memory).float()
            logits = mask_tokens(logits, ensemble.never_emitted)
            by_model.append(torch.log_softmax(logits, dim=-1))
        log_probs = average(by_model).gather(-1, target_ids[:, 1:, None])[..., 0]
        if decoding.alignment:
            attentions = [align(m, source_ids, target_ids[:, :-1]) for m in ensemble.models]
            alignment = torch.stack(attentions).mean(0)
    hypotheses = []
    for i, ids in enumerate(targets):
        scored = log_probs[i, : len(ids) + 1].tolist()
        aligned: list[list[float]] = []
        if alignment is not None:
            source_length = int((source_ids[i] != ensemble.pad_id).sum())
            aligned = alignment[i, : len(scored), :source_length].tolist()
        hypotheses.append(
            Hypothesis(
                ids=tuple(ids),
                score=sum(scored),
                normalized_score=normalize(sum(scored), len(scored), decoding),
                is_complete=True,
                log_probs=tuple(scored),
                alignment=tuple(map(tuple, aligned)),
            )
        )
    return hypotheses


@torch.no_grad()
def align(
    model: Transformer, source_ids: Int[Tensor, "B S"], target_ids: Int[Tensor, "B T"]
) -> Float[Tensor, "B T S"]:
    """Return the attention over the source for the token after each of `target_ids`.

    The mean over the heads of the decoder's last layer: that of `nn.MultiheadAttention` with
    `average_attn_weights`.
    """
    memory = model.encode(source_ids)
    last = model.transformer.decoder.layers[-1]
    found: list[Tensor] = []

    def take(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        found.append(inputs[0])

    # The query of the last layer's cross-attention: the stock layer does not return it.
    handle = last.multihead_attn.register_forward_hook(take)
    try:
        model.decode_states(target_ids, memory)
    finally:
        handle.remove()
    _, weights = last.multihead_attn(
        found[0], memory.states, memory.states, key_padding_mask=~memory.is_token
    )
    averaged: Tensor = weights
    return averaged
