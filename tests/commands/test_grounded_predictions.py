"""Records that a model predicts: where their values stand, through every door."""

import json
import pickle
from dataclasses import replace

import pyarrow.parquet
import pytest

from conftest import BRIEF, SMALL, make_words, quiet_console
from dragoman import fit, read_settings
from dragoman.cli import main
from dragoman.commands.output_formats import RowWriter, write_parquet
from dragoman.commands.predict import Job, run_job
from dragoman.errors import SettingsError
from dragoman.predictor import Predictor
from dragoman.reading.pairs import Source
from dragoman.settings import DecodingSettings

SOURCES = [f"👩‍💻 {name} in {city}, {total}.00" for name in ("Zoë", "Ada") for city in ("Bonn", "Graz") for total in range(9)]  # fmt: skip
# A model that has learned nothing; the only output that is allowed is the same for each source.
RECORD = '{"name":"Zoë","city":"Graz","total":5.0}'
SOURCE = "👩‍💻 Zoe\u0308 in Bonn, 5.00"
SPANS = [
    {"field": "name", "value": "Zoë", "start": 4, "end": 8, "kind": "exact"},
    {"field": "city", "value": "Graz", "start": None, "end": None, "kind": "none"},
    {"field": "total", "value": "5.0", "start": 18, "end": 22, "kind": "near"},
]


def to_record(source):
    _, name, _, city, total = source.replace(",", "").split()
    return {"name": name, "city": city, "total": float(total)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    pairs = [(one, json.dumps(to_record(one), ensure_ascii=False)) for one in SOURCES]
    words = [*SMALL, *BRIEF, "--tokenizer.pointers", "false"]  # choices are spelled
    fit(pairs, folder / "model", read_settings(None, words), console=quiet_console())
    (folder / "choices.txt").write_text(RECORD)
    return folder


def load(folder, **decoding):
    given = {"choices": str(folder / "choices.txt"), **decoding}
    return Predictor.load(
        folder / "model", {f"decoding.{name}": value for name, value in given.items()}
    )


def test_fit_finds_that_outputs_are_records(folder):
    assert load(folder).settings.decoding.records == "json"


def test_each_value_of_a_prediction_has_its_place_in_the_source(folder):
    [[found]] = load(folder).predict_n_best([SOURCE])
    assert [span._asdict() for span in found.spans] == found.to_dict()["spans"] == SPANS
    assert found.source[slice(*found.spans[0][2:4])] == "Zoe\u0308"


@pytest.mark.parametrize(
    ("required", "text", "count"),
    [
        ("none", RECORD, 0),
        ("near", '{"name":"Zoë","total":5.0}', 1),
        ("exact", '{"name":"Zoë"}', 2),
    ],
)
def test_values_that_do_not_stand_in_the_source_are_left_out(folder, required, text, count):
    model = load(folder, require_grounding=required)
    [[found]] = model.predict_n_best([SOURCE])
    assert (found.text, found.num_left_out, found.emitted) == (text, count, RECORD)
    assert model.predict([SOURCE]) == [text]
    [given] = model.score([SOURCE], [RECORD])
    assert given.text == RECORD  # it was given


def test_places_stay_where_other_values_are_left_out(folder):
    record = '{"name":"Bo,nn","city":"Bonn","total":"Bonn"}'
    (folder / "same.txt").write_text(record)
    model = load(folder, choices=str(folder / "same.txt"))
    [[whole]] = model.predict_n_best(["from Bonn, to Bonn, via Bonn"])
    assert [span.start for span in whole.spans] == [5, 14, 24]
    exact = model.with_decoding(read_settings(None, ["--decoding.require_grounding", "exact"]))
    [[found]] = exact.predict_n_best(["from Bonn, to Bonn, via Bonn"])
    assert found.spans == pickle.loads(pickle.dumps(found)).spans == whole.spans[1:]
    surer = whole.without(whole.fields[1:2])
    assert (surer.text, surer.spans) == (record.replace(',"city":"Bonn"', ""), whole.spans[::2])
    assert [surer.text[one.start : one.end] for one in surer.fields] == ['"Bo,nn"', '"Bonn"']


def test_files_have_the_places_and_the_user_is_told_what_was_left_out(folder, tmp_path, capsys):
    path, words = tmp_path / "in.jsonl", ["--decoding.choices", str(folder / "choices.txt")]
    path.write_text(json.dumps({"source": SOURCE}))
    command = ["predict", str(folder / "model"), "--input", str(path), *words]
    assert main([*command, "--jsonl"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["spans"], "source" in row) == (SPANS, False)  # it is in the input
    output = tmp_path / "out.parquet"
    assert main([*command, "--output", str(output), "--require-grounding", "near"]) == 0
    told = capsys.readouterr().err
    assert "1 values left out: they do not stand in the source" in told
    [row] = pyarrow.parquet.read_table(output).to_pylist()
    assert row["spans"] == [SPANS[0], SPANS[2]]
    twice = ["--require-grounding", "near", "--decoding.require_grounding", "exact"]
    assert main([*command, *twice]) == 2
    assert "the same setting" in capsys.readouterr().err


def test_half_a_surrogate_pair_is_replaced_in_a_table(folder, tmp_path):
    [[best]] = load(folder).predict_n_best([SOURCE])
    text, lines = '{"name":"\\ud800"}', tmp_path / "lines"
    broken = replace(best, text=text, emitted=text, _fields=())
    writer = RowWriter(layout="parquet", decoding=DecodingSettings())
    lines.write_text(writer.write(Source(SOURCE, (), 1), [broken])[0], errors="backslashreplace")
    write_parquet(lines, tmp_path / "out.parquet")
    [row] = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert (row["prediction"], [one["value"] for one in row["spans"]]) == (text, ["?"])


def test_places_are_in_the_source_without_its_leading_tags(folder, tmp_path):
    path = tmp_path / "in.txt"
    path.write_text(f"<de> {SOURCE}\n")
    model = load(folder).with_decoding(read_settings(None, ["--data.leading_tags", "true"]))
    run_job(model, Job(input=path, output=tmp_path / "out.jsonl"))
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["source"], row["spans"]) == (SOURCE, SPANS)


def test_an_output_that_is_no_record_is_named(folder, tmp_path):
    (folder / "broken.txt").write_text(RECORD[:-1])
    model = load(folder, choices=str(folder / "broken.txt"), require_grounding="near")
    path = tmp_path / "in.txt"
    path.write_text(f"{SOURCE}\n")
    [line, _] = run_job(model, Job(input=path, output=tmp_path / "out.txt"))
    assert line == "1 rows whose output is no record, so that no value of it was checked: line 1"
    assert (tmp_path / "out.txt").read_text() == f"{RECORD[:-1]}\n"


def test_text_has_no_places_and_cannot_be_grounded(trained, tmp_path):
    [[found]] = trained[1].predict_n_best(["abc"])
    assert (found.spans, trained[1].settings.decoding.records) == ([], "none")
    with pytest.raises(
        SettingsError, match=r"decoding\.require_grounding: near is for outputs that"
    ):
        Predictor.load(trained[0], {"decoding.require_grounding": "near"})
    older = {"decoding.records": "auto", "decoding.require_grounding": "near"}
    with pytest.raises(SettingsError, match=r"name their format in decoding\.records: json, lines"):
        Predictor.load(trained[0], older)
    words = [*SMALL, *BRIEF, "--decoding.require_grounding", "near"]
    with pytest.raises(SettingsError, match=r"and decoding\.records is none"):
        fit(
            [(word, word.upper()) for word in make_words(60)],
            tmp_path / "m",
            read_settings(None, words),
            console=quiet_console(),
        )
