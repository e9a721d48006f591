import copy
import dataclasses
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pyarrow
import pytest
from safetensors.numpy import load_file, save_file

import dragoman
from conftest import BRIEF, SMALL, make_words, quiet_console
from dragoman import fit, read_settings
from dragoman.commands.evaluate import evaluate_model
from dragoman.engines.ctranslate2_engine import CTranslate2Engine
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import DataError, DragomanError
from dragoman.evaluation.confidence import find_confidence
from dragoman.model.building import load_network
from dragoman.model_folder.calibration import StoredCalibration, read_calibration, write_calibration
from dragoman.model_folder.folder import ModelFolder
from dragoman.predictor import Predictor
from dragoman.reading.pairs import InvalidRow, Pair, Source
from dragoman.settings import DecodingSettings, Settings
from dragoman.tokenizers.tokenizer import UNKNOWN_ID

WORDS = make_words(60, seed=5)


def test_an_output_does_not_depend_on_its_neighbours_or_the_batch(trained):
    model = trained[1]
    alone = [model.predict([word])[0] for word in WORDS]
    assert model.predict(WORDS) == alone
    tight = model.settings.model_copy(update={"decoding": DecodingSettings(batch_tokens=20)})
    assert Predictor(model.engine, model.tokenizer, tight).predict(WORDS[::-1]) == alone[::-1]


def test_rows_keep_their_order_and_bad_ones_their_place(trained):
    rows = [Source(w, (), i) for i, w in enumerate(WORDS)]
    rows.insert(3, InvalidRow(3, "x", "empty"))
    found = list(trained[1].predict_rows(rows))
    assert [row for row, _ in found] == rows
    assert found[3][1] == []
    texts = [best_first[0].text for _, best_first in found if best_first]
    assert texts == trained[1].predict(WORDS)


def test_an_output_that_was_cut_is_marked(trained):
    model = trained[1]
    decoding = DecodingSettings(max_length_ratio=0.0, max_length_extra=2)
    settings = model.settings.model_copy(update={"decoding": decoding})
    short = Predictor(model.engine, model.tokenizer, settings)
    assert all(text.endswith(" [truncated]") for text in short.predict(WORDS))
    [(_, [prediction])] = short.predict_rows([Source("abc", (), 1)])
    assert not prediction.is_complete
    assert len(prediction.text) == 2


@pytest.mark.parametrize("engine", ["torch", "ctranslate2"])
def test_a_model_that_produces_nan_is_reported(trained, engine):
    model_folder = ModelFolder.read(trained[0])
    weights = dict(model_folder.weights)
    weights["transformer.encoder.norm.bias"][:] = np.nan
    network = load_network(model_folder.settings.model, model_folder.tokenizer, weights)
    if engine == "torch":
        model = Predictor(TorchEngine([network]), model_folder.tokenizer, model_folder.settings)
    else:
        made = CTranslate2Engine(
            model_folder.settings.model, model_folder.tokenizer, weights, device="cpu"
        )
        model = Predictor(made, model_folder.tokenizer, model_folder.settings)
    with pytest.raises(DragomanError, match="the model produced NaN"):
        model.predict(["abc"])
    with pytest.raises(DragomanError, match="NaN"):
        model.score(["abc"], ["ABC"])
    with pytest.raises(DragomanError, match="NaN"):
        evaluate_model(model, [Pair("abc", "ABC", (), 1, "pairs.tsv")])
    [(row, answers)] = model.predict_rows([Source("abc", (), 1)])
    assert isinstance(row, InvalidRow)
    assert "NaN" in row.reason
    assert answers == []


@pytest.mark.parametrize("engine", ["torch", "ctranslate2"])
def test_an_empty_source_has_an_empty_output_as_on_the_command_line(trained, engine):
    model = Predictor.load(trained[0], engine=engine)
    assert model.predict(["", "abc", " \t"]) == ["", "ABC", ""]
    assert model.predict([]) == []
    first, [second] = model.predict_n_best(["", "abc"])
    assert (first, second.text) == ([], "ABC")
    with pytest.raises(DragomanError, match=r"sources\[0\]: the source is empty"):
        model.score([""], ["ABC"])


