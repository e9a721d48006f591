"""Greedy search: at each step the most probable token."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from dragoman.decoding.ensemble import Ensemble
from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.rules import Rules
from dragoman.decoding.walk import walk
from dragoman.settings import DecodingSettings


def search_greedily(
    ensemble: Ensemble,
    source_ids: Int[Tensor, "N S"],
    longest: Sequence[int],
    rules: Rules,
    decoding: DecodingSettings,
) -> list[Hypothesis]:
    """Return the greedy hypothesis of each source, of at most `longest` tokens with its end."""
    return walk(ensemble, source_ids, longest, rules, decoding, _choose_best)


def _choose_best(
    log_probs: Float[Tensor, "R V"], rows: Int[Tensor, " R"], position: int
) -> Int[Tensor, " R"]:
    return log_probs.argmax(dim=-1)
