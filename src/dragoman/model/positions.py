"""Where a token stands: sinusoidal positions without a longest length, or learned ones with it."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dragoman.errors import DragomanError


def sinusoidal_positions(start: int, stop: int, d_model: int) -> Float[Tensor, "L D"]:
    """Return the encodings of positions `start` to `stop` - 1, sines and cosines interleaved.

    Source: Vaswani et al. 2017, section 3.5.
    """
    position = torch.arange(start, stop, dtype=torch.float32)[:, None]
    even = torch.arange(0, d_model, 2, dtype=torch.float32)
    angle = position * torch.exp(even * (-math.log(10000.0) / d_model))  # (L, ceil(D/2))
    interleaved = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)
    return interleaved[:, :d_model]  # an odd d_model ends with a sine


class SinusoidalPositions(nn.Module):
    """Sinusoidal encodings: the first `length` from a table, any beyond it computed when asked."""

    def __init__(self, d_model: int, length: int = 1024) -> None:
        super().__init__()
        self.d_model = d_model
        self.table: Tensor
        # Not persistent: it is computed, so no checkpoint depends on its length.
        self.register_buffer("table", sinusoidal_positions(0, length, d_model), persistent=False)

    def forward(self, start: int, stop: int) -> Float[Tensor, "L D"]:
        """Return the encodings of positions `start` to `stop` - 1."""
        if stop > len(self.table):
            return sinusoidal_positions(start, stop, self.d_model).to(self.table)
        return self.table[start:stop]


class LearnedPositions(nn.Module):
    """One learned vector a position; a longer sequence is refused."""

    def __init__(self, d_model: int, length: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, d_model).normal_(std=0.02))

    def forward(self, start: int, stop: int) -> Float[Tensor, "L D"]:
        """Return the vectors of positions `start` to `stop` - 1.

        Raises:
            DragomanError: `stop` is beyond the last learned position.
        """
        if stop > len(self.weight):
            raise DragomanError(
                f"a sequence of {stop} tokens is longer than the {len(self.weight)} learned "
                "positions: shorten it, or train with a larger model.max_positions or with "
                "model.positions sinusoidal, which has no longest length"
            )
        return self.weight[start:stop]