@pytest.mark.parametrize(
    ("source", "reason"),
    [("a" * 6000, "6000 characters"), ("a\0", "NUL"), ("\ud800", "surrogate"), (None, "None"),
     (float("nan"), "nan"), (3, "int"), (b"abc", "bytes")],
)  # fmt: skip
def test_a_source_that_no_file_could_give_is_an_error_that_names_it(trained, source, reason):
    with pytest.raises(DragomanError, match=rf"sources\[1\]: .*{reason}"):
        trained[1].predict(["abc", source])


@pytest.mark.parametrize(
    "sources",
    ["abc", b"abc", None, 5, {"abc"}, {"a": "abc"}, pyarrow.table({"source": ["abc"]})],
)
def test_what_is_no_list_of_sources_is_an_error(trained, sources):
    with pytest.raises(DragomanError, match="expected a list of sources"):
        trained[1].predict(sources)


def test_any_iterable_of_strings_is_a_list_of_sources(trained):
    words = ["abc", "abd"]
    for sources in (
        (word for word in words),
        np.array(words),
        dict.fromkeys(words).keys(),
        tuple(words),
        pyarrow.array(words),
    ):
        assert trained[1].predict(sources) == ["ABC", "ABD"]
    assert len(trained[1].score(iter(words), iter(["ABC", "ABD"]))) == 2


@pytest.mark.parametrize("features", ["x", {"a": "b"}, [{}], ["", ""], [None], 5, [("de",)]])
def test_features_of_another_form_are_an_error(trained, features):
    with pytest.raises(DragomanError, match="features: the model has none; leave them out"):
        trained[1].predict(["abc"], features)


