"""The shapes that the settings tell are those of the network, and the file is read as it is."""

import itertools
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from dragoman.errors import ModelFolderError
from dragoman.model.building import build_network, copy_weights, load_network
from dragoman.model_folder.weights import WeightsFile, list_shapes
from dragoman.settings import ModelSettings, SideSettings
from dragoman.tokenizers.pair_tokenizer import PairTokenizer
from dragoman.tokenizers.tokenizer import Tokenizer

SIDE = SideSettings(kind="characters")
SOURCE = Tokenizer.train(["abcdefg"], SIDE)
TARGET = Tokenizer.train(["ABCDEFGHIJKLM"], SIDE)
KINDS = [
    ModelSettings(
        d_model=16, nhead=2, dim_feedforward=24, num_encoder_layers=encoder,
        num_decoder_layers=decoder, positions=positions, max_positions=7, tie_embeddings=tied,
        norm_first=first,
    )
    for (encoder, decoder), positions, tied, first in itertools.product(
        [(1, 2), (3, 1)], ["sinusoidal", "learned"], [False, True], [False, True]
    )
]  # fmt: skip


def make_tokenizer(is_shared):
    return PairTokenizer(
        source=SOURCE, target=SOURCE if is_shared else TARGET, features={"<V>": 11}
    )


def shapes_of(model, tokenizer):
    sizes = tokenizer.source_vocab_size, tokenizer.target_vocab_size
    return list_shapes(model, *sizes, is_shared=tokenizer.is_shared)


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("model", KINDS, ids=str)
def test_the_shapes_are_those_of_the_network(model, is_shared):
    tokenizer = make_tokenizer(is_shared)
    network = build_network(model, tokenizer)
    expected = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert shapes_of(model, tokenizer) == expected


def test_a_file_is_read_as_safetensors_reads_it(tmp_path):
    tokenizer, model = make_tokenizer(False), KINDS[-1]
    weights = copy_weights(build_network(model, tokenizer))
    save_file(weights, tmp_path / "w.safetensors", metadata={"format": "pt"})
    file = WeightsFile(tmp_path / "w.safetensors", shapes_of(model, tokenizer))
    (tmp_path / "w.safetensors").unlink()  # it is kept open
    found = file.read()
    assert not file.is_in_place()
    save_file(found, tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == weights.keys()
    assert all(np.array_equal(again[name], weights[name]) for name in weights)
    network = load_network(model, tokenizer, found)
    assert all(torch.equal(p, torch.from_numpy(weights[n])) for n, p in network.named_parameters())


def test_no_network_is_made_before_the_weights_are_known_to_fit():
    huge = ModelSettings(d_model=1 << 16, nhead=1, dim_feedforward=1 << 20, num_encoder_layers=900)
    start_s = time.monotonic()
    with pytest.raises(ModelFolderError, match="do not fit the settings"):
        load_network(huge, make_tokenizer(False), {"a": np.zeros(3, np.float32)})
    assert time.monotonic() - start_s < 5


def test_a_table_of_sinusoids_does_not_grow_with_what_the_settings_claim():
    model = ModelSettings(d_model=8, nhead=1, max_positions=1 << 20)
    network = build_network(model, make_tokenizer(False))
    assert network.source_positions.table.shape == (1024, 8)
    assert network.source_positions(5000, 5001).shape == (1, 8)
