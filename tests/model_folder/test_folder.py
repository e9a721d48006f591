import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dragoman
from dragoman.configuration import read_settings
from dragoman.errors import ModelFolderError
from dragoman.evaluation.evaluation import evaluate_rows
from dragoman.evaluation.output_rows import Row
from dragoman.model_folder.folder import (
    REPORT,
    ModelFolder,
    dump_settings,
    staged_model_folder,
    sweep_model_folder,
    write_model_card,
)
from dragoman.settings import DataSettings, EvaluationSettings, Settings


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "model")


def test_a_model_folder_is_read_as_it_was_written(folder, tmp_path):
    model_folder = ModelFolder.read(folder)
    model_folder.write(tmp_path / "copy")
    files = [path for path in folder.iterdir() if path.is_file() and path.name != REPORT]
    assert {"calibration.json", "model.safetensors"} <= {path.name for path in files}
    for path in files:
        copy = tmp_path / "copy" / path.name
        assert copy.read_bytes() == path.read_bytes()
        assert copy.stat().st_mode == (tmp_path / "copy" / "README.md").stat().st_mode


def test_a_failed_write_leaves_nothing(folder, tmp_path):
    model_folder = ModelFolder.read(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFolderError, match="cannot be written"):
        model_folder.write(tmp_path / "file" / "model")
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
def test_an_invalid_file_is_named(folder, name):
    (folder / name).write_bytes(b"\x80\x04\x95 something else \xff")
    with pytest.raises(ModelFolderError, match=name):
        dragoman.load(folder)


def test_an_unknown_setting_is_named(folder):
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("d_model", "d_modell"))
    with pytest.raises(ModelFolderError, match=r"model\.d_modell"):
        dragoman.load(folder)


def test_weights_of_another_model_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    name = "transformer.encoder.norm.weight"
    save_file({**weights, name: np.zeros(3, np.float32)}, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match=rf"{name}: found \(3,\), expected \(64,\)"):
        dragoman.load(folder, engine="torch")
    del weights[name]
    save_file({**weights, "extra": np.zeros(3, np.float32)}, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match=rf"extra: found .*; {name}: found nothing"):
        dragoman.load(folder, engine="torch")


def test_a_staged_folder_replaces_all_files_together(folder, tmp_path):
    model_folder, place = ModelFolder.read(folder), tmp_path / "out"
    for text in ("first", "second"):
        with staged_model_folder(place) as staged:
            model_folder.fill(staged)
            (staged / REPORT).write_text(text)
            assert not place.exists() or (place / REPORT).read_text() == "first"
        assert (place / REPORT).read_text() == text
        assert ModelFolder.read(place).metrics == model_folder.metrics
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_an_error_while_staging_leaves_the_model_unchanged(folder, tmp_path):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with (
        pytest.raises(ModelFolderError, match="disk full"),
        staged_model_folder(folder) as staged,
    ):
        (staged / "half").write_text("")
        raise OSError("disk full")
    with pytest.raises(KeyboardInterrupt), staged_model_folder(folder):
        raise KeyboardInterrupt
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_temporary_files_of_killed_processes_are_swept(folder, tmp_path):
    mine = ["model.training", ".model.tmp-mine", ".model.lock"]
    for name in mine:
        (tmp_path / name).mkdir()
    kept = {path.relative_to(folder) for path in folder.rglob("*")}
    for name in (
        ".model.tmp-11-0123abcd/half", ".model.old-11-0123abcd/half",
        "model/.ctranslate2.tmp-11-0123abcd/half", "model/.onnx.tmp-11-0123abcd/half",
        "model/evaluation/.valid.tmp-11-0123abcd/half",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("half")
    stale = folder / ".calibration.json.tmp-11-0123abcd"
    stale.write_text("{")
    os.utime(stale, (1000, 1000))
    sweep_model_folder(folder)
    assert {path.relative_to(folder) for path in folder.rglob("*")} == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["model", *mine])


def test_the_old_folder_is_put_back_if_its_writer_was_killed_between_renames(folder, tmp_path):
    expected = ModelFolder.read(folder).metrics
    shutil.copytree(folder, tmp_path / ".model.tmp-11-0123abcd")
    folder.rename(tmp_path / ".model.old-11-0123abcd")
    sweep_model_folder(folder)
    assert ModelFolder.read(folder).metrics == expected
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("text", ["\x85", "\u2028", "\u2029", "\ufeff", "\x85x", "a\u2028b", "é"])
def test_settings_with_any_characters_are_read_back(text, tmp_path):
    settings = Settings(data=DataSettings(features=(text, "x")), decoding={"truncation_mark": text})
    (tmp_path / "config.yaml").write_text(dump_settings(settings), encoding="utf-8")
    found = read_settings(tmp_path / "config.yaml")
    assert (found.data.features, found.decoding.truncation_mark) == ((text, "x"), text)


def test_the_card_has_the_scores_of_every_split(trained):
    metrics = json.loads((trained[0] / "metrics.json").read_text())
    for split, reference in (("valid", "a b c"), ("test", "a b c d")):  # four words: BLEU too
        row = Row(source="s", references=(reference,), hypothesis=reference)
        metrics[split] = evaluate_rows([row], EvaluationSettings()).scores.to_dict()
    card = write_model_card("m", trained[1].settings, metrics)
    assert "| BLEU |  | 100.00 |" in card
    assert "BLEU: `nrefs:1" in card
    assert "| rows | 1 | 1 |" in card
