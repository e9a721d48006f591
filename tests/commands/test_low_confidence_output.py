"""Predictions in two files, by confidence; both survive a crash at any moment."""

import csv
import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import make_words
from dragoman.commands.predict import Job, run_job
from dragoman.errors import DragomanError
from dragoman.predictor import Predictor
from dragoman.settings import DecodingSettings, Settings
from processes import start_until

WORDS = [*make_words(150, seed=3), *make_words(50, seed=4), "xyz", "aaaaaaaaaaaa"]


@pytest.fixture(scope="module")
def model(trained):
    return Predictor.load(trained[0], threads=1)


@pytest.fixture(scope="module")
def middle(model):
    """A confidence that about half of the rows have."""
    found = sorted(best.confidence for [best] in model.predict_n_best(WORDS))
    return round(found[len(found) // 2], 4)


def make_job(source, output, low, min_confidence):
    return Job(
        input=source,
        output=output,
        low_confidence_output=low,
        min_confidence=min_confidence,
    )


def write_words(path):
    """Words, and among them lines that cannot be read."""
    lines = [word if number % 23 else "" for number, word in enumerate(WORDS, start=1)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read_rows(path):
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in data.decode().splitlines()]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_each_row_is_in_the_file_of_its_confidence_and_none_is_lost(model, middle, tmp_path):
    source = write_words(tmp_path / "in.txt")
    sure, low = tmp_path / "sure.jsonl", tmp_path / "low.jsonl.gz"
    report = list(run_job(model, make_job(source, sure, low, middle)))
    kept, others = read_rows(sure), read_rows(low)
    assert all(row["confidence"] >= middle and row["is_complete"] for row in kept)
    assert all("error" in row or row["confidence"] < middle for row in others)
    assert len(kept) > 50
    assert sum("error" in row for row in others) == len(WORDS) // 23
    for rows in (kept, others):
        assert [row["line"] for row in rows] == sorted(row["line"] for row in rows)
    lines = [row["line"] for row in kept + others]
    assert sorted(lines) == list(range(1, len(WORDS) + 1))
    whole = tmp_path / "whole.jsonl"
    run_job(model, Job(input=source, output=whole))
    assert sorted(kept + others, key=lambda row: row["line"]) == read_rows(whole)
    [message] = [line for line in report if "sure.jsonl" in line]
    assert f"of {len(WORDS)} rows {len(kept)} (" in message
    assert f"{len(others)} (" in message


@pytest.mark.parametrize("name", ["low.csv", "low.tsv", "low.csv.gz", "low.ndjson.zst"])
def test_each_file_has_the_layout_of_its_name(model, middle, tmp_path, name):
    source = tmp_path / "in.csv"
    source.write_text("id,source\n" + "".join(f"{i},{w}\n" for i, w in enumerate(WORDS)))
    sure, low = tmp_path / "sure.tsv", tmp_path / name
    run_job(model, make_job(source, sure, low, middle))
    with sure.open(newline="") as file:
        kept = list(csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE))
    assert all(float(row["confidence"]) >= middle for row in kept)
    assert all(WORDS[int(row["id"])] == row["source"] for row in kept)
    if name == "low.csv":
        with low.open(newline="") as file:
            others = list(csv.DictReader(file))
        assert {row["id"] for row in kept + others} == {str(i) for i in range(len(WORDS))}
        assert all(float(row["confidence"]) < middle for row in others)


def test_truncated_outputs_are_low_confidence_at_any_threshold(trained, tmp_path):
    decoding = DecodingSettings(max_length_ratio=0.0, max_length_extra=4)
    model = Predictor.load(trained[0], Settings(decoding=decoding), threads=1)
    source = write_words(tmp_path / "in.txt")
    sure, low = tmp_path / "sure.jsonl", tmp_path / "low.jsonl"
    run_job(model, make_job(source, sure, low, 0.0))
    assert all(row["is_complete"] for row in read_rows(sure))
    assert all("error" in row or not row["is_complete"] for row in read_rows(low))
    assert all(row["confidence"] == 0.0 for row in read_rows(low) if "error" not in row)
    assert read_rows(sure)
    assert read_rows(low)


def test_a_low_confidence_output_without_rows_is_an_empty_file(model, tmp_path):
    (tmp_path / "in.txt").write_text("abc\n")
    low = tmp_path / "low.jsonl.gz"
    run_job(model, make_job(tmp_path / "in.txt", tmp_path / "sure.jsonl", low, 0.0))
    assert gzip.decompress(low.read_bytes()) == b""
    assert len(read_rows(tmp_path / "sure.jsonl")) == 1


# ------------------------------------------------------------------ killed, and resumed


def command(folder, source, sure, low, share, *more):
    words = [
        "predict", folder, "--input", source, "--output", sure, "--low-confidence-output", low,
        "--min-confidence", share, "--threads", "1", *more,
    ]  # fmt: skip
    return [sys.executable, "-m", "dragoman", *map(str, words)]


def test_after_several_sigkills_both_files_are_the_same_as_without(trained, middle, tmp_path):
    source, chance = tmp_path / "in.jsonl.gz", random.Random(0)
    with gzip.open(source, "wt") as file:
        for number in range(6000):
            word = "".join(chance.choices("abcdefgh", k=chance.randint(3, 7)))
            file.write(
                "broken\n" if number % 97 == 5 else f'{{"id": {number}, "source": "{word}"}}\n'
            )
    whole = [tmp_path / "whole.jsonl", tmp_path / "whole-low.csv.gz"]
    resumed = [tmp_path / "resumed.jsonl", tmp_path / "low.csv.gz"]
    first = subprocess.run(command(trained[0], source, *whole, middle), capture_output=True, check=True)  # fmt: skip
    for count in (1, 2, 3, 3):
        words = command(trained[0], source, *resumed, middle)[3:]
        process = start_until(".resumed.jsonl.journal", words, count)
        process.kill()
        process.communicate()
        assert not any(path.exists() for path in resumed)
    last = subprocess.run(command(trained[0], source, *resumed, middle), capture_output=True, check=True)  # fmt: skip
    assert b"resuming after row" in last.stderr
    for one, other in zip(whole, resumed, strict=True):
        assert one.read_bytes() == other.read_bytes()
    for message, paths in ((first.stderr, whole), (last.stderr, resumed)):
        [counts] = [line for line in message.decode().splitlines() if "of 6,000 rows" in line]
        assert all(str(path) in counts for path in paths)
        numbers = counts.split(": ", 1)[1].replace(str(tmp_path), "")
        assert numbers.split(" in ")[0] == "of 6,000 rows " + f"{len(read_rows(whole[0])):,} " + (
            f"({len(read_rows(whole[0])) / 6000:.1%})"
        )
    names = {"in.jsonl.gz", *(path.name for path in (*whole, *resumed))}
    assert set(names_in(tmp_path)) == names


class Dead(BaseException):
    """Stands for a crash."""


@pytest.fixture
def dying(monkeypatch):
    """Give a function that crashes at the n-th rename, before or after it is done."""

    def arm(at, *, is_done):
        count = 0
        with monkeypatch.context() as patch:

            def wrap(real):
                def change(*args, **values):
                    nonlocal count
                    count += 1
                    if count > at or (count == at and not is_done):
                        raise Dead
                    found = real(*args, **values)
                    if count == at:
                        raise Dead
                    return found

                return change

            patch.setattr(Path, "replace", wrap(Path.replace))
            yield

    return arm


@pytest.mark.parametrize("is_done", [False, True])
def test_a_crash_at_any_rename_loses_nothing(model, middle, tmp_path, dying, is_done):
    (tmp_path / "whole").mkdir()
    source = write_words(tmp_path / "whole" / "in.jsonl")
    source.write_text("".join(f'{{"source": "{word}"}}\n' for word in WORDS))
    given = source.read_bytes()
    whole = [tmp_path / "whole" / "sure.jsonl", tmp_path / "whole" / "low.jsonl"]
    run_job(model, make_job(source, *whole, middle))
    expected = [path.read_bytes() for path in whole]

    for at in range(1, 20):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        source, low = folder / "in.jsonl", folder / "low.jsonl"
        source.write_bytes(given)
        sure = folder / "sure.jsonl"
        job, has_ended = make_job(source, sure, low, middle), False
        arming = dying(at, is_done=is_done)
        next(arming)
        try:
            run_job(model, job)
            has_ended = True
        except Dead:
            pass
        next(arming, None)
        if sure.exists():
            assert low.exists()  # the main file comes last
        if not has_ended:
            run_job(model, job)
        assert [sure.read_bytes(), low.read_bytes()] == expected
        assert names_in(folder) == sorted({"in.jsonl", sure.name, "low.jsonl"})
        if has_ended:
            break
    assert has_ended
    assert at >= 5  # journals of the windows, two names


def die_at_the_names(model, job, dying, changes_left=1):
    """Crash when `changes_left` files are not renamed yet."""
    num_windows = 2  # 64 and 128 rows, and the last
    arming = dying(num_windows + 1 + (2 - changes_left), is_done=True)
    next(arming)
    with pytest.raises(Dead):
        run_job(model, job)
    next(arming, None)


def test_an_input_changed_after_the_last_row_is_an_error(model, middle, tmp_path, dying):
    source = write_words(tmp_path / "in.txt")
    given = source.read_text()
    sure, low = tmp_path / "sure.jsonl", tmp_path / "low.jsonl"
    job = make_job(source, sure, low, middle)
    die_at_the_names(model, job, dying)
    assert low.exists()
    assert not sure.exists()
    source.write_text("zzz\n" + given)
    with pytest.raises(DragomanError, match="no longer the same"):
        run_job(model, job)
    source.write_text(given + "abc\n")
    with pytest.raises(DragomanError, match=r"now it has more.*--restart"):
        run_job(model, job)
    source.write_text(given)
    run_job(model, job)
    assert len(read_rows(sure)) + len(read_rows(low)) == len(WORDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0.5}, "--min-confidence"),
        ({"low": "other.jsonl"}, "--low-confidence-output low.jsonl"),
    ],
)
def test_another_threshold_or_file_does_not_resume(model, middle, tmp_path, dying, change, message):
    source = write_words(tmp_path / "in.txt")
    sure, low = tmp_path / "sure.jsonl", tmp_path / "low.jsonl"
    arming = dying(2, is_done=True)
    next(arming)
    with pytest.raises(Dead):
        run_job(model, make_job(source, sure, low, middle))
    next(arming, None)
    other = tmp_path / change.get("low", "low.jsonl")
    with pytest.raises(DragomanError, match=message.replace(" ", " '?")):
        run_job(model, make_job(source, sure, other, change.get("share", middle)))
    run_job(model, make_job(source, sure, low, middle))
    assert len(read_rows(sure)) + len(read_rows(low)) == len(WORDS)


