"""Targets that are records: the form in which a model learns them, and what is refused."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.errors import DataError
from dragoman.presets import choose_settings
from dragoman.reading.in_memory import as_files
from dragoman.reading.jsonl import read_record, write_record
from dragoman.reading.pairs import Pair, Source, read_pairs, read_sources
from dragoman.reading.row_errors import NO_RECORD, RowError, RowErrors
from dragoman.reading.statistics import collect_statistics
from dragoman.settings import DataSettings, Settings

NAMES = ("seller", "total", "items")
JSON = DataSettings(records="json", record_fields=NAMES)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8) | st.sampled_from(
    ["1", "true", "null", "a: b | c: d", '","total":', "", "\\", "\n", "\0", "é"]
)
NAME = st.sampled_from(NAMES) | TEXTS
VALUES = st.recursive(
    TEXTS
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.dictionaries(NAME, VALUES, max_size=4)


def is_same(one: object, other: object) -> bool:
    """Whether values are the same, with their types: 1 is neither true nor 1.0."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@given(RECORDS, st.booleans(), st.sampled_from([None, 2]))
def test_a_written_record_is_read_as_it_was(record, is_ascii, indent):
    written = write_record("", 1, json.dumps(record, ensure_ascii=is_ascii, indent=indent), NAMES)
    assert isinstance(written, str)
    assert is_same(read_record(written), record)
    assert "\n" not in written
    assert write_record("", 1, written, NAMES) == written


@settings(max_examples=20)
@given(RECORDS, st.randoms())
def test_the_order_of_known_fields_in_the_file_changes_nothing(record, chance):
    known = {name: record.get(name) for name in NAMES}
    mixed = dict(chance.sample([*known.items()], len(known)))
    assert write_record("", 1, json.dumps(mixed), NAMES) == write_record(
        "", 1, json.dumps(known), NAMES
    )


def test_numbers_stay_as_written_and_absent_fields_stay_absent():
    target = '{ "items": [{"total": 1.50, "seller": "x"}, []], "new": 1E2, "seller": "\\u00e9" }'
    written = '{"seller":"é","items":[{"seller":"x","total":1.50},[]],"new":1E2}'
    assert write_record("", 1, target, NAMES) == written


BAD = {
    '{"total": 1, "total": 2}': "the target is invalid JSON: field 'total' occurs twice",
    '[{"total": 1}]': "the target is not a JSON object",
    "total: 1": "the target is invalid JSON: Expecting value at character 1",
    '{"total": 1': "the target is invalid JSON",
    '{"total": NaN}': "NaN is not a JSON value",
    '{"total": "\\ud800"}': "lone surrogate",
    '{"a":' * 600 + "1" + "}" * 600: "too deeply|recursion",
}


@pytest.mark.parametrize("target", BAD, ids=range(len(BAD)))
def test_a_target_that_is_no_record_is_an_invalid_row(tmp_path, target):
    found = write_record("p.tsv", 7, target, NAMES)
    assert isinstance(found, RowError)
    assert found[:2] == ("p.tsv", 7)
    assert re.search(BAD[target], found.detail)
    path = tmp_path / "p.tsv"
    path.write_text(f'abc\t{{"total": 3}}\nabd\t{target}\n')
    with pytest.raises(DataError, match=r"p\.tsv:2: (.|\n)*Correct the rows") as raised:
        list(read_pairs(path, JSON))
    assert ("set data.records=text" in str(raised.value)) == (found.kind == NO_RECORD)
    errors = RowErrors()
    skipping = JSON.model_copy(update={"broken_rows": "skip"})
    assert [pair.target for pair in read_pairs(path, skipping, errors)] == ['{"total":3}']
    assert errors.total == 1
    assert len(list(read_pairs(path))) == 2  # as text
    rows = list(read_sources(path, JSON, has_target=True))
    assert isinstance(rows[0], Source)
    assert rows[0].given == '{"total":3}'
    assert rows[1].reason == found.detail


@pytest.mark.parametrize(
    "output", ['{"a": 1e999}', '{"a": "\\ud800"}', "{}x", "[]", '{"a":1,"a":1}']
)
def test_an_output_is_a_record_only_if_it_can_be_written_as_json(output):
    assert read_record(output) is None


