"""The weights of a model folder are read by safetensors, and their shapes must fit the settings."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import dragoman
from dragoman.errors import ModelFolderError
from dragoman.model.building import build_network, copy_weights, load_network
from dragoman.model_folder.folder import StoredWeights
from dragoman.settings import ModelSettings, SideSettings
from dragoman.tokenizers.tokenizer import PairTokenizer, Tokenizer

SIDE = SideSettings(kind="characters")
TOKENIZER = PairTokenizer(
    source=Tokenizer.train(["abcdefg"], SIDE),
    target=Tokenizer.train(["ABCDEFGHIJKLM"], SIDE),
    features={"<V>": 11},
)
MODEL = ModelSettings(d_model=16, nhead=2, dim_feedforward=24, positions="learned", max_positions=7)


@pytest.fixture
def weights():
    return copy_weights(build_network(MODEL, TOKENIZER))


def test_a_file_is_read_as_it_was_written(weights, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    found = StoredWeights(path)
    assert list(found) == sorted(weights)
    assert all(np.array_equal(found[name], weights[name]) for name in weights)
    network = load_network(MODEL, TOKENIZER, found)
    assert all(torch.equal(p, torch.from_numpy(weights[n])) for n, p in network.named_parameters())
    assert "other" not in found
    with pytest.raises(KeyError, match="other"):
        found["other"]


def test_weights_stay_the_same_after_their_file_is_replaced(trained, tmp_path):
    path = Path(shutil.copy(trained[0] / "model.safetensors", tmp_path))
    expected, found, again = load_file(path), StoredWeights(path), StoredWeights(path)
    sha256 = found.sha256
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "new")
    (tmp_path / "new").replace(path)
    assert again.sha256 == sha256
    assert all(np.array_equal(again[name], expected[name]) for name in expected)


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 100])
def test_an_invalid_file_is_named(content, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ModelFolderError, match=r"w\.safetensors: the weights cannot be read"):
        StoredWeights(tmp_path / "w.safetensors")


def test_weights_that_are_not_float32_are_named(tmp_path):
    save_file({"a": np.zeros(3, np.float16)}, tmp_path / "w")
    with pytest.raises(ModelFolderError, match="w: a is of type F16; weights are F32"):
        StoredWeights(tmp_path / "w")


def test_tensors_that_do_not_fit_the_settings_are_named_with_both_shapes(weights):
    weights["other"] = weights.pop("output.bias")
    weights["output.weight"] = weights["output.weight"][:, :8]
    with pytest.raises(ModelFolderError, match="do not fit the settings") as error:
        load_network(MODEL, TOKENIZER, weights)
    for expected in (
        r"other: found (24,), expected nothing",
        r"output.bias: found nothing, expected (24,)",
        r"output.weight: found (24, 8), expected (24, 16)",
    ):
        assert expected in str(error.value)


@pytest.mark.parametrize("engine", ["torch", "ctranslate2", "auto"])
def test_settings_of_another_model_are_refused(engine, trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "model")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("d_model: 64", "d_model: 32"))
    with pytest.raises(ModelFolderError):
        dragoman.load(folder, engine=engine)


def test_a_network_is_allocated_only_if_its_weights_fit():
    huge = ModelSettings(d_model=1 << 16, nhead=1, dim_feedforward=1 << 20, num_encoder_layers=900)
    start_s = time.process_time()
    with pytest.raises(ModelFolderError, match="do not fit the settings"):
        load_network(huge, TOKENIZER, {"a": np.zeros(3, np.float32)})
    assert time.process_time() - start_s < 20


def test_a_table_of_sinusoids_does_not_grow_with_max_positions():
    model = ModelSettings(d_model=8, nhead=1, max_positions=1 << 20)
    network = build_network(model, TOKENIZER)
    assert network.source_positions.table.shape == (1024, 8)
    assert network.source_positions(5000, 5001).shape == (1, 8)
