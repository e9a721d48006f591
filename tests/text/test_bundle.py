import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dragoman
from dragoman.errors import ModelFolderError
from dragoman.text.bundle import REPORT, read_bundle, write_bundle


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "model")


def test_a_bundle_is_read_as_it_was_written(folder, tmp_path):
    bundle = read_bundle(folder)
    write_bundle(tmp_path / "copy", bundle)
    files = [path for path in folder.iterdir() if path.is_file() and path.name != REPORT]
    assert {"calibration.json", "model.safetensors"} <= {path.name for path in files}
    for path in files:
        copy = tmp_path / "copy" / path.name
        assert copy.read_bytes() == path.read_bytes()
        assert copy.stat().st_mode == (tmp_path / "copy" / "README.md").stat().st_mode


def test_nothing_half_written_is_left_when_writing_fails(folder, tmp_path):
    bundle = read_bundle(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFolderError, match="cannot be written"):
        write_bundle(tmp_path / "file" / "model", bundle)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "model"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.yaml", "tokenizer.json", "metrics.json"]
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelFolderError, match=f"{name} missing"):
        dragoman.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "metrics.json"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_truncated_file_is_named(folder, name, kept):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ModelFolderError, match=name):
        dragoman.load(folder)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.yaml", "tokenizer.json", "metrics.json"]
)
def test_a_foreign_file_is_named(folder, name):
    (folder / name).write_bytes(b"\x80\x04\x95 something else \xff")
    with pytest.raises(ModelFolderError, match=name):
        dragoman.load(folder)


def test_a_setting_that_this_version_does_not_know_is_named(folder):
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("d_model", "d_modell"))
    with pytest.raises(ModelFolderError, match=r"model\.d_modell"):
        dragoman.load(folder)


def test_weights_of_another_model_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    name = "transformer.encoder.norm.weight"
    save_file({**weights, name: np.zeros(3, np.float32)}, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match=rf"{name}: shape \(3,\), expected \(64,\)"):
        dragoman.load(folder, engine="torch")
    del weights[name]
    save_file({**weights, "extra": np.zeros(3, np.float32)}, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match=rf"extra: unknown; {name}: missing"):
        dragoman.load(folder, engine="torch")
