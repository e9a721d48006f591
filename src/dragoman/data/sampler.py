"""Which rows make a batch: a token budget, little padding, the same plan on every machine.

On the CPU a batch is computed in micro-batches, one on each core. The plan of an epoch is made of
micro-batches too, so that a batch holds rows of several lengths and still has little padding.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from dragoman.data.augmentation import Augmentation
from dragoman.data.dataset import Batch, EncodedPairs

Lengths = NDArray[np.integer]
Weights = Sequence[tuple[int, float]]
"""Numbers of consecutive rows, and how often they are drawn in an epoch; (): every row once."""

POOL_ROWS = 1 << 20  # rows that are shuffled and sorted at a time: bounds the memory of a plan
_BLOCK_ROWS = 4096  # rows that stay together on their way into a pool: keeps reads local
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: its multiples are spread evenly

# Tokens of a micro-batch, on the longer side: larger ones leave the caches of a core; in smaller
# ones the time goes into starting operations.
_MOST_TOKENS, _FEWEST_TOKENS = 1024, 256


@dataclass(frozen=True)
class Plan:
    """The batches of an epoch, as their rows: 4 bytes a row in memory, 8 a batch."""

    rows: NDArray[np.signedinteger]  # of all batches, one after the other
    ends: NDArray[np.int64]  # of each batch in `rows`

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int) -> NDArray[np.int64]:
        """Return the rows of a batch; `place` is from 0."""
        start = self.ends[place - 1] if place else 0
        return self.rows[start : self.ends[place]].astype(np.int64)


def plan_batches(
    pairs: EncodedPairs,
    batch_tokens: int,
    *,
    seed: int,
    epoch: int,
    micro_batch_tokens: int | None = None,
    weights: Weights = (),
) -> Plan:
    """Return the batches of an epoch in random order: every row once, or by `weights`.

    A batch holds at most `batch_tokens` tokens on its longer side, padding counted; a row longer
    than that is a batch by itself. Its rows have similar lengths. With `micro_batch_tokens`, it is
    made of micro-batches of so many tokens, drawn at random: only the rows of each have similar
    lengths.
    The plan depends on its arguments alone, so all ranks have the same.

    A row with the weight w is drawn w times in an epoch; for a fraction, in n epochs n * w times,
    rounded up or down: with 2.5, twice and three times in turns. Its draws are in different blocks.
    """
    micro_batch_tokens = min(micro_batch_tokens or batch_tokens, batch_tokens)
    per_batch = batch_tokens // micro_batch_tokens
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    weights = weights or [(len(pairs), 1.0)]
    blocks = _list_blocks(weights)
    blocks = blocks[random.permutation(len(blocks))]
    of_place = np.array([weight for _, weight in weights])
    blocks_per_pool = POOL_ROWS // _BLOCK_ROWS
    most_rows = int((blocks[:, 1] - blocks[:, 0]).sum())
    kind: type[np.signedinteger] = np.int32 if len(pairs) < 1 << 31 else np.int64
    planned = np.empty(most_rows, kind)
    ends, end = [np.empty(0, np.int64)], 0
    for first in range(0, len(blocks), blocks_per_pool):
        pool = blocks[first : first + blocks_per_pool]
        rows = random.permutation(_draw_rows(pool, of_place, epoch))
        lengths = pairs.source_lengths[rows], pairs.target_lengths[rows]
        order, old_ends = _cut(*lengths, micro_batch_tokens)
        chosen = random.permutation(len(old_ends))
        sizes = np.diff(old_ends, prepend=0)[chosen]
        new_ends = sizes.cumsum()
        places = np.arange(len(rows)) + np.repeat(old_ends[chosen] - new_ends, sizes)
        planned[end : end + len(rows)] = rows.astype(kind)[order[places]]
        lasts = np.arange(per_batch - 1, len(new_ends) + per_batch - 1, per_batch)
        ends.append(end + new_ends[np.minimum(lasts, len(new_ends) - 1)])
        end += len(rows)
    return Plan(planned[:end], np.concatenate(ends))


def _list_blocks(weights: Weights) -> NDArray[np.int64]:
    """Return the blocks of rows, each as often as one of its rows can be drawn in an epoch.

    A block is its first row, the end, which of the draws this is, from 0, and the place of its weight.
    """
    blocks, start = [np.empty((0, 4), np.int64)], 0
    for place, (num_rows, weight) in enumerate(weights):
        starts = np.arange(start, start + num_rows, _BLOCK_ROWS)
        start += num_rows
        ends = np.minimum(starts + _BLOCK_ROWS, start)
        for draw in range(math.ceil(weight)):
            columns = np.broadcast_arrays(starts, ends, draw, place)
            blocks.append(np.stack(columns, axis=1))
    return np.concatenate(blocks)


def _draw_rows(
    blocks: NDArray[np.int64], weights: NDArray[np.float64], epoch: int
) -> NDArray[np.int64]:
    """Return the rows of these blocks that are drawn in this epoch."""
    start, end, draw, place = blocks.T[:, :, None]
    rows = start + np.arange(_BLOCK_ROWS)
    is_drawn = rows < end
    weight = weights[place]
    if (weight % 1).any():
        # After n epochs row r has been drawn floor(n * weight + phase(r)) times. The phase has 32
        # bits, so that the sums are exact.
        phase = (rows.astype(np.uint64) * _GOLDEN >> np.uint64(32)) / 2**32
        before, after = (np.floor(n * weight + phase) for n in (epoch, epoch + 1))
        is_drawn &= after - before > draw
    drawn: NDArray[np.int64] = rows[is_drawn]
    return drawn


def take_share(
    rows: NDArray[np.int64], longer: Lengths, rank: int, num_ranks: int
) -> NDArray[np.int64]:
    """Return the rows of a batch that this rank computes; a rank may get none.

    Each row goes to one rank. Those of a rank have similar lengths, and in all about as many tokens
    as those of any other, on their longer side, whose lengths are `longer`.
    """
    order = np.argsort(longer, kind="stable")
    ends = longer[order].cumsum(dtype=np.int64)
    middles = 2 * ends - longer[order]
    share: NDArray[np.int64] = rows[order[middles * num_ranks // (2 * ends[-1]) == rank]]
    return share


def cut_by_budget(source: Lengths, target: Lengths, most_tokens: int) -> list[NDArray[np.int64]]:
    """Return the places of rows with these lengths, cut so that rows x longest <= `most_tokens`.

    The longest is that of the longer side; a row longer than `most_tokens` is alone. Rows that are
    similar on both sides come together, so that neither is padded much: they are sorted by their
    longer side, then by the difference of the sides, up and down in turns, so that it does not jump
    from one length to the next. Equal rows keep their order.
    """
    order, ends = _cut(source, target, most_tokens)
    return np.split(order, ends[:-1])


def _cut(
    source: Lengths, target: Lengths, most_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of rows in the order of `cut_by_budget`, and the ends of its pieces in them."""
    longer = np.maximum(source, target)
    counts = np.bincount(longer)
    top = len(counts) - 1
    kind = np.min_scalar_type(2 * top)  # numpy sorts keys of at most 16 bits by counting
    turned = np.subtract(source, target, dtype=np.int32)
    turned *= 1 - 2 * (longer % 2)
    turned += top
    order = np.lexsort((turned.astype(kind), longer.astype(kind)))
    longest = np.repeat(np.maximum(np.arange(top + 1), 1), counts)  # rises
    ends, start = [np.empty(0, np.int64)], 0
    for end in counts.cumsum()[counts > 0].tolist():  # up to there, rows are equally long
        if start >= end:
            continue
        most_rows = max(1, most_tokens // int(longest[start]))
        ends.append(np.arange(start + most_rows, end + 1, most_rows))
        start += len(ends[-1]) * most_rows
        if start < end:
            # A piece of n rows costs n x the last one's length: take the largest n.
            lengths = longest[start : start + most_rows]
            cost = lengths * np.arange(1, len(lengths) + 1)
            start += max(1, int(np.searchsorted(cost, most_tokens, side="right")))
            ends.append(np.array([start]))
    return order, np.concatenate(ends)


def choose_micro_batch_tokens(batch_tokens: int, num_threads: int) -> int:
    """Return the size of micro-batches that gives one to each thread."""
    return min(_MOST_TOKENS, max(_FEWEST_TOKENS, batch_tokens // num_threads))


def cut_batch(
    batch: Batch, micro_batch_tokens: int | None, *, num_threads: int, pad_id: int = 0
) -> list[Batch]:
    """Return `batch` as micro-batches of similar lengths, each padded to its own longest row.

    `micro_batch_tokens`: size, as of `cut_by_budget`; None: at least one for each thread.
    """
    source, target = (_find_lengths(ids, pad_id) for ids in (batch.source_ids, batch.target_ids))
    if micro_batch_tokens is None:
        total = int(np.maximum(source, target).sum())
        micro_batch_tokens = choose_micro_batch_tokens(total + total // 8, num_threads)  # padding
    micro_batches = []
    for rows in cut_by_budget(source, target, micro_batch_tokens):
        places = torch.from_numpy(rows)
        longest_source, longest_target = int(source[rows].max()), int(target[rows].max())
        micro_batches.append(
            Batch(
                source_ids=batch.source_ids[places, : max(1, longest_source)],
                target_ids=batch.target_ids[places, : max(2, longest_target)],
            )
        )
    return micro_batches


def _find_lengths(ids: Int[Tensor, "B L"], pad_id: int) -> NDArray[np.int64]:
    """Return the length of each row without its padding."""
    places = torch.arange(1, ids.shape[1] + 1)
    lengths: NDArray[np.int64] = torch.where(ids != pad_id, places, 0).amax(dim=1).numpy()
    return lengths


class TrainingLoader:
    """The training batches of one rank, epoch after epoch; its position can be saved and restored.

    Each rank gets its share of every batch: with any number of ranks, a step has the same rows.

    With the same pairs and weights, a loader that loads the state of another continues with exactly the batches
    that would have followed there; with another `batch_tokens` or `accumulate`, with the next epoch.

    Args:
        accumulate: Batches of a step. An epoch has whole steps: the last one is filled with its first
            batches, because Lightning ends a step where an epoch ends.
    """

    def __init__(
        self,
        pairs: EncodedPairs,
        batch_tokens: int,
        *,
        seed: int,
        micro_batch_tokens: int | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        augmentations: Sequence[Augmentation] = (),
        weights: Weights = (),
        accumulate: int = 1,
    ) -> None:
        self.pairs, self.batch_tokens, self.seed = pairs, batch_tokens, seed
        self.accumulate = accumulate
        self._augmentations, self._weights = augmentations, weights
        self.micro_batch_tokens = micro_batch_tokens or batch_tokens
        self.rank, self.num_ranks = rank, num_ranks
        self.epoch = 0
        self.num_consumed = 0
        self._planned: tuple[int, int, int] | None = None  # seed, micro_batch_tokens, epoch
        self._plan = Plan(np.empty(0, np.int64), np.empty(0, np.int64))

    def __len__(self) -> int:
        """Return the number of batches of the current epoch, the same for each rank."""
        return -(-len(self._batches_of_epoch()) // self.accumulate) * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        """Yield the remaining batches of the current epoch, or, at its end, the next epoch."""
        if self.num_consumed >= len(self):
            self.epoch, self.num_consumed = self.epoch + 1, 0
        plan = self._batches_of_epoch()
        for place in range(self.num_consumed, len(self)):
            rows = plan[place % len(plan)]
            # Counted before it is handed out: a state taken after its step includes it.
            self.num_consumed += 1
            yield self._gather(rows)

    def state_dict(self) -> dict[str, int]:
        """Return the position, as plain numbers."""
        return {
            "seed": self.seed,
            "batch_tokens": self.batch_tokens,
            "part_tokens": self.micro_batch_tokens,  # its name in every checkpoint
            "accumulate": self.accumulate,
            "epoch": self.epoch,
            "num_consumed": self.num_consumed,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the position in `state`."""
        self.seed, self.epoch = state["seed"], state["epoch"]
        if (state["batch_tokens"], state.get("accumulate", self.accumulate)) == (
            self.batch_tokens,
            self.accumulate,
        ):
            self.micro_batch_tokens = state["part_tokens"]
            self.num_consumed = state["num_consumed"]
        else:
            self.epoch, self.num_consumed = self.epoch + 1, 0

    def _batches_of_epoch(self) -> Plan:
        wanted = (self.seed, self.micro_batch_tokens, self.epoch)
        if self._planned != wanted:
            self._plan = plan_batches(
                self.pairs,
                self.batch_tokens,
                seed=self.seed,
                epoch=self.epoch,
                micro_batch_tokens=self.micro_batch_tokens,
                weights=self._weights,
            )
            self._planned = wanted
        return self._plan

    def _gather(self, rows: NDArray[np.int64]) -> Batch:
        """Return this rank's share of the batch of `rows`."""
        pairs = self.pairs
        if self.num_ranks > 1:
            longer = np.maximum(pairs.source_lengths[rows], pairs.target_lengths[rows])
            rows = take_share(rows, longer, self.rank, self.num_ranks)
            if not len(rows):
                return _make_empty_batch(pairs)
        batch = pairs.gather(rows)
        random = np.random.default_rng([self.seed, self.epoch, self.num_consumed, self.rank])
        for augment in self._augmentations:
            batch = augment(batch, random)
        return batch


class EvaluationLoader:
    """The same batches of one rank each time, from the first; every row counts once over all ranks.

    The batches have similar lengths but stand in random order, so that the first ones are a sample.
    """

    def __init__(
        self,
        pairs: EncodedPairs,
        batch_tokens: int,
        *,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.pairs = pairs
        plan = plan_batches(pairs, batch_tokens, seed=seed, epoch=0)
        self._plan = [plan[place] for place in range(rank, len(plan), num_ranks)]
        self._num_batches = -(-len(plan) // num_ranks)

    def __len__(self) -> int:
        """Return the number of batches, the same for each rank."""
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; a rank with one batch less than others gets one without a target."""
        for rows in self._plan:
            yield self.pairs.gather(rows)
        if len(self._plan) < self._num_batches:
            yield _make_empty_batch(self.pairs)


def _make_empty_batch(pairs: EncodedPairs) -> Batch:
    """Return a batch of one source without a target: no rank may have a batch less than others."""
    extra = pairs.gather(np.zeros(1, np.int64))
    return Batch(
        source_ids=extra.source_ids, target_ids=extra.target_ids.new_full((1, 2), pairs.pad_id)
    )
