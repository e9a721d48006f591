"""The training pairs that bear on an output."""

import json
import math
import random
import shutil

import numpy as np
import pytest

import dragoman
from conftest import make_words
from dragoman import DataError, DragomanError, explain
from dragoman.cli import main
from dragoman.commands.explain import describe_explanation
from dragoman.reading.statistics import split_of

WORDS = make_words(1500)  # of the model `trained`, which writes them in capitals
KNOWN = next(word for word in WORDS if len(word) == 5 and split_of(word, (), 0.1, 0.0) == "train")
HELD_OUT = [word for word in WORDS if split_of(word, (), 0.1, 0.0) != "train"]


def test_the_nearest_rows_are_those_of_comparing_all(trained):
    found = explain(trained[0], KNOWN, num_rows=4)
    first = found.neighbours[0]
    assert found.output == first.target == KNOWN.upper()
    assert (first.source, first.characters, first.supports) == (KNOWN, 1.0, (KNOWN.upper(),))
    assert first.row.endswith(f"pairs.tsv:{WORDS.index(KNOWN) + 1}")
    assert first.encoder_state == pytest.approx(1.0, abs=1e-4)
    assert 4 <= len(found.neighbours) <= 7
    assert not {one.source for one in found.neighbours} & {*HELD_OUT}
    assert found.notes == (
        f"{len(HELD_OUT)} rows were held out of the training, and are left out here",
    )
    assert found.otherwise == {}
    model = dragoman.load(trained[0], engine="torch")
    others = [word for word in WORDS if word not in HELD_OUT]
    states = [
        model.engine.pool_states(model.tokenizer.encode_sources([one], [()]))[0] for one in others
    ]
    states = np.array(states) / np.linalg.norm(states, axis=1, keepdims=True)
    cosines = dict(zip(others, states @ states[others.index(KNOWN)], strict=True))
    for one in found.neighbours:
        assert one.encoder_state == pytest.approx(cosines[one.source], abs=1e-4)
    nearest = sorted(one.encoder_state for one in found.neighbours)[-4:]
    assert nearest == pytest.approx(sorted(cosines.values())[-4:], abs=1e-4)


def test_rows_of_the_source_with_other_targets_are_named(trained, tmp_path, capsys):
    (tmp_path / "own.tsv").write_text(f"{KNOWN}\t{KNOWN.upper()}\n" + f"{KNOWN}\tNo\n" * 3)
    found = explain(trained[0], KNOWN, pairs=tmp_path / "own.tsv")
    rows = [f"{tmp_path}/own.tsv:{line}" for line in (2, 3, 4)]
    assert found.otherwise == {"No": rows}
    assert [one.row for one in found.neighbours] == [f"{tmp_path}/own.tsv:1", rows[0]]
    assert found.neighbours[1].supports == ()
    words = ["explain", str(trained[0]), KNOWN, "--pairs", str(tmp_path / "own.tsv")]
    assert main(words) == 0
    assert "3 training rows of this source say otherwise: " in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.to_dict()))


def test_tokens_of_low_probability_are_named(trained, monkeypatch):
    model = dragoman.load(trained[0], {"decoding.token_scores": True}, engine="torch")
    words = ["".join(random.Random(i).choices("abcdefgh", k=12)) for i in range(30)]
    outputs = {word: best for word, [best] in zip(words, model.predict_n_best(words), strict=True)}
    word, best = min(outputs.items(), key=lambda one: min(one[1].log_probs))
    threshold = math.exp(min(best.log_probs)) + 1e-4
    monkeypatch.setattr("dragoman.commands.explain._UNSURE", threshold)
    found = explain(trained[0], word, pairs=[("a", "A")])
    expected = [
        (i, token)
        for i, (token, score) in enumerate(zip(best.tokens, best.log_probs, strict=True), start=1)
        if round(math.exp(score), 4) < threshold
    ]
    assert [(one["place"], one["token"]) for one in found.unsure] == expected != []
    assert "unsure of token" in "\n".join(describe_explanation(found))


def test_pairs_that_are_not_there_or_have_changed_are_named(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "model")
    metrics = json.loads((folder / "metrics.json").read_text())
    copy = tmp_path / "pairs.tsv"
    metrics["data"]["files"] = [str(copy)]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(DataError, match=r"pairs\.tsv: the training pairs are not there; .*--pairs"):
        explain(folder, KNOWN)
    copy.write_text(f"{KNOWN}\tx\n")
    assert explain(folder, KNOWN).notes == (f"{copy} has changed since the training",)
    with pytest.raises(DragomanError, match="SOURCE: it is empty"):
        explain(folder, " ")
