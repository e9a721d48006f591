"""An export is whole and says what PyTorch says, or nothing is left of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dragoman.engines.export import write_export
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import ModelFolderError
from dragoman.model.building import build_network, load_weights
from dragoman.model_folder.folder import WEIGHTS, read_bundle
from dragoman.storage import sha256


def write(network, folder):
    (folder / "model").write_text("the model")
    return {"told": 1}


def load_same(bundle):
    def load(folder: Path):
        assert (folder / "model").read_text() == "the model"
        assert json.loads((folder / "export.json").read_text())["told"] == 1
        network = build_network(bundle.settings.model, bundle.tokenizer)
        load_weights(network, bundle.weights)
        return TorchEngine([network], "cpu")

    return load


def load_another(bundle):
    torch.manual_seed(0)
    network = build_network(bundle.settings.model, bundle.tokenizer)
    return lambda folder: TorchEngine([network], "cpu")


@pytest.fixture(scope="module")
def bundle(trained):
    return read_bundle(trained[0])


@pytest.fixture
def path(trained, tmp_path):
    """A model folder to write into: the weights are all that is looked at in it."""
    (tmp_path / WEIGHTS).write_bytes((trained[0] / WEIGHTS).read_bytes())
    return tmp_path


def names_in(path):
    return {one.name for one in path.iterdir()}


def test_an_export_tells_its_weights_and_its_check(path, bundle):
    check = write_export(path, "new", bundle, write, load_same(bundle))
    assert check.is_equal
    assert check.largest_difference == 0.0
    about = json.loads((path / "new" / "export.json").read_text())
    assert about["weights"] == sha256(path / WEIGHTS)
    assert (about["told"], about["check"]) == (1, check.to_dict())
    assert names_in(path) == {WEIGHTS, "new"}


def test_an_export_that_says_something_else_is_not_kept(path, bundle):
    with pytest.raises(ModelFolderError, match="0 of "):
        write_export(path, "new", bundle, write, load_another(bundle))
    assert names_in(path) == {WEIGHTS}


def test_an_export_that_may_differ_is_kept_with_what_it_says(path, bundle):
    another = load_another(bundle)
    check = write_export(path, "new", bundle, write, another, must_be_equal=False)
    assert not check.is_equal
    assert json.loads((path / "new" / "export.json").read_text())["check"] == check.to_dict()


def test_a_model_of_broken_numbers_is_not_exported(path, bundle):
    weights = {name: value * float("nan") for name, value in bundle.weights.items()}
    broken = replace(bundle, weights=weights, weights_file=None)
    for must_be_equal in (True, False):
        with pytest.raises(ModelFolderError, match="what is no number"):
            write_export(path, "new", broken, write, load_same(broken), must_be_equal=must_be_equal)
    assert names_in(path) == {WEIGHTS}


@pytest.mark.parametrize(
    "samples",
    [[1], [{}], [{"source": 1, "reference": "a", "features": []}], {"a": 1}, "abc",
     [{"source": "a", "reference": "a", "features": [1]}]],
)  # fmt: skip
def test_samples_that_are_none_are_named(path, bundle, samples):
    with pytest.raises(ModelFolderError, match=r"metrics\.json: its samples"):
        write_export(
            path, "new", replace(bundle, metrics={"samples": samples}), write, load_same(bundle)
        )


@pytest.mark.parametrize("error", [ModelFolderError("no such part"), OSError("disk full")])
def test_what_stood_there_outlives_an_export_that_fails(path, bundle, error):
    write_export(path, "new", bundle, write, load_same(bundle))
    before = (path / "new" / "export.json").read_text()

    def fail(network, folder):
        (folder / "half").write_text("")
        raise error

    with pytest.raises(ModelFolderError, match=str(error)):
        write_export(path, "new", bundle, fail, load_same(bundle))
    assert (path / "new" / "export.json").read_text() == before
    assert names_in(path) == {WEIGHTS, "new"}


def test_an_export_takes_the_place_of_the_one_before(path, bundle):
    write_export(path, "new", bundle, write, load_same(bundle))
    (path / "new" / "old file").write_text("")
    write_export(path, "new", bundle, write, load_same(bundle))
    assert names_in(path / "new") == {"export.json", "model"}


def test_a_link_in_the_place_of_an_export_does_not_let_what_it_leads_to_be_replaced(path, bundle):
    (path / "thesis").mkdir()
    (path / "thesis" / "thesis.tex").write_text("mine")
    (path / "new").symlink_to(path / "thesis")
    with pytest.raises(ModelFolderError, match="it is a link"):
        write_export(path, "new", bundle, write, load_same(bundle))
    assert (path / "thesis" / "thesis.tex").read_text() == "mine"
    assert names_in(path) == {WEIGHTS, "new", "thesis"}