def test_two_predictions_may_share_a_low_confidence_output(model, middle, tmp_path, dying):
    source, low = write_words(tmp_path / "in.txt"), tmp_path / "low.jsonl"
    jobs = [make_job(source, tmp_path / f"{name}.jsonl", low, middle) for name in "ab"]
    for job in jobs:
        arming = dying(2, is_done=True)
        next(arming)
        with pytest.raises(Dead):
            run_job(model, job)
        next(arming, None)
    for job in jobs:
        run_job(model, job)
        assert len(read_rows(job.output)) + len(read_rows(low)) == len(WORDS)


# ------------------------------------------------------------------ the command


def run(*words, given=b""):
    return subprocess.run(
        [sys.executable, "-m", "dragoman", "predict", *map(str, words)],
        input=given, capture_output=True, timeout=120, check=False,
    )  # fmt: skip


def test_high_confidence_rows_may_go_to_standard_output(trained, tmp_path):
    low = tmp_path / "low.jsonl"
    words = [
        "--jsonl",
        "--min-confidence",
        "0.5",
        "--low-confidence-output",
        low,
        "--threads",
        "1",
    ]
    found = run(trained[0], *words, given=b"abc\n\nabd\n")
    assert found.returncode == 0, found.stderr
    assert [json.loads(line)["line"] for line in found.stdout.splitlines()] == [1, 3]
    assert [row["line"] for row in read_rows(low)] == [2]
    assert b"of 3 rows 2 (66.7%) in standard output, 1 (33.3%) in" in found.stderr
    assert names_in(tmp_path) == ["low.jsonl"]


