"""Confidence: a probability that holds, found on some rows and measured on others."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.evaluation.confidence import (
    calibrate,
    find_confidence,
    find_confidences,
    measure,
    round_confidence,
)
from dragoman.model_folder.calibration import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE
from dragoman.settings import DecodingSettings

scores = st.floats(max_value=1e-3, allow_nan=False)
temperatures = st.floats(LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE)


def simulate(num_rows, temperature, *, seed=0):
    """Scores, and rows that are exact as often as confidence at `temperature` says."""
    chance = np.random.default_rng(seed)
    found = np.log(chance.beta(2.0, 0.7, num_rows))
    return found, chance.random(num_rows) < find_confidences(found, temperature)


@given(scores, scores, temperatures)
def test_confidence_is_a_probability_that_never_falls_with_the_score(one, other, temperature):
    low, high = (find_confidence(score, temperature) for score in sorted((one, other)))
    assert 0.0 <= low <= high <= 1.0
    assert math.copysign(1.0, low) == 1.0  # a file never says -0.0


@given(scores, temperatures, temperatures)
def test_a_higher_temperature_never_raises_confidence(score, one, other):
    cool, hot = sorted((one, other))
    assert find_confidence(score, hot) <= find_confidence(score, cool)


@given(st.floats(-30.0, -1e-6))
def test_uncalibrated_confidence_is_the_probability(score):
    assert find_confidence(score) == pytest.approx(math.exp(score), abs=1e-8)


@given(scores, temperatures)
def test_a_truncated_output_has_no_confidence(score, temperature):
    assert find_confidence(score, temperature, is_complete=False) == 0.0


@given(st.lists(st.tuples(scores, st.booleans()), min_size=1), temperatures)
def test_confidences_of_an_array_equal_those_of_single_scores(rows, temperature):
    found = find_confidences([s for s, _ in rows], temperature, [c for _, c in rows])
    alone = [find_confidence(s, temperature, is_complete=c) for s, c in rows]
    assert found == pytest.approx(alone, abs=1e-12)
    assert [round_confidence(c) for c in found] == np.round(found, 4).tolist()


def test_an_impossible_output_has_no_confidence():
    assert find_confidence(-math.inf, 0.5) == find_confidence(math.nan) == 0.0
    assert find_confidences([-math.inf, math.nan, 0.0], 0.5).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("temperature", [0.3, 0.6, 1.0, 2.0, 5.0])
def test_a_simulated_temperature_is_found(temperature):
    found = calibrate(*simulate(20_000, temperature)).temperature
    assert found == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("temperature", [0.3, 0.6, 2.0, 5.0])
@pytest.mark.parametrize("seed", range(5))
def test_calibration_lowers_the_error_on_other_rows(temperature, seed):
    found = calibrate(*simulate(500, temperature, seed=seed))
    fresh = simulate(2000, temperature, seed=seed + 100)
    measured = measure(*fresh, temperature=found.temperature)
    assert measured.temperature == found.temperature
    assert measured.calibration_error < 0.5 * measured.uncalibrated_error
    assert measured.calibration_error < 0.05


@given(
    st.lists(
        st.tuples(st.floats(max_value=0.0, allow_nan=False), st.booleans(), st.booleans()),
        min_size=1,
        max_size=40,
    )
)
def test_all_figures_of_any_rows_are_finite_and_in_range(rows):
    columns = [list(column) for column in zip(*rows, strict=True)]
    found = calibrate(*columns)
    assert LOWEST_TEMPERATURE <= found.temperature <= HIGHEST_TEMPERATURE
    content = found.to_dict()
    json.dumps(content, allow_nan=False)
    for key in ("exact", "calibration_error", "uncalibrated_error", "area"):
        assert 0.0 <= content[key] <= 1.0, key
    assert sum(rows for *_, rows in content["bins"]) == len(rows)
    assert content["curve"][-1][0] == 1.0
    assert content["curve"][-1][1] == pytest.approx(1.0 - content["exact"], abs=1e-6)
    assert found.describe()
    found.to_stored(["valid.tsv"], DecodingSettings())


@pytest.mark.parametrize("count", [1, 3, 100])
def test_rows_all_right_or_all_wrong_give_no_extreme_confidence(count):
    """One output of probability 1/2: right, its confidence is 2/3; wrong, 1/3."""
    half = [math.log(0.5)] * count
    for is_right, share in ((True, (count + 1) / (count + 2)), (False, 1 / (count + 2))):
        found = calibrate(half, [is_right] * count)
        assert find_confidence(half[0], found.temperature) == pytest.approx(share, abs=1e-3)


def test_truncated_outputs_do_not_change_the_temperature():
    scores, is_exact = simulate(300, 0.5)
    found = calibrate(scores, is_exact)
    more = calibrate(
        [*scores, *[-0.01] * 50], [*is_exact, *[False] * 50], [*[True] * 300, *[False] * 50]
    )
    assert more.temperature == found.temperature
    assert calibrate([-1.0], [False], [False]).temperature == 1.0


@given(st.integers(0, 1000))
def test_the_order_of_the_rows_has_no_influence(seed):
    scores, is_exact = simulate(60, 0.7, seed=seed)
    scores = np.round(scores, 1)  # many are equal
    order = np.random.default_rng(seed).permutation(60)
    one, other = calibrate(scores, is_exact), calibrate(scores[order], is_exact[order])
    for key, value in one.to_dict().items():
        if key != "thresholds":
            assert np.allclose(value, other.to_dict()[key], atol=2e-4), key
    assert one.thresholds == other.thresholds


def test_the_error_is_the_distance_of_confidence_and_fraction_exact():
    """Ten equal bins: worked by hand with one row in each."""
    shares = np.linspace(0.05, 0.95, 10)
    is_exact = [False] * 5 + [True] * 5
    found = measure(np.log(shares), is_exact, temperature=1.0)
    expected = np.mean([*shares[:5], *(1.0 - shares[5:])])
    assert found.calibration_error == pytest.approx(expected, abs=1e-4)
    assert found.calibration_error == found.uncalibrated_error
    assert found.bins[0] == (pytest.approx(0.05), 0.0, 1)


def test_the_curve_keeps_the_most_confident_first_and_is_bounded():
    scores, is_exact = simulate(5000, 1.0)
    found = measure(scores, is_exact, temperature=1.0)
    assert len(found.curve) == 100
    coverages, risks, thresholds = zip(*found.curve, strict=True)
    assert list(coverages) == sorted(coverages)
    assert list(thresholds) == sorted(thresholds, reverse=True)
    confidence = np.round(find_confidences(scores), 4)
    for coverage, risk, threshold in found.curve[::10]:
        is_kept = confidence >= threshold
        assert is_kept.mean() == pytest.approx(coverage)
        assert (~is_exact[is_kept]).mean() == pytest.approx(risk)
    assert 0.0 < found.area < risks[-1]  # better than by chance
    perfect = measure([-0.1, -0.2, -5.0, -6.0], [True, True, False, False], temperature=1.0)
    assert perfect.area == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)


def test_thresholds_are_measured_on_other_rows():
    found = calibrate(*simulate(2000, 0.7))
    assert {one.precision for one in found.thresholds} >= {0.9, 0.95}
    scores, is_exact = simulate(3000, 0.7, seed=1)
    measured = measure(scores, is_exact, temperature=found.temperature, thresholds=found.thresholds)
    confidence = np.round(find_confidences(scores, found.temperature), 4)
    for one, other in zip(found.thresholds, measured.thresholds, strict=True):
        assert (one.precision, one.threshold) == (other.precision, other.threshold)
        is_kept = confidence >= one.threshold
        assert other.coverage == pytest.approx(is_kept.mean())
        assert other.exact == pytest.approx(is_exact[is_kept].mean())
        assert other.exact >= other.precision
    nothing = measure([-9.0], [True], temperature=1.0, thresholds=found.thresholds)
    assert all(one.coverage == one.exact == 0.0 for one in nothing.thresholds)


def test_the_description_names_thresholds_and_missing_ones():
    lines = calibrate(*simulate(300, 0.7)).describe()
    assert lines[0].startswith("confidence: off by ")
    assert any(line.startswith("90% exact: keep the ") for line in lines)
    assert lines[-1] == "99% exact: no threshold can guarantee it"


def test_the_description_claims_nothing_of_thresholds_that_were_not_sought_or_keep_no_row():
    assert len(measure([-1.0], [True], temperature=1.0).describe()) == 1
    known = calibrate(*simulate(300, 0.7)).thresholds
    lines = measure([-9.0], [True], temperature=1.0, thresholds=known).describe()
    assert lines[1].endswith("(none here)")
