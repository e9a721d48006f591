"""File-to-file prediction: keeps order and columns, and resumes after a crash."""

import csv
import gzip
import json
import os
import random
import signal
import subprocess
import sys
from functools import partial

import pyarrow
import pyarrow.parquet
import pytest

from conftest import make_words
from dragoman.commands.predict import Job, Journal, State, run_job
from dragoman.errors import DragomanError
from dragoman.model_folder.calibration import StoredCalibration
from dragoman.predictor import Predictor, make_windows
from dragoman.settings import DecodingSettings, Settings
from processes import start_until

WORDS = make_words(300, seed=3)


@pytest.fixture(scope="module")
def model(trained):
    return Predictor.load(trained[0], threads=1)


def predict(model, path, name, **values):
    """Run a job from `path` to a file beside it, and return that and the report."""
    output = path.with_name(name)
    job = Job(input=path, output=output, **values)
    return output, list(run_job(model, job))


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(folder, source, output, *more):
    words = ["predict", folder, "--input", source, "--output", output, "--threads", "1", *more]
    return [sys.executable, "-m", "dragoman", *map(str, words)]


def test_columns_of_jsonl_are_passed_through_unchanged(model, tmp_path):
    path = tmp_path / "in.jsonl"
    inputs = [
        '{"id": 7, "source": "abc", "tags": [1.50, null, {"x": true}]}',
        '  {"source":"abd","id":"ü"}  ',
        '{"id": 8}',
        "not json",
        '{"source": "", "id": 9}',
    ]
    path.write_text("\n".join(inputs) + "\n")
    output, report = predict(model, path, "out.jsonl")
    lines = output.read_text().splitlines()
    rows = read_rows(output)
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["input"] == json.loads(inputs[0])
    assert '"tags": [1.50, null, {"x": true}]' in lines[0]  # not 1.5: nothing was read and written
    assert rows[1]["input"] == {"source": "abd", "id": "ü"}
    assert [row["text"] for row in rows] == ["ABC", "ABD", "", "", ""]
    assert all("error" in row for row in rows[2:])
    assert rows[4]["input"] == {"source": "", "id": 9}  # a bad row keeps what could be read of it
    assert len(report) == 3  # each with its reason and its line
    assert any("line 4" in message for message in report)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_table_keeps_its_columns_and_adds_the_prediction(model, tmp_path, suffix):
    path = tmp_path / "in.csv"
    path.write_text('id,source,score\n1,abc,"a, ""b"""\n2,,x\n3,abd,\n')
    output, _ = predict(model, path, f"out{suffix}")
    with output.open(newline="") as file:
        dialect = "excel" if suffix == ".csv" else "excel-tab"
        quoting = csv.QUOTE_MINIMAL if suffix == ".csv" else csv.QUOTE_NONE
        rows = list(csv.DictReader(file, dialect=dialect, quoting=quoting))
    assert [row["prediction"] for row in rows] == ["ABC", "", "ABD"]
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert [row["line"] for row in rows] == ["2", "3", "4"]
    assert rows[0]["score"] == 'a, "b"'  # the input's own; ours has another name
    assert float(rows[0]["<score>"]) <= 0.0
    assert 0.5 < float(rows[0]["confidence"]) <= 1.0
    assert rows[1]["confidence"] == ""
    assert "empty" in rows[1]["error"]


