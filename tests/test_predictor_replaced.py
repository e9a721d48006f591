"""A loaded model stays the same when its folder is replaced."""

import json
import shutil
from dataclasses import replace

import pytest

import dragoman
from dragoman.model_folder.folder import ModelFolder, staged_model_folder
from dragoman.tokenizers.tokenizer import PairTokenizer

SOURCES = ["fcdb", "dbfc", "fffd", "cab"]


@pytest.fixture(scope="module")
def models(trained, tmp_path_factory):
    """Two models: the ids of the other are changed in its weights, and others in its tokens.

    So the weights of one with the tokens of the other would give an answer of neither.
    """
    top = tmp_path_factory.mktemp("models")
    one = shutil.copytree(trained[0], top / "one")
    model_folder = ModelFolder.read(one)
    weights = {name: value.copy() for name, value in model_folder.weights.items()}
    for name in ("target_embedding.weight", "output.weight", "output.bias"):
        if name in weights:
            weights[name][[4, 5]] = weights[name][[5, 4]]
    content = model_folder.tokenizer.to_dict()
    tokens = content["target"]["tokens"]
    tokens[2], tokens[3] = tokens[3], tokens[2]
    (top / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = PairTokenizer.load(top / "tokenizer.json")
    with staged_model_folder(top / "other") as folder:
        replace(model_folder, weights=weights, tokenizer=tokenizer).fill(folder)
        shutil.copytree(one / "evaluation", folder / "evaluation")
    answers = {}
    for folder in (one, top / "other"):
        for engine in ("ctranslate2", "torch"):
            model = dragoman.load(folder, engine=engine, threads=1)
            answers.setdefault(model.weights_sha256()[0], set()).add(tuple(model.predict(SOURCES)))
    assert all(len(found) == 1 for found in answers.values())
    assert len(set.union(*answers.values())) == 2
    return one, top / "other", {key: next(iter(found)) for key, found in answers.items()}


def test_a_loaded_model_stays_the_same_after_its_folder_is_replaced(models, tmp_path):
    """Even if PyTorch takes over, or more threads start, only after that."""
    one, other, _ = models
    place = shutil.copytree(one, tmp_path / "model")
    model = dragoman.load(place, threads=2)
    expected, key = model.predict(SOURCES), model.weights_sha256()
    model = dragoman.load(place, threads=2)
    with staged_model_folder(place) as folder:
        shutil.copytree(other, folder, dirs_exist_ok=True)
    assert model.predict(SOURCES[:1]) == expected[:1]
    assert model.predict(SOURCES) == expected
    found = model.predict_n_best(SOURCES, prefixes=[text[:2] for text in expected])
    assert [best[0].text for best in found] == expected
    assert model.weights_sha256() == key
    assert dragoman.load(place).predict(SOURCES) != expected
