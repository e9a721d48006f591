"""A calibration is read as it was written, or an error says what is wrong."""

import json
import os
from dataclasses import replace

import pytest

import dragoman
from dragoman.errors import ModelFolderError
from dragoman.model_folder.calibration import (
    StoredCalibration,
    Threshold,
    find_differences,
    read_calibration,
    write_calibration,
)
from dragoman.settings import DecodingSettings

STORED = StoredCalibration(
    temperature=1.73,
    rows=450,
    pairs=("ü.tsv",),
    decoding=DecodingSettings(beam_size=5, forbidden_tokens=("a", "b")),
    thresholds=(Threshold(precision=0.95, threshold=0.71, coverage=0.83, exact=0.97),),
)


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    assert read_calibration(tmp_path) is None
    write_calibration(tmp_path, STORED)
    assert read_calibration(tmp_path) == STORED
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]


INVALID = {
    "temperature": ["1", 0.0, -1.0, 1e9, float("nan"), float("inf"), None, [1.0], True],
    "rows": [-1, 1.5, "450"],
    "pairs": [[1], "valid.tsv"],
    "decoding": [{"beam_sise": 3}, {"beam_size": 0}, [], {"beam_size": "x"}],
    "thresholds": [
        [{"precision": 2.0, "threshold": 0.5, "coverage": 0.5, "exact": 0.5}],
        [{"precision": 0.9}],
        [0.9],
    ],
    "version": [0, 3, "1"],
    "unknown": [1],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in INVALID.items() for value in values]
)
def test_an_invalid_value_is_named(tmp_path, name, value):
    write_calibration(tmp_path, STORED)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ModelFolderError, match=rf"calibration.json: .*{name}.*dragoman evaluate"):
        read_calibration(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\x80\x04\xff", b"[" * 100_000, b'{"rows": ' + b"9" * 100_000 + b"}", b" " * (1 << 20) + b"{}"],
)  # fmt: skip
def test_an_invalid_file_gives_a_short_error(tmp_path, content):
    (tmp_path / "calibration.json").write_bytes(content)
    with pytest.raises(ModelFolderError, match=r"calibration\.json") as error:
        read_calibration(tmp_path)
    assert len(str(error.value)) < 600


def test_a_missing_value_is_named(tmp_path):
    (tmp_path / "calibration.json").write_text('{"version": 1, "rows": 3}')
    with pytest.raises(ModelFolderError, match="temperature"):
        read_calibration(tmp_path)


def test_a_folder_in_place_of_the_file_is_an_error_and_stays(tmp_path):
    (tmp_path / "calibration.json").mkdir()
    with pytest.raises(ModelFolderError, match="cannot be read"):
        read_calibration(tmp_path)
    with pytest.raises(ModelFolderError, match="cannot be written"):
        write_calibration(tmp_path, STORED)
    assert os.listdir(tmp_path) == ["calibration.json"]  # noqa: PTH208


def test_only_settings_that_change_outputs_count_as_differences():
    same = DecodingSettings(
        beam_size=5, forbidden_tokens=("a", "b"), token_scores=True, truncation_mark=""
    )
    assert find_differences(STORED, same) == []
    other = DecodingSettings(beam_size=4, forbidden_tokens=("a", "b"), minimum_risk="edit")
    assert find_differences(STORED, other) == [
        "decoding.beam_size 4, not 5",
        "decoding.minimum_risk 'edit', not 'none'",
    ]


def test_a_model_folder_keeps_its_calibration_and_refuses_an_invalid_one(trained, tmp_path):
    from dragoman.model_folder.folder import ModelFolder

    folder = tmp_path / "model"
    model_folder = ModelFolder.read(trained[0])
    replace(model_folder, calibration=STORED).write(folder)
    assert ModelFolder.read(folder).calibration == STORED
    assert dragoman.load(folder).temperature == 1.73
    (folder / "calibration.json").write_text("{")
    with pytest.raises(ModelFolderError, match=r"calibration\.json"):
        dragoman.load(folder)
