"""Sampling: outputs drawn by chance, each with its probability under the model, or a sharper one."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragoman.decoding.ensemble import Ensemble
from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.rules import Rules
from dragoman.decoding.walk import walk
from dragoman.settings import DecodingSettings


def sample(
    ensemble: Ensemble,
    source_ids: Int[Tensor, "N S"],
    longest: Sequence[int],
    rules: Rules,
    decoding: DecodingSettings,
) -> list[list[Hypothesis]]:
    """Return the best `decoding.num_searched` of the samples of each source; some may be equal.

    A sample depends on the seed, its number and its source alone: not on the batch or the order.
    Scores are of the model itself, whatever the temperature.
    """
    count = decoding.num_samples
    rows = torch.arange(len(source_ids), device=source_ids.device).repeat_interleave(count)
    chances = _draw(source_ids, ensemble.pad_id, longest, decoding)

    def choose(
        log_probs: Float[Tensor, "R V"], live: Int[Tensor, " R"], position: int
    ) -> Int[Tensor, " R"]:
        return pick(sharpen(log_probs, decoding), chances[live, position])

    drawn = walk(
        ensemble,
        source_ids[rows],
        [most for most in longest for _ in range(count)],
        rules.select(rows),
        decoding,
        choose,
    )
    by_source = [drawn[i * count : (i + 1) * count] for i in range(len(source_ids))]
    is_constrained = bool(rules.states)  # then only complete ones conform

    def rank(one: Hypothesis) -> tuple[bool, float]:
        return is_constrained and one.is_complete, one.normalized_score

    return [
        sorted(samples, key=rank, reverse=True)[: decoding.num_searched] for samples in by_source
    ]


def sharpen(log_probs: Float[Tensor, "R V"], decoding: DecodingSettings) -> Float[Tensor, "R V"]:
    """Return the log-probabilities, not normalised, that samples are drawn from."""
    sharpened = log_probs / decoding.temperature
    if decoding.top_k:
        sharpened = keep_top_k(sharpened, decoding.top_k)
    if decoding.top_p < 1.0:
        sharpened = keep_top_p(sharpened, decoding.top_p)
    return sharpened


def keep_top_k(log_probs: Float[Tensor, "R V"], count: int) -> Float[Tensor, "R V"]:
    """Return `log_probs` with the `count` likeliest tokens alone. Source: Fan et al. 2018."""
    least = log_probs.topk(min(count, log_probs.shape[1]), dim=1).values[:, -1:]
    return log_probs.masked_fill(log_probs < least, -torch.inf)


def keep_top_p(log_probs: Float[Tensor, "R V"], mass: float) -> Float[Tensor, "R V"]:
    """Return `log_probs` with the fewest likeliest tokens that reach `mass` of the probability.

    Of 0.5, 0.3 and 0.2, mass 0.7 keeps the first two. Source: Holtzman et al. 2020, section 3.1.
    """
    ranked, order = torch.softmax(log_probs, dim=1).sort(dim=1, descending=True, stable=True)
    is_beyond = ranked.cumsum(dim=1) - ranked >= mass  # those before it have reached the mass
    return log_probs.masked_fill(
        torch.empty_like(is_beyond).scatter_(1, order, is_beyond), -torch.inf
    )


def pick(log_probs: Float[Tensor, "R V"], chances: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
    """Return the token of each row at which the probabilities, summed by id, pass `chances` [0, 1)."""
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
    return torch.from_numpy(chances).to(source_ids.device, torch.float32)
