"""The loss of a batch on the CPU, by micro-batches: one per core.

Most operations of a batch are too small to split among cores, which would wait for each other after
each operation. Instead each core computes a whole micro-batch, forward and backward. The gradients
are summed in the order of the micro-batches, so the sum does not depend on which finished first.
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

from dragoman.data.dataset import Batch
from dragoman.model.block import Weights, make_layers
from dragoman.model.loss import LossSums, draw_dropout, find_dtype, sum_losses_of_layers
from dragoman.model.transformer import Transformer

Found = TypeVar("Found")


def sum_losses_by_microbatches(
    model: Transformer, microbatches: Sequence[Batch], label_smoothing: float = 0.0
) -> LossSums:
    """Return the sums of `sum_losses` over all `microbatches`.

    The gradients are computed here; `loss.backward()` gives them to the parameters, and can be
    called once. The same micro-batches give the same bits on any number of cores, up to one each.
    """
    dtype = find_dtype(model)
    cast: dict[Tensor, Tensor] = {p: p.detach().to(dtype) for p in model.parameters()}
    dropouts = [draw_dropout(model) for _ in microbatches]  # seeds in order

    def run(number: int) -> tuple[LossSums, Gradients]:
        leaves, batch = Leaves(dtype, cast), microbatches[number]
        layers = make_layers(model, leaves, dropouts[number])
        sums = sum_losses_of_layers(layers, batch.source_ids, batch.target_ids, label_smoothing)
        return sums, leaves.differentiate(sums.loss)

    total, sums = GradientSum(), list[LossSums]()
    for of_one, gradients in _run_in_parallel(run, len(microbatches)):
        total.add(gradients)
        sums.append(of_one)
    by_parameter = total.finish()
    loss: Tensor = _KnownGradients.apply(  # type: ignore[no-untyped-call]
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


def _run_in_parallel(run: Callable[[int], Found], count: int) -> Iterator[Found]:
    """Yield `run` of 0 to `count` - 1, in order; the workers share the cores."""
    num_threads = torch.get_num_threads()
    num_workers = min(count, num_threads)
    if num_workers <= 1:
        yield from map(run, range(count))
        return
    try:
        torch.set_num_threads(1)  # the sums meanwhile must not wait for busy cores
        with ThreadPoolExecutor(
            num_workers, initializer=torch.set_num_threads, initargs=(num_threads // num_workers,)
        ) as pool:
            yield from pool.map(run, range(count))
    finally:
        torch.set_num_threads(num_threads)


class _KnownGradients(torch.autograd.Function):
    """A loss whose gradients are already known: the backward pass returns them."""

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


class Leaves(Weights):
    """Copies of the parameters as leaves of one micro-batch's graph, so its gradients stay apart.

    They share the memory of the parameters.

    Args:
        cast: The parameters in `dtype`, cast once for all micro-batches.
    """

    def __init__(self, dtype: torch.dtype, cast: Mapping[Tensor, Tensor]) -> None:
        super().__init__(dtype)
        self._shared = cast
        self._leaves: dict[Tensor, Tensor] = {}
        self._rows: list[tuple[Tensor, Int[Tensor, ...], Tensor]] = []

    def matmul_weight(self, parameter: Tensor) -> Tensor:
        """Return the leaf of a parameter, in the dtype of matrix products."""
        return self._make_leaf(parameter, self._shared[parameter])

    def norm_weight(self, parameter: Tensor) -> Tensor:
        """Return the leaf of a norm's parameter, in its own dtype."""
        return self._make_leaf(parameter, parameter)

    def embedding_rows(self, table: Tensor, ids: Int[Tensor, "*L"]) -> Float[Tensor, "*L D"]:
        """Return the rows `ids` of an embedding as a leaf: the gradient has these rows only."""
        rows = F.embedding(ids, table.detach()).requires_grad_()
        self._rows.append((table, ids, rows))
        return rows

    def differentiate(self, loss: Float[Tensor, ""]) -> "Gradients":
        """Return the gradients of `loss` with respect to all leaves."""
        leaves = [*self._leaves.values(), *(rows for _, _, rows in self._rows)]
        found = torch.autograd.grad(loss, leaves)
        count = len(self._leaves)
        return Gradients(
            by_parameter=list(zip(self._leaves, found[:count], strict=True)),
            by_rows=[
                (table, ids.flatten(), gradient.flatten(0, -2))  # (*L, D) -> (N, D)
                for (table, ids, _), gradient in zip(self._rows, found[count:], strict=True)
            ],
        )

    def _make_leaf(self, parameter: Tensor, value: Tensor) -> Tensor:
        if parameter not in self._leaves:
            self._leaves[parameter] = value.detach().requires_grad_()
        return self._leaves[parameter]


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """The gradients of one micro-batch: of whole parameters, and of rows of embeddings."""

    by_parameter: list[tuple[Tensor, Tensor]]
    by_rows: list[tuple[Tensor, Tensor, Tensor]]  # embedding, ids (N,), gradients (N, D)


class GradientSum:
    """The sum of the gradients of micro-batches, in the order of the calls of `add`."""

    def __init__(self) -> None:
        self._totals: dict[Tensor, Tensor] = {}
        self._rows: dict[Tensor, list[tuple[Tensor, Tensor]]] = {}  # ids, and gradients by row

    def add(self, gradients: Gradients) -> None:
        """Add those of a micro-batch; sums have the dtype of the parameter."""
        for parameter, gradient in gradients.by_parameter:
            if parameter in self._totals:
                self._totals[parameter] += gradient
            else:
                self._totals[parameter] = gradient.to(parameter.dtype)
        for table, ids, by_row in gradients.by_rows:
            self._rows.setdefault(table, []).append((ids, by_row))

    def finish(self) -> dict[Tensor, Tensor]:
        """Return the sum for each parameter."""
        for table, rows in self._rows.items():
            ids, by_row = (torch.cat(each) for each in zip(*rows, strict=True))
            # Autograd's own function for embeddings: it adds the rows one by one, in order.
            dense = torch.ops.aten.embedding_dense_backward(by_row, ids, len(table), -1, False)
            self._totals[table] = self._totals[table] + dense if table in self._totals else dense
        return self._totals
