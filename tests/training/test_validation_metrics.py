import copy
import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dragoman.model.loss import sum_cross_entropy
from dragoman.reading.pairs import Pair
from dragoman.settings import Monitor, Settings, SideSettings, TokenizerSettings
from dragoman.tokenizers.tokenizer import PairTokenizer
from dragoman.training.validation_metrics import (
    DecodedMetrics,
    TeacherForcedMetrics,
    Texts,
    choose_text_scores,
    monitor_mode,
)
from evaluation.scoring import score

rows = st.lists(
    st.tuples(
        st.lists(st.integers(3, 6), max_size=5), st.lists(st.integers(3, 6), min_size=1, max_size=5)
    ),
    min_size=1,
    max_size=10,
)


@given(rows=rows, cut=st.integers(0, 10))
def test_a_decoded_score_does_not_depend_on_the_batches(rows, cut):
    whole, parts = DecodedMetrics("valid"), DecodedMetrics("valid")
    whole.update([h for h, _ in rows], [r for _, r in rows])
    for part in (rows[:cut], rows[cut:]):
        parts.update([h for h, _ in part], [r for _, r in part])
    assert whole.compute() == parts.compute()


def test_decoded_scores_equal_hand_counts():
    metrics = DecodedMetrics("valid")
    metrics.update([(3, 4), (5,), ()], [[3, 4], [5, 6], [7]])
    found = metrics.compute()
    assert found["valid_exact_match"] == pytest.approx(100 / 3)
    assert found["valid_token_error_rate"] == pytest.approx(100 * 2 / 5)


def sum_by_logits(logits, labels):
    return sum_cross_entropy(logits, torch.eye(7), None, labels, vocab_size=7)


def test_teacher_forced_scores_are_means_over_tokens_not_batches():
    logits, labels = torch.randn(30, 7), torch.randint(0, 7, (30,))
    metrics = TeacherForcedMetrics("train")
    for part in (slice(0, 3), slice(3, 30)):
        metrics.update(sum_by_logits(logits[part], labels[part]))
    found = metrics.compute()
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert found["train_loss"] == pytest.approx(loss)
    assert found["train_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    correct = (logits.argmax(-1) == labels).float().mean().item()
    assert found["train_token_accuracy"] == pytest.approx(100 * correct)


def test_stages_do_not_share_their_counts():
    train, valid = TeacherForcedMetrics("train"), TeacherForcedMetrics("valid")
    train.update(sum_by_logits(torch.randn(4, 7), torch.zeros(4, dtype=torch.long)))
    assert train.num_tokens == 4
    assert valid.num_tokens == 0


def words_of(alphabet):
    return st.lists(st.text(alphabet, min_size=1, max_size=6), max_size=8).map(" ".join)


TEXT_ROWS = st.lists(
    st.tuples(words_of("abcé."), words_of("abcé.").filter(bool)), min_size=1, max_size=12
)


def make_scoring(kind="bpe"):
    """Scores over texts, and a tokenizer of bytes, which can encode any text."""
    side = SideSettings(kind=kind, vocab_size=300)
    pairs = [Pair("abc é.", "abc é.", (), 1, "x")]
    tokenizer = PairTokenizer.train(pairs, TokenizerSettings(source=side, target=side))
    values = {"tokenizer": {"target": {"kind": kind}}, "training": {"monitor": "chrf"}}
    return choose_text_scores(Settings.model_validate(values), Texts(tokenizer)), tokenizer.target


SCORING, TOKENIZER = make_scoring()


def add(metrics, rows):
    metrics.update(*([TOKENIZER.encode(text) for text in side] for side in zip(*rows, strict=True)))
    return metrics


@given(rows=TEXT_ROWS, cut=st.integers(0, 12))
def test_text_scores_equal_the_evaluation_for_any_batches_and_ranks(rows, cut):
    expected = score([h for h, _ in rows], [[r] for _, r in rows]).to_dict()
    batches = [part for part in (rows[:cut], rows[cut:]) if part]
    whole, ranks = DecodedMetrics("valid", SCORING), []
    for part in batches:
        add(whole, part)
        ranks.append(add(DecodedMetrics("valid", SCORING), part))
    found = whole.compute()
    assert {"valid_chrf", "valid_bleu", "valid_character_error_rate"} <= found.keys()
    for name in ("chrf", "bleu", "character_error_rate", "exact_match"):
        assert found[f"valid_{name}"] == pytest.approx(expected[name], rel=1e-5, abs=1e-4), name
    for name in ("chrf", "bleu", "character_error_rate"):  # what a reduction by sum gives
        sums = sum(getattr(rank, f"{name}_sums") for rank in ranks)
        assert torch.equal(sums, getattr(whole, f"{name}_sums"))


@pytest.mark.parametrize(
    ("kind", "monitor", "names"),
    [
        ("symbols", "token_error_rate", set()),
        ("symbols", "chrf", {"chrf"}),
        ("characters", "token_error_rate", {"character_error_rate"}),
        ("characters", "bleu", {"character_error_rate", "bleu"}),
        ("bpe", "chrf", {"character_error_rate", "chrf", "bleu"}),
    ],
)
def test_the_scores_suit_the_tokenizer_and_include_the_monitor(kind, monitor, names):
    values = {"tokenizer": {"target": {"kind": kind}}, "training": {"monitor": monitor}}
    scoring = choose_text_scores(Settings.model_validate(values), SCORING.texts)
    assert {one.name for one in scoring.scores} == names
    found = add(DecodedMetrics("valid", scoring), [("abc", "abc")]).compute()
    assert f"valid_{monitor}" in found
    assert found.keys() == {f"valid_{n}" for n in names | {"exact_match", "token_error_rate"}}


def test_copies_of_the_metrics_count_separately():
    """Weight averaging copies the whole module."""
    metrics = DecodedMetrics("valid", SCORING)
    other = copy.deepcopy(metrics)
    add(metrics, [("abc", "abc")])
    assert other.chrf_sums.sum() == 0
    assert metrics.chrf_sums.sum() > 0


def test_each_monitor_has_its_direction():
    higher = {"exact_match", "chrf", "bleu"}
    for monitor in {*get_args(Monitor)} - {"auto"}:
        assert monitor_mode(monitor) == ("max" if monitor in higher else "min")
