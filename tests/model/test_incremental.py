import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import pad_right, random_ids
from dragoman.model import incremental
from dragoman.model.prepared import prepare
from dragoman.model.transformer import Transformer


def run_steps(prepared, target, cache):
    logits = []
    for ids in target.T:
        step_logits, cache = incremental.step(prepared, ids, cache)
        logits.append(step_logits)
    return torch.stack(logits, dim=1), cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_give_the_logits_of_the_whole(network, dtype):
    network = network.to(dtype)
    source = pad_right(random_ids(4, 7, 23), 3)
    source[1, 3:] = 0
    target = random_ids(4, 40, 23, seed=1)  # past the first capacity, twice
    prepared = prepare(network)
    stepped, cache = run_steps(
        prepared, target, incremental.start(prepared, network.encode(source))
    )
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(stepped, network(source, target), rtol=0, atol=tolerance)
    assert cache.length == 40


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.integers(0, 3), min_size=1, max_size=6), at=st.integers(1, 19))
def test_selected_rows_go_on_as_the_rows_they_were(rows, at):
    torch.manual_seed(0)
    network = Transformer(20, 16, 2, 2, 32).eval()
    prepared = prepare(network)
    source, target = pad_right(random_ids(4, 5, 20), 2), random_ids(4, 20, 20, seed=1)
    index = torch.tensor(rows)
    _, cache = run_steps(
        prepared, target[:, :at], incremental.start(prepared, network.encode(source))
    )
    rest, _ = run_steps(prepared, target[index, at:], incremental.select(cache, index))
    full = network(source, target)[index, at:]
    torch.testing.assert_close(rest, full, rtol=1e-4, atol=2e-5)


def test_a_selection_does_not_share_its_buffers_with_the_cache_it_came_from():
    torch.manual_seed(0)
    network = Transformer(20, 16, 2, 1, 32).eval()
    prepared = prepare(network)
    cache = incremental.start(prepared, network.encode(random_ids(2, 5, 20)))
    _, cache = incremental.step(prepared, torch.tensor([3, 4]), cache)
    chosen = incremental.select(cache, torch.tensor([0, 0]))
    first, _ = incremental.step(prepared, torch.tensor([5, 5]), chosen)
    incremental.step(prepared, torch.tensor([9, 9]), cache)
    again, _ = incremental.step(prepared, torch.tensor([5, 5]), chosen)
    torch.testing.assert_close(first, again)
