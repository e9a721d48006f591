import json
from html import unescape

import pytest
import torch

from conftest import make_words
from dragoman import read_settings
from dragoman.commands.evaluate import evaluate, predict_references
from dragoman.commands.report import find_attention
from dragoman.evaluation.output_rows import group_references
from dragoman.reading.pairs import Pair

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
