"""What a validation decoded: some of its rows, and how alike, empty or endless the outputs are."""

import zlib
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from dragoman.training.collapse import Outputs

_NUM_BUCKETS = 4096  # for different texts: two share one by chance once in so many pairs
_FEWEST_REPEATS = 4  # tokens of an output that may be said to repeat one


class DecodedRow(NamedTuple):
    """A row that was decoded; ids without begin, end and padding."""

    source: list[int]
    reference: list[int]
    hypothesis: tuple[int, ...]
    is_complete: bool


class OutputCounts(Metric):
    """Counts by which outputs are seen to collapse; sums, which add over batches and ranks.

    Texts are counted in buckets, by a hash of their ids: how many are alike can be told without
    gathering them.
    """

    full_state_update = False
    counts: Tensor
    buckets: Tensor

    def __init__(self) -> None:
        super().__init__()
        counts = torch.zeros(len(_COUNTS) + 1, dtype=torch.int64)
        buckets = torch.zeros(3, _NUM_BUCKETS, dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")
        self.add_state("buckets", buckets, dist_reduce_fx="sum")

    def update(self, rows: Sequence[DecodedRow]) -> None:
        """Add rows."""
        counts = [len(rows), *(sum(map(is_so, rows)) for is_so in _COUNTS)]
        self.counts += torch.tensor(counts, device=self.counts.device)
        sides = zip(*((row.source, row.reference, row.hypothesis) for row in rows), strict=True)
        for side, texts in enumerate(sides):
            hashes = torch.tensor([_hash(ids) for ids in texts])
            found = torch.bincount(hashes, minlength=_NUM_BUCKETS)
            self.buckets[side] += found.to(self.buckets.device)

    def compute(self) -> Tensor:
        """Return all sums in one row, for `read_counts`."""
        return torch.cat([self.counts, self.buckets.flatten()])


def read_counts(counts: Tensor) -> Outputs:
    """Return what the sums of `OutputCounts.compute` say."""
    num_rows, empty, empty_references, endless, repeating, repeating_references = counts[
        : len(_COUNTS) + 1
    ].tolist()
    buckets = counts[len(_COUNTS) + 1 :].view(3, _NUM_BUCKETS).cpu()
    sources, references, outputs = buckets
    rows = max(1, num_rows)
    return Outputs(
        num_rows=num_rows,
        num_outputs=_count_distinct(outputs),
        num_references=_count_distinct(references),
        commonest=float(outputs.max()) / rows,
        likeness=_likeness(outputs),
        expected_likeness=max(_likeness(references), _likeness(sources)),
        empty=empty / rows,
        expected_empty=empty_references / rows,
        endless=endless / rows,
        repeating=repeating / rows,
        expected_repeating=repeating_references / rows,
    )


def _count_distinct(buckets: Tensor) -> int:
    """Return about how many different texts are in the buckets.

    Source: Whang et al. 1990, linear counting.
    """
    free = max(1, int((buckets == 0).sum()))
    return min(int(buckets.sum()), round(-_NUM_BUCKETS * log(free / _NUM_BUCKETS)))


def _likeness(buckets: Tensor) -> float:
    """Return how often two rows, taken by chance, have the same text; 0 of fewer than two rows."""
    num_rows = int(buckets.sum())
    pairs = num_rows * (num_rows - 1)
    return int((buckets * (buckets - 1)).sum()) / pairs if pairs else 0.0


def _hash(ids: Sequence[int]) -> int:
    """Return the bucket of `ids`, the same in every process."""
    return zlib.crc32(array("q", ids).tobytes()) % _NUM_BUCKETS


def _is_endless(row: DecodedRow) -> bool:
    """Whether it was cut at its longest length, which its reference does not come near."""
    return not row.is_complete and len(row.hypothesis) > 1.5 * len(row.reference) + 5


def _is_repeating(ids: Sequence[int]) -> bool:
    """Whether half of the tokens, or more, are the one before over again."""
    again = sum(one == other for one, other in pairwise(ids))
    return len(ids) >= _FEWEST_REPEATS and again >= 0.5 * (len(ids) - 1)


_COUNTS: tuple[Callable[[DecodedRow], bool], ...] = (
    lambda row: not row.hypothesis,
    lambda row: not row.reference,
    _is_endless,
    lambda row: _is_repeating(row.hypothesis),
    lambda row: _is_repeating(row.reference),
)
