"""Pairs that Python code holds are read as those of a file are."""

import io

import pyarrow
import pytest
from rich.console import Console

import dragoman
from conftest import make_words
from dragoman.errors import CheckpointError, DataError
from dragoman.reading.in_memory import as_files
from dragoman.reading.pairs import Pair, read_pairs
from dragoman.settings import DataSettings

ROWS = [(word, word.upper()) for word in make_words(40)]
COLUMNS = {"source": [row[0] for row in ROWS], "target": [row[1] for row in ROWS]}


@pytest.fixture
def frame():
    """The same rows as a table of another library."""
    return pytest.importorskip("pandas").DataFrame(COLUMNS)


def read(pairs):
    with as_files(pairs) as [path]:
        found = [(pair.source, pair.target) for pair in read_pairs(path)]
    assert not path.exists()
    return found


@pytest.mark.parametrize(
    "pairs",
    [
        ROWS,
        [list(row) for row in ROWS],
        (row for row in ROWS),
        [Pair(*row, (), 1, "x.tsv") for row in ROWS],
        [{"target": target, "source": source, "note": 3} for source, target in ROWS],
        COLUMNS,
        pyarrow.table(COLUMNS),
    ],
)
def test_rows_and_tables_are_pairs(pairs):
    assert read(pairs) == ROWS


def test_frames_are_pairs(frame):
    columns = ["score", "target", "source"]
    for one in (frame, frame.assign(score=1.5)[columns], type(frame)(ROWS), pyarrow.table(frame)):
        assert read(one) == ROWS


def test_a_part_of_a_frame_keeps_its_rows(frame):
    assert read(frame[::3]) == ROWS[::3]


def test_the_index_of_a_shuffled_frame_is_no_column(frame):
    shuffled = frame.set_axis(["alt", "neu"], axis=1).sample(len(ROWS), random_state=1)
    assert sorted(read(shuffled)) == sorted(ROWS)


def test_files_stay_files():
    for files in ("a.tsv", ["a.tsv"], ("a.de", "a.en"), []):
        with as_files(files) as paths:
            assert [str(path) for path in paths] == ([files] if files == "a.tsv" else list(files))


@pytest.mark.parametrize(
    "pairs",
    [5, None, [("a",)], [("a", "b", "c")], [("a", 1)], [("a", None)], [3], [("a", "b"), "c"],
     [Pair("a", "b", ("tag",), 1, "x")], {"source": ["a"], "target": ["b", "c"]}],
)  # fmt: skip
def test_anything_else_is_an_error(pairs):
    with pytest.raises(DataError, match=r"pairs: expected a file.* or a table such as a DataFrame"):
        read(pairs)


def test_an_error_of_the_caller_is_not_taken_for_one_of_the_pairs():
    for pairs in (["a.tsv"], ROWS):
        with pytest.raises(ValueError, match="of the caller"), as_files(pairs):
            raise ValueError("of the caller")


def test_dicts_may_have_different_columns():
    rows = [{"source": "a", "target": "A"}, {"source": "b", "target": "B", "tag": "x"}]
    with as_files(rows) as paths:
        found = [pair.features for pair in read_pairs(paths, DataSettings(features=("tag",)))]
    assert found == [("tag=",), ("tag=x",)]


TARGETS = [None if row == 3 else target for row, target in enumerate(COLUMNS["target"])]


def test_an_empty_cell_is_an_invalid_row():
    with pytest.raises(
        DataError, match=r"^pairs in memory: 1 of 40 .*\n.*\n *pairs\[3\]: the target is"
    ):
        read(COLUMNS | {"target": TARGETS})


def test_an_empty_cell_of_a_frame_is_an_invalid_row(frame):
    with pytest.raises(DataError, match=r"pairs\[3\]: the target is empty"):
        read(frame.assign(target=TARGETS))


def test_rows_without_names_are_a_file_without_a_header():
    with pytest.raises(DataError, match="kind: the rows have no names; give dicts"):
        dragoman.inspect(ROWS, {"data.features": ["kind"]})
    with as_files(ROWS) as paths:
        swapped = DataSettings(source="2", target="1", format="csv")
        assert [pair[:2] for pair in read_pairs(paths, swapped)] == [row[::-1] for row in ROWS]


def test_a_model_is_trained_evaluated_and_inspected_without_files(tmp_path):
    settings = {
        "model": {"d_model": 16, "nhead": 2, "dim_feedforward": 16},
        "training.max_steps": 2,
        "optimization.warmup_steps": 0,
        "evaluation": {"report": "none", "resamples": 100},
    }
    console = Console(file=io.StringIO())
    model = dragoman.fit(COLUMNS, tmp_path / "model", settings, console=console)
    assert model.settings.model.d_model == 16
    for folder in (tmp_path / "model", tmp_path / "model.training"):
        stored = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        assert b"pairs in memory" in stored
        assert b"pairs in memory.parquet" not in stored
    changed = "pairs in memory: not the pairs with which the run started .pairs in memory, as"
    with pytest.raises(CheckpointError, match=changed):
        dragoman.fit(ROWS, tmp_path / "model", settings, resume="must", console=console)
    by_rows = dragoman.evaluate(model, ROWS)
    # Names, places and formats of the files that a model was trained on do not apply to rows.
    columns = {"data.source": "2", "data.target": "1", "data.format": "csv"}
    by_columns = dragoman.evaluate(tmp_path / "model", ROWS, columns)
    assert [row.source for row in by_columns.rows] == [row.source for row in by_rows.rows]
    assert by_rows.rows[3].file == "pairs in memory"
    by_name = dragoman.evaluate(tmp_path / "model", COLUMNS, {"evaluation.resamples": 200})
    assert by_rows.scores.rows == by_name.scores.rows == len(ROWS)
    assert by_name.settings.resamples == 200
    assert "exact match" in repr(by_rows)
    assert "<th>exact match</th>" in by_rows._repr_html_()
    inspected = dragoman.inspect([*ROWS, ROWS[0]])
    assert inspected.splits["train"].rows > 30
    [example] = next(one for one in inspected.findings if one.kind == "duplicates").examples
    assert "also in pairs[0]" in example.text
