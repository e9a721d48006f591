"""The loss of a batch in parts, each on a core of its own: for the CPU.

At the sizes of a batch most operations are too small to be shared out among cores: they wait for
one another at the end of each. Here a core takes a whole part of the batch instead, forward and
backward. The gradients of the parts are added up in the order of the parts, so that the sum does
not depend on which was done first.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx

from dragoman.data.batch import Batch
from dragoman.model.cross_entropy import LossSums
from dragoman.model.fast import FastPass, draw_dropout, find_dtype
from dragoman.model.loss import sum_by_fast_pass
from dragoman.model.operands import GradientSum, Leaves, PartGradients
from dragoman.model.transformer import Transformer

Found = TypeVar("Found")


def sum_losses_by_parts(
    model: Transformer, parts: Sequence[Batch], label_smoothing: float = 0.0
) -> LossSums:
    """Return the sums of `sum_losses` over all `parts`.

    The gradients are computed here, and handed to the parameters when the loss goes backward, which
    it can do once. The same parts give the same numbers on any number of cores up to their own.
    """
    dtype = find_dtype(model)
    factors: dict[Tensor, Tensor] = {p: p.detach().to(dtype) for p in model.parameters()}
    leaves = [Leaves(dtype, factors) for _ in parts]
    passes = [FastPass(model, of_part, draw_dropout(model)) for of_part in leaves]

    def run(number: int) -> tuple[LossSums, PartGradients]:
        sums = sum_by_fast_pass(
            passes[number], parts[number].source_ids, parts[number].target_ids, label_smoothing
        )
        return sums, leaves[number].differentiate(sums.loss)

    total, sums = GradientSum(), list[LossSums]()
    for of_part, gradients in _run_side_by_side(run, len(parts)):
        total.add(gradients)
        sums.append(of_part)
    by_parameter = total.finish()
    loss: Tensor = _HandOver.apply(  # type: ignore[no-untyped-call]
        torch.stack([one.loss.detach() for one in sums]).sum(),
        list(by_parameter.values()),
        *by_parameter,
    )
    return LossSums(
        loss=loss,
        nll=torch.stack([one.nll for one in sums]).sum(),
        num_correct=torch.stack([one.num_correct for one in sums]).sum(),
        num_tokens=torch.stack([one.num_tokens for one in sums]).sum(),
    )


def _run_side_by_side(run: Callable[[int], Found], count: int) -> Iterator[Found]:
    """Yield `run` of 0 to `count` - 1; the cores are shared out among as many as run at once."""
    num_threads = torch.get_num_threads()
    num_workers = min(count, num_threads)
    if num_workers <= 1:
        yield from map(run, range(count))
        return
    try:
        torch.set_num_threads(1)  # who adds up meanwhile must not wait for cores that are busy
        with ThreadPoolExecutor(
            num_workers, initializer=torch.set_num_threads, initargs=(num_threads // num_workers,)
        ) as pool:
            yield from pool.map(run, range(count))
    finally:
        torch.set_num_threads(num_threads)


class _HandOver(torch.autograd.Function):
    """A loss whose gradients are known already; going backward, it gives them out."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, loss: Float[Tensor, ""], gradients: list[Tensor], *_: Tensor
    ) -> Tensor:
        ctx.gradients = gradients  # type: ignore[attr-defined]
        return loss

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients  # type: ignore[attr-defined]
        ctx.gradients = None  # type: ignore[attr-defined]
        torch._foreach_mul_(gradients, grads[0])
        return None, None, *gradients
