"""Records that a model predicts: the confidence of each value, and records without unsure values."""

import csv
import io
import json
import pickle
import shutil
from dataclasses import replace

import pyarrow.parquet
import pytest

from conftest import make_words
from dragoman.cli import main
from dragoman.commands.evaluate import evaluate
from dragoman.commands.predict import Job, run_job
from dragoman.model_folder.calibration import read_calibration, write_calibration
from dragoman.predictor import Predictor

WORDS = make_words(60, seed=1)
THRESHOLD = 0.8  # the model is sure of the currency only


@pytest.fixture(scope="module")
def model(trained_on_records):
    return Predictor.load(trained_on_records[0], threads=1)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("\n".join([*WORDS, "", "ab"]) + "\n")
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def split(model, source, name, *, min_confidence=THRESHOLD):
    """Predict into two files, and return them with the lines for the user."""
    sure, low = source.with_name(f"sure{name}"), source.with_name(f"low{name}")
    job = Job(input=source, output=sure, low_confidence_output=low, min_confidence=min_confidence)
    return sure, low, run_job(model, job)


def test_each_value_has_a_confidence_from_its_tokens(trained_on_records, model):
    settings = {"decoding.token_scores": True}
    scored = Predictor.load(trained_on_records[0], settings, engine="torch").predict_n_best(WORDS)
    for [lazy], [given] in zip(model.predict_n_best(WORDS), scored, strict=True):
        assert lazy.text == given.text
        assert not lazy.log_probs
        for one, other in zip(lazy.fields, given.fields, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-3)
            assert one[:2] == other[:2]
            assert lazy.text[one.start : one.end].strip('"') == one.value
            assert 0.0 <= one.confidence <= 1.0
        assert sum(one.score for one in lazy.fields) >= lazy.score - 1e-3
    assert [one._asdict() for one in lazy.fields] == lazy.to_dict()["fields"]
    assert pickle.loads(pickle.dumps(lazy)).fields == lazy.fields


def test_tokens_are_scored_only_where_confidence_of_values_is_asked_for(model, source, monkeypatch):
    def refuse(*_):
        raise AssertionError("scored")

    monkeypatch.setattr(model.engine, "score", refuse)
    for name in ("out.txt", "out.csv"):
        run_job(model, Job(input=source, output=source.with_name(name)))
    model.predict(WORDS)
    with pytest.raises(AssertionError, match="scored"):
        run_job(model, Job(input=source, output=source.with_name("out.jsonl")))


def test_values_of_truncated_outputs_are_never_sure(trained_on_records, model):
    [[whole]] = model.predict_n_best(["abc"])
    settings = {"decoding.max_length": len(whole.tokens) - 1}  # no room for the end
    [[found]] = Predictor.load(trained_on_records[0], settings).predict_n_best(["abc"])
    assert found.text == whole.text
    assert not found.is_complete
    assert [one.confidence for one in found.fields] == [0.0] * len(whole.fields)


@pytest.mark.parametrize("name", [".jsonl", ".parquet", ".csv", ".tsv"])
def test_unsure_values_leave_their_records_and_are_listed(model, source, name):
    whole = source.with_name("whole.jsonl")
    run_job(model, Job(input=source, output=whole))
    sure, low, lines = split(model, source, name)
    if name == ".parquet":
        kept, listed = (pyarrow.parquet.read_table(path).to_pylist() for path in (sure, low))
    elif name == ".jsonl":
        kept = [{**row, "prediction": row["text"]} for row in read_rows(sure)]
        listed = read_rows(low)
    else:
        dialect = {".csv": "excel", ".tsv": "excel-tab"}[name]
        quoting = csv.QUOTE_MINIMAL if name == ".csv" else csv.QUOTE_NONE
        kept, listed = (
            list(
                csv.DictReader(
                    io.StringIO(path.read_bytes().decode()), dialect=dialect, quoting=quoting
                )
            )
            for path in (sure, low)
        )
    by_line = {int(row["line"]): row for row in kept}
    values = [row for row in listed if row.get("field")]
    others = [row for row in listed if not row.get("field")]
    expected = []
    for row in read_rows(whole):
        unsure = [one for one in row.get("fields", []) if one["confidence"] < THRESHOLD]
        expected += [(row["line"], *one.values()) for one in unsure]
        if row.get("fields"):
            names = {one["field"] for one in unsure}
            record = {
                name: value for name, value in json.loads(row["text"]).items() if name not in names
            }
            assert json.loads(by_line[row["line"]]["prediction"]) == record
        else:  # invalid, or no record
            assert row["line"] in {int(one["line"]) for one in [*others, *kept]}
    names = ("field", "value", "confidence")
    found = [(int(row["line"]), *(row[name] for name in names)) for row in values]
    assert [(line, field, value, float(sure)) for line, field, value, sure in found] == expected
    assert {field for _, field, *_ in expected} == {"name", "sale"}
    assert any("error" in row and row["error"] for row in others)  # the empty line
    [line] = [line for line in lines if "are left out of their records" in line]
    assert f"{len(expected)} are left out" in line
    assert "sale " in line


