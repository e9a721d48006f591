import json
import shutil
from html import unescape

import pytest
import torch

from conftest import make_words
from dragoman import Predictor, read_settings
from dragoman.commands.evaluate import evaluate, predict_references
from dragoman.commands.report import find_attention, find_neighbours, report_model
from dragoman.configuration import merge_settings
from dragoman.evaluation.evaluation import evaluate_rows
from dragoman.evaluation.output_rows import Row, group_references
from dragoman.reading.pairs import Pair
from dragoman.storage import sha256

WORDS = make_words(60, seed=9)


def test_the_attention_of_a_few_rows_is_over_their_sources(trained):
    _, model = trained
    pairs = [Pair(word, word.upper(), (), 1, "p.tsv") for word in WORDS]
    rows = [row for row, _ in predict_references(model, group_references(pairs))]
    found = find_attention(model, rows)
    assert len(found) == 3
    for one in found:
        assert len(one["weights"]) == len(one["tokens"])
        for weights in one["weights"]:
            assert len(weights) == len(one["source_tokens"])
            assert sum(weights) == pytest.approx(1.0, abs=1e-3)


def test_a_report_says_what_the_user_set_and_how_and_where_it_was_trained(trained):
    folder = trained[0]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "model.d_model" in metrics["user_settings"]
    assert "preset" not in metrics["user_settings"]
    page = unescape((folder / "report.html").read_text())
    for text in (
        f"Task: text (characters to characters), {metrics['data']['pairs']['train']:,} training pairs",
        metrics["command"],
        metrics["machine"],
        metrics["versions"],
    ):
        assert text in page
    assert f"torch {torch.__version__}" in metrics["versions"]
    assert "the mean of its 4 heads" in page
    user, chosen = page.split("<h3>Set by you", 1)[1].split("<h3>Chosen for these pairs", 1)
    assert "model.d_model" in user
    assert "tokenizer.target.kind" in chosen


def test_the_report_of_a_command_adds_the_settings_of_that_command(trained, tmp_path):
    pairs, report = tmp_path / "pairs.tsv", tmp_path / "report.html"
    pairs.write_text("".join(f"{word}\t{word.upper()}\n" for word in WORDS))
    settings = read_settings(None, ["--decoding.beam_size", "2"])
    evaluate(trained[0], pairs, settings, report=report)
    user = report.read_text().split("<h3>Set by you", 1)[1].split("<h3>", 1)[0]
    assert "decoding.beam_size" in user
    assert "model.d_model" in user


def test_training_pairs_that_bear_on_confident_errors_are_found(monkeypatch):
    answers = [("ab c", "X", 0.5), ("abc", "A", 1.0), ("far", "Y", 0.9), *[("zz", "Z", 0.1)] * 20]
    names = ("source", "hypothesis", "confidence")
    rows = [Row(references=("A",), **dict(zip(names, one, strict=True))) for one in answers]
    texts = [("AB  c", "A"), ("abc", "X"), ("abd", "D"), ("abd", "D"), ("abC", "A"), ("ab c", "B")]
    pairs = [Pair(*both, (), i, "d/p.tsv") for i, both in enumerate(texts, start=1)]
    found = find_neighbours(rows, [*pairs, Pair("ab c", "F", ("<x>",), 7, "d/p.tsv")])
    far, near, *others = found["outputs"]
    assert (far["row"], far["otherwise"], far["nearest"]) == (rows[2], {}, [])
    assert (near["row"], len(others)) == (rows[0], 8)
    assert near["otherwise"] == {"A": ["p.tsv:1", "p.tsv:5"], "B": ["p.tsv:6"]}
    assert [one.line for _, one in near["nearest"]] == [6, 7, 2, 3, 5]
    monkeypatch.setattr("dragoman.commands.report._MOST_COMPARED", 400.0)
    found = find_neighbours(rows, pairs)
    assert found["num_compared"] < found["num_pairs"] == 6
    assert found["outputs"][1]["otherwise"] == near["otherwise"]
    assert (
        find_neighbours(rows, []) == find_neighbours(rows[1:2], pairs) == {}
    )  # no pairs; no errors


def test_training_targets_are_composed_as_outputs_are(trained, tmp_path):
    model = trained[1]
    nfd = {"tokenizer.target.unicode_form": "nfd"}
    settings = merge_settings(model.settings, nfd, overrule=True)
    model = Predictor(model.engine, model.tokenizer, settings)
    row = Row(source="ab", references=("A",), hypothesis="\u00e9", confidence=0.9)
    evaluations = {"test": evaluate_rows([row], settings.evaluation)}
    path, training = tmp_path / "report.html", [Pair("ab", "e\u0301", (), 1, "p.tsv")]
    report_model(path, model, "m", evaluations, training=training)
    assert "Nearest training pairs" in path.read_text()
    assert "otherwise:</b>" not in path.read_text()


def test_a_report_shows_training_pairs_only_if_they_are_at_hand_and_unchanged(trained, tmp_path):
    pairs, own, report = (tmp_path / name for name in ("p.tsv", "own.tsv", "report.html"))
    pairs.write_text("abc\t<b>\n" * 3 + "abd\tABD\n")
    own.write_text("abc\tC\n")
    folder = shutil.copytree(trained[0], tmp_path / "model")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["data"] |= {"files": [str(pairs)], "sha256": {str(pairs): sha256(pairs)}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    evaluate(folder, own, report=report)
    assert "<b>3 training rows say otherwise:</b>" in report.read_text()
    assert "p.tsv:1, p.tsv:2, p.tsv:3" in report.read_text()
    for change in (lambda: pairs.write_text("abc\tC\n"), pairs.unlink):
        change()
        evaluate(folder, own, report=report)
        assert 'id="neighbours"' not in report.read_text()
