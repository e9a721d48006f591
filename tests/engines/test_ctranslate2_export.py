"""The export as a step of its own: into the model folder, checked, or not at all."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import dragoman
from conftest import make_words
from dragoman.engines import export as exporting_folder
from dragoman.engines.ctranslate2_export import export_ctranslate2, write_model
from dragoman.engines.export_check import compare
from dragoman.errors import ModelFolderError, SettingsError
from dragoman.model.building import build_network, copy_weights, load_network, load_weights
from dragoman.model_folder.folder import read_bundle

WORDS = make_words(200, seed=11)


@pytest.fixture
def folder(trained, tmp_path):
    """A model folder of this test's own, not exported."""
    copy = tmp_path / "model"
    shutil.copytree(trained[0], copy)
    shutil.rmtree(copy / "ctranslate2")
    return copy


def test_fit_has_exported_and_checked_the_model(trained):
    about = json.loads((trained[0] / "ctranslate2" / "export.json").read_text())
    assert about["check"]["rows"] == 64
    assert about["check"]["equal_rows"] == 64
    assert about["check"]["largest_difference"] < 1e-4


def test_the_default_engine_is_the_exported_one_and_says_the_same(trained):
    quick, exact = dragoman.load(trained[0]), dragoman.load(trained[0], engine="torch")
    assert (quick.engine.name, exact.engine.name) == ("ctranslate2", "torch")
    assert quick.predict(WORDS) == exact.predict(WORDS)


def test_what_it_cannot_do_is_done_by_pytorch_unless_it_was_asked_for_by_name(trained):
    from dragoman import read_settings

    wide = read_settings(None, ["--decoding.beam_size", "3", "--decoding.stop", "exact"])
    assert dragoman.load(trained[0], wide).engine.name == "torch"
    with pytest.raises(SettingsError, match=r"no decoding\.stop exact"):
        dragoman.load(trained[0], wide, engine="ctranslate2")
    with pytest.raises(SettingsError, match="runs no ensemble"):
        dragoman.load([trained[0], trained[0]], engine="ctranslate2")
    quick = dragoman.load(trained[0])
    [[best]] = quick.predict_n_best(["abc"], prefixes=["B"])
    assert best.text.startswith("B")
    named = dragoman.load(trained[0], engine="ctranslate2")
    with pytest.raises(SettingsError, match="of an output with a prefix"):
        named.predict_n_best(["abc"], prefixes=["B"])


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_an_export_is_put_into_the_folder_whole(folder, quantization):
    check = export_ctranslate2(folder, quantization)
    assert check.rows == 64
    assert check.equal_rows >= 60
    about = json.loads((folder / "ctranslate2" / "export.json").read_text())
    assert about["quantization"] == quantization
    assert about["check"] == check.to_dict()
    first = (folder / "ctranslate2" / "model.bin").stat().st_size
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    export_ctranslate2(folder, "int8")  # one that is there is replaced
    assert (folder / "ctranslate2" / "model.bin").stat().st_size <= first
    assert dragoman.load(folder).engine.name == "ctranslate2"


def test_an_export_of_other_weights_is_noticed(folder):
    export_ctranslate2(folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match="exported from other weights"):
        dragoman.load(folder)
    assert dragoman.load(folder, engine="torch").engine.name == "torch"


def test_a_model_that_it_would_get_wrong_is_refused_and_the_old_export_stays(folder, monkeypatch):
    export_ctranslate2(folder)
    before = (folder / "ctranslate2" / "model.bin").read_bytes()
    # The reference is given other weights than those that are written: the check must see it.
    bundle = read_bundle(folder)
    right = build_network(bundle.settings.model, bundle.tokenizer)
    load_weights(right, bundle.weights)

    def load_wrong(settings, tokenizer, weights):
        return load_network(settings.model_copy(update={"nhead": 2}), tokenizer, weights)

    def write_other(network, tokenizer, target, quantization):
        return write_model(right, tokenizer, target, quantization)

    monkeypatch.setattr(exporting_folder, "load_network", load_wrong)
    monkeypatch.setattr("dragoman.engines.ctranslate2_export.write_model", write_other)
    with pytest.raises(ModelFolderError, match="does not say what the model says"):
        export_ctranslate2(folder)
    assert (folder / "ctranslate2" / "model.bin").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_ties_are_told_from_errors(folder):
    """Two engines that part where both tokens are equally likely are equal; elsewhere not."""
    bundle = read_bundle(folder)
    network = build_network(bundle.settings.model, bundle.tokenizer)
    weights = {name: value.copy() for name, value in bundle.weights.items()}
    head = weights.get("output.weight", weights["target_embedding.weight"])
    a, b = bundle.tokenizer.target.encode("AB")
    head[b] = head[a]  # whatever it says with A, B is as likely
    bias = weights.get("output.bias")
    if bias is not None:
        bias[b] = bias[a]
    load_weights(network, weights)
    from dragoman.engines.torch_engine import TorchEngine

    engine = TorchEngine([network], "cpu")

    class Swapping:
        """The same engine, that takes the other of two equal tokens, or the end of all."""

        def __init__(self, change):
            self.change = change

        def search(self, sources, config):
            return [[one._replace(ids=self.change(one.ids)) for one in row]
                    for row in engine.search(sources, config)]  # fmt: skip

        def score(self, *arguments):
            return engine.score(*arguments)

    def swap_last(ids):
        places = [i for i, token in enumerate(ids) if token in (a, b)]
        if not places:
            return ids
        other = {a: b, b: a}[ids[places[-1]]]
        return (*ids[: places[-1]], other, *ids[places[-1] + 1 :])

    tied = compare(engine, Swapping(swap_last), bundle)
    assert tied.tied_rows > 0
    assert tied.is_equal
    wrong = compare(engine, Swapping(lambda ids: (*ids[:-1], 3)), bundle)
    assert not wrong.is_equal


def test_what_it_cannot_compute_is_refused_with_the_reason(folder):
    bundle = read_bundle(folder)
    network = build_network(bundle.settings.model, bundle.tokenizer)
    for layer in network.transformer.decoder.layers:
        layer.activation = torch.tanh
    with pytest.raises(ModelFolderError, match="activation"):
        write_model(network, bundle.tokenizer, folder)
    with pytest.raises(ModelFolderError, match="expected a model folder"):
        export_ctranslate2(folder / "nothing")


@pytest.mark.parametrize("quantization", ["float32", "int8", "float16", "bfloat16"])
def test_exporting_leaves_the_network_as_it_was(folder, tmp_path, quantization):
    bundle = read_bundle(folder)
    network = build_network(bundle.settings.model, bundle.tokenizer)
    load_weights(network, bundle.weights)
    (tmp_path / "out").mkdir()
    write_model(network, bundle.tokenizer, tmp_path / "out", quantization)
    for name, value in copy_weights(network).items():
        assert np.array_equal(value, bundle.weights[name]), name
