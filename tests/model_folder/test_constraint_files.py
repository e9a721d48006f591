"""A model folder keeps the files of its constraints, and reads no others."""

import gzip
import shutil
from dataclasses import replace

import pytest

from dragoman.configuration import merge_settings
from dragoman.errors import ModelFolderError
from dragoman.model_folder.calibration import StoredCalibration, find_differences
from dragoman.model_folder.folder import (
    ModelFolder,
    find_constraint_files,
    keep_constraint_files,
)
from dragoman.settings import DecodingSettings, Settings


def settings_with(**values):
    return Settings(decoding=DecodingSettings(**values))


@pytest.mark.parametrize(
    ("setting", "kept"),
    [("choices", "choices.txt"), ("grammar", "grammar.lark"), ("json_schema", "schema.json")],
)
def test_a_file_is_copied_under_a_fixed_name_and_found_again(setting, kept, tmp_path):
    mine, folder = tmp_path / "mine", tmp_path / "model"
    mine.write_text("one\ntwo\n")
    folder.mkdir()
    stored = keep_constraint_files(folder, settings_with(**{setting: str(mine)}))
    assert getattr(stored.decoding, setting) == kept
    mine.unlink()
    found = find_constraint_files(folder, stored)
    assert getattr(found.decoding, setting) == str(folder / kept)
    assert (folder / kept).read_text() == "one\ntwo\n"


def test_a_compressed_file_is_kept_uncompressed(tmp_path):
    (tmp_path / "mine.gz").write_bytes(gzip.compress(b"one\n"))
    keep_constraint_files(tmp_path, settings_with(choices=str(tmp_path / "mine.gz")))
    assert (tmp_path / "choices.txt").read_text() == "one\n"


@pytest.mark.parametrize("schema", ['{"type": "object"}', "true", ' {"a": 1}', ""])
def test_an_inline_schema_stays_in_the_settings(schema, tmp_path):
    settings = settings_with(json_schema=schema)
    assert keep_constraint_files(tmp_path, settings) == settings
    assert find_constraint_files(tmp_path, settings) == settings
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelFolderError, match=r"decoding\.choices: .*no such file"):
        keep_constraint_files(tmp_path, settings_with(choices=str(tmp_path / "missing")))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../choices.txt", "./choices.txt", "sub/choices.txt", "/dev/zero"]
)
def test_any_other_file_name_is_refused(name, tmp_path):
    (tmp_path / "choices.txt").write_text("one\n")
    with pytest.raises(ModelFolderError, match=r"decoding\.choices names the file"):
        find_constraint_files(tmp_path, settings_with(choices=name))


def test_a_model_with_choices_emits_them_after_it_was_moved(trained, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("FCDB\nDBFC\n")
    model_folder = ModelFolder.read(trained[0])
    settings = merge_settings(
        model_folder.settings, {"decoding.choices": str(tmp_path / "mine.txt")}, overrule=True
    )
    replace(model_folder, settings=settings).write(tmp_path / "model")
    (tmp_path / "mine.txt").unlink()
    shutil.move(tmp_path / "model", tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    import dragoman

    assert dragoman.load("../moved").predict(["fcd", "cab"])[0] == "FCDB"
    again = ModelFolder.read(tmp_path / "moved")
    again.write(tmp_path / "moved")  # from itself
    assert ModelFolder.read(tmp_path / "moved").settings == again.settings


def test_only_the_names_of_constraint_files_are_compared():
    made = StoredCalibration(
        temperature=1.0, rows=1, pairs=(), decoding=DecodingSettings(choices="choices.txt")
    )
    assert find_differences(made, DecodingSettings(choices="/models/a/choices.txt")) == []
    assert find_differences(made, DecodingSettings(choices="/models/a/other.txt"))