_NO_COLUMN = (
    "1 rows with fields that the first row lacks, left out of the table (.jsonl keeps them)"
)
_BROKEN_CELL = "2 rows with a tab or a line break in a cell, written as a space (.csv keeps it)"


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (".csv", [f"{_NO_COLUMN}: line 2"]),
        (".tsv", [f"{_BROKEN_CELL}: line 1, 3", f"{_NO_COLUMN}: line 2"]),
        (".jsonl", []),
    ],
)
def test_values_that_a_table_cannot_hold_are_reported(model, tmp_path, suffix, message):
    path = tmp_path / "in.jsonl"
    rows = [
        {"source": "abc", "note": "a\tb\nc"},
        {"source": "abd", "note": "d", "more": 1},
        {"source": "abe", "note": "e\rf"},
        {"source": "abf", "note": None},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output, report = predict(model, path, f"out{suffix}")
    assert report == message
    if suffix == ".csv":
        with output.open(newline="") as file:
            assert [row["note"] for row in csv.DictReader(file)] == ["a\tb\nc", "d", "e\rf", ""]


@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet"])
def test_a_field_of_a_nested_column_makes_no_column_of_a_table(model, tmp_path, name, capsys):
    rows = [{"id": str(i), "t": {"en": word, "de": "x"}} for i, word in enumerate(WORDS[:3])]
    if name == "in.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    data = model.settings.data.model_copy(update={"source": "t.en", "target": "t.de"})
    settings = model.settings.model_copy(update={"data": data})
    nested = Predictor(model.engine, model.tokenizer, settings, model.model_folders)
    output, _ = predict(nested, tmp_path / name, "out.csv")
    assert capsys.readouterr().err.endswith("columns: source 't.en'; not used: 'id'\n")
    assert output.read_text().startswith("id,t,line,prediction,")


def test_parquet_columns_that_are_not_text_are_passed_through(model, tmp_path):
    table = pyarrow.table({"source": ["abc", "abd"], "weight": [0.5, 1.5], "list": [[1], []]})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    output, _ = predict(model, tmp_path / "in.parquet", "out.jsonl")
    assert [row["input"]["weight"] for row in read_rows(output)] == [0.5, 1.5]
    assert [row["input"]["list"] for row in read_rows(output)] == [[1], []]


def test_numbers_that_json_does_not_have_are_null_or_text(model, tmp_path):
    numbers = [float("nan"), float("-inf"), 1.5]
    table = {"source": WORDS[:3], "x": numbers, "of": [{"x": one, "all": [one]} for one in numbers]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "in.parquet")
    output, _ = predict(model, tmp_path / "in.parquet", "out.jsonl")
    assert "NaN" not in output.read_text()
    assert [row["input"]["x"] for row in read_rows(output)] == [None, "-inf", 1.5]
    nested = [row["input"]["of"] for row in read_rows(output)]
    assert nested == [{"x": one, "all": [one]} for one in (None, "-inf", 1.5)]
    for name in ("out.csv", "out.parquet"):
        assert predict(model, tmp_path / "in.parquet", name)[0].is_file()


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_bytes_in_a_column_that_is_not_used_make_no_row_invalid(model, tmp_path, name):
    table = {"source": WORDS[:3], "by": [b"\xff\x00", b"abc", None]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "in.parquet")
    output, lines = predict(model, tmp_path / "in.parquet", name)
    assert not [line for line in lines if "without an output" in line]
    if name == "out.jsonl":
        assert [row["input"]["by"] for row in read_rows(output)] == [None, "abc", None]
    elif name == "out.parquet":
        assert pyarrow.parquet.read_table(output)["by"].to_pylist() == [None, "abc", None]


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_a_compressed_output_has_the_same_rows_and_can_be_read(model, tmp_path, packed):
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{word}\n" for word in WORDS))
    plain, _ = predict(model, path, "out.jsonl")
    output, _ = predict(model, path, f"out.jsonl.{packed}")
    data = output.read_bytes()
    if packed == "gz":
        assert gzip.decompress(data) == plain.read_bytes()
    # What is written can be read: as the input of the next model.
    nested = Settings.model_validate({"data": {"source": "text"}})
    again = Predictor(
        model.engine,
        model.tokenizer,
        model.settings.model_copy(update={"data": nested.data}),
        model.model_folders,
    )
    predict(again, output, "again.jsonl")
    assert len(read_rows(tmp_path / "again.jsonl")) == len(WORDS)


@pytest.mark.parametrize("name", ["out.txt", "out.jsonl", "out.csv", "out.txt.gz", "out.jsonl.zst"])
def test_an_empty_input_is_an_empty_output(model, tmp_path, name):
    (tmp_path / "in.txt").write_text("")
    output, report = predict(model, tmp_path / "in.txt", name)
    assert output.exists()
    assert report == []
    if name == "out.txt.gz":
        assert gzip.decompress(output.read_bytes()) == b""


def test_hypotheses_token_scores_and_alignment_are_in_the_json(trained, tmp_path):
    decoding = DecodingSettings(beam_size=3, num_hypotheses=3, token_scores=True, alignment=True)
    model = Predictor.load(trained[0], Settings(decoding=decoding))
    (tmp_path / "in.txt").write_text("abc\nabcd\n")
    output, _ = predict(model, tmp_path / "in.txt", "out.jsonl")
    for row, word in zip(read_rows(output), ["abc", "abcd"], strict=True):
        assert row["source_tokens"] == [*word, "</s>"]
        assert len(row["hypotheses"]) == 3
        best = row["hypotheses"][0]
        confidences = [one["confidence"] for one in row["hypotheses"]]
        assert all(0.0 <= one <= 1.0 for one in confidences)
        assert max(confidences) == confidences[0] > 0.5
        for key in ("text", "score", "confidence", "tokens", "log_probs", "alignment"):
            assert row[key] == best[key]
        assert row["tokens"] == [*word.upper(), "</s>"]
        assert sum(row["log_probs"]) == pytest.approx(row["score"], abs=1e-4)
        assert [sum(weights) for weights in row["alignment"]] == pytest.approx([1.0] * (len(word) + 1), abs=1e-2)  # fmt: skip


def test_given_targets_are_scored(trained, tmp_path):
    (tmp_path / "in.tsv").write_text("abc\tABC\nabc\tABD\n")
    for engine in ("torch", "ctranslate2"):
        model = Predictor.load(trained[0], engine=engine)
        output, _ = predict(model, tmp_path / "in.tsv", f"{engine}.jsonl", scores_targets=True)
        right, wrong = read_rows(output)
        assert right["text"] == "ABC"
        assert wrong["text"] == "ABD"
        assert right["score"] > -0.5 > wrong["score"]
        assert sum(wrong["log_probs"]) == pytest.approx(wrong["score"], abs=1e-4)
        lines, _ = predict(model, tmp_path / "in.tsv", f"{engine}.txt", scores_targets=True)
        scores = [float(line) for line in lines.read_text().splitlines()]
        assert scores == pytest.approx([right["score"], wrong["score"]], abs=1e-4)


def test_an_output_begins_with_the_prefix_of_its_row(model, tmp_path, capsys):
    (tmp_path / "in.csv").write_text("source,start\nabc,B\nabc,\nabc,AA\n")
    output, _ = predict(model, tmp_path / "in.csv", "out.jsonl", prefix="start")
    texts = [row["text"] for row in read_rows(output)]
    assert texts[0][0] == "B"
    assert texts[1] == "ABC"
    assert texts[2][:2] == "AA"
    assert "not used" not in capsys.readouterr().err
    with pytest.raises(DragomanError, match="did you mean 'start'"):
        predict(model, tmp_path / "in.csv", "no.jsonl", prefix="strat")


def test_what_a_constraint_does_not_allow_is_not_said_to_be_too_long(model, tmp_path):
    (tmp_path / "in.csv").write_text("source,start\nabc,B\nabc,\n")
    guided = model.with_decoding(Settings(decoding=DecodingSettings(regex="A[A-Z]*")))
    output, report = predict(guided, tmp_path / "in.csv", "out.jsonl", prefix="start")
    assert [row["is_complete"] for row in read_rows(output)] == [False, True]
    [line] = report
    assert line.startswith("1 rows without a complete output that the constraint allows (change it")


def test_windows_grow_and_are_the_same_after_resuming():
    sizes = [len(window) for window in make_windows(range(20_000))]
    assert sizes[:4] == [64, 128, 256, 512]
    assert max(sizes) == 4096
    assert sum(sizes) == 20_000
    done = sum(sizes[:3])
    assert [len(window) for window in make_windows(range(20_000 - done), done)] == sizes[3:]


# ------------------------------------------------------------------ killed, and resumed


def write_input(path, num_rows, *, seed=0):
    """Rows of which some are bad, packed."""
    chance = random.Random(seed)
    with gzip.open(path, "wt") as file:
        for number in range(num_rows):
            word = "".join(chance.choices("abcdefgh", k=chance.randint(3, 6)))
            file.write(
                "broken\n" if number % 97 == 5 else f'{{"id": {number}, "source": "{word}"}}\n'
            )


def test_after_several_sigkills_the_file_is_the_same_as_without(trained, tmp_path):
    source = tmp_path / "in.jsonl.gz"
    write_input(source, 6000)
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    first = subprocess.run(command(trained[0], source, whole), capture_output=True, check=True)
    for count in (1, 2, 3, 3):
        words = command(trained[0], source, resumed)[3:]
        process = start_until(".resumed.jsonl.journal", words, count)
        process.kill()
        process.communicate()
        assert not resumed.exists()
    last = subprocess.run(command(trained[0], source, resumed), capture_output=True, check=True)
    assert b"resuming after row" in last.stderr
    assert resumed.read_bytes() == whole.read_bytes()
    message = [line for line in first.stderr.splitlines() if b"without an output" in line]
    assert message
    assert set(message) <= set(last.stderr.splitlines())  # the report counts what was done before
    assert {path.name for path in tmp_path.iterdir()} == {
        "in.jsonl.gz",
        "whole.jsonl",
        "resumed.jsonl",
    }


def interrupt(model, path, output, rows=192):
    """Leave the files of a job that crashed after `rows`."""
    job = Job(input=path, output=output)

    class Dead(BaseException):
        pass

    done = 0

    class Dying(Predictor):
        def predict_window(self, window, **values):
            nonlocal done
            if done >= rows:
                raise Dead
            done += len(window)
            return super().predict_window(window, **values)

    dying = Dying(
        model.engine,
        model.tokenizer,
        model.settings,
        model.model_folders,
        calibrations=model.calibrations,
    )
    with pytest.raises(Dead):
        run_job(dying, job)


@pytest.fixture
def interrupted(model, tmp_path):
    path, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    path.write_text("".join(f"{word}\n" for word in WORDS))
    interrupt(model, path, output)
    assert not output.exists()
    return path, output


def test_an_incomplete_last_line_of_the_partial_file_is_removed(model, interrupted):
    path, output = interrupted
    whole, _ = predict(model, path, "whole.jsonl")
    with output.with_name(".out.jsonl.partial").open("ab") as file:
        file.write(b'{"line": 193, "te')
    predict(model, path, "out.jsonl")
    assert output.read_bytes() == whole.read_bytes()


def test_other_settings_do_not_resume_an_interrupted_prediction(trained, interrupted):
    path, output = interrupted
    other = Predictor.load(
        trained[0], Settings(decoding=DecodingSettings(max_length_extra=3)), threads=1
    )
    with pytest.raises(
        DragomanError, match=r"decoding.max_length_extra 50, now it is 3.*--restart"
    ):
        predict(other, path, "out.jsonl")
    predict(other, path, "out.jsonl", restart=True)
    assert len(read_rows(output)) == len(WORDS)


def test_a_changed_list_of_choices_is_an_error(trained, tmp_path):
    path, output, choices = tmp_path / "in.txt", tmp_path / "out.jsonl", tmp_path / "choices.txt"
    path.write_text("".join(f"{word}\n" for word in WORDS))
    choices.write_text("AB\nCD\n")
    settings = Settings(decoding=DecodingSettings(choices=str(choices)))
    interrupt(Predictor.load(trained[0], settings), path, output)
    choices.write_text("AB\nCD\nEF\n")
    with pytest.raises(DragomanError, match="files of the constraint"):
        predict(Predictor.load(trained[0], settings), path, "out.jsonl")


def test_a_changed_input_is_an_error_and_nothing_is_lost(model, interrupted):
    path, output = interrupted
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["zzz", *lines[1:]]) + "\n")
    with pytest.raises(DragomanError, match=r"after row 192.*no longer the same"):
        predict(model, path, "out.jsonl")
    path.write_text("\n".join(lines[:100]) + "\n")
    with pytest.raises(DragomanError, match="no longer the same"):
        predict(model, path, "out.jsonl")
    path.write_text(
        "\n".join(lines) + "\nabc\n"
    )  # more rows after those that were done: they are predicted too
    predict(model, path, "out.jsonl")
    assert len(read_rows(output)) == len(WORDS) + 1


