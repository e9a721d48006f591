"""A model of records: `fit` finds them, and its outputs are records again or marked."""

import json

import pyarrow.parquet as pq
import pytest

from conftest import BRIEF, SMALL, quiet_console
from dragoman import Predictor, evaluate, fit, read_settings
from dragoman.commands.predict import Job, run_job
from dragoman.errors import DragomanError
from dragoman.model_folder.folder import ModelFolder
from dragoman.serving.app import Corrections
from dragoman.serving.messages import CorrectionRequest, RequestError
from dragoman.settings import Settings


def require(**properties):
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


SCHEMA = {
    **require(total={"enum": [1.5]}, seller=require(name={"enum": ["ab"]})),
    "x-guidance": {"whitespace_flexible": False},
}
WRITTEN = '{"seller":{"name":"ab"},"total":1.5}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that has hardly learned: its outputs are no JSON, unless they are constrained."""
    folder, console = tmp_path_factory.mktemp("records"), quiet_console()
    sellers = ["ab", "cd", "ef", "gh"]
    rows = [
        {"text": f"{seller} {total}", "record": {"seller": {"name": seller}, "total": total}}
        for seller in sellers
        for total in (1.5, 2.5, 35, None)
    ]
    rows[1]["record"] = dict(reversed(rows[1]["record"].items()))
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [*SMALL, *BRIEF, "--data.valid_fraction", "0.4", "--decoding.max_length", "60"]
    words += ["--tokenizer.pointers", "false"]  # a constraint spells
    fit(folder / "pairs.jsonl", folder / "model", read_settings(None, words), console=console)
    (folder / "console.txt").write_text(console.file.getvalue())
    (folder / "in.tsv").write_text("ab 1.5\ncd 2.5\n")
    return folder


@pytest.fixture(scope="module")
def guided(folder):
    decoding = {"json_schema": json.dumps(SCHEMA), "max_length": 0}
    return Predictor.load(folder / "model", Settings.model_validate({"decoding": decoding}))


def predict(model, folder, name, **options):
    job = Job(input=folder / "in.tsv", output=folder / name, restart=True, **options)
    return run_job(model, job), folder / name


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_fit_says_what_it_found_and_stores_it(folder):
    told = " ".join((folder / "console.txt").read_text().split())
    assert "targets are JSON objects, with the fields in one order: seller, total, name" in told
    data = ModelFolder.read(folder / "model").settings.data
    assert (data.records, data.record_fields) == ("json", ("seller", "total", "name"))


def test_outputs_are_records_in_the_order_of_training(folder, guided):
    assert guided.predict(["ab 1.5"]) == [WRITTEN]
    [[best]] = guided.predict_n_best(["ab 1.5"])
    assert best.record == {"seller": {"name": "ab"}, "total": 1.5}
    lines, path = predict(guided, folder, "good.jsonl")
    assert lines == []
    for row in read_lines(path):
        assert (row["text"], row["record"]) == (WRITTEN, best.record)
        assert "error" not in row
    assert predict(guided, folder, "good.txt")[1].read_text() == f"{WRITTEN}\n{WRITTEN}\n"


def test_malformed_outputs_are_marked_and_counted(folder):
    model, wrong = Predictor.load(folder / "model"), "the output is not a JSON object"
    [[best]] = model.predict_n_best(["ab 1.5"])
    assert best.record is None
    lines, path = predict(model, folder, "bad.jsonl")
    assert "2 rows whose output is not a JSON object: line 1, 2" in lines
    for row in read_lines(path):
        assert row["record"] is None
        assert row["text"]
        assert row["error"] == wrong
    assert wrong in predict(model, folder, "bad.csv")[1].read_text()
    table = pq.read_table(predict(model, folder, "bad.parquet")[1])
    assert table["error"].to_pylist() == [wrong, wrong]
    assert "record" not in table.column_names
    _, low = predict(model, folder, "high.jsonl", low_confidence_output=folder / "low.jsonl")
    assert read_lines(low) == []
    assert len(read_lines(folder / "low.jsonl")) == 2


def test_n_best_lists_have_records(folder, guided):
    found = {"decoding.beam_size": 2, "decoding.num_hypotheses": 2}
    many = Predictor.load(folder / "model", found)
    _, path = predict(many, folder, "many.jsonl")
    assert all("record" in one for row in read_lines(path) for one in row["hypotheses"])
    table = pq.read_table(predict(many, folder, "many.parquet")[1])
    assert all(len(row) == 2 for row in table["hypotheses"].to_pylist())


def test_targets_to_score_may_have_their_fields_in_any_order(guided):
    model = guided.with_decoding(Settings.model_validate({"decoding": {"json_schema": ""}}))
    text = json.dumps({"total": 1.5, "seller": {"name": "ab"}}, indent=1)
    one, other = model.score(["ab 1.5"] * 2, [text, WRITTEN])
    assert (one.text, one.score) == (WRITTEN, pytest.approx(other.score))
    with pytest.raises(DragomanError, match=r"targets\[0\]: the target is invalid JSON"):
        model.score(["ab 1.5"], ["total: 1"])


def test_references_in_any_order_are_the_same_record(guided):
    rows = [("ab 1.5", {"total": 1.5, "seller": {"name": "ab"}})]
    assert evaluate(guided, rows).scores.exact_match == 100.0


def test_a_correction_must_be_a_record(guided, tmp_path):
    corrections = Corrections(tmp_path / "c.tsv", [guided])
    corrections.add(CorrectionRequest(source="ab 1.5", target=WRITTEN), guided)
    with pytest.raises(RequestError, match="the target is invalid JSON"):
        corrections.add(CorrectionRequest(source="ab 1.5", target="total: 1"), guided)
