"""Minimum Bayes risk decoding: choose the candidate with the least mean distance to all of them.

Source: Kumar and Byrne 2004; over samples: Eikema and Aziz 2020.
"""

import math
from collections.abc import Sequence
from typing import Literal

from rapidfuzz.distance import Levenshtein

from dragoman.decoding.hypothesis import Hypothesis
from dragoman.errors import name_extra
from dragoman.settings import DecodingSettings


def choose_least_risky(
    candidates: Sequence[Hypothesis], texts: Sequence[str], decoding: DecodingSettings
) -> list[Hypothesis]:
    """Return the `decoding.num_hypotheses` least risky of `candidates`, whose texts are `texts`.

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
