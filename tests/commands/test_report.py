import pytest

from conftest import make_words
from dragoman.commands.evaluate import predict_pairs
from dragoman.commands.report import find_attention
from dragoman.reading.pairs import Pair

WORDS = make_words(60, seed=9)


def test_the_attention_of_a_few_rows_is_over_their_sources(trained):
    _, model = trained
    rows = predict_pairs(model, [Pair(word, word.upper(), (), 1, "p.tsv") for word in WORDS])
    found = find_attention(model, rows)
    assert len(found) == 3
    for one in found:
        assert len(one["weights"]) == len(one["tokens"])
        for weights in one["weights"]:
            assert len(weights) == len(one["source_tokens"])
            assert sum(weights) == pytest.approx(1.0, abs=1e-3)
