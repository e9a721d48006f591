from functools import partial

import pytest
import torch
from torch.nn import functional as F

from conftest import BOS, EOS, pad_right, random_ids
from dragoman.data.dataset import Batch
from dragoman.model.loss import (
    Distillation,
    Guidance,
    sum_losses,
    sum_losses_by_microbatches,
)
from dragoman.model.transformer import Transformer


@pytest.fixture(autouse=True)
def two_threads():
    """The suite runs with one thread; then, nothing would run in parallel."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def make_microbatch(rows, source_length, target_length, seed):
    target = random_ids(rows, target_length, 23, seed=seed + 1)
    target = F.pad(F.pad(target, (1, 0), value=BOS), (0, 1), value=EOS)
    return Batch(source_ids=random_ids(rows, source_length, 23, seed=seed), target_ids=target)


MICROBATCHES = [
    make_microbatch(3, 5, 4, 1),
    make_microbatch(2, 7, 6, 3),
    make_microbatch(4, 2, 9, 5),
]


def take(network, compute):
    network.zero_grad()
    sums = compute()
    (sums.loss / 7).backward()
    return sums, {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def join(batches):
    sources = [batch.source_ids for batch in batches]
    targets = [batch.target_ids for batch in batches]
    longest = [max(ids.shape[1] for ids in side) for side in (sources, targets)]
    return [
        torch.cat([pad_right(ids, length - ids.shape[1]) for ids in side])
        for side, length in zip((sources, targets), longest, strict=True)
    ]


def make_teachers(network):
    """Two models of other sizes, one with one matrix for embedding and output."""
    target_vocab_size = network.target_vocab_size
    return tuple(
        Transformer(
            30, 24, 2, 1, 48, target_vocab_size=target_vocab_size, positions="rotary", **one
        )
        for one in ({"tie_embeddings": True}, {"tie_embeddings": False, "norm_first": False})
    )


@pytest.mark.parametrize("extra", ["none", "guidance", "distillation"])
@pytest.mark.parametrize("implementation", ["fused", "reference"])
def test_microbatches_give_the_sums_and_gradients_of_the_batch(network, implementation, extra):
    extras = {
        "none": {},
        "guidance": {"guidance": Guidance(first=10, stop=20, weight=0.5)},
        "distillation": {"distillation": Distillation(teachers=make_teachers(network), weight=0.6)},
    }[extra]
    found, gradients = take(
        network, lambda: sum_losses_by_microbatches(network, MICROBATCHES, 0.1, **extras)
    )
    expected, wanted = take(
        network, lambda: sum_losses(network, *join(MICROBATCHES), 0.1, implementation, **extras)
    )
    for name in ("loss", "nll", "num_correct", "num_tokens"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert gradients.keys() == wanted.keys() == dict(network.named_parameters()).keys()
    torch.testing.assert_close(gradients, wanted, rtol=1e-3, atol=1e-4)


def test_guided_attention_learns_where_an_id_stands_in_the_source():
    torch.set_num_threads(1)  # one batch, with operations too small for two
    torch.manual_seed(0)
    network = Transformer(40, 32, 4, 1, 64, num_decoder_layers=2, dropout=0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    source = torch.stack([torch.randperm(20) + 10 for _ in range(64)])
    target = pad_right(F.pad(source[:, ::5], (1, 0), value=BOS), 1)
    guidance = Guidance(first=10, stop=30, weight=1.0)

    def measure():
        plain = sum_losses(network, source, target)
        guided = sum_losses(network, source, target, guidance=guidance)
        assert guided.nll == plain.nll
        return (guided.loss - plain.loss) / guided.num_tokens

    before = measure()
    for _ in range(300):
        optimizer.zero_grad()
        (sum_losses(network, source, target, guidance=guidance).loss / 256).backward()
        optimizer.step()
    assert before > 2.5  # of 20 places: log 20 = 3.0
    assert measure() < 0.5


def test_one_thread_and_two_give_the_same_bits():
    torch.manual_seed(0)
    network = Transformer(23, 32, 4, 2, 64, dropout=0.3).train()
    taught = Distillation(teachers=(Transformer(23, 32, 4, 2, 64, dropout=0.3),), weight=0.5)

    def run(threads):
        torch.manual_seed(5)
        torch.set_num_threads(threads)
        compute = partial(sum_losses_by_microbatches, network, MICROBATCHES, distillation=taught)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return take(network, compute)

    (one, by_one), (two, by_two), (again, by_again) = run(1), run(2), run(2)
    assert one.loss == two.loss == again.loss
    for name, gradient in by_one.items():
        assert torch.equal(gradient, by_two[name]), name
        assert torch.equal(gradient, by_again[name]), name


def test_gradients_accumulate_over_batches_as_in_autograd():
    network = Transformer(23, 16, 2, 1, 32).eval()
    _, once = take(network, lambda: sum_losses_by_microbatches(network, MICROBATCHES))
    network.zero_grad()
    for _ in range(2):
        (sum_losses_by_microbatches(network, MICROBATCHES).loss / 7).backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * once[name])


def test_an_error_in_a_microbatch_is_raised_and_the_threads_are_restored():
    network = Transformer(23, 16, 2, 1, 32, max_seq_len=6, positions="learned")
    with pytest.raises(Exception, match="longer than the 6 learned positions"):
        sum_losses_by_microbatches(network, MICROBATCHES)
    assert torch.get_num_threads() == 2


def test_autocast_gives_bfloat16_products_and_float32_gradients():
    torch.manual_seed(0)
    network = Transformer(23, 64, 4, 2, 128).eval()
    exact, wanted = take(network, lambda: sum_losses_by_microbatches(network, MICROBATCHES))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, gradients = take(network, lambda: sum_losses_by_microbatches(network, MICROBATCHES))
    assert found.loss != exact.loss
    torch.testing.assert_close(found.loss, exact.loss, rtol=1e-2, atol=0)
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        if wanted[name].norm() > 0.1:
            assert (gradient - wanted[name]).norm() < 0.1 * wanted[name].norm(), name


def test_gradients_with_dropout_are_those_of_finite_differences():
    torch.manual_seed(0)
    network = Transformer(
        23, 16, 2, 1, 32, dropout=0.3, positions="rotary", activation="gelu"
    ).double()

    def compute():
        torch.manual_seed(5)  # the same masks
        return sum_losses_by_microbatches(network, MICROBATCHES, 0.1)

    _, gradients = take(network, compute)
    step = 3e-3  # the sum of the loss is in float32

    def move(parameter, by):
        with torch.no_grad():
            parameter += by
        return compute().loss.detach()

    for name, parameter in network.named_parameters():
        direction = torch.randn_like(parameter)
        above = move(parameter, step * direction)
        slope = (above - move(parameter, -2 * step * direction)) / (2 * step) / 7
        move(parameter, step * direction)
        torch.testing.assert_close(
            (gradients[name] * direction).sum().float(), slope, rtol=0.01, atol=1e-3, msg=name
        )
