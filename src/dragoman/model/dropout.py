"""Dropout with cheap random bits, for the CPU.

torch draws one Bernoulli number per element there, which takes longer than the products around it.
Here a generator fills 16 random bits per element, and masks are applied by whole words.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx


class Dropout:
    """Drops elements with probability `p`.

    Each forward pass makes one, which draws one seed from torch's global generator: restoring that
    generator's state gives the same masks.
    """

    def __init__(self, p: float) -> None:
        self.p = p
        # 15 bits: p is exact to 2e-5, and the subtraction below cannot overflow.
        self._threshold = round(p * 2**15)
        self._bits = np.random.SFC64(int(torch.randint(2**62, ()))) if p > 0.0 else None

    def drop(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return `x` with elements dropped, and the others scaled to keep the mean."""
        if self._bits is None:
            return x
        if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float32):
            return F.dropout(x, self.p)
        dropped: Tensor = _Drop.apply(  # type: ignore[no-untyped-call]
            x, self._draw_keep(x.shape), 1 / (1 - self._threshold / 2**15)
        )
        return dropped

    def _draw_keep(self, shape: torch.Size) -> Tensor:
        """Return int16 words: all bits set if an element is kept, none if it is dropped."""
        assert self._bits is not None
        count = shape.numel()
        words = torch.from_numpy(self._bits.random_raw(-(-count // 4)).view(np.int16))[:count]
        # The sign of (15 random bits - threshold), spread over the word: set means dropped.
        words.bitwise_and_(0x7FFF).sub_(self._threshold).bitwise_right_shift_(15).bitwise_not_()
        return words.view(shape)


class _Drop(torch.autograd.Function):
    """x * scale where `keep` is set, else 0; the same for the gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.keep, ctx.scale = keep, scale  # type: ignore[attr-defined]
        return _mask(x, keep, scale)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _mask(grads[0], ctx.keep, ctx.scale), None, None  # type: ignore[attr-defined]


def _mask(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    scaled = x * scale
    words = torch.int16 if x.dtype == torch.bfloat16 else torch.int32
    scaled.view(words).bitwise_and_(keep.to(words))
    return scaled
