"""Records: what is one, where its values stand, and records without some of them."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.records import detect_format, leave_out, list_fields, parse_record

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
INDENTS = st.sampled_from([None, 2])


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
    assert detect_format(texts) == expected


def test_a_few_targets_may_be_no_records():
    texts = [*['{"a": 1}'] * 9, '{"a": 1']
    assert detect_format(texts, most_others=0.1) == "json"
    assert detect_format([*texts, "?"], most_others=0.1) is None
    assert detect_format([*["a: 1; b: 2"] * 9, "none"], most_others=0.1) == ";"


@given(record=OBJECTS, indent=INDENTS)
def test_each_place_holds_the_json_of_its_value(record, indent):
    text = f" {json.dumps(record, indent=indent)}\n"
    for splits_items in (False, True):
        for field in list_fields(text, "json", splits_items=splits_items):
            written = text[field.start : field.end]
            same = json.dumps({field.name: json.loads(written)})
            if not splits_items and not written.startswith(("[", "{")):
                assert parse_record(same, "json") == Counter([(field.name, field.value)])
            if written.startswith('"'):
                assert json.loads(written) == field.text


def test_fields_are_in_the_order_of_the_text_with_their_places():
    text = " date: 3 May |  place: NO 1 | LOT 2 | total:  9.00 |"
    found = [(one.name, text[one.start : one.end]) for one in list_fields(text, "|")]
    assert found == [("date", "3 May"), ("place", "NO 1 | LOT 2"), ("total", "9.00")]
    text = '{"a": "\\u00e9\\n", "b": {"c": [1.10, null, "x"]}, "d": [{"e": 1}, {"e": 2}]}'
    found = [(one.name, one.text, text[one.start : one.end]) for one in list_fields(text, "json")]
    assert found[:3] == [("a", "é\n", '"\\u00e9\\n"'), ("b.c", "1.10", "1.10"), ("b.c", "x", '"x"')]
    assert found[3:] == [("d", '{"e": 1}', '{"e": 1}'), ("d", '{"e": 2}', '{"e": 2}')]
    items = list_fields(text, "json", splits_items=True)
    assert [(one.name, one.text) for one in items[3:]] == [("d.e", "1"), ("d.e", "2")]


@given(record=OBJECTS, indent=INDENTS, splits_items=st.booleans(), data=st.data())
def test_json_without_some_values_is_json_with_the_others(record, indent, splits_items, data):
    text = json.dumps(record, indent=indent)
    fields = list_fields(text, "json", splits_items=splits_items)
    is_left_out = data.draw(st.lists(st.booleans(), min_size=len(fields), max_size=len(fields)))
    starts = {one.start for one, is_out in zip(fields, is_left_out, strict=True) if is_out}
    kept = list_fields(leave_out(text, "json", starts), "json", splits_items=splits_items)
    assert [one[:3] for one in kept] == [one[:3] for one in fields if one.start not in starts]
    if not starts:
        assert leave_out(text, "json", starts) == text


@SEPARATORS
@given(pairs=PAIRS, data=st.data())
def test_lines_without_some_values_keep_the_others(separator, pairs, data):
    text = f" {separator} ".join(f"{name}: {value}" for name, value in pairs)
    is_left_out = data.draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
    fields = zip(list_fields(text, separator), is_left_out, strict=True)
    shorter = leave_out(text, separator, {one.start for one, is_out in fields if is_out})
    kept = [pair for pair, is_out in zip(pairs, is_left_out, strict=True) if not is_out]
    assert (parse_record(shorter, separator) or Counter()) == Counter(kept)


def test_what_is_left_out_leaves_no_trace_of_itself():
    assert leave_out("a: 1 | b: 2 | c: 3", "|", {10}) == "a: 1 | c: 3"
    assert leave_out("a: 1; b: 2;", ";", {3}) == "b: 2;"
    assert leave_out('{"a": 1, "b": 2}', "json", {6}) == '{"b": 2}'
    assert leave_out('{"a": [1, 2], "b": 3.10}', "json", {7, 10}) == '{"a": [], "b": 3.10}'
    assert leave_out('{"a": 1}', "json", {6}) == "{}"
