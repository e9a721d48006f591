"""A batch of pairs as padded ids, for the model and the loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pairs padded on the right; a target is begin, tokens, end.

    The shift is made here and in `sum_losses` only: `target_ids[:, :-1]` predicts
    `target_ids[:, 1:]`.

    `rows` are their indices among all pairs of their split, if known.
    """

    source_ids: Int[Tensor, "B S"]
    target_ids: Int[Tensor, "B T"]
    rows: NDArray[np.int64] | None = None

    @classmethod
    def from_lists(
        cls, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], pad_id: int = 0
    ) -> "Batch":
        """Return the batch of the given ids, padded to the longest of each side."""
        return cls(source_ids=pad(sources, pad_id), target_ids=pad(targets, pad_id))

    def __len__(self) -> int:
        return len(self.source_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch on `device`; Lightning calls this."""
        return Batch(
            source_ids=self.source_ids.to(device, non_blocking=non_blocking),
            target_ids=self.target_ids.to(device, non_blocking=non_blocking),
            rows=self.rows,
        )


def pad(rows: Sequence[Sequence[int]], pad_id: int = 0) -> Int[Tensor, "B L"]:
    """Return `rows` as one tensor, padded on the right to the longest."""
    longest = max(map(len, rows), default=0)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    for row, filled in zip(rows, ids, strict=True):
        filled[: len(row)] = row
    return torch.from_numpy(ids)
