import pytest
import torch
import torch.nn.functional as F

from dragoman.model import products
from dragoman.model.products import make_product


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(16,), (1, 16), (7, 16), (2, 3, 16)])
def test_a_product_is_linear_then_activation(activation, has_bias, shape):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(24, 16), torch.randn(24), torch.randn(shape)
    function = {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu}[activation]
    expected = function(F.linear(x, weight, bias if has_bias else None))
    found = make_product(weight, bias if has_bias else None, activation)(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_other_types_and_autocast_take_the_plain_product():
    weight = torch.randn(24, 16)
    assert products._can_pack(weight) == products._has_packing()
    assert not products._can_pack(weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not products._can_pack(weight)
        found = make_product(weight, None)(torch.randn(3, 16))
    assert found.dtype == torch.bfloat16
