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

    def __len__(self) -> int:
        return len(self.source_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch on `device`; Lightning calls this. No copy to a GPU is waited for."""
        ids = (self.source_ids, self.target_ids)
        if torch.device(device).type == "cuda" and self.source_ids.device.type == "cpu":
            ids, non_blocking = (ids[0].pin_memory(), ids[1].pin_memory()), True
        source_ids, target_ids = (one.to(device, non_blocking=non_blocking) for one in ids)
        return Batch(source_ids=source_ids, target_ids=target_ids, rows=self.rows)


def pad(rows: Sequence[Sequence[int]], pad_id: int = 0) -> Int[Tensor, "B L"]:
    """Return `rows` as one tensor, padded on the right to the longest."""
    longest = max(map(len, rows), default=0)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    for row, filled in zip(rows, ids, strict=True):
        filled[: len(row)] = row
    return torch.from_numpy(ids)


class EncodedPairs:
    """The ids of pairs, memory-mapped from a file of ids.

    In memory are the lengths of the rows (8 bytes a row); ids are read from the map.
    When sent to another process, it is opened there by its path.
    """

    def __init__(self, path: Path, pad_id: int = 0) -> None:
        self.path, self.pad_id = path, pad_id
        map_ = pa.memory_map(str(path))
        reader = pa.ipc.open_file(map_)
        chunks = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self.chunks = chunks  # hold the map open; each is of one table
        # The whole file viewed as int32, in which each id of each chunk has its place, so that any
        # rows are gathered at once. Arrow aligns its buffers to 8 bytes.
        file_ids = np.frombuffer(map_.read_buffer(map_.size() // 4 * 4), dtype=np.int32)
        self._values = file_ids
        self._firsts = np.cumsum([0, *(chunk.num_rows for chunk in chunks)])
        self._source_places, self.source_lengths = _locate(chunks, "source", file_ids)
        self._target_places, self.target_lengths = _locate(chunks, "target", file_ids)

    def __reduce__(self) -> tuple[type["EncodedPairs"], tuple[Path, int]]:
        return EncodedPairs, (self.path, self.pad_id)

    def __len__(self) -> int:
        return len(self.source_lengths)

    def gather(self, rows: NDArray[np.int64]) -> Batch:
        """Return the given rows as a padded batch."""
        return Batch(
            source_ids=self._pad(rows, self._source_places, self.source_lengths[rows]),
            target_ids=self._pad(rows, self._target_places, self.target_lengths[rows]),
            rows=rows,
        )

    def find_lines(self, rows: NDArray[np.int64]) -> list[int]:
        """Return the line of each of `rows` in the file of pairs, from 1; 0: unknown."""
        chunks = np.searchsorted(self._firsts, rows, side="right") - 1
        return [
            self.chunks[chunk].column("line")[int(row - self._firsts[chunk])].as_py()
            for row, chunk in zip(rows, chunks, strict=True)
        ]

    def has_lines(self, lines: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of `lines`, in order, have a row."""
        found = np.zeros(len(lines), dtype=bool)
        for chunk in self.chunks:
            own = chunk.column("line").to_numpy()
            if own[0] <= lines[-1] and lines[0] <= own[-1]:
                found |= np.isin(lines, own)
        return found

    def count_source_ids(self, vocab_size: int) -> NDArray[np.int64]:
        """Return how often each source id below `vocab_size` occurs in all rows, (vocab_size,)."""
        counts = np.zeros(vocab_size, np.int64)
        for chunk in self.chunks:
            ids = chunk.column("source").values.to_numpy(zero_copy_only=True)
            counts += np.bincount(ids, minlength=vocab_size)
        return counts

    def _pad(
        self, rows: NDArray[np.int64], places: NDArray[np.int64], lengths: NDArray[np.int32]
    ) -> Int[Tensor, "B L"]:
        chunks = np.searchsorted(self._firsts, rows, side="right") - 1
        of_offsets, of_ids = places[chunks].T
        starts = of_ids + self._values[of_offsets + rows - self._firsts[chunks]]
        column = np.arange(lengths.max(initial=0))
        is_token = column < lengths[:, None]  # (B, L)
        ids = np.where(is_token, starts[:, None] + column, 0)
        ids = np.where(is_token, self._values[ids], self.pad_id)
        return torch.from_numpy(ids.astype(np.int64))


def _locate(
    chunks: Sequence[pa.RecordBatch], side: str, file_ids: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return where offsets and ids of `side` begin in `file_ids`, (chunks, 2); the lengths of all rows."""
    origin = file_ids.__array_interface__["data"][0]
    places = np.zeros((len(chunks), 2), np.int64)
    lengths = np.empty(sum(chunk.num_rows for chunk in chunks), np.int32)
    end = 0
    for i, chunk in enumerate(chunks):
        column = chunk.column(side)
        offsets = column.offsets.to_numpy(zero_copy_only=True)
        ids = column.values.to_numpy(zero_copy_only=True)
        for j, array in enumerate((offsets, ids)):
            if len(array):
                places[i, j] = (array.__array_interface__["data"][0] - origin) // 4
        start, end = end, end + chunk.num_rows
        np.subtract(offsets[1:], offsets[:-1], out=lengths[start:end])
    return places, lengths
