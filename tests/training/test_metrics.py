import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dragoman.model.cross_entropy import sum_cross_entropy
from dragoman.training.metrics import DecodedMetrics, TeacherForcedMetrics

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


def test_decoded_scores_are_those_counted_by_hand():
    metrics = DecodedMetrics("valid")
    metrics.update([(3, 4), (5,), ()], [[3, 4], [5, 6], [7]])
    found = metrics.compute()
    assert found["valid_exact_match"] == pytest.approx(100 / 3)
    assert found["valid_token_error_rate"] == pytest.approx(100 * 2 / 5)


def sum_by_logits(logits, labels):
    return sum_cross_entropy(logits, torch.eye(7), None, labels, vocab_size=7)


def test_teacher_forced_scores_are_means_over_tokens_and_not_over_batches():
    logits, labels = torch.randn(30, 7), torch.randint(0, 7, (30,))
    metrics = TeacherForcedMetrics("train")
    for part in (slice(0, 3), slice(3, 30)):
        metrics.add(sum_by_logits(logits[part], labels[part]))
    found = metrics.compute()
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert found["train_loss"] == pytest.approx(loss)
    assert found["train_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    correct = (logits.argmax(-1) == labels).float().mean().item()
    assert found["train_token_accuracy"] == pytest.approx(100 * correct)


def test_stages_do_not_share_their_counts():
    train, valid = TeacherForcedMetrics("train"), TeacherForcedMetrics("valid")
    train.add(sum_by_logits(torch.randn(4, 7), torch.zeros(4, dtype=torch.long)))
    assert train["loss"].num_tokens == 4
    assert valid["loss"].num_tokens == 0
