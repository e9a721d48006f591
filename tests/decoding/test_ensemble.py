import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import PAD, pad_right, random_ids
from dragoman.decoding import ensemble
from dragoman.decoding.ensemble import pack, packed_linear
from dragoman.model.block import encode
from dragoman.model.transformer import Transformer


@pytest.mark.parametrize("activation", [None, F.relu, F.gelu])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(136,), (1, 136), (7, 136), (2, 3, 136)])
def test_a_packed_linear_is_linear_then_activation(activation, has_bias, shape):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(144, 136), torch.randn(144), torch.randn(shape)
    expected = F.linear(x, weight, bias if has_bias else None)
    expected = expected if activation is None else activation(expected)
    found = packed_linear(weight, bias if has_bias else None, activation)(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_narrow_matrices_other_types_and_autocast_use_the_plain_linear():
    weight = torch.randn(144, 136)
    assert ensemble._can_pack(weight) == ensemble._has_packing()
    assert not ensemble._can_pack(weight.double())
    assert not ensemble._can_pack(weight[:128])
    with torch.autocast("cpu", torch.bfloat16):
        assert not ensemble._can_pack(weight)
        found = packed_linear(weight, None)(torch.randn(3, 136))
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
        step_logits, cache = ensemble.step_cache(packed, ids, cache)
        logits.append(step_logits)
    return torch.stack(logits, dim=1), cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_cached_steps_give_the_logits_of_the_reference(network, dtype):
    network = network.to(dtype)
    source = pad_right(random_ids(4, 7, 23), 3)
    source[1, 3:] = 0
    target = random_ids(4, 40, 23, seed=1)  # past the first capacity, twice
    packed = pack(network)
    stepped, cache = run_steps(packed, target, ensemble.start_cache(packed, source))
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(stepped, network(source, target), rtol=0, atol=tolerance)
    assert cache.length == 40


@settings(max_examples=20)
@given(rows=st.lists(st.integers(0, 3), min_size=1, max_size=4), at=st.integers(1, 19))
@torch.no_grad()
def test_selected_rows_continue_as_the_original_rows(rows, at):
    torch.manual_seed(0)
    network = Transformer(20, 16, 2, 2, 32).eval()
    packed = pack(network)
    source, target = pad_right(random_ids(4, 5, 20), 2), random_ids(4, 20, 20, seed=1)
    source[1, 2:] = PAD  # the mask moves too
    index = torch.tensor(rows)
    _, cache = run_steps(packed, target[:, :at], ensemble.start_cache(packed, source))
    rest, _ = run_steps(packed, target[index, at:], ensemble.select_rows(cache, index, index))
    full = network(source, target)[index, at:]
    torch.testing.assert_close(rest, full, rtol=1e-4, atol=2e-5)


@settings(max_examples=20)
@given(data=st.data())
@torch.no_grad()
def test_the_rows_of_a_beam_may_move_at_every_step(data):
    """By few and by many, in place or not, within their sources and with sources that leave."""
    torch.manual_seed(0)
    network, beam = Transformer(20, 16, 2, 2, 32).eval(), 3
    packed = pack(network)
    source = random_ids(4, 5, 20)
    cache = ensemble.select_rows(
        ensemble.start_cache(packed, source), torch.arange(4).repeat_interleave(beam)
    )
    past = torch.zeros(4 * beam, 0, dtype=torch.long)
    for position in range(18):  # past the first capacity
        past = torch.cat((past, random_ids(len(past), 1, 20, seed=position)), dim=1)
        logits, cache = ensemble.step_cache(packed, past[:, -1], cache)
        full = network(source.repeat_interleave(beam, dim=0), past)[:, -1]
        torch.testing.assert_close(logits, full, rtol=1e-4, atol=2e-5)
        count = len(source)
        is_kept = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
        kept = torch.tensor(is_kept).nonzero()[:, 0] if any(is_kept) else None
        places = torch.arange(count) if kept is None else kept
        parents = data.draw(
            st.sampled_from([torch.arange(beam), torch.tensor([0, 0, 1]), torch.tensor([2, 0, 1])])
        )
        rows = (places[:, None] * beam + parents).flatten()
        cache, past = ensemble.select_rows(cache, rows, kept), past[rows]
        source = source if kept is None else source[kept]
