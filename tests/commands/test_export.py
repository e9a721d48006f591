"""An export agrees with PyTorch, or nothing is left of it."""

import json
import shutil
import sys

import ctranslate2
import pytest

import dragoman
from dragoman.commands import export as command
from dragoman.errors import ModelFolderError, SettingsError
from dragoman.model.building import load_network
from dragoman.model_folder.folder import WEIGHTS
from dragoman.storage import sha256


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "model")


def names_in(path):
    return {one.name for one in path.iterdir()}


@pytest.mark.parametrize("quantization", ["float32", "int8", "float16"])
def test_an_export_to_ctranslate2_is_a_folder_for_other_programs(folder, quantization):
    check = dragoman.export(folder, "ctranslate2", quantization)
    assert check.rows == 64
    assert check.equal_rows >= 60
    about = json.loads((folder / "ctranslate2" / "export.json").read_text())
    assert about["quantization"] == quantization
    assert about["weights"] == sha256(folder / WEIGHTS)
    assert about["check"] == check.to_dict()
    translator = ctranslate2.Translator(str(folder / "ctranslate2"), "cpu")
    [result] = translator.translate_batch([["a", "b", "c", "<</s>>"]])
    assert result.hypotheses == [["A", "B", "C"]]


def test_an_export_replaces_the_one_before(folder, trained):
    before = names_in(folder)
    dragoman.export(folder)
    (folder / "ctranslate2" / "old file").write_text("")
    first = (folder / "ctranslate2" / "model.bin").stat().st_size
    dragoman.export(str(folder), quantization="int8")
    assert (folder / "ctranslate2" / "model.bin").stat().st_size < first
    assert "old file" not in names_in(folder / "ctranslate2")
    assert names_in(folder) == before | {"ctranslate2"}


def load_wrong(settings, tokenizer, weights):
    return load_network(settings.model_copy(update={"nhead": 2}), tokenizer, weights)


@pytest.mark.parametrize("error", [None, ModelFolderError("no such part"), OSError("disk full")])
def test_an_export_that_fails_or_differs_leaves_the_one_before(folder, monkeypatch, error):
    dragoman.export(folder)
    before = (folder / "ctranslate2" / "model.bin").read_bytes()

    def fail(*values):
        raise error

    if error is None:
        monkeypatch.setattr(command, "load_network", load_wrong)
        message = "its outputs differ from the model's"
    else:
        monkeypatch.setattr(command, "convert_model", fail)
        message = str(error)
    with pytest.raises(ModelFolderError, match=message):
        dragoman.export(folder)
    assert (folder / "ctranslate2" / "model.bin").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_what_cannot_be_exported_is_refused(folder, monkeypatch):
    with pytest.raises(ModelFolderError, match="expected a model folder"):
        dragoman.export(folder / "nothing")
    with pytest.raises(SettingsError, match="--to onnx has float32 only"):
        dragoman.export(folder, "onnx", "int8")
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    with pytest.raises(SettingsError, match="onnx needs onnx, which is not installed"):
        dragoman.export(folder, "onnx")
