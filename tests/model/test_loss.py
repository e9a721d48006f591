from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import BOS, EOS, pad_right, random_ids
from dragoman.model import loss
from dragoman.model.loss import Distillation, SoftLabels, sum_cross_entropy, sum_losses
from dragoman.model.transformer import Transformer


def targets(rows, length, *, seed=0):
    body = random_ids(rows, length, 20, seed=seed)
    return F.pad(F.pad(body, (1, 0), value=BOS), (0, 1), value=EOS)


def test_the_loss_is_that_of_the_whole_logits_over_tokens_alone():
    torch.manual_seed(0)
    model = Transformer(20, 16, 2, 1, 32).eval()
    source, target = random_ids(3, 5, 20), targets(3, 4)
    target[1, 3:] = 0
    logits = model(source, target[:, :-1])
    expected = F.cross_entropy(
        logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=0, reduction="sum"
    )
    sums = sum_losses(model, source, target)
    torch.testing.assert_close(sums.loss, expected)
    assert sums.num_tokens == (target[:, 1:] != 0).sum()


@settings(max_examples=20)
@given(extra=st.tuples(st.integers(0, 9), st.integers(0, 9)), smoothing=st.sampled_from([0.0, 0.2]))
def test_padding_changes_no_sum_and_no_gradient(extra, smoothing):
    torch.manual_seed(0)
    model = Transformer(20, 16, 2, 1, 32).eval()
    source, target = random_ids(2, 5, 20), targets(2, 4)

    def take(source, target):
        model.zero_grad()
        sums = sum_losses(model, source, target, smoothing)
        sums.loss.backward()
        return sums, [p.grad.clone() for p in model.parameters()]

    sums, gradients = take(source, target)
    padded, padded_gradients = take(pad_right(source, extra[0]), pad_right(target, extra[1]))
    torch.testing.assert_close(padded.loss, sums.loss)
    assert padded.num_correct == sums.num_correct
    assert padded.num_tokens == sums.num_tokens
    torch.testing.assert_close(padded_gradients, gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", ["fused", "reference"])
def test_a_model_equal_to_its_teacher_has_nothing_to_learn_from_it(implementation):
    torch.manual_seed(0)
    network = Transformer(20, 16, 2, 1, 32, dropout=0.0).double()
    distillation = Distillation(teachers=(deepcopy(network),), weight=1.0)
    ids = random_ids(3, 5, 20), targets(3, 4)
    sums = sum_losses(network, *ids, 0.1, implementation, distillation=distillation)
    sums.loss.backward()
    assert sums.loss > 1.0  # the entropy of the teacher
    assert sums.nll == sum_losses(network, *ids, implementation=implementation).nll
    assert all(parameter.grad.abs().max() < 1e-6 for parameter in network.parameters())


def test_a_batch_of_padding_has_a_loss_of_zero():
    model = Transformer(20, 16, 2, 1, 32)
    sums = sum_losses(model, random_ids(2, 5, 20), torch.zeros(2, 4, dtype=torch.long), 0.1)
    sums.loss.backward()
    assert sums.loss == 0
    assert sums.num_tokens == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def make(num_rows, width, vocab_size, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(num_rows, width, generator=random, dtype=dtype)
    weight = torch.randn(-(-vocab_size // 8) * 8, width, generator=random, dtype=dtype)
    bias = torch.randn(len(weight), generator=random, dtype=dtype)
    labels = torch.randint(vocab_size, (num_rows,), generator=random)
    return [t.requires_grad_() for t in (states, weight, bias)], labels


def take(loss, leaves):
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


@given(
    num_rows=st.integers(0, 9),
    vocab_size=st.integers(2, 20),
    label_smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    has_bias=st.booleans(),
    pad_id=st.sampled_from([None, 0, 1]),
    held=st.integers(1, 100),
    most_rows=st.integers(1, 10),
    num_teachers=st.integers(0, 2),
    share=st.sampled_from([0.3, 1.0]),
)
def test_sums_and_gradients_are_those_of_torch(
    num_rows, vocab_size, label_smoothing, has_bias, pad_id, held, most_rows, num_teachers, share
):
    (states, weight, bias), labels = make(num_rows, 5, vocab_size, torch.float32)
    teachers = [tuple(make(num_rows, 3, vocab_size, torch.float32, seed)[0]) for seed in (1, 2)]
    leaves = [states, weight, bias] if has_bias else [states, weight]
    given_bias = bias if has_bias else None
    logits = F.linear(states, weight, given_bias)[:, :vocab_size]
    how = {"reduction": "sum", "ignore_index": -1 if pad_id is None else pad_id}
    expected = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, **how)
    soft_labels = SoftLabels(teachers[:num_teachers], share) if num_teachers else None
    if soft_labels:
        probs = [F.linear(*one)[:, :vocab_size].softmax(1) for one in soft_labels.teachers]
        logs = logits.log_softmax(1)[labels != how["ignore_index"]]
        mean = sum(probs)[labels != how["ignore_index"]] / num_teachers
        expected = (1 - share) * expected - share * (mean.detach() * logs).sum()
    with pytest.MonkeyPatch.context() as patch:  # pieces of any size give the same
        patch.setattr(loss, "_CHUNK_LOGITS", {"cpu": held, "other": held})
        patch.setattr(loss, "_MIN_CHUNK_ROWS", 1)
        patch.setattr(loss, "_BLOCK_ROWS", most_rows)
        sums = sum_cross_entropy(
            states, weight, given_bias, labels,
            vocab_size=vocab_size, pad_id=pad_id, label_smoothing=label_smoothing,
            soft_labels=soft_labels,
        )  # fmt: skip
    torch.testing.assert_close(sums.loss, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        sums.nll, F.cross_entropy(logits, labels, **how), rtol=1e-4, atol=1e-4
    )
    is_label = labels != how["ignore_index"]
    assert sums.num_correct == ((logits.argmax(1) == labels) & is_label).sum()
    assert sums.num_tokens == is_label.sum()
    for ours, theirs in zip(take(3 * sums.loss, leaves), take(3 * expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_bfloat16_products_keep_their_sums_in_float32():
    (states, weight, _), labels = make(3000, 16, 50, torch.bfloat16)
    sums = sum_cross_entropy(states, weight, None, labels, vocab_size=50)
    exact = F.cross_entropy(states.float() @ weight.float().t()[:, :50], labels, reduction="sum")
    assert sums.loss.dtype == torch.float32
    torch.testing.assert_close(sums.loss, exact, rtol=2e-3, atol=0)
    for found, leaf in zip(take(sums.loss, [states, weight]), (states, weight), strict=True):
        assert found.dtype == leaf.dtype


def test_large_and_small_logits_stay_finite():
    states = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    sums = sum_cross_entropy(states, weight, None, torch.tensor([1, 1]), vocab_size=3)
    assert sums.loss == 2000.0  # the first is wrong by 2,000, the second right
    assert all(g.isfinite().all() for g in take(sums.loss, [states, weight]))


def test_no_gradient_is_kept_if_none_is_needed():
    (states, weight, bias), labels = make(4, 3, 8, torch.float32)
    with torch.no_grad():
        sums = sum_cross_entropy(states, weight, bias, labels, vocab_size=8)
    assert not sums.loss.requires_grad
