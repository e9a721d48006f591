import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.configuration import read_settings
from dragoman.errors import DataError
from dragoman.evaluation.output_rows import (
    Row,
    group_references,
    read_outputs,
    read_rows,
    write_rows,
)
from dragoman.reading.pairs import Pair
from dragoman.settings import Settings

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ROWS = st.builds(
    Row,
    source=TEXT,
    references=st.lists(TEXT, min_size=1, max_size=3).map(tuple),
    hypothesis=TEXT,
    features=st.lists(TEXT, max_size=2).map(tuple),
    line=st.integers(0, 10**9),
    file=TEXT,
    is_complete=st.booleans(),
    score=st.none() | st.integers(-1000, 0).map(lambda n: n / 8),
    confidence=st.none() | st.integers(0, 16).map(lambda n: n / 16),
)


@given(rows=st.lists(ROWS, min_size=1, max_size=5))
def test_rows_come_back_as_they_were_written(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, rows, {"error": np.ones(len(rows))})
    assert read_rows(path) == rows
    contents = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    assert [content["exact_match"] for content in contents] == [row.is_exact for row in rows]
    assert all(content["error"] == 1.0 for content in contents)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Invalid JSON"),
        ("[" * 100_000, "Invalid JSON"),
        ("3", "should be an object"),
        ('{"source": "a", "references": ["b"]}', "hypothesis: Field required"),
        ('{"source": 1, "references": ["b"], "hypothesis": "b"}', "source: .* valid string"),
        ('{"source": "a", "references": "b", "hypothesis": "b"}', "references: .* valid array"),
        ('{"source": "a", "references": [1], "hypothesis": "b"}', "references.0: .* valid string"),
        ('{"source": "a", "references": [], "hypothesis": "b"}', "references: .* at least 1 item"),
        ('{"source": "\udcd8", "references": ["b"], "hypothesis": "b"}', "not UTF-8"),
        ('{"source": "\\ud800", "references": ["b"], "hypothesis": "b"}', "Invalid JSON"),
        ('{"source": "a", "references": ["b"], "hypothesis": "b", "score": NaN}', "finite number"),
        ('{"source": "a", "references": ["b"], "hypothesis": "b", "line": true}', "valid integer"),
        (
            '{"source": "a", "references": ["b"], "hypothesis": "b", "line": -1}',
            "line: .* equal to 0",
        ),
        ('{"source": "a", "references": ["b"], "hypothesis": "b", "confidence": 5}', "equal to 1"),
    ],
)
def test_an_invalid_row_is_named(line, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    good = '{"source": "a", "references": ["b"], "hypothesis": "b"}\n'
    path.write_bytes(f"{good}{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=f"rows.jsonl:2: .*{message}"):
        read_rows(path)


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / name

    return write


def test_the_same_line_of_each_file_makes_a_row(write):
    rows = read_outputs(
        write("out.txt", "a\n\nc d\n"),
        [write("ref.txt", "a\nb\nc\n"), write("ref2.txt", "\n\nc d\n")],
        write("src.txt", "1\n2\n3\n"),
    )
    assert [row.hypothesis for row in rows] == ["a", "", "c d"]
    assert [row.references for row in rows] == [("a",), ("b",), ("c", "c d")]
    assert [(row.source, row.line) for row in rows] == [("1", 1), ("2", 2), ("3", 3)]


def test_jsonl_of_predict_and_of_evaluate_is_read(write):
    predicted = write("out.jsonl", '{"line": 1, "text": "a"}\n{"line": 2, "text": ""}\n')
    packed = gzip.compress(b'{"hypothesis": "a"}\n{"hypothesis": ""}\n')
    reference = write("ref.txt", "a\nb\n")
    for path in (predicted, write("rows.jsonl.gz", packed)):
        assert [row.hypothesis for row in read_outputs(path, [reference])] == ["a", ""]


def test_tables_of_predict_are_read_by_their_header(write):
    lines = ["note,prediction,is_complete", '"a, b","c\nd",true', "e,,true", "f,g,false"]
    rows = read_outputs(
        write("out.csv", "\n".join(lines)),
        [write("ref.tsv", "source\ttarget\n1\tx\n2\t\n3\tg\n")],
        write("in.csv", "id,source\n1,x\n2,y\n3,z\n"),
    )
    assert [(row.hypothesis, row.is_complete) for row in rows] == [
        ("c\nd", True), ("", True), ("g", False),
    ]  # fmt: skip
    assert [(row.source, *row.references) for row in rows] == [("x", "x"), ("y", ""), ("z", "g")]
    own = write("own.tsv", "prediction\t<prediction>\nof the input\tc\n")
    assert read_outputs(own, [write("c.txt", "c\n")])[0].hypothesis == "c"
    with pytest.raises(DataError, match=r"lines\.csv: its first line names no column prediction"):
        read_outputs(write("lines.csv", "a, b\nc\n"), [own])


@pytest.mark.parametrize("name", ["out.ndjson", "OUT.JSONL", "out.json"])
def test_every_name_of_json_lines_is_read_as_json(name, write):
    path = write(name, '{"text": "a"}\n')
    assert read_outputs(path, [write("ref.txt", "a\n")])[0].hypothesis == "a"


def test_references_are_never_the_outputs_beside_them(write):
    table = write("out.csv", "source,target,prediction\n1,a,b\n")
    objects = write("out.jsonl", '{"text": "b", "target": "a"}\n')
    for path in (table, objects):
        [row] = read_outputs(path, [path])
        assert (row.hypothesis, row.references) == ("b", ("a",))
    alone = write("alone.tsv", "prediction\tconfidence\nb\t1\n")
    rows = write("rows.jsonl", '{"source": "1", "references": ["a"], "hypothesis": "b"}\n')
    predicted = write("predicted.jsonl", '{"line": 1, "input": {"target": "a"}, "text": "b"}\n')
    for path in (alone, rows, predicted):
        with pytest.raises(DataError, match="target or reference"):
            read_outputs(path, [path])
        if path != rows:  # outputs of another system may be references
            assert read_outputs(objects, [path])[0].references == ("b",)


def test_a_truncated_output_in_jsonl_is_counted(write):
    lines = '{"text": "a", "is_complete": false}\n{"text": "b"}\n'
    rows = read_outputs(write("out.jsonl", lines), [write("ref.txt", "a\nb\n")])
    assert [row.is_complete for row in rows] == [False, True]


@pytest.mark.parametrize(
    ("output", "reference", "message"),
    [
        ("a\nb\n", "a\n", "ref.txt: 1 lines, but .*out.txt has 2"),
        ("", "", "ref.txt|out.txt: the file is empty"),
        (b"a\n\xff\n", "a\nb\n", "out.txt:2: byte at character 1 is not UTF-8"),
    ],
)
def test_files_of_different_lengths_are_named(write, output, reference, message):
    with pytest.raises(DataError, match=message):
        read_outputs(write("out.txt", output), [write("ref.txt", reference)])


@pytest.mark.parametrize("line", ["[", "3", "{}", '{"text": 3}', r'{"text": "\ud800"}'])
def test_an_object_without_text_is_named(write, line):
    path = write("out.jsonl", f'{{"text": "a"}}\n{line}\n')
    with pytest.raises(DataError, match=r"out\.jsonl:2: "):
        read_outputs(path, [write("ref.txt", "a\nb\n")])


def pair(source: str, target: str, *features: str, line: int = 1) -> Pair:
    return Pair(source=source, target=target, features=features, line=line, file="pairs.tsv")


def test_pairs_with_one_source_become_one_row():
    rows = group_references(
        [
            pair("read", "r iy d", line=1),
            pair("lead", "l iy d", line=2),
            pair("read", "r eh d", line=3),
            pair("read", "r iy d", line=4),
        ]
    )
    assert [(one.source, one.references, one.line) for one in rows] == [
        ("read", ("r iy d", "r eh d"), 1),
        ("lead", ("l iy d",), 2),
    ]


def repeated(choice: str) -> Settings:
    return read_settings(None, ["--evaluation.repeated_sources", choice])


RUNNING = [pair("daz", "das", line=1), pair("daz", "dass", line=2), pair("daz", "das", line=3),
           pair("vnd", "und", line=4), pair("vnd", "und", line=5)]  # fmt: skip


def test_pairs_of_running_text_are_rows_of_their_own():
    rows = group_references(RUNNING)
    assert [(one.source, one.references, one.line) for one in rows] == [
        (one.source, (one.target,), one.line) for one in RUNNING
    ]
    # One line says "dass": its reference is not right for the others.
    outputs = {"daz": "das", "vnd": "und"}
    assert sum(replace(one, hypothesis=outputs[one.source]).is_exact for one in rows) == 4


def test_the_setting_decides_whether_repeated_sources_are_rows():
    assert [one.references for one in group_references(RUNNING, repeated("references"))] == [
        ("das", "dass"),
        ("und",),
    ]
    words = [pair("read", "r iy d"), pair("read", "r eh d")]
    assert [one.references for one in group_references(words, repeated("rows"))] == [
        ("r iy d",),
        ("r eh d",),
    ]


@pytest.mark.parametrize("form", ["nfc", "nfd"])
def test_references_are_composed_as_outputs_are(form):
    settings = read_settings(None, ["--tokenizer.target.unicode_form", form])
    pairs = [pair("a", "e\u0301"), pair("a", "\u00e9"), pair("a", "e"), pair("a", "\u1112\u1161")]
    assert [one.references for one in group_references(pairs, settings)] == [("é", "e", "하")]
    [row] = group_references(pairs)
    assert row.references == ("e\u0301", "\u00e9", "e", "\u1112\u1161")


def test_pairs_with_other_features_stay_apart():
    rows = group_references(
        [pair("3/10/2024", "2024-03-10", "<en-US>"), pair("3/10/2024", "2024-10-03", "<en-GB>")]
    )
    assert [(one.features, one.references) for one in rows] == [
        (("<en-US>",), ("2024-03-10",)),
        (("<en-GB>",), ("2024-10-03",)),
    ]


def test_no_pairs_make_no_rows():
    assert group_references(iter([])) == []
