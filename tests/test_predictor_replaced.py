"""A model folder that is replaced while it is read gives one of the two models, or a clear error."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

import dragoman
from dragoman.model_folder.folder import ModelFolder, staged_model_folder
from dragoman.tokenizers.tokenizer import PairTokenizer

ROUNDS = int(os.environ.get("DRAGOMAN_REPLACED_ROUNDS", "12"))  # of each reader
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


REPLACE = """
import shutil, sys
from pathlib import Path
from dragoman.model_folder.folder import staged_model_folder
place, *models = map(Path, sys.argv[1:])
for number, _ in enumerate(sys.stdin):
    with staged_model_folder(place) as folder:
        shutil.copytree(models[number % 2], folder, dirs_exist_ok=True)
    print("replaced", flush=True)
"""

PREDICT = """
import json, random, subprocess, sys, time
import dragoman
from dragoman.errors import ModelFolderError
place, sources, count, code, models, *engines = sys.argv[1:]
sources, chance = json.loads(sources), random.Random(0)
words = [sys.executable, "-c", code, place, *json.loads(models)]
writer = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
for number in range(int(count)):
    is_replacing = True
    print(file=writer.stdin, flush=True)  # one replacement, at some moment of what follows
    time.sleep(chance.uniform(0, 0.03))
    if number >= int(count) - 2:  # the last two rounds: before it
        is_replacing = not writer.stdout.readline()
    while True:
        try:
            model = dragoman.load(place, engine=engines[number % len(engines)], threads=1)
            break
        except ModelFolderError as error:
            assert is_replacing and "replaced" in str(error) and "try again" in str(error), error
            is_replacing = not writer.stdout.readline()
    key, best = model.weights_sha256()[0], model.predict(sources)
    prefixes = [text[:1] for text in best]
    late = "torch" in sys.modules
    again = [one[0].text for one in model.predict_n_best(sources, prefixes=prefixes)] if late else best
    print(json.dumps([key, best, again]), flush=True)
    if is_replacing:
        writer.stdout.readline()
writer.stdin.close()
writer.wait()
"""


@pytest.mark.parametrize("engines", [["ctranslate2"], ["torch", "auto"]], ids=" ".join)
def test_every_answer_is_that_of_one_of_two_models(models, tmp_path, engines):
    """Each round replaces the folder once, while another process loads it and predicts.

    When exactly is left to chance; whether the test passes is not.
    """
    one, other, answers = models
    place = shutil.copytree(one, tmp_path / "model")
    pair = json.dumps([str(other), str(one)])
    words = [place, json.dumps(SOURCES), str(ROUNDS), REPLACE, pair, *engines]
    reader = subprocess.run(
        [sys.executable, "-c", PREDICT, *words], stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = [json.loads(line) for line in reader.stdout.splitlines()]
    assert len(lines) == ROUNDS
    for key, best, again in lines:
        assert tuple(best) == tuple(again) == answers[key]
    assert {key for key, _, _ in lines} == set(answers)


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
    assert not model.is_in_place()
    assert dragoman.load(place).is_in_place()
    assert dragoman.load(place).predict(SOURCES) != expected
