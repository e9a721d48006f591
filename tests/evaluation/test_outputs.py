import gzip

import pytest

from dragoman.errors import DataError
from dragoman.evaluation.outputs import read_outputs


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / name

    return write


def test_the_same_lines_belong_together(write):
    rows = read_outputs(
        write("out.txt", "a\n\nc d\n"),
        [write("ref.txt", "a\nb\nc\n"), write("ref2.txt", "\n\nc d\n")],
        write("src.txt", "1\n2\n3\n"),
    )
    assert [row.hypothesis for row in rows] == ["a", "", "c d"]
    assert [row.references for row in rows] == [("a",), ("b",), ("c", "c d")]
    assert [(row.source, row.line) for row in rows] == [("1", 1), ("2", 2), ("3", 3)]


def test_objects_of_predict_and_of_evaluate_are_read(write):
    predicted = write("out.jsonl", '{"line": 1, "text": "a"}\n{"line": 2, "text": ""}\n')
    packed = gzip.compress(b'{"hypothesis": "a"}\n{"hypothesis": ""}\n')
    reference = write("ref.txt", "a\nb\n")
    for path in (predicted, write("rows.jsonl.gz", packed)):
        assert [row.hypothesis for row in read_outputs(path, [reference])] == ["a", ""]


@pytest.mark.parametrize(
    ("output", "reference", "told"),
    [
        ("a\nb\n", "a\n", "ref.txt: 1 lines, but .*out.txt has 2"),
        ("", "", "ref.txt|out.txt: the file is empty"),
        (b"a\n\xff\n", "a\nb\n", "out.txt:2: byte at character 1 is not UTF-8"),
    ],
)
def test_files_that_do_not_fit_are_named(write, output, reference, told):
    with pytest.raises(DataError, match=told):
        read_outputs(write("out.txt", output), [write("ref.txt", reference)])


@pytest.mark.parametrize("line", ["[", "3", "{}", '{"text": 3}', r'{"text": "\ud800"}'])
def test_an_object_without_text_is_named(write, line):
    path = write("out.jsonl", f'{{"text": "a"}}\n{line}\n')
    with pytest.raises(DataError, match=r"out\.jsonl:2: "):
        read_outputs(path, [write("ref.txt", "a\nb\n")])
