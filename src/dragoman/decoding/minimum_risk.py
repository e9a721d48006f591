"""Minimum Bayes risk: of several candidates, the one that all of them are closest to on average.

Source: Kumar and Byrne 2004; over samples: Eikema and Aziz 2020.
"""

import math
from collections.abc import Sequence
from typing import Literal

from rapidfuzz.distance import Levenshtein

from dragoman.decoding.hypothesis import Hypothesis
from dragoman.settings import DecodingSettings


def choose_least_risky(
    candidates: Sequence[Hypothesis], texts: Sequence[str], decoding: DecodingSettings
) -> list[Hypothesis]:
    """Return the `decoding.num_hypotheses` least risky of `candidates`, which read `texts`.

    Of a beam each weighs as much as it is probable; samples come as often as they are.
    """
    assert decoding.minimum_risk != "none"
    is_sampled = decoding.method == "sampling"
    weights = [1.0] * len(texts) if is_sampled else weigh([one.score for one in candidates])
    order = rank_by_risk(texts, weights, decoding.minimum_risk)
    return [candidates[place] for place in order[: decoding.num_hypotheses]]


def rank_by_risk(
    texts: Sequence[str], weights: Sequence[float], measure: Literal["edit", "chrf"]
) -> list[int]:
    """Return the places of `texts`, the least risky first; equal ones stay in their order.

    The risk of a text is the mean distance to all texts, by `weights` (of any sum). With "edit" a
    distance is the edits over the longer length, with "chrf" 1 - chrF / 100. Of "ab", "ab" and
    "xy", equally weighted, "ab" comes first: its mean distance is 1/3, that of "xy" 2/3.
    """
    distances: dict[tuple[str, str], float] = {}
    distance = _edit_distance if measure == "edit" else _chrf_distance
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
    """Return the probabilities of hypotheses among themselves, given their log-probabilities."""
    highest = max(scores, default=0.0)
    return [math.exp(score - highest) for score in scores]


def _edit_distance(text: str, other: str) -> float:
    return float(Levenshtein.normalized_distance(text, other))


def _chrf_distance(text: str, other: str) -> float:
    from sacrebleu import CHRF  # loaded on demand: it takes long

    return 1.0 - float(CHRF().sentence_score(text, [other]).score) / 100.0