def test_two_processes_do_not_write_one_file(trained, tmp_path):
    source = tmp_path / "in.jsonl.gz"
    write_input(source, 6000)
    words = command(trained[0], source, tmp_path / "out.jsonl")
    first = start_until(".out.jsonl.journal", words[3:])
    try:
        second = subprocess.run(words, capture_output=True, check=False)
        assert second.returncode == 2
        assert b"another process is writing" in second.stderr
    finally:
        first.kill()
        first.communicate()


def test_on_ctrl_c_it_says_that_the_same_command_resumes(trained, tmp_path):
    source = tmp_path / "in.jsonl.gz"
    write_input(source, 6000)
    process = start_until(
        ".out.jsonl.journal",
        command(trained[0], source, tmp_path / "out.jsonl")[3:],
        count=2,
        # Where these tests run in the background of a shell, they have SIGINT ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, message = process.communicate()
    assert process.returncode == 130
    assert "stopped; the same command resumes after row" in message
    assert "Traceback" not in message


def test_a_damaged_or_older_journal_is_an_error(tmp_path):
    journal = Journal([tmp_path / "out.jsonl"], {"model": ["a"]})
    [partial] = journal.partials
    partial.write_bytes(b"12345")
    journal.write(State(rows=3, sizes_bytes=[5], digest="x"))
    assert journal.read()[0].rows == 3
    partial.write_bytes(b"123")
    with pytest.raises(DragomanError, match="shorter than it was"):
        journal.read()
    path = tmp_path / ".out.jsonl.journal"
    state = '"job": {"model": ["a"]}, "state": {"rows": 3, "sizes_bytes"'
    for content, message in (
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"version": 0}', "not a journal of this version.*--restart"),
        ("[1]", "not a journal"),
        ('{"version": 3, "job": {}, "state": {"rows": "many"}}', "not a journal"),
        (f'{{"version": 3, {state}: [-5]}}}}', "not a journal"),
        (f'{{"version": 3, {state}: [1, 2]}}}}', "not a journal of these"),
    ):
        path.write_text(content)
        with pytest.raises(DragomanError, match=message):
            journal.read()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_written_to(model, tmp_path):
    (tmp_path / "in.txt").write_text("abc\n")
    job = Job(input=tmp_path / "in.txt", output=tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    run_job(model, job)
    assert reader.communicate(timeout=30)[0] == b"ABC\n"


def test_parquet_holds_the_columns_with_their_types_and_n_best_lists(trained, tmp_path):
    wide = Settings(decoding=DecodingSettings(beam_size=3, num_hypotheses=3))
    model = Predictor.load(trained[0], wide, threads=1)
    path = tmp_path / "in.jsonl"
    path.write_text(
        '{"source": "abc", "id": 7, "share": 1, "tags": ["x"], "text": "t", "odd": "\\ud800"}\n'
        '{"source": "", "share": 0.5, "text": 3, "late": true, "huge": 99999999999999999999}\n'
    )
    output, _ = predict(model, path, "out.parquet")
    table = pyarrow.parquet.read_table(output)
    first, second = table.to_pylist()
    for name, value in {"id": 7, "share": 1.0, "tags": '["x"]', "text": "t", "late": None}.items():
        assert first[name] == value
    assert (first["prediction"], first["line"], first["error"]) == ("ABC", 1, None)
    assert first["hypotheses"][0]["text"] == "ABC"
    assert len(first["hypotheses"]) == 3
    assert (second["text"], second["late"], second["prediction"]) == ("3", True, "")
    assert "empty" in second["error"]
    assert "normalized_score" in table.column_names
    assert "alignment" not in table.column_names
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in.jsonl", "out.parquet"]


def test_a_parquet_output_resumes_to_the_same_file(model, tmp_path, monkeypatch):
    path = tmp_path / "in.tsv"
    path.write_text("".join(f"{word}\n" for word in WORDS))
    whole, _ = predict(model, path, "whole.parquet")
    write, count = Journal.write, 0

    def die(journal, state):
        nonlocal count
        write(journal, state)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "write", die)
    with pytest.raises(KeyboardInterrupt, match="resumes after row 192"):
        predict(model, path, "out.parquet")
    monkeypatch.undo()
    output, _ = predict(model, path, "out.parquet")
    assert output.read_bytes() == whole.read_bytes()
    assert pyarrow.parquet.read_table(output).num_rows == len(WORDS)


