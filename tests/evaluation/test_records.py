"""Records: what is one, which of its fields are right, and what must hold of any."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.evaluation.metrics import choose_metrics
from dragoman.evaluation.records import RecordCounter, detect_format, parse_record
from dragoman.settings import EvaluationSettings

NAMES = st.sampled_from(["date", "total", "ship to", "Größe"])
VALUES = st.sampled_from(["x", "y z", "12:30", "1.0", "a, b", "http://x"])
PAIRS = st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, 2.0]) | VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=4)
SEPARATORS = pytest.mark.parametrize("separator", ["\n", "|", ";"])


def score_fields(hypotheses, references):
    metrics = choose_metrics(EvaluationSettings(task="records"), references)
    return {
        metric.name: float(metric.from_sums(metric.count_rows(hypotheses, references).sum(axis=0)))
        for metric in metrics
    }


def test_nested_objects_have_dotted_fields_and_lists_several_values():
    text = '{"buyer": {"name": "A", "tags": ["x", "y", "x"]}, "lines": [{"n": 1, "p": 2.0}]}'
    assert parse_record(text, "json") == Counter(
        {
            ("buyer.name", '"A"'): 1,
            ("buyer.tags", '"x"'): 2,
            ("buyer.tags", '"y"'): 1,
            ("lines", '{"n":1,"p":2}'): 1,
        }
    )


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ('{"a": 1, "b": 2}', '{ "b":2.0,"a":1 }', True),
        ('{"a": "1"}', '{"a": 1}', False),
        ('{"a": ["x", "y"]}', '{"a": ["y", "x"]}', True),
        ('{"a": ["x", "x"]}', '{"a": ["x"]}', False),
        ('{"a": [[1, 2]]}', '{"a": [[2, 1]]}', False),
        ('{"a": [{"p": 1, "q": 2}]}', '{"a": [{"q": 2, "p": 1}]}', True),
        ('{"a": null, "b": 1}', '{"b": 1}', True),
        ('{"a": true}', '{"a": 1}', False),
        ('{"a": "é"}', '{"a": "\\u00e9"}', True),
        ('{"a": 1, "a": 2}', '{"a": [2, 1]}', True),
    ],
)
def test_values_are_compared_as_json(one, other, is_same):
    assert (parse_record(one, "json") == parse_record(other, "json")) is is_same


@pytest.mark.parametrize(
    "text", ["", "3", "[1]", '{"a": 1', '{"a": NaN}', "a: 1", "[" * 9999, '{"a": 1} x', "{'a': 1}"]
)
def test_json_that_is_not_an_object_does_not_parse(text):
    assert parse_record(text, "json") is None


@SEPARATORS
@given(pairs=PAIRS)
@settings(max_examples=50, deadline=None)
def test_fields_are_parsed_with_every_separator(separator, pairs):
    text = f" {separator} ".join(f"{name}: {value}" for name, value in pairs)
    for written in (text, f"{text}{separator}", f"  {text} "):
        assert parse_record(written, separator) == Counter(pairs)


@pytest.mark.parametrize(
    "text", ["", "  ", "no field", "12:30", "see http://x", "words then | a: 1"]
)
def test_text_that_begins_without_a_field_does_not_parse(text):
    assert parse_record(text, "|") is None


def test_text_without_a_field_continues_the_value_before():
    assert parse_record("address: NO 1; LOT 2; total: 3", ";") == Counter(
        {("address", "NO 1; LOT 2"): 1, ("total", "3"): 1}
    )


def test_a_field_without_a_value_is_not_a_field():
    assert parse_record("total: | date: x", "|") == Counter({("date", "x"): 1})


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (['{"a": 1}', "{}"], "json"),
        (['{"a": 1}', "a: 1; b: 2"], None),
        (["company: A | total: 3", "company: B; C | total: 4"], "|"),
        (["a: 1\nb: 2\nc: 3; d: 4"], "\n"),
        (["a: 1; b: 2", "a: 3; c: 4"], ";"),
        (["12:30", "14:00"], None),
        (["ANNA: no.", "BEN: yes."], None),  # speech: a colon alone makes no record
        (["The plan: go; then: stop", "No plan"], None),
        (["2024-10-03"], None),
        ([], None),
    ],
)
def test_targets_are_records_only_where_all_are(texts, expected):
    assert detect_format([[text] for text in texts]) == expected


def test_fields_are_scored_one_by_one_and_over_all():
    references = [["a: 1 | b: 2"], ["a: 3 | b: 4"], ["a: 5 | c: 6"]]
    hypotheses = ["a: 1 | b: 2", "a: 3 | b: 0", "nothing of it"]
    scores = score_fields(hypotheses, references)
    assert scores["parsed"] == pytest.approx(200 / 3)
    assert scores["record_match"] == pytest.approx(100 / 3)
    assert scores["field_precision"] == pytest.approx(100 * 3 / 4)
    assert scores["field_recall"] == pytest.approx(100 * 3 / 6)
    assert scores["field_f1"] == pytest.approx(100 * 6 / 10)
    assert (scores["field_precision.a"], scores["field_recall.a"]) == (100, pytest.approx(200 / 3))
    assert (scores["field_precision.b"], scores["field_recall.b"]) == (50, 50)
    assert (scores["field_precision.c"], scores["field_f1.c"]) == (0, 0)


def test_the_closest_of_several_references_counts():
    scores = score_fields(["a: 1; b: 2"], [["a: 1; b: 9; c: 3", "a: 1; b: 2"]])
    assert scores["field_f1"] == scores["record_match"] == 100


def test_an_extra_field_lowers_precision_only():
    scores = score_fields(["a: 1; b: 2; z: 0"], [["a: 1; b: 2"]])
    assert (scores["field_precision"], scores["field_recall"]) == (pytest.approx(200 / 3), 100)


def test_records_without_any_field_are_right_when_empty():
    assert score_fields(["{}"], [["{}"]])["field_f1"] == 100
    assert score_fields(['{"a": 1}'], [["{}"]])["field_f1"] == 0


def flatten_plainly(content, prefix=""):
    for name, value in content.items():
        if isinstance(value, dict):
            yield from flatten_plainly(value, f"{prefix}{name}.")
        else:
            for item in value if isinstance(value, list) else [value]:
                if item is not None:
                    yield prefix + name, json.dumps(item, sort_keys=True).replace("2.0", "2")


@given(rows=st.lists(st.tuples(OBJECTS, OBJECTS), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_micro_f1_agrees_with_a_plain_count(rows):
    match = output = wanted = 0
    for hypothesis, reference in rows:
        found = Counter(flatten_plainly(hypothesis))
        known = Counter(flatten_plainly(reference))
        match += (found & known).total()
        output += found.total()
        wanted += known.total()
    scores = score_fields([json.dumps(h) for h, _ in rows], [[json.dumps(r)] for _, r in rows])
    expected = 100 * 2 * match / (output + wanted) if output + wanted else 100
    assert scores["field_f1"] == pytest.approx(expected)
    assert scores["parsed"] == 100


@given(rows=st.lists(st.tuples(OBJECTS, OBJECTS), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_fields_add_up_to_all_of_them(rows):
    references = [[json.dumps(reference)] for _, reference in rows]
    counter = RecordCounter.of(references)
    hypotheses = [json.dumps({k: v for k, v in h.items() if k in r}) for h, r in rows]
    sums = counter.count_rows(hypotheses, references).sum(axis=0)
    by_field = [sums[list(counter.columns_of(n))] for n in range(1 + len(counter.fields))]
    # References: every field of them has its own columns, as long as there are few.
    assert by_field[0][2] == sum(counts[2] for counts in by_field[1:])
    assert np.all(by_field[0] >= np.sum(by_field[1:], axis=0))


@given(pairs=PAIRS, seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_order_of_fields_has_no_influence(pairs, seed):
    mixed = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]
    one, other = ("; ".join(f"{n}: {v}" for n, v in each) for each in (pairs, mixed))
    assert score_fields([other], [[one]])["record_match"] == 100