def test_a_second_file_that_could_lose_rows_is_an_error(trained, tmp_path):
    (tmp_path / "in.txt").write_text("abc\n")
    sure, low = tmp_path / "sure.jsonl", tmp_path / "low.jsonl"
    for words, message in (
        (["--min-confidence", "0.5"], "must be given together"),
        (["--low-confidence-output", low], "must be given together"),
        (["--min-confidence", "1.5", "--low-confidence-output", low], "not a number from 0 to 1"),
        (["--min-confidence", "nan", "--low-confidence-output", low], "not a number from 0 to 1"),
        (["--min-confidence", "0.5", "--low-confidence-output", sure], "the --output too"),
        (["--min-confidence", "0.5", "--low-confidence-output", tmp_path], "not a file"),
        (["--min-confidence", "0.5", "--low-confidence-output", os.devnull], "not a file"),
        (
            ["--min-confidence", "0.5", "--low-confidence-output", tmp_path / "no" / "low.jsonl"],
            "cannot be written",
        ),
        (
            ["--min-confidence", "0.5", "--low-confidence-output", tmp_path / "low.txt"],
            "--low-confidence-output",
        ),
        (
            [
                "--min-confidence",
                "0.5",
                "--low-confidence-output",
                low,
                "--output",
                tmp_path / "a.txt",
            ],
            "--output",
        ),
    ):
        output = [] if "--output" in words else ["--output", sure]
        found = run(trained[0], "--input", tmp_path / "in.txt", *output, *words)
        assert found.returncode == 2, words
        assert message in found.stderr.decode()
        assert b"Traceback" not in found.stderr
        assert names_in(tmp_path) == ["in.txt"]
