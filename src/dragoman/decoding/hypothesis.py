"""A hypothesis of a search; how long it may be, and how its length counts in comparisons."""

from collections.abc import Sequence
from typing import NamedTuple

from dragoman.settings import DecodingSettings

_SOURCE_STEP = 16  # tokens: sources of similar length get one limit and can share a batch


class Hypothesis(NamedTuple):
    """An output as ids, without begin and end, and its probability under the model.

    A tuple, because Lightning takes the results of `predict_step` apart and rebuilds them, which
    fails for a frozen dataclass.
    """

    ids: tuple[int, ...]
    score: float  # sum of the log-probabilities of the ids and, if it is complete, of the end
    normalized_score: float  # the score for comparisons: by decoding.length_norm
    is_complete: bool  # it emitted the end; False: it was truncated at its longest length
    log_probs: tuple[float, ...] = ()  # on request: of each id and, if complete, of the end
    alignment: tuple[tuple[float, ...], ...] = ()  # on request: for each of log_probs, the
    # attention over the source tokens: the mean over the heads of the decoder's last layer


class Limits(NamedTuple):
    """Fewest and most tokens of an output: `shortest` without its end, `longest` with it."""

    shortest: int
    longest: int


def limit_lengths(
    source_lengths: Sequence[int], decoding: DecodingSettings, num_positions: int | None = None
) -> list[Limits]:
    """Return the limits of the output of each source, given the number of tokens of each.

    `num_positions`: number of learned positions of the model; None: sinusoidal, unlimited.

    The limits depend on the row alone, never on its neighbours or its padding. A source of 10
    tokens counts as 16: with ratio 2 and extra 50 its output has at most 82.
    """
    limits = []
    for length in source_lengths:
        rounded = -(-length // _SOURCE_STEP) * _SOURCE_STEP
        longest = int(decoding.max_length_ratio * rounded) + decoding.max_length_extra
        longest = min(longest, decoding.max_length or longest, num_positions or longest)
        shortest = int(decoding.min_length_ratio * length) + decoding.min_length
        limits.append(Limits(min(shortest, longest - 1), longest))
    return limits


def normalize(score: float, length: int, decoding: DecodingSettings) -> float:
    """Return `score` normalized for comparison with hypotheses of other lengths.

    `length` counts the end. By "average", -6.0 over 3 tokens is -2.0 (with length_penalty 1).

    Source: "wu": Wu et al. 2016, section 7, equation 14, without the coverage penalty.
    """
    if decoding.length_norm == "wu":
        return float(score / ((5 + length) / 6) ** decoding.length_penalty)
    return float(score / max(1, length) ** decoding.length_penalty)
