"""The loss of a batch by micro-batches, one per core: for the CPU.

At the sizes of a batch most operations are too small to be shared out among cores: they wait for
one another at the end of each. Here a core takes a whole part of the batch instead, forward and
backward. The gradients of the parts are added up in the order of the parts, so that the sum does
not depend on which was done first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx

from dragoman.data.batch import Batch
from dragoman.model.loss import LossSums, sum_by_fast_pass
from dragoman.model.training_path import FastPass, draw_dropout, find_dtype
from dragoman.model.transformer import Transformer

Found = TypeVar("Found")


def sum_losses_by_microbatches(
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


class Leaves:
    """Stand-ins for the parameters in the computation of one part of a batch.

    Args:
        factors: The parameters that go into products, in `dtype`; shared by all parts.
    """

    def __init__(self, dtype: torch.dtype, factors: Mapping[Tensor, Tensor]) -> None:
        self.dtype = dtype
        self._factors = factors
        self._factor_leaves: dict[Tensor, Tensor] = {}
        self._plain_leaves: dict[Tensor, Tensor] = {}
        self._row_leaves: list[tuple[Tensor, Int[Tensor, "*L"], Tensor]] = []

    def factor(self, parameter: Tensor) -> Tensor:
        """Return the stand-in for it, in the dtype of the products."""
        if parameter not in self._factor_leaves:
            leaf = self._factors[parameter].detach().requires_grad_()
            self._factor_leaves[parameter] = leaf
        return self._factor_leaves[parameter]

    def plain(self, parameter: Tensor) -> Tensor:
        """Return the stand-in for it, in its own dtype."""
        if parameter not in self._plain_leaves:
            self._plain_leaves[parameter] = parameter.detach().requires_grad_()
        return self._plain_leaves[parameter]

    def rows(self, table: Tensor, ids: Int[Tensor, "*L"]) -> Float[Tensor, "*L D"]:
        """Return the rows `ids` of an embedding; their gradient is of these rows only."""
        rows = F.embedding(ids, table.detach()).requires_grad_()
        self._row_leaves.append((table, ids, rows))
        return rows

    def differentiate(self, loss: Float[Tensor, ""]) -> "PartGradients":
        """Return the gradients of `loss` by all that was given out."""
        leaves = [*self._factor_leaves.items(), *self._plain_leaves.items()]
        rows = [leaf for _, _, leaf in self._row_leaves]
        found = torch.autograd.grad(loss, [leaf for _, leaf in leaves] + rows)
        owners = [parameter for parameter, _ in leaves]
        tables = [(table, ids) for table, ids, _ in self._row_leaves]
        return PartGradients(
            by_parameter=list(zip(owners, found[: len(owners)], strict=True)),
            by_rows=[(*one, grad) for one, grad in zip(tables, found[len(owners) :], strict=True)],
        )


@dataclass(frozen=True, kw_only=True)
class PartGradients:
    """The gradients of one part: by whole parameters, and by the rows taken of embeddings."""

    by_parameter: list[tuple[Tensor, Tensor]]
    by_rows: list[tuple[Tensor, Int[Tensor, "..."], Float[Tensor, "..."]]]


class GradientSum:
    """The gradient of each parameter over parts, added up in the order in which they come."""

    def __init__(self) -> None:
        self._totals: dict[Tensor, Tensor] = {}
        self._taken: dict[Tensor, list[tuple[Tensor, Tensor]]] = {}  # ids and gradients of rows

    def add(self, part: PartGradients) -> None:
        """Add those of a part; sums have the dtype of the parameter."""
        for parameter, gradient in part.by_parameter:
            if parameter in self._totals:
                self._totals[parameter] += gradient
            else:
                self._totals[parameter] = gradient.to(parameter.dtype)
        for table, ids, gradient in part.by_rows:
            rows = (ids.flatten(), gradient.flatten(0, -2))
            self._taken.setdefault(table, []).append(rows)

    def finish(self) -> dict[Tensor, Tensor]:
        """Return the sums."""
        for table, rows in self._taken.items():
            ids, gradients = (torch.cat(each) for each in zip(*rows, strict=True))
            # What autograd calls for an embedding: it adds the rows up one by one, in their order.
            dense = torch.ops.aten.embedding_dense_backward(gradients, ids, len(table), -1, False)
            self._totals[table] = self._totals[table] + dense if table in self._totals else dense
        return self._totals
