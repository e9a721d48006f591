"""How long an output may be, and how its length counts when hypotheses are compared."""

from collections.abc import Sequence
from typing import NamedTuple

from dragoman.settings import DecodingSettings

_SOURCE_STEP = 16  # tokens: sources of like lengths have one limit, and can be searched together


class Limits(NamedTuple):
    """Fewest and most tokens of an output: the fewest without its end, the most with it."""

    shortest: int
    longest: int


def limit_lengths(
    source_lengths: Sequence[int], decoding: DecodingSettings, num_positions: int | None = None
) -> list[Limits]:
    """Return the limits of the output of each source, given the tokens of each.

    `num_positions` are those that the model has learned; None: there is no end to them.

    They depend on the row alone, never on its neighbours or its padding. A source of 10 tokens
    counts as 16: with ratio 2 and extra 50 its output has at most 82.
    """
    limits = []
    for length in source_lengths:
        rounded = -(-length // _SOURCE_STEP) * _SOURCE_STEP
        longest = int(decoding.max_length_ratio * rounded) + decoding.max_length_extra
        longest = longest if num_positions is None else min(longest, num_positions)
        shortest = int(decoding.min_length_ratio * length) + decoding.min_length
        limits.append(Limits(min(shortest, longest - 1), longest))
    return limits


def normalize(score: float, length: int, decoding: DecodingSettings) -> float:
    """Return `score` as it is compared with those of hypotheses of other lengths.

    `length` counts the end. By "average", -6.0 over 3 tokens is -2.0 (with length_penalty 1).

    Source: "wu": Wu et al. 2016, section 7, equation 14, without the coverage penalty.
    """
    if decoding.length_norm == "wu":
        return float(score / ((5 + length) / 6) ** decoding.length_penalty)
    return float(score / max(1, length) ** decoding.length_penalty)
