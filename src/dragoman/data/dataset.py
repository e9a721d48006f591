"""Pairs as ids: padded batches, gathered from memory-mapped Arrow files of any number of rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
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


class EncodedPairs:
    """The ids of pairs, memory-mapped from a file of ids.

    In memory are the starts and the lengths of the rows (24 bytes a row); ids are read from the map.
    When sent to another process, it is opened there by its path.
    """

    def __init__(self, path: Path, pad_id: int = 0) -> None:
        self.path, self.pad_id = path, pad_id
        map_ = pa.memory_map(str(path))
        reader = pa.ipc.open_file(map_)
        chunks = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._chunks = chunks  # holds the map open
        # The whole file viewed as int32, in which each id of each chunk has its place, so that any
        # rows are gathered at once. Arrow aligns its buffers to 8 bytes.
        file_ids = np.frombuffer(map_.read_buffer(map_.size() // 4 * 4), dtype=np.int32)
        self._values = file_ids
        self._source_starts, self.source_lengths = _locate(chunks, "source", file_ids)
        self._target_starts, self.target_lengths = _locate(chunks, "target", file_ids)

    def __reduce__(self) -> tuple[type["EncodedPairs"], tuple[Path, int]]:
        return EncodedPairs, (self.path, self.pad_id)

    def __len__(self) -> int:
        return len(self.source_lengths)

    def gather(self, rows: NDArray[np.int64]) -> Batch:
        """Return the given rows as a padded batch."""
        return Batch(
            source_ids=self._pad(self._source_starts[rows], self.source_lengths[rows]),
            target_ids=self._pad(self._target_starts[rows], self.target_lengths[rows]),
            rows=rows,
        )

    def find_lines(self, rows: NDArray[np.int64]) -> list[int]:
        """Return the line of each of `rows` in the file of pairs, from 1; 0: unknown."""
        firsts = np.cumsum([0, *(chunk.num_rows for chunk in self._chunks)])
        chunks = np.searchsorted(firsts, rows, side="right") - 1
        return [
            self._chunks[chunk].column("line")[int(row - firsts[chunk])].as_py()
            for row, chunk in zip(rows, chunks, strict=True)
        ]

    def count_source_ids(self, vocab_size: int) -> NDArray[np.int64]:
        """Return how often each source id below `vocab_size` occurs in all rows, (vocab_size,)."""
        counts = np.zeros(vocab_size, np.int64)
        for chunk in self._chunks:
            ids = chunk.column("source").values.to_numpy(zero_copy_only=True)
            counts += np.bincount(ids, minlength=vocab_size)
        return counts

    def _pad(self, starts: NDArray[np.int64], lengths: NDArray[np.int32]) -> Int[Tensor, "B L"]:
        column = np.arange(lengths.max(initial=0))
        is_token = column < lengths[:, None]  # (B, L)
        places = np.where(is_token, starts[:, None] + column, 0)
        ids = np.where(is_token, self._values[places], self.pad_id)
        return torch.from_numpy(ids.astype(np.int64))


def _locate(
    chunks: Sequence[pa.RecordBatch], side: str, file_ids: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the start of each row of `side` in `file_ids`, and its length, both in ids."""
    starts, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    origin = file_ids.__array_interface__["data"][0]
    for chunk in chunks:
        column = chunk.column(side)
        offsets = np.asarray(column.offsets, dtype=np.int64)
        values = column.values.to_numpy(zero_copy_only=True)
        first = (values.__array_interface__["data"][0] - origin) // 4 if len(values) else 0
        starts.append(first + offsets[:-1])
        lengths.append(np.diff(offsets).astype(np.int32))
    return np.concatenate(starts), np.concatenate(lengths)
