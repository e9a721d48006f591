"""A hypothesis of a search: how long it may be, how its length counts, which one risks least."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from dragoman.errors import name_extra
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
    counted = length if decoding.length_norm == "wu" else max(1, length)
    return float(score / find_divisor(counted, decoding))


def find_divisor(length: Any, decoding: DecodingSettings) -> Any:  # noqa: ANN401 (or a tensor)
    """Return what `normalize` divides the score of an output of `length` tokens by."""
    base = (5 + length) / 6 if decoding.length_norm == "wu" else length
    return base**decoding.length_penalty


def choose_least_risky(
    candidates: Sequence[Hypothesis], texts: Sequence[str], decoding: DecodingSettings
) -> list[Hypothesis]:
    """Return the `decoding.num_hypotheses` least risky of `candidates`, whose texts are `texts`.

    That is minimum Bayes risk decoding: the least mean distance to all candidates.
    Source: Kumar and Byrne 2004; over samples: Eikema and Aziz 2020.

    Hypotheses of a beam are weighted by their probability; samples are weighted equally.
    """
    assert decoding.minimum_risk != "none"
    is_sampled = decoding.method == "sampling"
    weights = [1.0] * len(texts) if is_sampled else weigh([one.score for one in candidates])
    order = rank_by_risk(texts, weights, decoding.minimum_risk)
    return [candidates[place] for place in order[: decoding.num_hypotheses]]


def rank_by_risk(
    texts: Sequence[str], weights: Sequence[float], measure: Literal["edit", "chrf"]
) -> list[int]:
    """Return the indices of `texts`, least risky first; ties keep their order.

    The risk of a text is the mean distance to all texts, weighted by `weights` (of any sum). The
    distance is the number of edits over the longer length ("edit"), or 1 - chrF / 100 ("chrf").
    Of "ab", "ab" and "xy", equally weighted, "ab" comes first: its mean distance is 1/3, that of
    "xy" 2/3.
    """
    from rapidfuzz.distance import Levenshtein  # on demand: few choose so

    distances: dict[tuple[str, str], float] = {}
    distance = Levenshtein.normalized_distance if measure == "edit" else _chrf_distance
    risks = []
    for text in texts:
        risk = 0.0
        for other, weight in zip(texts, weights, strict=True):
            if (text, other) not in distances:
                distances[text, other] = 0.0 if text == other else distance(text, other)
            risk += weight * distances[text, other]
        risks.append(risk)
    return sorted(range(len(texts)), key=risks.__getitem__)


def weigh(scores: Sequence[float]) -> list[float]:
    """Return the relative probabilities of hypotheses, given their log-probabilities."""
    highest = max(scores, default=0.0)
    return [math.exp(score - highest) for score in scores]


def _chrf_distance(text: str, other: str) -> float:
    with name_extra("decoding.minimum_risk: chrf"):
        from sacrebleu import CHRF  # a slow import

    return 1.0 - float(CHRF().sentence_score(text, [other]).score) / 100.0