def test_low_confidence_rows_may_be_parquet(model, tmp_path):
    path = tmp_path / "in.tsv"
    path.write_text("abc\nabd\n")
    low = {"low_confidence_output": tmp_path / "low.parquet", "min_confidence": 1.0}
    for output in (tmp_path / "out.parquet", None):
        run_job(model, Job(input=path, output=output, is_jsonl=output is None, **low))
        assert pyarrow.parquet.read_table(tmp_path / "low.parquet").num_rows == 2
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").num_rows == 0


@pytest.mark.parametrize(
    "name",
    ["o.xlsx", "o.json", "o.JSON.gz", "o.arrow", "o.parquet.gz", "o.csv.bz2", "o.zip", "o.feather"],
)
def test_a_format_that_is_not_written_is_an_error(model, tmp_path, name):
    path = tmp_path / "in.txt"
    path.write_text("abc\n")
    with pytest.raises(DragomanError, match=r"is not written; name it \.parquet"):
        predict(model, path, name)
    assert [one.name for one in tmp_path.iterdir()] == ["in.txt"]


@pytest.mark.parametrize("name", ["o.txt", "o.out", "o.de", "o.tok.gz", "o"])
def test_any_other_name_is_a_file_of_lines(model, tmp_path, name):
    path = tmp_path / "in.txt"
    path.write_text("abc\n")
    output, _ = predict(model, path, name)
    content = output.read_bytes()
    assert (gzip.decompress(content) if name.endswith("gz") else content) == b"ABC\n"