FORK = """
import os, signal, sys, dragoman
model = dragoman.load(sys.argv[1], engine=sys.argv[2], threads=2)
expected = model.predict(["abc", "abd"]), model.predict(["abc"])
for leaves in (False, True, False):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that hangs is killed
        if not leaves:
            assert (model.predict(["abc", "abd"]), model.predict(["abc"])) == expected
        sys.exit()  # with everything that Python does at its end
    assert os.waitpid(child, 0)[1] == 0
assert (model.predict(["abc", "abd"]), model.predict(["abc"])) == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("engine", ["torch", "ctranslate2"])
def test_a_forked_process_predicts_and_ends(trained, engine):
    threads = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", FORK, str(trained[0]), engine]
    subprocess.run(command, check=True, timeout=120, env=threads)


def test_a_predictor_is_pickled_and_copied_by_loading_its_folder_again(trained, monkeypatch):
    loaded = Predictor.load(trained[0], {"decoding.beam_size": 3}, threads=1, quantization="int8")
    two_best = loaded.with_decoding(Settings(decoding=DecodingSettings(num_hypotheses=2)))
    assert two_best.engine is loaded.engine
    models = (loaded, trained[1], two_best)
    pickled = [pickle.dumps(model) for model in models]
    monkeypatch.chdir("/")
    for model, content in zip(models, pickled, strict=True):
        for other in (pickle.loads(content), copy.deepcopy(model)):
            assert other.settings == model.settings
            assert other.engine.name == model.engine.name
            assert other.engine.quantization == model.engine.quantization
            assert other.predict(["abc"]) == ["ABC"]
    in_memory = Predictor(loaded.engine, loaded.tokenizer, loaded.settings)
    with pytest.raises(DragomanError, match="in memory only"):
        pickle.dumps(in_memory)


def test_a_notebook_shows_what_is_there(trained):
    model = trained[1]
    assert f"model: {trained[0]}; engine: torch, float32" in repr(model)
    [[found]] = model.predict_n_best(["abc"])
    assert repr(found).startswith("Prediction(text='ABC', score=-0.0")
    assert len(repr(found)) < 150
    assert "<th>text</th><td>ABC</td>" in found._repr_html_()
    marked = dataclasses.replace(found, text="<b>\x1b[31m")
    assert "<td>&lt;b&gt;\\u001b[31m</td>" in marked._repr_html_()
    table = pyarrow.Table.from_pylist([found.to_dict()])
    assert table["text"].to_pylist() == ["ABC"]


def test_features_are_given_as_values_of_their_columns(tmp_path):
    rows = "".join(f"{c}\t{w}\t{w}\n" for w in make_words(60) for c in ("up", "low"))
    (tmp_path / "pairs.tsv").write_text(rows)
    words = ["--data.features", "1", "--data.source", "2", "--data.target", "3"]
    words += [*SMALL, *BRIEF]
    model = fit(tmp_path / "pairs.tsv", tmp_path / "model", read_settings(None, words),
                console=quiet_console())  # fmt: skip
    assert len(model.predict(["abc"], features=[("up",)])) == 1
    [row] = model.tokenizer.encode_sources(["abc"], [("1=up",)])
    assert UNKNOWN_ID not in row
    with pytest.raises(DragomanError, match="give 1 values for each of the 2 sources"):
        model.predict(["abc", "abd"])
    assert "features=[['" in (tmp_path / "model" / "README.md").read_text()


def test_letters_never_seen_are_counted(trained):
    [(_, [prediction])] = trained[1].predict_rows([Source("aßz", (), 1)])
    assert prediction.num_unknown == 2


def test_a_given_target_or_prefix_with_a_letter_never_seen_is_refused_by_name(trained):
    model = trained[1]
    for name, give in (
        ("target", lambda texts: model.score(["abc", "abc"], texts)),
        ("prefix", lambda texts: model.predict_n_best(["abc", "abc"], prefixes=texts)),
    ):
        message = rf"sources\[1\]: the {name} 'Aßz' has 'ß', 'z', which the"
        with pytest.raises(DragomanError, match=message):
            give(["ABC", "Aßz"])
    rows = [Source("abc", (), 1, "ABC"), Source("abc", (), 2, "AßC")]
    for scores_targets in (True, False):
        (_, [good]), (bad, none) = model.predict_window(rows, scores_targets=scores_targets)
        assert good.text == "ABC"
        assert none == []
        assert "'ß'" in bad.reason


def test_scores_are_better_the_surer_the_model(trained):
    [(_, [prediction])] = trained[1].predict_rows([Source("abc", (), 1)])
    assert -1.0 < prediction.score <= 0.0


@pytest.mark.parametrize("name", ["missing", "pairs.tsv"])
def test_what_is_no_model_folder_is_refused(trained, name):
    with pytest.raises(DragomanError, match="expected a model folder"):
        dragoman.load(trained[0].with_name(name))


def test_learned_positions_bound_sources_and_outputs_without_losing_a_row(tmp_path):
    words = make_words(60)
    (tmp_path / "pairs.tsv").write_text("".join(f"{w}\t{w}\n" for w in words))
    learned = [
        "--model.positions",
        "learned",
        "--model.max_positions",
        "9",
        "--data.max_tokens",
        "9",
    ]
    fit(tmp_path / "pairs.tsv", tmp_path / "model", read_settings(None, [*SMALL, *BRIEF, *learned]),
        console=quiet_console())  # fmt: skip
    long = ["--decoding.forbidden_tokens", "</s>", "--decoding.min_length", "30"]  # all are cut
    details = ["--decoding.token_scores", "1", "--decoding.alignment", "1"]
    details = read_settings(None, [*long, *details])
    for engine in ("torch", "auto"):
        model = dragoman.load(tmp_path / "model", details, engine=engine)
        rows = [Source("abc", (), 1), Source("a" * 9, (), 2), Source("abcd", (), 3)]
        (_, [first]), (bad, none), (_, [last]) = model.predict_rows(rows)
        assert none == []
        assert "10 tokens, more than the 9 learned positions" in bad.reason
        for found in (first, last):
            assert len(found.log_probs) == len(found.tokens) == len(found.alignment)
            assert sum(found.log_probs) == pytest.approx(found.score, abs=1e-4)
        assert not first.is_complete
        assert len(first.tokens) == 9
        [(bad, none)] = model.predict_rows([Source("abc", (), 1, given="a" * 9)])  # a prefix
        assert (bad.reason[:10], none) == ("10 tokens,", [])
        pairs = [Pair("abc", "x", (), 1, "p.tsv"), Pair("a" * 9, "x", (), 2, "p.tsv")]
        with pytest.raises(DataError, match=r"p\.tsv:2: the source cannot be predicted: 10 tokens"):
            evaluate_model(model, pairs)
    quick = dragoman.load(tmp_path / "model", read_settings(None, long), engine="ctranslate2")
    [[found]] = [found for row, found in quick.predict_rows([Source("abc", (), 1)])]
    assert found.tokens == first.tokens

    # An ensemble is as long as its shortest member, whichever comes first.
    shorter = shutil.copytree(tmp_path / "model", tmp_path / "shorter")
    weights = load_file(shorter / "model.safetensors")
    for side in ("source", "target"):
        weights[f"{side}_positions.weight"] = weights[f"{side}_positions.weight"][:6]
    save_file(weights, shorter / "model.safetensors")
    config = (shorter / "config.yaml").read_text()
    config = config.replace("max_positions: 9", "max_positions: 6")
    (shorter / "config.yaml").write_text(config.replace("max_tokens: 9", "max_tokens: 6"))
    for folders in ([tmp_path / "model", shorter], [shorter, tmp_path / "model"]):
        model = dragoman.load(folders, details)
        (_, [first]), (bad, none) = model.predict_rows([rows[0], Source("abcdef", (), 2)])
        assert len(first.log_probs) == len(first.tokens) == 6
        assert none == []
        assert "7 tokens, more than the 6 learned positions" in bad.reason


def make_calibration(temperature, **decoding):
    return StoredCalibration(
        temperature=temperature, rows=9, pairs=("x",), decoding=DecodingSettings(**decoding)
    )


def with_calibrations(model, *found, **decoding):
    settings = model.settings.model_copy(update={"decoding": DecodingSettings(**decoding)})
    return Predictor(model.engine, model.tokenizer, settings, calibrations=found)


def test_confidence_is_the_score_at_the_temperature_of_the_model_also_of_each_hypothesis(trained):
    wide = {"beam_size": 4, "num_hypotheses": 4}
    for found, temperature in (((), 1.0), ((make_calibration(0.25),), 0.25)):
        model = with_calibrations(trained[1], *found, **wide)
        assert model.temperature == temperature
        for best_first in model.predict_n_best(WORDS[:5]):
            assert len(best_first) == 4
            for one in best_first:
                expected = find_confidence(one.score, temperature, is_complete=one.is_complete)
                assert one.confidence == expected
        [given] = model.score(["abc"], ["ABC"])
        assert given.confidence == find_confidence(given.score, temperature)


def test_the_temperature_changes_no_output(trained):
    plain, hot = (with_calibrations(trained[1], make_calibration(t)) for t in (1.0, 5.0))
    assert plain.predict(WORDS) == hot.predict(WORDS)


def test_an_output_that_was_cut_has_no_confidence(trained):
    model = with_calibrations(trained[1], max_length_ratio=0.0, max_length_extra=2)
    assert [one.confidence for [one] in model.predict_n_best(WORDS[:3])] == [0.0] * 3


def test_an_ensemble_has_the_mean_of_its_temperatures(trained):
    both = with_calibrations(trained[1], make_calibration(0.5), make_calibration(2.0))
    assert both.temperature == pytest.approx(1.0)
    assert with_calibrations(trained[1], make_calibration(0.3)).temperature == 0.3


def test_a_folder_keeps_its_calibration_and_says_what_it_is_not_for(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "model")
    (folder / "calibration.json").unlink(missing_ok=True)
    model = dragoman.load(folder)
    assert model.temperature == 1.0
    assert "not calibrated" in model.describe_calibration()
    write_calibration(folder, make_calibration(0.4, beam_size=1))
    assert read_calibration(folder).rows == 9
    plain = Settings(decoding=DecodingSettings(max_length_extra=50, token_scores=True))
    model = dragoman.load(folder, plain)
    assert (model.temperature, model.describe_calibration()) == (0.4, "")
    wide = Settings(decoding=DecodingSettings(max_length_extra=50, beam_size=3))
    wider = dragoman.load(folder, wide)
    assert wider.temperature == 0.4
    assert "decoding.beam_size 3, not 1" in wider.describe_calibration()
    pair = dragoman.load([folder, folder])
    assert pair.temperature == pytest.approx(0.4)
    assert "not for the ensemble" in pair.describe_calibration()
