"""`suggest`: sources that the model doubts, unlike each other, as a table that fit reads."""

import json
from pathlib import Path

import numpy as np
import pytest

import dragoman
from conftest import make_words
from dragoman.cli import main
from dragoman.commands.suggest import Suggestion, choose_spread, to_table
from dragoman.errors import DataError, SettingsError
from dragoman.model_folder.folder import ModelFolder
from dragoman.reading.pairs import read_pairs
from dragoman.settings import DataSettings

FOLDERS = Path(__file__).parents[1] / "folders" / "0.1"


@pytest.fixture
def unlabelled(tmp_path):
    """Words like those of the training, each twice, and longer ones, which are hard for the model."""
    path = tmp_path / "unlabelled.txt"
    words = [*make_words(40), *(2 * word for word in make_words(10, seed=5))]
    path.write_text("\n".join([*words, *words, ""]))
    return path


def test_each_next_row_is_doubtful_and_far_from_the_chosen():
    space = np.array([[0.0], [0.1], [5.0]])
    assert choose_spread(space, np.array([1.0, 0.9, 0.5]), 2) == [0, 2]
    assert sorted(choose_spread(space, np.ones(3), 9)) == [0, 1, 2]


def test_hard_sources_come_first_and_each_once(trained, unlabelled):
    found = dragoman.suggest(trained[0], unlabelled, rows=10)
    hard = unlabelled.read_text().split("\n")[40:50]
    assert len({one.source for one in found}) == 10
    assert sum(one.source in hard for one in found) >= 6


def test_the_filled_table_is_read_with_the_pairs(trained, unlabelled, tmp_path, capsys):
    folder, _ = trained
    table = tmp_path / "todo.tsv"
    words = ["suggest", str(folder), str(unlabelled), "--rows", "5", "--output", str(table)]
    assert main(words) == 0
    assert "5 sources to label" in capsys.readouterr().err
    with pytest.raises(DataError, match="5 of 5 rows cannot be used"):
        list(read_pairs(table))
    header, *rows = (line.split("\t") for line in table.read_text().splitlines())
    assert header == ["source", "target", "model_output", "confidence"]
    filled = "".join("\t".join([row[0], row[0].upper(), *row[2:]]) + "\n" for row in rows)
    table.write_text("\t".join(header) + "\n" + filled)
    pairs = list(read_pairs([folder.parent / "pairs.tsv", table]))
    assert [(one.source, one.target) for one in pairs[-5:]] == [
        (row[0], row[0].upper()) for row in rows
    ]
    assert main(words) == 2
    assert "it exists; give the name of a new file" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "other.tsv"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 5


@pytest.mark.parametrize(
    "data",
    [
        DataSettings(features=("3",)),
        DataSettings(source="word", target="form", features=("tense",)),
        DataSettings(source="2", target="4", features=("1",), header="no"),
    ],
)
def test_the_table_has_the_columns_of_the_settings(tmp_path, data):
    row = Suggestion(line=1, source="walk", features=("PST",), output="walked!", confidence=0.25)
    table = tmp_path / "todo.tsv"
    *header, cells = (line.split("\t") for line in to_table([row], data).splitlines())
    cells[cells.index("")] = "walked"  # the first empty one
    if data.header == "no":
        cells = ["PST", "walk", "", "walked"]
    table.write_text("".join("\t".join(one) + "\n" for one in [*header, cells]))
    [pair] = read_pairs(table, data)
    assert (pair.source, pair.target) == ("walk", "walked")
    assert pair.features == (f"{data.features[0]}=PST",)


def test_what_cannot_be_suggested_is_said(trained, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(DataError, match=r"empty.txt: it has no source"):
        dragoman.suggest(trained[0], empty)
    with pytest.raises(DataError, match="expected the name of a file, found list; write the texts"):
        dragoman.suggest(trained[0], ["abc"])
    with pytest.raises(SettingsError, match="rows: 0"):
        dragoman.suggest(trained[0], empty, rows=0)


def test_columns_with_other_names_than_in_training_stay_columns(tmp_path):
    folder = FOLDERS / "features"  # its feature is `language`
    unlabelled, table = tmp_path / "in.tsv", tmp_path / "todo.tsv"
    unlabelled.write_text("Sprache\tword\nde\tsiebzehn\n")
    data = {"data.source": "word", "data.features": ["Sprache"]}
    [found] = dragoman.suggest(folder, unlabelled, output=table, settings=data)
    assert (found.source, found.features) == ("siebzehn", ("de",))
    header, row = (line.split("\t")[:3] for line in table.read_text().splitlines())
    cells = dict(zip(header, row, strict=True))
    trained = ModelFolder.read(folder).settings.data
    table.write_text("\t".join(header) + "\n" + "\t".join(one or "17" for one in row) + "\n")
    [pair] = read_pairs(table, trained)
    assert (pair.source, pair.target, pair.features) == ("siebzehn", "17", ("language=de",))
    assert cells["language"] == "de"


def test_line_breaks_in_sources_are_kept_in_csv_and_counted_in_tsv(trained, tmp_path):
    unlabelled, lines = tmp_path / "in.jsonl", list[str]()
    unlabelled.write_text('{"source": "ab\\nc\\td"}\n{"source": "abc"}\n')
    for name in ("todo.tsv", "todo.csv"):
        dragoman.suggest(trained[0], unlabelled, output=tmp_path / name, report=lines.append)
    assert "todo.tsv: 1 sources have tabs or line breaks" in "".join(lines)
    assert "todo.csv: " not in "".join(lines)
    kept = DataSettings(source="source", broken_rows="keep_empty")
    assert {one.source for one in read_pairs(tmp_path / "todo.csv", kept)} == {"ab\nc\td", "abc"}
