"""Features at every door: fit, evaluate, predict from files and streams, Python."""

import io
import json
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest

import dragoman
import dragoman.commands.evaluate
import dragoman.evaluation.evaluation
import dragoman.presets
import dragoman.reading.pairs
from conftest import BRIEF, make_words, quiet_console
from dragoman import read_settings
from dragoman.configuration import merge_settings
from dragoman.model_folder.folder import ModelFolder, write_example
from dragoman.reading.pairs import join_features, read_pairs, read_sources, take_features
from dragoman.reading.statistics import collect_statistics
from dragoman.reading.tables import is_header
from dragoman.settings import DataSettings

KINDS = ["V;PST;3;SG", "V;PST", "V;PRS;3;SG", "N;PL"]
WORDS = make_words(60, seed=3)
ROWS = [(word, word.upper(), KINDS[i % 4]) for i, word in enumerate(WORDS)]
TINY = [
    *BRIEF, "--model.d_model", "16", "--model.dim_feedforward", "16", "--model.nhead", "2",
    "--data.cache", "none", "--data.source", "word", "--data.target", "form",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with the feature "kind", hardly trained."""
    folder = tmp_path_factory.mktemp("features")
    lines = ["word,form,kind", *map(",".join, ROWS)]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    settings = read_settings(None, [*TINY, "--data.features", "kind"])
    dragoman.fit(folder / "pairs.csv", folder / "model", settings, console=quiet_console())
    return folder / "model"


def measure(*values, label="tags"):
    settings = DataSettings(features=(label,))
    rows = [take_features("a", [value], [label], settings) for value in values]
    return collect_statistics(dragoman.Pair("a", "b", row, 1, "x") for _, row in rows)


@pytest.mark.parametrize(
    ("values", "separator"),
    [
        (KINDS, ";"),
        (["V;PST", "V;PRS", "N;SG", "N;PL", "ADJ"], ";"),
        (["Case=Nom|Number=Sing", "Case=Acc|Number=Sing"], "|"),
        (["en", "de", "fr"], ""),
        (["Smith;John", "Doe;Jane", "Roe;Ann"], ""),
        (["to go; to walk", "to go; to run"], ""),
        (["V;PST", "V;PST"], ""),  # one value: nothing recurs
    ],
)
def test_a_separator_of_features_is_found_where_parts_recur(values, separator):
    assert measure(*values).features_separator == separator


def test_each_part_of_a_feature_is_a_symbol(model):
    stored = ModelFolder.read(model)
    assert stored.settings.data.features_separator == ";"
    parts = {f"kind={part}" for kind in KINDS for part in kind.split(";")}
    assert {*stored.tokenizer.features} == parts
    for sample in stored.metrics["samples"]:
        assert sample["features"][0] in KINDS
    _, content = dragoman.commands.evaluate.find_run(model)
    assert {one["group"] for one in content["breakdown"]["feature"]} <= parts


def test_features_stay_whole_if_the_user_says_so(tmp_path):
    [pair, *_] = read_pairs("tests/reading/cases/unimorph.tsv", DataSettings(features=("3",)))
    assert pair.features == ("3=V;PST;3;SG",)
    words = ["--data.features", "3", "--data.features_separator", "none"]
    settings = read_settings(None, words)
    pairs = list(read_pairs("tests/reading/cases/unimorph.tsv", settings.data))
    found = dragoman.presets.choose_settings(settings, collect_statistics(pairs))
    assert found.settings.data.features_separator == ""
    assert not [one for one in found.reasons if "features" in one]


def test_features_are_split_and_joined_again():
    settings = DataSettings(features=("a", "b"), features_separator=";", leading_tags=True)
    text, features = take_features("<x> walk", ["V; PST;", ""], ["a", "b"], settings)
    assert (text, features) == ("walk", ("a=V", "a=PST", "<x>"))
    assert join_features(features, settings) == (["V;PST", ""], ["<x>"])
    whole = DataSettings(features=("a", "b"))
    _, features = take_features("walk", ["a=V;PST", ""], ["a", "b"], whole)
    assert join_features(features, whole) == (["a=V;PST", ""], [])


def write_tsv(path, rows, header=()):
    path.write_text(
        "".join("\t".join(row) + "\n" for row in [*([header] if header else []), *rows])
    )
    return path


@pytest.fixture(scope="module")
def expected(model):
    """The score of the output of each row."""
    best = dragoman.load(model).predict_n_best([row[0] for row in ROWS], [[row[2]] for row in ROWS])
    return [round(one[0].score, 5) for one in best]


@pytest.mark.parametrize(
    ("header", "words", "note"),
    [
        (("word", "form", "kind"), [], "feature 'kind'"),
        (("Word", "FORM", "Kind"), [], "feature 'Kind'"),
        (("Word", "FORM", "Kind"), ["--data.features", "KIND"], "feature 'Kind'"),
        ((), [], "no header; columns by position: 1 source, 2 target, 3 feature 'kind'"),
        ((), ["--data.features", "3"], "3 feature 'kind'"),
        (("word", "form", "type"), ["--data.features", "type"], "feature 'type' as 'kind'"),
        (("word", "form", "type"), ["--data.features", "3"], "feature 'type' as 'kind'"),
    ],
)
def test_the_columns_of_features_are_matched_to_the_names_of_training(
    model, expected, header, words, note, tmp_path
):
    found = dragoman.reading.pairs.RowErrors()
    settings, pairs = read_settings(None, words), write_tsv(tmp_path / "p.tsv", ROWS, header)
    rows = dragoman.evaluate(model, pairs, settings, row_errors=found).rows
    assert [round(row.score, 5) for row in rows] == expected
    assert note in found.layouts[0]


def test_json_objects_have_features_under_any_name(model, expected, tmp_path):
    pairs = tmp_path / "p.jsonl"
    names = ("type", "form", "word")
    pairs.write_text(
        "".join(json.dumps(dict(zip(names, row[::-1], strict=True))) + "\n" for row in ROWS)
    )
    rows = dragoman.evaluate(model, pairs, read_settings(None, ["--data.features", "type"])).rows
    assert [round(row.score, 5) for row in rows] == expected


def test_features_in_another_order_are_those_of_training(tmp_path):
    settings, labels = DataSettings(features=("tense", "kind")), ("kind", "tense")
    rows = [("a", "b", "V", "PST")]
    paths = [
        (write_tsv(tmp_path / "named.tsv", rows, ("source", "target", "kind", "tense")), settings),
        (tmp_path / "named.tsv", DataSettings(features=("4", "3"))),
        (tmp_path / "named.tsv", DataSettings(features=("TENSE", "3"))),
        (write_tsv(tmp_path / "plain.tsv", rows), DataSettings(features=("3", "4"))),
    ]
    for path, given in paths:
        [pair] = read_pairs(path, given, labels=labels)
        assert pair.features == ("kind=V", "tense=PST")


def test_another_number_of_features_is_refused(model):
    for words in (["a,b"], [""]):
        with pytest.raises(dragoman.SettingsError, match="the model has 1 features, kind: give"):
            dragoman.load(model, read_settings(None, ["--data.features", *words]))
    with pytest.raises(dragoman.DragomanError, match="give 1 values for each"):
        dragoman.load(model, read_settings(None, ["--data.features", "3"])).predict(["a"])


def run(command, given=None):
    found = subprocess.run(
        ["bash", "-c", command],
        input=given,
        capture_output=True,
        timeout=120,
        check=False,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return found


STREAMS = {
    "header": ("auto", "word\tform\tKind\nab\tAB\tV\nac\tAC\tN\n"),
    "lines": ("auto", "ab\tV\nac\tN\n"),
    "pairs": ("auto", "ab\tAB\tV\nac\tAC\tN\n"),
    "csv": ("csv", "Kind,form,word\r\nV,AB,ab\r\nN,AC,ac\r\n"),
    "Excel": ("csv", '"word";"form";"kind"\n"ab";"AB";"V"\n"ac";"AC";"N"\n'),
    "Excel's separator": ("csv", "sep=|\r\nword|form|kind\r\nab|AB|V\r\nac|AC|N\r\n"),
    "CSV lines": ("csv", "ab,V\nac,N\n"),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_have_features_with_and_without_a_header(kind, tmp_path):
    form, text = STREAMS[kind]
    settings = DataSettings(source="word", target="form", features=("kind",), format=form)
    path = tmp_path / f"x.{'csv' if form == 'csv' else 'tsv'}"
    path.write_bytes(text.encode())
    for given in (io.BytesIO(text.encode()), path):
        rows = list(read_sources(given, settings, labels=("kind",)))
        assert [(row.source, row.features) for row in rows] == [
            ("ab", ("kind=V",)),
            ("ac", ("kind=N",)),
        ]


@pytest.mark.parametrize(
    ("form", "text", "sources"),
    [
        ("auto", "word\nWort\n", ["word", "Wort"]),  # a single column has no header
        ("csv", "word\nab\n", ["ab"]),
        ("csv", "a;b\nc;d;e\n", ["a;b", "c;d;e"]),
    ],
)
def test_the_first_line_of_a_stream_is_a_source_unless_it_names_columns(form, text, sources):
    settings = DataSettings(source="word", format=form)
    rows = read_sources(io.BytesIO(text.encode()), settings, labels=())
    assert [row.source for row in rows] == sources


def test_the_word_auto_is_no_header():
    pairs = b"auto\tcar\nHaus\thouse\n"
    assert not is_header(["auto", "car"], wanted=("auto", "auto"), is_csv=False)
    rows = read_sources(io.BytesIO(pairs), DataSettings())
    assert [row.source for row in rows] == ["auto", "Haus"]


def test_unknown_features_are_reported_at_every_door(model, tmp_path):
    with pytest.warns(UserWarning, match="has never seen: kind=DU"):
        dragoman.load(model).predict(["a", "b"], [["N;DU"], ["N;PL"]])
    pairs = write_tsv(tmp_path / "p.tsv", [("abc", "ABC", "N;DU"), ("abd", "ABD", "N;PL")])
    evaluation = dragoman.evaluate(model, pairs)
    assert evaluation.model["unknown_features"] == {"kind=DU": 1}
    shown = dragoman.evaluation.evaluation.summarize(evaluation.to_dict())
    assert "features that the model has never seen: kind=DU (1 rows)" in shown
    found = run(f"{sys.executable} -m dragoman predict {model} --input {pairs}")
    assert "1 rows with the feature kind=DU, which the model has never seen: line 1" in found.stderr


@pytest.mark.parametrize(
    "values",
    [
        {},  # columns by name
        {"source": "translation.en", "format": "jsonl"},
        {"format": "csv", "header": "yes", "encoding": "cp1252"},
        {"source": "1", "separator": ":"},
        {"source": "2", "target": "1", "features": ["5"]},
        {"source": "5", "features": ["2"], "format": "parquet"},
        {"source": "1", "target": "2", "features": [], "format": "parallel", "leading_tags": True},
    ],
)
def test_the_printed_command_runs_for_every_kind_of_model(model, values, tmp_path):
    stored = ModelFolder.read(model)
    data = {f"data.{name}": value for name, value in values.items()}
    settings = merge_settings(stored.settings, data, overrule=True)
    if not (has_features := bool(settings.data.features)):
        more = {"decoding.beam_size": 2, "decoding.num_hypotheses": 2}
        settings = merge_settings(settings, more, overrule=True)
    sample = {"source": "it's %s", "features": ["N;PL"] * has_features, "reference": "a"}
    metrics = {**stored.metrics, "samples": [sample, {**sample, "source": "a\tb"}]}
    replace(stored, settings=settings, metrics=metrics).write(tmp_path / "m")
    command = f"{sys.executable} -m dragoman predict {tmp_path / 'm'}"
    [line] = run(write_example(command, settings, metrics)).stdout.splitlines()
    features = [sample["features"]] if has_features else None
    with warnings.catch_warnings(action="ignore"):  # "5=N"
        [expected] = dragoman.load(tmp_path / "m").predict([sample["source"]], features)
    assert (line if has_features else json.loads(line)["text"]) == expected.removesuffix(
        "" if has_features else " [truncated]"
    )


def test_the_model_card_has_a_command_that_runs(model):
    card = (model / "README.md").read_text()
    [command] = [line for line in card.splitlines() if "dragoman predict" in line]
    command = command.replace("dragoman", f"{sys.executable} -m dragoman")
    assert len(run(f"cd {model.parent}; {command}").stdout.splitlines()) == 1
