import copy

import pytest
import torch

from conftest import random_ids
from dragoman.model.transformer import Transformer
from dragoman.training.muon import MuonAdamW, orthogonalize

LR = 0.01


def make_optimizer(network, **changes):
    options = {"weight_decay": 0.0, "betas": (0.9, 0.98), "fused": True, "dtype": torch.float32}
    return MuonAdamW(network, lr=LR, **options | changes)


def take_step(network, optimizer, seed=0):
    logits = network(random_ids(3, 5, 20, seed=seed), random_ids(3, 4, 20, seed=seed + 1))
    optimizer.zero_grad()
    logits.square().sum().backward()
    optimizer.step()


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Transformer(20, 16, 2, 1, 48, dropout=0.0)  # as wide as three stacked projections


@pytest.mark.parametrize("shape", [(4, 16, 16), (2, 16, 48), (2, 48, 16)])
def test_singular_values_become_nearly_one_and_directions_stay(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    found = orthogonalize(matrices)
    left, before, right = torch.linalg.svd(matrices, full_matrices=False)
    rotated = left.mT @ found @ right.mT
    values = rotated.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(rotated, torch.diag_embed(values), atol=1e-4, rtol=0)
    is_large = before > 0.02 * before.norm(dim=1, keepdim=True)
    assert is_large.float().mean() > 0.8
    assert 0.65 < values[is_large].min() < values.max() < 1.3


def test_each_matrix_of_the_layers_moves_by_an_orthogonal_one_and_the_rest_as_by_adamw(small):
    before = copy.deepcopy(small)
    take_step(small, make_optimizer(small))
    other = copy.deepcopy(before)
    take_step(other, torch.optim.AdamW(other.parameters(), LR, (0.9, 0.98), weight_decay=0.0))
    adamw = dict(other.named_parameters())
    for (name, parameter), old in zip(small.named_parameters(), before.parameters(), strict=True):
        if name.startswith("transformer.") and parameter.ndim == 2:
            is_output = "out_proj" in name
            num_parts = 6 if "in_proj" in name else 2 if is_output else 1  # two heads
            for moved in (parameter - old).chunk(num_parts, dim=1 if is_output else 0):
                values = torch.linalg.svdvals(moved) / (LR * 0.8 * max(moved.shape) ** 0.5)
                assert 0.6 < values.max() < 1.3, name  # the gradient has few directions
        else:
            torch.testing.assert_close(parameter, adamw[name])


def test_the_state_that_is_saved_gives_the_same_steps(small):
    optimizer = make_optimizer(small)
    take_step(small, optimizer)
    again = copy.deepcopy(small)
    resumed = make_optimizer(again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (1, 2):
        take_step(small, optimizer, seed)
        take_step(again, resumed, seed)
    for one, other in zip(small.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_step_without_gradients_changes_nothing(small):
    optimizer = make_optimizer(small, weight_decay=0.1)
    before = copy.deepcopy(small.state_dict())
    optimizer.step()
    for name, value in small.state_dict().items():
        assert torch.equal(value, before[name])
