"""Features at every door: fit, evaluate, predict from files and streams, Python."""

import pytest

import dragoman
import dragoman.commands.evaluate
import dragoman.presets
from conftest import BRIEF, make_words, quiet_console
from dragoman import read_settings
from dragoman.model_folder.folder import ModelFolder
from dragoman.reading.pairs import join_features, read_pairs, take_features
from dragoman.reading.statistics import collect_statistics
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
