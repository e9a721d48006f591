import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import PAD, pad_right, random_ids
from dragoman.model import inference
from dragoman.model.block import encode
from dragoman.model.inference import pack, packed_linear
from dragoman.model.transformer import Transformer


@pytest.mark.parametrize("activation", [None, F.relu, F.gelu])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(16,), (1, 16), (7, 16), (2, 3, 16)])
def test_a_packed_linear_is_linear_then_activation(activation, has_bias, shape):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(24, 16), torch.randn(24), torch.randn(shape)
    expected = F.linear(x, weight, bias if has_bias else None)
    expected = expected if activation is None else activation(expected)
    found = packed_linear(weight, bias if has_bias else None, activation)(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_other_types_and_autocast_use_the_plain_linear():
    weight = torch.randn(24, 16)
    assert inference._can_pack(weight) == inference._has_packing()
    assert not inference._can_pack(weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not inference._can_pack(weight)
        found = packed_linear(weight, None)(torch.randn(3, 16))
    assert found.dtype == torch.bfloat16


def check_encoder(network, source):
    found, expected = encode(pack(network).layers, source), network.encode(source)
    assert torch.equal(found.is_token, expected.is_token)
    torch.testing.assert_close(
        found.states[found.is_token], expected.states[found.is_token], rtol=0, atol=2e-5
    )
    assert found.states.isfinite().all()


@torch.no_grad()
def test_the_encoder_gives_the_states_of_the_reference(network):
    source = random_ids(4, 9, 23)
    check_encoder(network, source)
    for row, length in enumerate((9, 3, 1, 0)):  # one row is padding alone
        source[row, length:] = PAD
    check_encoder(network, source)


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(0, 8), min_size=1, max_size=5), extra=st.integers(0, 3))
@torch.no_grad()
def test_the_encoder_gives_the_states_of_the_reference_at_any_lengths(lengths, extra):
    torch.manual_seed(0)
    network = Transformer(20, 16, 2, 2, 32).eval()
    source = random_ids(len(lengths), max(1, *lengths, 1) + extra, 20)
    for row, length in enumerate(lengths):
        source[row, length:] = PAD
    check_encoder(network, source)


def run_steps(packed, target, cache):
    logits = []
    for ids in target.T:
        step_logits, cache = inference.step(packed, ids, cache)
        logits.append(step_logits)
    return torch.stack(logits, dim=1), cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cached_steps_give_the_logits_of_the_reference(network, dtype):
    network = network.to(dtype)
    source = pad_right(random_ids(4, 7, 23), 3)
    source[1, 3:] = 0
    target = random_ids(4, 40, 23, seed=1)  # past the first capacity, twice
    packed = pack(network)
    stepped, cache = run_steps(packed, target, inference.start(packed, source))
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(stepped, network(source, target), rtol=0, atol=tolerance)
    assert cache.length == 40


@settings(max_examples=20)
@given(rows=st.lists(st.integers(0, 3), min_size=1, max_size=6), at=st.integers(1, 19))
def test_selected_rows_continue_as_the_original_rows(rows, at):
    torch.manual_seed(0)
    network = Transformer(20, 16, 2, 2, 32).eval()
    packed = pack(network)
    source, target = pad_right(random_ids(4, 5, 20), 2), random_ids(4, 20, 20, seed=1)
    index = torch.tensor(rows)
    _, cache = run_steps(packed, target[:, :at], inference.start(packed, source))
    rest, _ = run_steps(packed, target[index, at:], inference.select(cache, index))
    full = network(source, target)[index, at:]
    torch.testing.assert_close(rest, full, rtol=1e-4, atol=2e-5)


def test_a_selection_has_its_own_buffers():
    torch.manual_seed(0)
    network = Transformer(20, 16, 2, 1, 32).eval()
    packed = pack(network)
    cache = inference.start(packed, random_ids(2, 5, 20))
    _, cache = inference.step(packed, torch.tensor([3, 4]), cache)
    chosen = inference.select(cache, torch.tensor([0, 0]))
    first, _ = inference.step(packed, torch.tensor([5, 5]), chosen)
    inference.step(packed, torch.tensor([9, 9]), cache)
    again, _ = inference.step(packed, torch.tensor([5, 5]), chosen)
    torch.testing.assert_close(first, again)
