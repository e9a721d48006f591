import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import PAD, random_ids
from dragoman.model.encoding import encode
from dragoman.model.prepared import prepare
from dragoman.model.transformer import Transformer


def check_equal(network, source):
    found, expected = encode(prepare(network), source), network.encode(source)
    assert torch.equal(found.is_token, expected.is_token)
    torch.testing.assert_close(
        found.states[found.is_token], expected.states[found.is_token], rtol=0, atol=2e-5
    )
    assert found.states.isfinite().all()


@torch.no_grad()
def test_the_states_are_those_of_the_reference(network):
    source = random_ids(4, 9, 23)
    check_equal(network, source)
    for row, length in enumerate((9, 3, 1, 0)):  # one row is padding alone
        source[row, length:] = PAD
    check_equal(network, source)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 8), min_size=1, max_size=5), extra=st.integers(0, 3))
@torch.no_grad()
def test_the_states_are_those_of_the_reference_at_any_lengths(lengths, extra):
    torch.manual_seed(0)
    network = Transformer(20, 16, 2, 2, 32).eval()
    source = random_ids(len(lengths), max(1, *lengths, 1) + extra, 20)
    for row, length in enumerate(lengths):
        source[row, length:] = PAD
    check_equal(network, source)
