"""The parameters of a model as the training path takes them, and where their gradients go.

Products take a parameter in their own dtype, and each is cast once a batch. `Parameters` leaves the
gradients to autograd. `Leaves` stands between the parameters and a part of a batch: its gradients
are kept apart, so that several parts can be computed at once and added up in a fixed order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Operands(Protocol):
    """Gives the parameters to a computation."""

    dtype: torch.dtype  # of the products

    def factor(self, parameter: Tensor) -> Tensor:
        """Return it in the dtype of the products."""
        ...

    def plain(self, parameter: Tensor) -> Tensor:
        """Return it in its own dtype."""
        ...

    def rows(self, table: Tensor, ids: Int[Tensor, "*L"]) -> Float[Tensor, "*L D"]:
        """Return the rows `ids` of an embedding."""
        ...


class Parameters:
    """The parameters themselves."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._cast: dict[Tensor, Tensor] = {}

    def factor(self, parameter: Tensor) -> Tensor:
        """Return it in the dtype of the products."""
        if parameter not in self._cast:
            self._cast[parameter] = parameter.to(self.dtype)
        return self._cast[parameter]

    def plain(self, parameter: Tensor) -> Tensor:
        """Return it as it is."""
        return parameter

    def rows(self, table: Tensor, ids: Int[Tensor, "*L"]) -> Float[Tensor, "*L D"]:
        """Return the rows `ids` of an embedding."""
        return F.embedding(ids, table)


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