def test_a_text_without_any_field_has_an_empty_record(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a", "record": {}}\n{"text": "b", "record": null}\n')
    with pytest.raises(DataError, match=r"p\.jsonl:2: the target is empty(.|\n)*keep_empty"):
        list(read_pairs(path, JSON))
    keeps = JSON.model_copy(update={"broken_rows": "keep_empty"})
    assert [pair.target for pair in read_pairs(path, keeps)] == ["{}", "{}"]


def test_a_list_of_records_is_refused_with_the_form_that_is_read(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a", "record": {}}\n{"text": "b", "record": [{"a": 1}]}\n')
    with pytest.raises(DataError, match=r'p\.jsonl:2: .*or an object; .* \{"items": \[\.\.\.\]\}'):
        list(read_pairs(path, JSON))


RECORD = {"total": 1.5, "seller": "A", "items": [{"total": 1, "seller": "x"}]}
WRITTEN = '{"seller":"A","total":1.5,"items":[{"seller":"x","total":1}]}'


def test_all_doors_give_the_same_targets(tmp_path):
    def read(pairs: object) -> list[str]:
        with as_files(pairs) as paths:
            return [pair.target for pair in read_pairs(paths, JSON)]

    other = {"seller": 7, "total": None}
    rows = [("a", RECORD), ("b", other)]
    wanted = [WRITTEN, '{"seller":7,"total":null}']
    assert read(rows) == wanted
    assert read([{"text": source, "record": record} for source, record in rows]) == wanted
    assert read({"text": ["a", "b"], "record": [RECORD, other]}) == wanted
    assert read([(source, json.dumps(record)) for source, record in rows]) == wanted
    jsonl, tsv = tmp_path / "p.jsonl", tmp_path / "p.tsv"
    tsv.write_text("".join(f"{source}\t{json.dumps(record)}\n" for source, record in rows))
    content = [json.dumps({"text": source, "record": record}) for source, record in rows]
    jsonl.write_text("\n".join(content))
    assert read(jsonl) == read(tsv) == wanted


def test_a_struct_of_a_table_is_a_record_without_its_nulls(tmp_path):
    table = pa.table({"text": ["a", "b"], "record": [RECORD, {"seller": "B"}]})
    pq.write_table(table, tmp_path / "p.parquet")
    found = [pair.target for pair in read_pairs(tmp_path / "p.parquet", JSON)]
    assert found == [WRITTEN, '{"seller":"B"}']


def choose(*targets: str, typed: Settings | None = None):
    pairs = (Pair(f"words {one}", one, (), i, "x") for i, one in enumerate(targets))
    return choose_settings(typed or Settings(), collect_statistics(pairs))


def test_the_fields_have_the_order_of_the_training_pairs():
    targets = [
        '{"b": {"d": 1}, "e": 2}',
        '{"a": 0, "b": {"c": 0, "d": 2}}',
        '{"e": 3, "f": 1, "b": {}}',
    ]
    choice = choose(*targets)
    assert choice.settings.data.records == "json"
    assert choice.settings.data.record_fields == ("a", "b", "e", "f", "c", "d")
    assert (
        "targets are JSON objects, with the fields in one order: a, b, e, f, c, d" in choice.reasons
    )


def test_records_are_recognized_unless_the_user_says_otherwise():
    objects = ['{"a": 1}'] * 19
    assert choose(*objects, "text").settings.data.records == "json"
    assert choose(*objects, *["text"] * 3).settings.data.records == "auto"
    typed = Settings(data=DataSettings(records="text"))
    assert choose(*objects, typed=typed).settings.data.records == "text"
    typed = Settings(data=DataSettings(records="json", record_fields=("z", "a")))
    chosen = choose(*objects, *["text"] * 3, typed=typed).settings.data
    assert (chosen.records, chosen.record_fields) == ("json", ("z", "a"))


def test_texts_of_fields_stay_as_they_are_if_their_names_recur():
    targets = [f"name: words | total: {i}" for i in range(9)]
    choice = choose(*targets)
    assert choice.settings.data.records == "auto"
    assert choice.settings.data.record_fields == ()
    assert choice.settings.tokenizer.pointers
    assert "targets are records, kept as they are written: name, total" in choice.reasons
    distinct = [f"{'abcdefghi'[i]}x: words and more" for i in range(9)]
    assert not any("records" in reason for reason in choose(*distinct).reasons)


def test_the_task_can_be_set_by_hand():
    sentences = [f"this is the long text number {i} of a small corpus" for i in range(50)]
    typed = Settings.model_validate({"evaluation": {"task": "records"}})
    assert choose(*sentences).settings.tokenizer.target.kind == "bpe"
    assert choose(*sentences, typed=typed).settings.tokenizer.target.kind == "characters"
