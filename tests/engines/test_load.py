"""Which engine a model folder gets."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dragoman
from conftest import make_words
from dragoman import read_settings
from dragoman.errors import DragomanError, ModelFolderError, SettingsError

WORDS = make_words(200, seed=11)


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "model")


def change_metrics(folder, value):
    path = folder / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ctranslate2": value}))


def test_fit_has_compared_ctranslate2_with_pytorch(trained):
    parity = json.loads((trained[0] / "metrics.json").read_text())["ctranslate2"]
    assert (parity["rows"], parity["equal_rows"], parity["is_equal"]) == (64, 64, True)
    assert parity["largest_difference"] < 1e-4
    assert "CTranslate2 agrees with PyTorch: 64 of 64" in (
        trained[0].with_name("console.txt").read_text()
    )


def test_the_default_engine_is_ctranslate2_and_gives_the_same_outputs(trained):
    fast, exact = dragoman.load(trained[0]), dragoman.load(trained[0], engine="torch")
    assert (fast.engine.name, exact.engine.name) == ("ctranslate2", "torch")
    assert fast.predict(WORDS) == exact.predict(WORDS)


def test_pytorch_predicts_where_ctranslate2_differed_after_the_training(folder):
    change_metrics(folder, {"is_equal": False, "reason": "two tokens have the same name"})
    assert dragoman.load(folder).engine.name == "torch"
    assert dragoman.load(folder, engine="ctranslate2").engine.name == "ctranslate2"
    for value in ({"is_equal": True}, None, "other"):  # older folders have none
        change_metrics(folder, value)
        assert dragoman.load(folder).engine.name == "ctranslate2"


def test_pytorch_does_what_ctranslate2_cannot_unless_ctranslate2_was_named(trained):
    wide = read_settings(None, ["--decoding.beam_size", "3", "--decoding.stop", "exact"])
    assert dragoman.load(trained[0], wide).engine.name == "torch"
    with pytest.raises(SettingsError, match=r"decoding\.stop exact is not supported; use --engine"):
        dragoman.load(trained[0], wide, engine="ctranslate2")
    with pytest.raises(SettingsError, match="an ensemble is not supported"):
        dragoman.load([trained[0], trained[0]], engine="ctranslate2")
    fast = dragoman.load(trained[0])
    [[best]] = fast.predict_n_best(["abc"], prefixes=["B"])
    assert best.text.startswith("B")
    named = dragoman.load(trained[0], engine="ctranslate2")
    with pytest.raises(SettingsError, match="of an output with a prefix"):
        named.predict_n_best(["abc"], prefixes=["B"])


def test_other_devices_use_pytorch(trained):
    assert dragoman.load(trained[0], device="cpu:0").engine.name == "torch"
    with pytest.raises(SettingsError, match="--engine ctranslate2: --device tpu is not supported"):
        dragoman.load(trained[0], engine="ctranslate2", device="tpu")
    with pytest.raises(SettingsError, match="--device tpu: PyTorch cannot use it"):
        dragoman.load(trained[0], device="tpu")


def test_what_does_not_exist_is_refused_by_the_names_of_what_does(trained):
    for given, message in (
        ({"engine": "tensorflow"}, "--engine tensorflow: .* give auto, torch, ctranslate2"),
        ({"quantization": "int4"}, "--quantization int4: .* give auto, float32, int8,"),
        ({"device": "gpu"}, "--device gpu: .* give auto or one of: cpu"),
        ({"device": "meta"}, "--device meta: .* give auto or one of: cpu"),
        ({"device": "cpux", "engine": "ctranslate2"}, r"--device cpux .* \(cpu and cuda are\)"),
        ({"threads": 0}, "--threads 0: give a number from 1"),
    ):
        with pytest.raises(SettingsError, match=message):
            dragoman.load(trained[0], **given)


def test_int8_is_computed_by_ctranslate2_or_refused(trained):
    model = dragoman.load(trained[0], quantization="int8")
    assert (model.engine.name, model.engine.quantization) == ("ctranslate2", "int8")
    right = dragoman.load(trained[0]).predict(WORDS)
    assert sum(a == b for a, b in zip(model.predict(WORDS), right, strict=True)) > 180
    with pytest.raises(SettingsError, match="--quantization int8: needs CTranslate2: PyTorch"):
        dragoman.load(trained[0], engine="torch", quantization="int8")
    wide = read_settings(None, ["--decoding.method", "sampling"])
    with pytest.raises(SettingsError, match=r"needs CTranslate2: decoding\.method sampling"):
        dragoman.load(trained[0], wide, quantization="int8")
    with pytest.raises(SettingsError, match="float16: not supported on this device; it supports"):
        dragoman.load(trained[0], quantization="float16", device="cpu")


def test_an_exported_copy_in_an_older_folder_is_ignored(folder):
    expected = dragoman.load(folder).predict(WORDS[:5])
    (folder / "ctranslate2").mkdir()
    (folder / "ctranslate2" / "model.bin").write_bytes(b"stale")
    assert dragoman.load(folder, engine="ctranslate2").predict(WORDS[:5]) == expected


@pytest.mark.parametrize("engine", ["torch", "ctranslate2"])
def test_weights_of_another_model_are_refused(folder, engine):
    weights = load_file(folder / "model.safetensors")
    name = "transformer.encoder.layers.0.linear1.bias"
    save_file({**weights, name: np.ones(7, np.float32)}, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match=rf"do not fit the settings.*{name}: "):
        dragoman.load(folder, engine=engine).predict(["abc"])


def test_a_folder_of_weights_that_are_nan_is_reported(folder):
    weights = load_file(folder / "model.safetensors")
    nan = {name: np.full_like(value, np.nan) for name, value in weights.items()}
    save_file(nan, folder / "model.safetensors")
    with pytest.raises(DragomanError, match="the model produced NaN"):
        dragoman.load(folder).predict(["abc"])


def test_the_quantization_that_fit_chose_is_the_default(folder):
    change_metrics(folder, {"is_equal": True, "quantization": "int8"})
    assert dragoman.load(folder).engine.quantization == "int8"
    wide = read_settings(None, ["--decoding.method", "sampling"])
    for model in (
        dragoman.load(folder, quantization="float32"),
        dragoman.load(folder, engine="torch"),
        dragoman.load(folder, wide),
        dragoman.load([folder, folder]),
    ):
        assert model.engine.quantization == "float32"
    for value in ("int4", None, "float16", 8):  # float16: not on a CPU
        change_metrics(folder, {"is_equal": True, "quantization": value})
        assert dragoman.load(folder, device="cpu").engine.quantization == "float32"