def test_no_value_is_unsure_at_confidence_0(model, source):
    sure, low, lines = split(model, source, ".jsonl", min_confidence=0.0)
    assert not any("field" in row for row in read_rows(low))
    assert all(len(row["fields"]) >= 3 for row in read_rows(sure) if row["fields"])
    assert any(" 0 are left out of their records" in line for line in lines)


def test_a_folder_without_calibrated_fields_says_so(trained_on_records, tmp_path, capsys):
    folder = tmp_path / "older"
    shutil.copytree(trained_on_records[0], folder)
    stored = read_calibration(folder)
    write_calibration(folder, stored.model_copy(update={"version": 1, "records": None}))
    (tmp_path / "in.txt").write_text("abc\n")
    words = ["predict", str(folder), "--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "a.jsonl"),
             "--min-confidence", "0.5", "--low-confidence-output", str(tmp_path / "b.jsonl")]  # fmt: skip
    assert main(words) == 0
    assert "calibrated for whole outputs, not for their fields" in capsys.readouterr().err
    # Without decoding.records, as in folders of before, it is whole records that leave.
    settings = {"decoding.records": "none"}
    source = tmp_path / "in.txt"
    sure, low, _ = split(Predictor.load(folder, settings), source, ".jsonl", min_confidence=0.99)
    assert sure.read_text() == ""
    assert [row["text"][0] for row in read_rows(low)] == ["{"]
    pairs = [(word, json.dumps({"name": word.upper(), "currency": "EUR"})) for word in WORDS]
    evaluate(folder, pairs, calibrate=True)
    assert read_calibration(folder).records is not None


def test_grounding_and_confidence_leave_out_values_together(trained_on_records, source):
    settings = {"decoding.require_grounding": "near"}  # no source has EUR
    model = Predictor.load(trained_on_records[0], settings)
    for [one] in filter(None, model.predict_n_best(WORDS)):
        assert "currency" not in {value.field for value in one.fields}
        for value in one.fields:
            assert one.text[value.start : value.end].strip('"') == value.value
        assert pickle.loads(pickle.dumps(one)).fields == one.fields
        assert replace(one).fields == one.fields
    sure, _, _ = split(model, source, ".jsonl")
    assert {row["text"] for row in read_rows(sure) if row["fields"] is not None} >= {"{}"}


def test_evaluate_and_its_report_show_each_field(trained_on_records, tmp_path, capsys):
    folder, _ = trained_on_records
    report = tmp_path / "report.html"
    pairs = str(folder.with_name("pairs.tsv"))
    assert (
        main(
            ["evaluate", str(folder), pairs, "--out", str(tmp_path / "e"), "--report", str(report)]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if line.startswith("  currency ") and "kept" in line]
    assert "right at 100% kept" in line
    fields = json.loads((tmp_path / "e/scores.json").read_text())["confidence"]["fields"]
    assert {one["field"] for one in fields} >= {"name", "sale", "currency"}
    page = report.read_text("utf-8")
    assert "right among the kept" in page
    assert "no threshold can guarantee 90%" in page
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {one["field"] for one in metrics["fields"]["valid"]} >= {"name", "sale", "currency"}
