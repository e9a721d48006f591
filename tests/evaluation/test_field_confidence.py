"""Confidence by field: the tokens of a value, whether it is right, and the calibration of each field."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.evaluation.confidence import FieldValue, find_confidence, score_fields
from dragoman.evaluation.field_confidence import (
    OTHERS,
    JudgedValue,
    calibrate_fields,
    judge_values,
    list_field_confidence,
    measure_fields,
)
from dragoman.model_folder.calibration import StoredCalibration, read_calibration, write_calibration
from dragoman.records import list_fields
from dragoman.settings import DecodingSettings
from vocabularies import KINDS, make_tokenizer


def score(text, form, ends, log_probs):
    return {one.name: total for one, total in score_fields(text, form, ends, log_probs)}


def count(text, form):
    """The number of tokens that count for each field, where tokens are characters."""
    found = score(text, form, range(1, len(text) + 1), [-1.0] * (len(text) + 1))
    return {name: -total for name, total in found.items()}


def test_a_value_has_its_characters_and_what_ends_it():
    assert count("total: 12 | to: x", "|") == {"total": len("12 |"), "to": len("x") + 1}
    assert count('{"a": "xy", "b": 12, "c": [1, {"d": null, "e": true}]}', "json") == {
        "a": len('"xy"'),
        "b": len("12,"),
        "c": len("1,"),
        "c.e": len("true}"),
    }


def test_a_truncated_record_has_no_end_to_score():
    assert score("a: x | b: yz", "|", range(1, 13), [-1.0] * 12)["b"] == -2.0


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_every_kind_end_where_the_text_so_far_ends(kind):
    target = make_tokenizer(kind).target
    for text in ('{"name":"ada","age":36}', "abc cab", "é😀", "Größe  straße"):
        ids = target.encode(text)
        decoded = [target.decode(ids[: end + 1]) for end in range(len(ids))]
        ends = [len(one) - one.count("\ufffd") for one in decoded]
        assert target.find_ends(ids)[-1] == len(target.decode(ids))
        assert target.find_ends(ids) == ends


@given(st.data())
def test_the_tokens_of_a_value_are_those_that_share_a_character_with_it(data):
    text = '{"name": "ada", "age": 36, "tags": ["x", "yz"]}'
    ends = [*sorted(data.draw(st.sets(st.integers(1, len(text) - 1)))), len(text)]
    log_probs = [-(2.0**-place) for place in range(len(ends) + 1)]
    for value, total in score_fields(text, "json", ends, log_probs):
        stop = value.end + (text[value.end - 1] != '"')
        spans = zip([0, *ends], ends, log_probs, strict=False)
        expected = [
            log for start, end, log in spans if {*range(start, end)} & {*range(value.start, stop)}
        ]
        assert total == pytest.approx(sum(expected))


def judge(text, references):
    values = [
        FieldValue(one.name, one.text, 0.5, -1.0, one.start, one.end)
        for one in list_fields(text, "json", splits_items=True)
    ]
    return [(one.field, right) for one, right in judge_values(text, values, references, "json")]


def test_a_value_is_right_where_the_closest_reference_has_it_as_often():
    text = '{"a": 1.0, "b": ["x", "x", "y"], "lines": [{"n": 1}, {"n": 2}]}'
    reference = '{"a": 1, "b": ["y", "x"], "lines": [{"n": 2}]}'
    expected = [
        ("a", True),
        ("b", True),
        ("b", False),
        ("b", True),
        ("lines.n", False),
        ("lines.n", True),
    ]
    assert judge(text, ["{}", reference]) == expected
    assert judge(text, ["not a record"]) == [(name, False) for name, _ in expected]


def simulate(name, count, temperature, seed):
    """Values of a field whose probabilities need this temperature."""
    generator = np.random.default_rng(seed)
    scores = np.log(generator.uniform(0.05, 0.999, count)).tolist()
    chances = generator.uniform(size=count)
    return [
        JudgedValue(name, score, chance < find_confidence(score, temperature), True)
        for score, chance in zip(scores, chances.tolist(), strict=True)
    ]


def test_each_frequent_field_has_its_own_temperature_and_the_others_one_of_all():
    values = [
        *simulate("total", 900, 0.25, 1),
        *simulate("name", 900, 3.0, 2),
        *simulate("note", 20, 1.0, 3),
    ]
    stored = calibrate_fields(values)
    assert {*stored.fields} == {"total", "name"}
    assert stored.find("total").temperature == pytest.approx(0.25, rel=0.2)
    assert stored.find("name").temperature == pytest.approx(3.0, rel=0.2)
    assert stored.find("note") == stored.find("unheard of") == stored.others
    assert stored.others.values == len(values)
    rows = measure_fields(values, stored)
    assert [row["field"] for row in rows] == ["total", "name", OTHERS]
    assert [row["values"] for row in rows] == [900, 900, 20]
    for row in rows[0]["thresholds"]:
        low, high = row["interval"]
        assert low < row["exact"] < high
        assert row["exact"] >= row["precision"]
    lines = list_field_confidence(rows)
    assert "total " in lines[1]
    assert "kept" in lines[1]
    assert "no threshold can guarantee 90%" in lines[2]
    assert "other fields" in lines[3]


def test_frequent_fields_promise_nothing_of_the_others():
    sure = [JudgedValue("total", -0.01, True, True)] * 400
    unsure = [JudgedValue("note", -0.01, i % 2 == 0, True) for i in range(40)]
    stored = calibrate_fields([*sure, *unsure])
    assert stored.fields["total"].thresholds
    assert stored.others.thresholds == ()
    right = [JudgedValue("note", -0.01, True, True)] * 40
    assert [one.precision for one in calibrate_fields([*sure, *right]).others.thresholds] == [0.9]


def test_without_any_value_fields_are_not_calibrated():
    stored = calibrate_fields([])
    assert stored.others.temperature == 1.0
    assert measure_fields([], stored) == list_field_confidence([]) == []


def test_a_calibration_of_fields_is_read_as_it_was_written(tmp_path):
    stored = StoredCalibration(
        temperature=1.0,
        rows=900,
        pairs=("valid.tsv",),
        decoding=DecodingSettings(),
        records=calibrate_fields(simulate("total", 200, 0.5, 1)),
    )
    write_calibration(tmp_path, stored)
    assert read_calibration(tmp_path) == stored
