"""The search and the weights that `fit` chooses on validation rows."""

import json
import pickle
import random
import shutil

import pytest

import dragoman
from conftest import BRIEF, SMALL, make_words, quiet_console, write_pairs
from dragoman import fit, read_settings
from dragoman.commands import fit_decoding
from dragoman.commands.fit_decoding import Trial, accept_int8, choose_search
from dragoman.engines.ctranslate2_engine import CTranslate2Engine
from dragoman.evaluation.metrics import make_exact_match
from dragoman.evaluation.output_rows import Row
from dragoman.predictor import Predictor

# Words of other lengths and letters than those of the training, of which the models are not sure.
WORDS = ["".join(random.Random(i).choices("abcdefgh", k=10 + i % 5)) for i in range(80)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose targets are AA (40%) or B with one of eight letters: greedy search begins with B."""
    folder, chance = tmp_path_factory.mktemp("garden_path"), random.Random(1)
    targets = [
        "AA" if chance.random() < 0.4 else "B" + chance.choice("CDEFGHIJ") for _ in range(1000)
    ]
    pairs, console = folder / "pairs.tsv", quiet_console()
    pairs.write_text("".join(map("{}\t{}\n".format, make_words(1000), targets)))
    words = [
        *SMALL, "--model.d_model", "32", "--training.max_steps", "60", "--training.valid_every", "60",
        "--optimization.learning_rate", "0.01", "--optimization.warmup_steps", "10",
        "--optimization.average_decay", "0", "--training.monitor", "exact_match",
        "--data.test_fraction", "0.2", "--evaluation.report", "none", "--training.loggers", "none",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_decoding, "_FEWEST_BYTES", 0)
        patch.setattr(fit_decoding, "_LEAST_GAIN", 0.0)
        fit(pairs, folder / "model", read_settings(None, words), console=console)
    return folder / "model", console.file.getvalue()


def test_a_better_beam_is_chosen_written_and_used(run):
    folder, logged = run
    assert "decoding: beam 5, length penalty 1; better than greedy on" in " ".join(logged.split())
    assert read_settings(folder / "config.yaml").decoding.beam_size == 5
    assert set(dragoman.load(folder).predict(WORDS)) == {"AA"}


def test_an_option_overrules_the_choice(run):
    greedy = dragoman.load(run[0], {"decoding.beam_size": 1}, quantization="float32")
    assert greedy.engine.quantization == "float32"
    assert all(text.startswith("B") for text in greedy.predict(WORDS))
    assert dragoman.load(run[0], engine="torch").engine.quantization == "float32"


def test_scores_and_confidence_are_those_of_the_choice(run):
    folder = run[0]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert min(metrics[split]["exact_match"] for split in ("valid", "test")) > 25
    assert {one["prediction"] for one in metrics["samples"]} == {"AA"}
    tried = {one["name"]: one["score"] for one in metrics["decoding"]["tried"]}
    assert tried["greedy"] < 25 < tried["beam 5, length penalty 1"] == tried["float32"]
    scores = json.loads((folder / "evaluation" / "test" / "scores.json").read_text())
    assert (scores["speed"]["engine"], scores["speed"]["quantization"]) == ("ctranslate2", "int8")
    assert dragoman.load(folder).describe_calibration() == ""
    card = (folder / "README.md").read_text()
    assert all(f"- {reason}\n" in card for reason in metrics["decoding"]["reasons"])


def test_int8_is_used_where_its_outputs_are_as_good(run, tmp_path):
    folder, logged = run
    assert "weights: int8; 0 of " in " ".join(logged.split())
    model = dragoman.load(folder)
    assert (model.engine.name, model.engine.quantization) == ("ctranslate2", "int8")
    assert pickle.loads(pickle.dumps(model)).engine.quantization == "int8"
    copy, pairs = shutil.copytree(folder, tmp_path / "copy"), tmp_path / "own.tsv"
    pairs.write_text("abc\tAA\n")
    own = dragoman.evaluate(copy, pairs, into_model=True)
    other = dragoman.evaluate(copy, pairs, into_model=True, quantization="float32")
    assert [one.folder.name for one in (own, other)] == ["own", "own,float32"]


def test_a_beam_size_set_by_hand_is_kept_and_nothing_is_measured(tmp_path):
    pairs, console = write_pairs(tmp_path / "pairs.tsv", 100), quiet_console()
    settings = read_settings(None, [*SMALL, *BRIEF, "--decoding.beam_size", "2"])
    model = fit(pairs, tmp_path / "model", settings, console=console)
    assert model.settings.decoding.beam_size == 2
    assert json.loads((tmp_path / "model" / "metrics.json").read_text())["decoding"] == {
        "reasons": []
    }
    assert "decoding: " not in console.file.getvalue()


def test_greedy_search_stays_where_the_beam_is_no_better(trained):
    model = dragoman.load(trained[0])
    penalized = {"decoding.beam_size": 5, "decoding.length_penalty": 0.5}
    for values in ({}, penalized):
        trial = make_trial(dragoman.load(trained[0], values))
        chosen, why = choose_search(model, trial, [0.5])
        assert chosen == values, why
        assert why.startswith("beam 5, length penalty 0.5" if values else "greedy; beam 5 is no")
        assert trial.tried[len(values)]["score"] == 100.0


def test_int8_is_refused_where_its_outputs_are_worse(trained, monkeypatch):
    """A feed-forward unit of tiny inputs and huge outputs is the same in float32, not in int8."""
    monkeypatch.setattr(fit_decoding, "_LEAST_GAIN", 0.0)
    model = dragoman.load(trained[0])
    weights = dict(model.model_folders[0].weights)
    trial = make_trial(model)

    def compare(weights):
        engines = [
            CTranslate2Engine(model.settings.model, model.tokenizer, weights, device="cpu",
                              threads=1, quantization=one) for one in ("float32", "int8")
        ]  # fmt: skip
        plain, small = (Predictor(one, model.tokenizer, model.settings) for one in engines)
        return accept_int8(plain, small, trial)

    for name in [name for name in weights if name.endswith("linear1.weight")]:
        factor = 1e5
        bias, out = name.replace("weight", "bias"), name.replace("linear1", "linear2")
        weights |= {one: weights[one].copy() for one in (name, bias, out)}
        weights[name][0] /= factor
        weights[bias][0] /= factor
        weights[out][:, 0] *= factor
    is_right, why = compare(weights)
    assert not is_right
    assert why.startswith("float32; with int8 ")
    assert trial.tried[-2]["score"] == 100.0 > trial.tried[-1]["score"]


def make_trial(model):
    """A trial in which the outputs of `model` are right."""
    rows = [
        Row(source=word, references=(best.text,), hypothesis="")
        for word, [best] in zip(WORDS, model.predict_n_best(WORDS), strict=True)
    ]
    return Trial(rows, make_exact_match())
