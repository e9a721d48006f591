"""Products with a matrix that is laid out for the processor once: the same function, in less time.

A search multiplies a few rows by the same matrices at every step. On the processor oneDNN, with the
matrices in a layout of its own, does that quicker than MKL. The parameters stay as they are: what
is made here is a copy, good until they change.
"""

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Activation = Literal["none", "relu", "gelu"]
Product = Callable[[Float[Tensor, "*N I"]], Float[Tensor, "*N O"]]


def make_product(
    weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None, activation: Activation = "none"
) -> Product:
    """Return the function from x to activation(x @ weight.T + bias)."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if not _can_pack(weight):
        return lambda x: _activate(F.linear(x, weight, bias), activation)
    # The operators behind torch's own compiler (2.13): there is no public way to keep the layout.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    algorithm = "none" if activation == "gelu" else ""  # of the gelu: exact, not by tanh

    def multiply(x: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], algorithm)
        return y

    return multiply


def _activate(y: Float[Tensor, "*N O"], activation: Activation) -> Float[Tensor, "*N O"]:
    match activation:
        case "relu":
            return F.relu(y)
        case "gelu":
            return F.gelu(y)
    return y


def _can_pack(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")  # it would compute in fewer bits, and quicker
        and _has_packing()
    )


@cache
def _has_packing() -> bool:
    """Return whether this build of torch, on this processor, has what is used of oneDNN."""
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.ones(8, 8), None)
        found = torch.ops.mkldnn._linear_pointwise(torch.ones(1, 8), packed, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return bool((found == 8.0).all())