@pytest.mark.parametrize("name", ["o.tsv", "o.csv", "o.txt", None])
@pytest.mark.parametrize("lost", ["num_hypotheses", "token_scores", "alignment"])
def test_what_a_format_cannot_hold_is_not_dropped(trained, tmp_path, name, lost):
    path = tmp_path / "in.txt"
    path.write_text("abc\n")
    value = 3 if lost == "num_hypotheses" else True
    decoding = DecodingSettings(**{"beam_size": 3, lost: value})
    model = Predictor.load(trained[0], Settings(decoding=decoding), threads=1)
    output = None if name is None else tmp_path / name
    with pytest.raises(DragomanError, match=rf"decoding\.{lost} .* or give --jsonl"):
        run_job(model, Job(input=path, output=output))
    assert [one.name for one in tmp_path.iterdir()] == ["in.txt"]


def test_a_lone_surrogate_in_a_column_does_not_end_a_table(model, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"source": "abc", "note": "\\ud800"}\n')
    output, _ = predict(model, path, "out.csv")
    assert '"""\\ud800"""' in output.read_text()


def test_a_table_needs_an_input_with_columns(model, tmp_path):
    with pytest.raises(DragomanError, match="give the input by --input"):
        run_job(model, Job(output=tmp_path / "out.csv"))
    assert list(tmp_path.iterdir()) == []


def test_a_recalibrated_model_does_not_resume_an_interrupted_prediction(model, interrupted):
    path, output = interrupted
    other = StoredCalibration(temperature=9.0, rows=1, pairs=(), decoding=DecodingSettings())
    changed = Predictor(
        model.engine, model.tokenizer, model.settings, model.model_folders, calibrations=[other]
    )
    with pytest.raises(DragomanError, match=r"temperature of the calibration .* now it is 9\.0"):
        predict(changed, path, output.name)
