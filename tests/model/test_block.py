from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import pad_right, random_ids
from dragoman.model import block
from dragoman.model.block import Weights, decode, encode, make_layers, start_decoder
from dragoman.model.cpu_training import Dropout
from dragoman.model.loss import Leaves, cast_weights, draw_dropout, find_dtype, find_scales
from dragoman.model.transformer import Transformer


def take(network, source, target, compute):
    network.zero_grad()
    states = compute(network, source, target)
    weights = torch.linspace(-1, 1, states.numel()).view_as(states)
    (states * weights).sum().backward()
    return states, {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def compute_ours(network, source, target, *, is_cpu_training=False):
    dtype, dropout = find_dtype(network), draw_dropout(network)
    weights = Weights(dtype)
    if is_cpu_training and dropout.p > 0.0:
        weights = Leaves(dtype, cast_weights(network, dtype, find_scales(network, dropout.scale)))
    with torch.autocast("cpu", enabled=False):
        layers = make_layers(network, weights, dropout, is_cpu_training=is_cpu_training)
        return decode(layers, target, start_decoder(layers, encode(layers, source)))


def compute_reference(network, source, target):
    return network.decode_states(target, network.encode(source))


@pytest.mark.parametrize(("is_cpu_training", "max_scores"), [(False, 0), (True, 2**22), (True, 3)])
def test_states_and_gradients_are_those_of_the_reference(
    network, is_cpu_training, max_scores, monkeypatch
):
    monkeypatch.setattr(block, "_MAX_SCORES", max_scores)
    source, target = pad_right(random_ids(4, 7, 23), 2), random_ids(4, 6, 23, seed=1)
    source[1, 3:], source[2] = 0, 0
    network.train()
    for module in network.modules():  # training mode, without its randomness
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ours = partial(compute_ours, is_cpu_training=is_cpu_training)
    states, gradients = take(network, source, target, ours)
    expected, expected_gradients = take(network, source, target, compute_reference)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-3, atol=1e-4)


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 19), min_size=1, max_size=5),
    length=st.integers(1, 19),
    is_cpu_training=st.booleans(),
)
def test_any_lengths_give_the_states_of_the_reference(lengths, length, is_cpu_training):
    torch.manual_seed(0)
    network = Transformer(20, 16, 2, 2, 32).eval()
    source = random_ids(len(lengths), max(lengths), 20)
    for row, kept in enumerate(lengths):
        source[row, kept:] = 0
    target = random_ids(len(lengths), length, 20, seed=1)
    torch.testing.assert_close(
        compute_ours(network, source, target, is_cpu_training=is_cpu_training),
        compute_reference(network, source, target),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("is_cpu_training", [False, True])
def test_bfloat16_is_close_to_float32_and_gives_float32(is_cpu_training):
    torch.manual_seed(0)
    network = Transformer(20, 64, 4, 2, 128).eval()
    source, target = random_ids(8, 12, 20), random_ids(8, 9, 20, seed=1)
    expected = compute_ours(network, source, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = compute_ours(network, source, target, is_cpu_training=is_cpu_training)
    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("is_cpu_training", [False, True])
def test_dropout_gives_the_mean_and_spread_of_the_reference(is_cpu_training, activation):
    torch.manual_seed(0)
    network = Transformer(20, 32, 4, 1, 64, dropout=0.2, activation=activation)
    source, target = random_ids(2, 5, 20), random_ids(2, 4, 20, seed=1)
    source, target = source.repeat(1500, 1), target.repeat(1500, 1)  # each row has its own dropout
    with torch.no_grad():
        ours = compute_ours(network, source, target, is_cpu_training=is_cpu_training)
        ours = ours.unflatten(0, (1500, 2))
        torchs = compute_reference(network, source, target).unflatten(0, (1500, 2))
    # Standard error of a mean of 1500: 0.026 of a standard deviation; the difference of two: 0.037.
    spread = torchs.std(0)
    assert ((ours.mean(0) - torchs.mean(0)) / spread).abs().max() < 5 * 0.037
    torch.testing.assert_close(ours.std(0), spread, rtol=0.15, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_elements_are_dropped_independently_with_the_given_probability(dtype, p):
    torch.manual_seed(0)
    x = torch.ones(1000, 1003, dtype=dtype, requires_grad=True)
    y = Dropout(p).drop(x)
    y.sum().backward()
    kept = (y != 0).float()
    standard_error = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(kept.mean() - (1 - p)) < 5 * standard_error + 2e-5
    torch.testing.assert_close(y.max().float(), torch.tensor(1 / (1 - p)), rtol=4e-3, atol=0)
    assert torch.equal(x.grad, y.detach())
    for shift in (1, 2, 3, 4, 1003):  # neighbours within a random word, across words, across rows
        flat = kept.flatten() - kept.mean()
        together = (flat[shift:] * flat[:-shift]).mean() / (p * (1 - p))
        assert abs(together) < 5 / x.numel() ** 0.5


def test_the_masks_depend_on_torchs_seed():
    x = torch.ones(64)

    def drop():
        return Dropout(0.5).drop(x)

    torch.manual_seed(7)
    first, second = drop(), drop()
    torch.manual_seed(7)
    assert torch.equal(drop(), first)
    assert not torch.equal(first, second)


def test_dropout_of_zero_draws_and_changes_nothing():
    state = torch.get_rng_state()
    x = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert Dropout(0.0).drop(x) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_masks_of_relus_and_sums_let_no_gradient_of_a_dropped_element_through(dtype):
    torch.manual_seed(0)
    x = torch.randn(50, 64, dtype=dtype, requires_grad=True)
    y = Dropout(0.4).relu(x * 1)
    y.sum().backward()
    assert 0.2 < (y > 0).float().mean() < 0.4
    assert torch.equal(x.grad, (y > 0).to(dtype))
    assert torch.equal(y.detach(), x.detach() * x.grad)

    x.grad, base = None, torch.zeros(50, 64, requires_grad=True)
    added = Dropout(0.4).add(base, x * 1)
    added.sum().backward()
    assert torch.equal(base.grad, torch.ones(50, 64))
    assert torch.equal(added.detach(), (x.detach() * x.grad).float())
    assert 0.5 < x.grad.float().mean() < 0.7
