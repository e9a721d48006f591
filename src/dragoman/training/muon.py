"""Muon for the matrices of the layers and AdamW for all other parameters, as one optimizer.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. `torch.optim.Muon` takes
matrices only, one at a time. Here each head of an attention has its own matrices (of query, key,
value and output; "Muon Split" of the GLM-5 Team 2026), and all matrices of one shape are one product.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dragoman.model.transformer import Transformer

_MOMENTUM = 0.95
# Of Jordan et al., who take 5 iterations; 3 learned as fast (recipes/presets.md).
_COEFFICIENTS, _NUM_ITERATIONS = (3.4445, -4.7750, 2.0315), 3
# The root mean square of an update, for a learning rate of 1. Liu et al. 2025 take 0.2, to be like
# AdamW's; of 0.2, 0.8 and 2, the second learned fastest (recipes/presets.md).
_UPDATE_SIZE = 0.8


class MuonAdamW(torch.optim.AdamW):
    """Muon for the matrices of a network's layers, AdamW for its embeddings, norms and biases.

    Args:
        weight_decay: Of both, for matrices and embeddings.
        betas, fused: Of AdamW.
        dtype: Of the products that orthogonalize; bfloat16 where the hardware has it.
    """

    def __init__(
        self,
        network: Transformer,
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        fused: bool,
        dtype: torch.dtype,
    ) -> None:
        layers = dict(network.transformer.named_parameters())
        heads = network.transformer.nhead
        inputs = [p for name, p in layers.items() if name.endswith("in_proj_weight")]
        outputs = [p for name, p in layers.items() if name.endswith("out_proj.weight")]
        feedforward = [p for p in layers.values() if p.ndim == 2 and p not in {*inputs, *outputs}]
        others = [p for p in network.parameters() if p not in {*inputs, *outputs, *feedforward}]
        groups: list[dict[str, Any]] = [
            {"params": feedforward, "num_matrices": 1, "dim": 0},
            {"params": inputs, "num_matrices": 3 * heads, "dim": 0},
            {"params": outputs, "num_matrices": heads, "dim": 1},
            {"params": [p for p in others if p.ndim == 2]},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ]
        super().__init__(groups, lr=lr, weight_decay=weight_decay, betas=betas, fused=fused)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 (AdamW's)
        """Update the parameters that have a gradient; return what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        hidden = list[tuple[Tensor, Tensor]]()
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for group in self.param_groups:
            for parameter in group["params"] if "num_matrices" in group else ():
                if (gradient := parameter.grad) is not None:
                    hidden.append((parameter, gradient))
                    parameter.grad = None  # AdamW passes over it
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                        state["step"] = torch.zeros(())  # AdamW looks for it in a loaded state
                    momentum = state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
                    direction = gradient.lerp(momentum, _MOMENTUM)  # Nesterov's
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    split = group["num_matrices"], group["dim"]
                    parts = zip(parameter.chunk(*split), direction.chunk(*split), strict=True)
                    for matrix, part in parts:
                        by_shape.setdefault(matrix.shape, []).append((matrix, part))
        super().step()
        for parameter, gradient in hidden:
            parameter.grad = gradient
        for shape, pairs in by_shape.items():
            matrices, directions = zip(*pairs, strict=True)
            updates = orthogonalize(torch.stack(directions).to(self._dtype))
            rate = self.param_groups[0]["lr"] * _UPDATE_SIZE * math.sqrt(max(shape))
            for matrix, update in zip(matrices, updates, strict=True):
                matrix.add_(update, alpha=-rate)
        return loss


def orthogonalize(matrices: Float[Tensor, "N O I"]) -> Float[Tensor, "N O I"]:
    """Return the matrices with singular values near 1, by Newton-Schulz steps.

    They are 0.65 to 1.2, but less where they were below a fiftieth of the matrix's norm.
    The steps are products of the small X X^T, not of X; the result is the same.
    Source: Zhang et al. 2026, https://dao-ailab.github.io/blog/2026/gram-newton-schulz/.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram = x @ x.mT
    factor = step = _newton_schulz_step(gram)
    for _ in range(_NUM_ITERATIONS - 1):
        gram = step @ gram @ step
        step = _newton_schulz_step(gram)
        factor = step @ factor
    found: Tensor = factor @ x
    return found.mT if is_tall else found


def _newton_schulz_step(gram: Float[Tensor, "N R R"]) -> Float[Tensor, "N R R"]:
    """Return what a step multiplies X with, given X X^T."""
    first, second, third = _COEFFICIENTS
    step = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
    step.diagonal(dim1=1, dim2=2).add_(first)
    return step
