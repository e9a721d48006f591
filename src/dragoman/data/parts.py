"""Rows of like lengths together: how an epoch is cut into batches, and a batch into parts."""

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from dragoman.data.batch import Batch

Lengths = NDArray[np.integer]

# Tokens of a part, on the longer side: larger ones leave the caches of a core, and in smaller ones
# the time goes into starting operations.
_MOST, _LEAST = 1024, 256


def choose_part_tokens(batch_tokens: int, num_threads: int) -> int:
    """Return the size of parts for which a batch of `batch_tokens` has one for each thread."""
    return min(_MOST, max(_LEAST, batch_tokens // num_threads))


def cut_by_budget(source: Lengths, target: Lengths, most_tokens: int) -> list[NDArray[np.int64]]:
    """Return the places of rows with these lengths, cut so that rows x longest <= `most_tokens`.

    The longest is that of the longer side; a row longer than `most_tokens` stands alone. Rows that
    are alike on both sides come together, so that neither is padded much: they are sorted by their
    longer side, and rows equal in that by the difference of the sides, up and down in turns, so
    that it does not jump from one length to the next. Else rows keep their order.
    """
    longer = np.maximum(source, target)
    difference = np.subtract(source, target, dtype=np.int64)
    order = np.lexsort((np.where(longer % 2 == 0, difference, -difference), longer))
    longest = longer[order]  # rises
    pieces, start = [], 0
    while start < len(order):
        # Lengths rise, so a piece of n rows costs n x the last one's length: take the largest n.
        most_rows = max(1, most_tokens // max(1, int(longest[start])))
        lengths = longest[start : start + most_rows].astype(np.int64)
        cost = lengths * np.arange(1, len(lengths) + 1)
        count = max(1, int(np.searchsorted(cost, most_tokens, side="right")))
        pieces.append(order[start : start + count])
        start += count
    return pieces


def cut_batch(
    batch: Batch, part_tokens: int | None, *, num_threads: int, pad_id: int = 0
) -> list[Batch]:
    """Return the rows of `batch` in parts of like lengths, without the padding beyond their longest.

    Args:
        part_tokens: Size of the parts, as of `cut_by_budget`; None: a part for each thread, or more.
    """
    source, target = (_find_lengths(ids, pad_id) for ids in (batch.source_ids, batch.target_ids))
    most_tokens = part_tokens
    if most_tokens is None:
        total = int(np.maximum(source, target).sum())
        most_tokens = choose_part_tokens(total + total // 8, num_threads)  # some is padding
    parts = []
    for rows in cut_by_budget(source, target, most_tokens):
        places = torch.from_numpy(rows)
        longest_source, longest_target = int(source[rows].max()), int(target[rows].max())
        parts.append(
            Batch(
                source_ids=batch.source_ids[places, : max(1, longest_source)],
                target_ids=batch.target_ids[places, : max(2, longest_target)],
            )
        )
    return parts


def _find_lengths(ids: Int[Tensor, "B L"], pad_id: int) -> NDArray[np.int64]:
    """Return where the padding of each row begins."""
    places = torch.arange(1, ids.shape[1] + 1)
    lengths: NDArray[np.int64] = torch.where(ids != pad_id, places, 0).amax(dim=1).numpy()
    return lengths
