import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.reporting.figures import (
    compare_splits,
    list_scores,
    show_estimate,
    show_number,
    subtract,
)
from reporting.example import make_evaluation, make_rows

ESTIMATES = st.tuples(*[st.floats(0, 100)] * 3).map(sorted).map(lambda e: (e[1], e[0], e[2]))


@given(ESTIMATES, ESTIMATES)
def test_the_difference_the_other_way_round_is_its_mirror(one, other):
    value, low, high = subtract(one, other)
    assert subtract(other, one) == pytest.approx((-value, -high, -low))
    assert low <= value <= high


def test_of_symmetric_intervals_the_difference_is_the_usual_one():
    assert subtract((50, 47, 53), (40, 36, 44)) == pytest.approx((10, 5, 15))


def test_intervals_of_differences_hold_the_truth_as_often_as_they_say():
    chance = np.random.default_rng(0)
    truth, sizes, held = (0.9, 0.8), (300, 500), 0
    for _ in range(2000):
        estimates = []
        for share, size in zip(truth, sizes, strict=True):
            found = chance.binomial(size, share) / size
            half = 1.96 * math.sqrt(found * (1 - found) / size)
            estimates.append((found, found - half, found + half))
        _, low, high = subtract(*estimates)
        held += low <= truth[0] - truth[1] <= high
    assert 0.93 < held / 2000 < 0.97


def test_scores_have_their_titles_and_intervals_and_signatures_are_none():
    scores = list_scores(make_evaluation(make_rows(50, seed=0)))
    assert [score.title for score in scores[:3]] == ["exact match", "PER", "character error rate"]
    assert not any("signature" in score.name or score.name == "rows" for score in scores)
    assert all(score.low <= score.value <= score.high for score in scores)


def test_a_score_without_an_interval_is_an_interval_of_itself():
    (score,) = list_scores({"scores": {"rows": 3, "bleu": 12.0, "bleu_signature": "x"}})
    assert score.estimate == (12.0, 12.0, 12.0)
    assert show_estimate(score.estimate) == "12.0"


def test_a_higher_error_rate_is_worse_and_a_higher_match_better():
    first = {"scores": {"exact_match": 90.0, "word_error_rate": 9.0, "ter": 5.0,
                        "intervals": {"exact_match": [89, 91], "word_error_rate": [8, 10], "ter": [4, 6]}}}  # fmt: skip
    second = {"scores": {"exact_match": 80.0, "word_error_rate": 4.0, "ter": 5.2,
                         "intervals": {"exact_match": [79, 81], "word_error_rate": [3, 5], "ter": [4, 6]}}}  # fmt: skip
    (compared,) = compare_splits({"test": first, "valid": second}, "test")
    assert compared["name"] == "valid"
    assert [line["verdict"] for line in compared["lines"]] == [
        "better", "worse", "no clear difference",
    ]  # fmt: skip


def test_numbers_are_shown_as_people_write_them():
    assert show_number(1234.56) == "1,234.6"
    assert show_number(-0.126) == "−0.13"
    assert show_number(math.nan) == show_number(None) == "–"
    assert show_estimate(None) == "–"
    assert show_estimate((0.5, 0.25, 0.75)) == "0.50 (0.25 to 0.75)"
