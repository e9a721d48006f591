"""Thresholds: they keep what they promise on rows that were never seen."""

import math

import numpy as np
import pytest

from dragoman.evaluation.confidence import PRECISIONS, choose_thresholds, is_sure


def simulate(num_rows, chance):
    """Confidences that hold, as they are written."""
    confidence = np.round(chance.beta(4.0, 0.4, num_rows), 4)
    return confidence, chance.random(num_rows) < confidence


@pytest.mark.parametrize("num_rows", [100, 450, 2000])
def test_a_threshold_holds_on_other_rows_as_often_as_promised(num_rows):
    chance = np.random.default_rng(num_rows)
    many, _ = simulate(1_000_000, chance)
    broken, found = dict.fromkeys(PRECISIONS, 0), dict.fromkeys(PRECISIONS, 0)
    for _ in range(200):
        for one in choose_thresholds(*simulate(num_rows, chance)):
            found[one.precision] += 1
            broken[one.precision] += many[many >= one.threshold].mean() < one.precision
    assert all(count <= 0.05 * 200 for count in broken.values()), broken
    assert found[0.9] > 150  # and it is of use


def test_more_rows_keep_more():
    chance = np.random.default_rng(0)
    covered = [choose_thresholds(*simulate(n, chance))[0].coverage for n in (300, 3000, 100_000)]
    assert covered == sorted(covered)
    many, _ = simulate(1_000_000, chance)
    ranked = np.sort(many)[::-1]
    best = (np.cumsum(ranked) / np.arange(1, len(ranked) + 1) >= 0.9).mean()
    assert covered[-1] > 0.95 * best


def test_too_few_rows_give_no_threshold():
    """59 rows, all exact, are the fewest for 95%: 0.95^59 < 0.05."""
    for count, precisions in ((28, []), (29, [0.9]), (58, [0.9]), (59, [0.9, 0.95]), (299, [0.9, 0.95, 0.99])):  # fmt: skip
        found = choose_thresholds(np.full(count, 0.8), np.ones(count, bool))
        assert [one.precision for one in found] == precisions
        assert all((one.threshold, one.coverage, one.exact) == (0.8, 1.0, 1.0) for one in found)
    assert choose_thresholds(np.full(500, 0.8), np.zeros(500, bool)) == []


def test_a_row_without_confidence_is_never_kept():
    confidence = np.array([0.9] * 100 + [0.0] * 100)
    found = choose_thresholds(confidence, np.ones(200, bool))
    assert {(one.threshold, one.coverage) for one in found} == {(0.9, 0.5)}
    assert choose_thresholds(np.zeros(200), np.ones(200, bool)) == []


def test_rows_of_one_confidence_are_kept_together():
    confidence = np.array([0.9] * 300 + [0.4] * 300)
    is_exact = np.array([True] * 300 + [True, False] * 150)
    for one in choose_thresholds(confidence, is_exact):
        assert (one.threshold, one.coverage) == (0.9, 0.5)


@pytest.mark.parametrize("count", [1, 5, 40, 200])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_is_sure_agrees_with_the_binomial_distribution(count, precision):
    for right in range(count + 1):
        tail = sum(
            math.comb(count, i) * precision**i * (1 - precision) ** (count - i)
            for i in range(right, count + 1)
        )
        assert is_sure(right, count, precision, 0.05) == (tail <= 0.05)
