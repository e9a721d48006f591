import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import BOS, EOS, pad_right, random_ids
from dragoman.model.loss import sum_losses
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


@settings(max_examples=20, deadline=None)
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


def test_a_batch_of_padding_has_a_loss_of_zero():
    model = Transformer(20, 16, 2, 1, 32)
    sums = sum_losses(model, random_ids(2, 5, 20), torch.zeros(2, 4, dtype=torch.long), 0.1)
    sums.loss.backward()
    assert sums.loss == 0
    assert sums.num_tokens == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
