"""The comparison of an engine with PyTorch, on held-out rows."""

import json
from dataclasses import replace

import pytest
import torch

from dragoman.engines.parity import compare
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import ModelFolderError
from dragoman.model.building import build_network, copy_weights, load_network
from dragoman.model_folder.folder import ModelFolder
from dragoman.settings import Settings
from dragoman.tokenizers.tokenizer import EOS_ID
from exported import make_model


@pytest.fixture(scope="module")
def model_folder(trained):
    return ModelFolder.read(trained[0])


def engine_of(model_folder):
    network = load_network(
        model_folder.settings.model, model_folder.tokenizer, model_folder.weights
    )
    return TorchEngine([network], "cpu")


def test_the_same_model_is_equal(model_folder):
    check = compare(engine_of(model_folder), engine_of(model_folder), model_folder)
    assert (check.rows, check.equal_rows, check.largest_difference) == (64, 64, 0.0)
    assert check.is_equal


def test_another_model_is_not_equal(model_folder):
    torch.manual_seed(0)
    network = build_network(model_folder.settings.model, model_folder.tokenizer)
    check = compare(engine_of(model_folder), TorchEngine([network], "cpu"), model_folder)
    assert not check.is_equal
    assert json.loads(json.dumps(check.to_dict()))["is_equal"] is False


def test_a_model_that_produces_nan_is_not_equal(model_folder):
    weights = {name: value * float("nan") for name, value in model_folder.weights.items()}
    network = load_network(model_folder.settings.model, model_folder.tokenizer, weights)
    engine = TorchEngine([network], "cpu")
    check = compare(engine, engine, model_folder)
    assert not check.is_equal
    assert check.to_dict()["largest_difference"] is None


def test_ties_count_as_equal_and_other_differences_do_not(model_folder):
    """Outputs that differ first where both tokens are equally likely are equal; elsewhere not."""
    weights = {name: value.copy() for name, value in model_folder.weights.items()}
    head = weights.get("output.weight", weights["target_embedding.weight"])
    a, b = model_folder.tokenizer.target.encode("AB")
    head[b] = head[a]  # an output with A is as likely as one with B
    bias = weights.get("output.bias")
    if bias is not None:
        bias[b] = bias[a]
    network = load_network(model_folder.settings.model, model_folder.tokenizer, weights)
    engine = TorchEngine([network], "cpu")

    class Swapping:
        """The same engine, that emits the other of two equal tokens, or the end instead of all."""

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

    tied = compare(engine, Swapping(swap_last), model_folder)
    assert tied.tied_rows > 0
    assert tied.is_equal
    wrong = compare(engine, Swapping(lambda ids: (*ids[:-1], 3)), model_folder)
    assert not wrong.is_equal


def test_outputs_that_fill_the_learned_positions_are_compared():
    options = {"positions": "learned", "max_positions": 16, "tie_embeddings": False}
    (model, tokenizer, one), (*_, other) = (make_model(seed=seed, **options) for seed in (0, 1))
    with torch.no_grad():  # they never end
        one.output.bias[EOS_ID] = other.output.bias[EOS_ID] = -99.0
    sides = {"source": tokenizer.source.settings, "target": tokenizer.target.settings}
    values = {"data": {"max_tokens": 16}, "model": model, "tokenizer": sides}
    model_folder = ModelFolder(
        settings=Settings.model_validate(values),
        tokenizer=tokenizer,
        weights=copy_weights(one),
        metrics={"samples": [{"source": "abc", "features": [], "reference": "abc"}]},
        card="",
    )
    check = compare(TorchEngine([one], "cpu"), TorchEngine([other], "cpu"), model_folder)
    assert (check.rows, check.equal_rows, check.tied_rows) == (1, 0, 0)


@pytest.mark.parametrize("samples", [[1], [{}], {"a": 1}, "abc"])
def test_invalid_samples_are_named(model_folder, samples):
    engine = engine_of(model_folder)
    with pytest.raises(ModelFolderError, match=r"metrics\.json: samples: expected rows"):
        compare(engine, engine, replace(model_folder, metrics={"samples": samples}))
    with pytest.raises(ModelFolderError, match=r"metrics\.json has no samples"):
        compare(engine, engine, replace(model_folder, metrics={}))
