"""A JSON schema of records: what it has, and that it refuses no record that it was derived from."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman import derive_schema
from dragoman.cli import main
from dragoman.errors import DataError
from dragoman.inspection.findings import SplitRows
from dragoman.inspection.schemas import derive_from_splits
from dragoman.reading.pairs import Pair


def derive(targets, valid=()):
    def hold(name, texts):
        pairs = [Pair(f"s{i}", text, (), i + 1, name) for i, text in enumerate(texts)]
        return SplitRows(name=name, shown=name, files=(name,), pairs=pairs)

    return derive_from_splits({"train": hold("train", targets), "valid": hold("valid", valid)})


def write(records, **options):
    return [json.dumps(one, ensure_ascii=False, **options) for one in records]


def invent(count, *, seed=0):
    chance = random.Random(seed)
    return [
        {
            "seller": f"Müller & Söhne {number}",
            "date": f"20{chance.randint(10, 24)}-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}",
            "total": f"{chance.randint(1, 2_000_000) / 100:,.2f}",
            "currency": chance.choice(["EUR", "CHF", "USD"]),
            "items": [{"count": chance.randint(1, 9)} for _ in range(chance.randint(0, 2))],
        }
        for number in range(count)
    ]


def test_fields_are_closed_or_get_a_pattern_where_all_records_keep_to_it():
    found = derive(write(invent(200)), write(invent(50, seed=1)))
    fields = found.schema["properties"]
    assert list(fields) == ["seller", "date", "total", "currency", "items"]
    assert fields["seller"] == {"type": "string"}
    assert fields["date"]["pattern"].startswith("^[0-9]{4}-")
    assert fields["total"]["pattern"] == r"^-?[0-9]{1,3}(,[0-9]{3})*\.[0-9]{2}$"
    assert fields["currency"]["enum"] == ["CHF", "EUR", "USD"]
    assert fields["items"]["items"]["properties"] == {"count": {"type": "integer"}}
    assert found.records == {"train": 200, "valid": 50}
    assert not found.refused


def test_one_record_that_does_not_keep_to_it_leaves_a_field_open():
    records = invent(200)
    records[7] |= {"date": "3 May 2020", "total": "free", "currency": "DEM"}
    fields = derive(write(records)).schema["properties"]
    assert fields["date"] == fields["total"] == fields["currency"] == {"type": "string"}


@pytest.mark.parametrize(
    ("values", "matching", "other"),
    [
        (["03/10/2024", "31/12/1999"], "01/01/2000", "32/01/2000"),
        (["3.10.24", "31.1.2024"], "12.12.2012", "2012-12-12"),
        (["12/31/2024", "01/13/2020"], "11/30/2021", "13/01/2021"),
        (["12,50", "1.012,00"], "-3.000.000,99", "12.50"),
        (["$12.50", "$9.99"], "$1000.00", "12.50"),
    ],
)
def test_dates_and_amounts_are_read_as_written(values, matching, other):
    targets = write({"value": values[i % 2]} for i in range(40))
    found = derive(targets, write([{"value": matching}, {"value": other}]))
    [example] = found.refused["valid"].examples
    assert example.line == 2
    assert "1 of 2 rows" in found.refused["valid"].message


def test_a_field_is_required_where_all_records_have_it_and_null_is_a_type():
    schema = derive(write([{"a": 1, "b": None}, {"a": 2.5}, {"a": 3, "b": "x"}])).schema
    assert schema["required"] == ["a"]
    assert schema["properties"] == {
        "a": {"type": "number"},
        "b": {"anyOf": [{"type": "null"}, {"type": "string"}]},
    }


def test_the_order_of_fields_is_that_of_most_records_and_others_are_counted():
    found = derive(
        write([{"b": 1, "c": 1}, {"a": 1, "c": 1}, {"a": 1, "b": 1}, {"c": 1, "a": 1}] * 2)
    )
    assert list(found.schema["properties"]) in (["a", "b", "c"], ["b", "a", "c"], ["b", "c", "a"])
    assert found.refused["train"].count >= 2


def test_an_object_of_very_many_names_is_a_map():
    schema = derive(write([{"counts": {f"w{i}": i, f"v{i}": i}} for i in range(150)])).schema
    counts = schema["properties"]["counts"]
    assert counts == {"type": "object", "additionalProperties": {"type": "integer"}}


def test_escapes_that_a_schema_never_emits_are_named():
    found = derive(['{"a": "Z\\u00fcrich"}', '{"a": "Bern"}'])
    assert found.refused["train"].count == 1
    assert '{"a": "Z' in found.refused["train"].examples[0].text


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(-1e6, 1e6)
    | st.text(max_size=6).filter(lambda text: text.isprintable()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from("xyz"), _VALUES), min_size=1, max_size=6))
def test_records_of_any_shape_conform_to_their_own_schema(records):
    assert not derive(write(records, sort_keys=True)).refused


def test_the_command_writes_a_new_file_and_says_what_it_refuses(tmp_path, capsys):
    pairs, schema = tmp_path / "pairs.tsv", tmp_path / "schema.json"
    targets = write(invent(300))
    pairs.write_text("".join(f"s{i}\t{text}\n" for i, text in enumerate(targets)), "utf-8")
    assert main(["inspect", str(pairs), "--schema"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == derive_schema(pairs).schema
    assert "valid: the schema refuses 0 of" in printed.err
    assert main(["inspect", str(pairs), "--schema", str(schema)]) == 0
    assert json.loads(schema.read_text("utf-8")) == json.loads(printed.out)
    for words in (["--schema", str(pairs), str(pairs)], [str(pairs), "--schema", str(schema)]):
        assert main(["inspect", *words]) == 2
    assert len(pairs.read_text("utf-8").splitlines()) == 300


def test_targets_that_are_no_objects_are_named(tmp_path):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f's{i}\t{{"a": {i}}}\n' for i in range(30)) + "x\ta: 1\n")
    with pytest.raises(
        DataError, match=r"pairs.tsv:31: the target is invalid JSON: Expecting value at"
    ):
        derive_schema(pairs)
