"""Operations of training on the CPU, with fewer passes over memory than torch's own.

Small models spend most of a step on element-wise operations, not on products. So dropout here is a
mask only, and its scale goes into the weights of the product before it; heads are rotated, scaled
and made contiguous in one pass; and the keys are padded to whole vectors of the processor, without
which its softmax is ten times slower (torch 2.13).

Some of these functions overwrite an argument. It must be the fresh result of a product, which no
backward pass reads.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import FunctionCtx

KEYS_MULTIPLE = 16  # float32 numbers in a vector of the widest processors


class Dropout:
    """Drops elements with probability `p`, with cheap random bits on the CPU.

    torch draws one Bernoulli number per element there, which takes longer than the products around
    it. Here a generator fills 16 random bits per element, and masks are applied by whole words.

    Each forward pass makes one, which draws one seed from torch's global generator: restoring that
    generator's state gives the same masks.
    """

    def __init__(self, p: float) -> None:
        self.p = p
        # 15 bits: p is exact to 2e-5, and the addition below cannot overflow.
        self._threshold = round(p * 2**15)
        self._bits = np.random.SFC64(int(torch.randint(2**62, ()))) if p > 0.0 else None

    @property
    def scale(self) -> float:
        """The factor on the elements that are kept, which keeps the mean."""
        return 1 / (1 - self._threshold / 2**15)

    def drop(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return `x` with elements dropped, and the others scaled."""
        if self._bits is None:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return self.mask_(x * self.scale)

    def mask_(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return `x` with elements dropped, in place; others are not scaled."""
        if self._bits is None:
            return x
        masked: Tensor = _Mask.apply(x, self._draw(x))  # type: ignore[no-untyped-call]
        return masked

    def relu(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the rectified `x` with elements dropped; others are not scaled."""
        if self._bits is None:
            return F.relu(x)
        found: Tensor = _DropRelu.apply(x, self._draw(x))  # type: ignore[no-untyped-call]
        return found

    def add(
        self, x: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """Return x + `y` with elements of `y` dropped, which it overwrites; others are not scaled."""
        if self._bits is None:
            return x + y
        added: Tensor = _AddDropped.apply(x, y, self._draw(y))  # type: ignore[no-untyped-call]
        return added

    def _draw(self, like: Tensor) -> Tensor:
        """Return integers of the width of `like`: all bits set to keep an element, none to drop it."""
        assert self._bits is not None
        count = like.numel()
        words = torch.from_numpy(self._bits.random_raw(-(-count // 4)).view(np.int16))[:count]
        # 15 random bits - 2**15 + threshold is negative for what is kept; its sign fills the word.
        words.bitwise_or_(-(2**15)).add_(self._threshold).bitwise_right_shift_(15)
        return words.view(like.shape).to(_WORDS[like.dtype])


_WORDS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def _mask_(x: Tensor, keep: Tensor) -> Tensor:
    x.view(keep.dtype).bitwise_and_(keep)
    return x


class _Mask(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, keep: Tensor) -> Tensor:
        ctx.keep = keep  # type: ignore[attr-defined]
        ctx.mark_dirty(x)
        return _mask_(x, keep)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return _mask_(grads[0].clone(), ctx.keep), None  # type: ignore[attr-defined]


class _DropRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, keep: Tensor) -> Tensor:
        found = _mask_(x.relu(), keep)
        ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (found,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.ops.aten.threshold_backward(grads[0], found, 0), None


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, y: Tensor, keep: Tensor) -> Tensor:
        ctx.keep, ctx.dtype = keep, y.dtype  # type: ignore[attr-defined]
        return x + _mask_(y, keep)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        by_y = grads[0].to(ctx.dtype, copy=True)  # type: ignore[attr-defined]
        return grads[0], _mask_(by_y, ctx.keep), None  # type: ignore[attr-defined]


def split_heads(
    x: Float[Tensor, "N L W"],
    count: int,
    num_heads: int,
    positions: Float[Tensor, "L Dh"] | None = None,
) -> tuple[Float[Tensor, "N H K Dh"], ...]:
    """Return the `count` parts of `x` by head, contiguous: query (1), key and value (2), or all (3).

    The query is scaled by Dh ** -0.5. Keys and values have K positions, L rounded up to a multiple of
    `KEYS_MULTIPLE`, with zeros in the added ones.

    `positions`: query and key are rotated by them, as `dragoman.model.transformer.rotate` does.
    """
    parts: tuple[Tensor, ...] = _SplitHeads.apply(  # type: ignore[no-untyped-call]
        x, count, num_heads, positions
    )
    return parts


def pad_keys(may_attend: Bool[Tensor, "*L S"]) -> Bool[Tensor, "*L K"]:
    """Return the mask of `split_heads`' keys, given that of the positions."""
    return F.pad(may_attend, (0, -may_attend.shape[-1] % KEYS_MULTIPLE))


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, count: int, num_heads: int, positions: Tensor | None
    ) -> tuple[Tensor, ...]:
        rows, length, width = x.shape[0], x.shape[1], x.shape[2] // (count * num_heads)
        ctx.shape = (rows, length, count, num_heads, width)  # type: ignore[attr-defined]
        ctx.waves = None  # type: ignore[attr-defined]
        if positions is not None:
            ctx.waves = tuple(positions[:, i::2].to(x.dtype) for i in (0, 1))  # type: ignore[attr-defined]
        has_query = count != 2
        stops = [length] * has_query + [length + -length % KEYS_MULTIPLE] * (count - has_query)
        found = tuple(x.new_empty(rows, num_heads, stop, width) for stop in stops)
        for one in found:
            one[:, :, length:].zero_()
        places = [one[:, :, :length] for one in found]
        _convert(_view_heads(x, ctx.shape), places, ctx.waves)  # type: ignore[attr-defined]
        return found

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        shape, waves = ctx.shape, ctx.waves  # type: ignore[attr-defined]
        rows, length, count, num_heads, width = shape
        by_x = grads[0].new_empty(rows, length, count * num_heads * width)
        back = None if waves is None else (-waves[0], waves[1])  # rotate back
        _convert([one[:, :, :length] for one in grads], _view_heads(by_x, shape), back)
        return by_x, None, None, None


def _convert(
    parts: Sequence[Tensor], places: Sequence[Tensor], waves: tuple[Tensor, Tensor] | None
) -> None:
    """Write the parts, (N, H, L, Dh), to their places; the query scaled, query and key rotated.

    `waves`: sines and cosines, each (L, Dh / 2).
    """
    for number, (part, place) in enumerate(zip(parts, places, strict=True)):
        is_query = number == 0 and len(parts) != 2
        scale = part.shape[-1] ** -0.5 if is_query else 1.0
        if waves is not None and number < 2:
            _rotate(part, waves[0] * scale, waves[1] * scale, place)
        elif is_query:
            torch.mul(part, scale, out=place)
        else:
            place.copy_(part)


def _view_heads(x: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    return x.view(shape).permute(2, 0, 3, 1, 4).unbind(0)  # count x (N, H, L, Dh)


def _rotate(x: Tensor, sine: Tensor, cosine: Tensor, place: Tensor) -> None:
    first, second = x.chunk(2, dim=-1)
    low, high = place.chunk(2, dim=-1)
    torch.mul(first, cosine, out=low).addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=high).addcmul_(first, sine)
