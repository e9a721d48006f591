"""Which rows make a batch: a token budget, little padding, the same plan on every machine."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dragoman.data.batch import Batch
from dragoman.data.dataset import EncodedPairs
from dragoman.data.parts import cut_by_budget

POOL_ROWS = 1 << 20  # rows that are shuffled and sorted at a time: bounds the memory of a plan
_BLOCK_ROWS = 4096  # rows that stay together on their way into a pool: keeps reads local


def plan_batches(
    pairs: EncodedPairs,
    batch_tokens: int,
    *,
    seed: int,
    epoch: int,
    part_tokens: int | None = None,
    num_ranks: int = 1,
) -> list[NDArray[np.int64]]:
    """Return the batches of an epoch in random order, every row once.

    A batch holds at most `batch_tokens` tokens on its longer side, padding counted; a row longer
    than that is a batch by itself. Its rows are of like lengths; or, with `part_tokens`, it is made
    of parts of so many tokens, each of like lengths, and the parts are drawn at random.
    The number of batches is a multiple of `num_ranks`: the first ones are repeated at the end to
    make it so, because ranks with unequal counts wait for ever.
    The plan depends on its arguments alone: rank r takes every `num_ranks`-th batch from r on.
    """
    part_tokens = min(part_tokens or batch_tokens, batch_tokens)
    parts_a_batch = batch_tokens // part_tokens
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    blocks = random.permutation(-(-len(pairs) // _BLOCK_ROWS))
    blocks_per_pool = POOL_ROWS // _BLOCK_ROWS
    batches: list[NDArray[np.int64]] = []
    for first in range(0, len(blocks), blocks_per_pool):
        rows = random.permutation(_rows_of(blocks[first : first + blocks_per_pool], len(pairs)))
        cut = cut_by_budget(pairs.source_lengths[rows], pairs.target_lengths[rows], part_tokens)
        parts = [rows[cut[i]] for i in random.permutation(len(cut))]
        batches.extend(
            np.concatenate(parts[i : i + parts_a_batch])
            for i in range(0, len(parts), parts_a_batch)
        )
    missing = -len(batches) % num_ranks
    while missing:
        batches.extend(batches[:missing])
        missing = -len(batches) % num_ranks
    return batches


def _rows_of(blocks: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    rows = (blocks[:, None] * _BLOCK_ROWS + np.arange(_BLOCK_ROWS)).ravel()
    return rows[rows < num_rows]


class TrainingLoader:
    """The training batches of one rank, epoch after epoch; knows its place, and can be put there.

    Its state is (seed, batch_tokens, part_tokens, epoch, batches consumed): with the same pairs, a
    loader that is given the state of another goes on with the very batches that would have come
    there; with another budget, with the next epoch. Without `part_tokens`, the rows of a batch are
    all of like lengths.
    """

    def __init__(
        self,
        pairs: EncodedPairs,
        batch_tokens: int,
        *,
        seed: int,
        part_tokens: int | None = None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.pairs, self.batch_tokens, self.seed = pairs, batch_tokens, seed
        self.part_tokens = part_tokens or batch_tokens
        self.rank, self.num_ranks = rank, num_ranks
        self.epoch = 0
        self.num_consumed = 0
        self._planned: tuple[int, int, int] | None = None  # seed, part_tokens, epoch
        self._plan: list[NDArray[np.int64]] = []

    def __len__(self) -> int:
        """Return the number of batches of the epoch at hand, the same for each rank."""
        return len(self._batches_of_epoch())

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch at hand, or, where that is done, the next epoch."""
        if self.num_consumed >= len(self):
            self.epoch, self.num_consumed = self.epoch + 1, 0
        for rows in self._batches_of_epoch()[self.num_consumed :]:
            # Counted before it is handed out: a state taken after its step includes it.
            self.num_consumed += 1
            yield self.pairs.gather(rows)

    def state_dict(self) -> dict[str, int]:
        """Return the place, as plain numbers."""
        return {
            "seed": self.seed,
            "batch_tokens": self.batch_tokens,
            "part_tokens": self.part_tokens,
            "epoch": self.epoch,
            "num_consumed": self.num_consumed,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the place that `state` tells."""
        self.seed, self.epoch = state["seed"], state["epoch"]
        if state["batch_tokens"] == self.batch_tokens:
            self.part_tokens, self.num_consumed = state["part_tokens"], state["num_consumed"]
        else:
            self.epoch, self.num_consumed = self.epoch + 1, 0

    def _batches_of_epoch(self) -> list[NDArray[np.int64]]:
        wanted = (self.seed, self.part_tokens, self.epoch)
        if self._planned != wanted:
            plan = plan_batches(
                self.pairs,
                self.batch_tokens,
                seed=self.seed,
                epoch=self.epoch,
                part_tokens=self.part_tokens,
                num_ranks=self.num_ranks,
            )
            self._plan = plan[self.rank :: self.num_ranks]
            self._planned = wanted
        return self._plan


class EvaluationLoader:
    """The same batches of one rank each time, from the first; every row counts once over all ranks.

    The batches are of like lengths but stand in random order, so that the first ones are a sample.
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
        self.pairs, self.rank, self.num_ranks = pairs, rank, num_ranks
        plan = plan_batches(pairs, batch_tokens, seed=seed, epoch=0)
        self._plan = plan[rank::num_ranks]
        self._num_batches = -(-len(plan) // num_ranks)

    def __len__(self) -> int:
        """Return the number of batches, the same for each rank."""
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; a rank that has one less than others gets one without a target."""
        for rows in self._plan:
            yield self.pairs.gather(rows)
        if len(self._plan) < self._num_batches:
            extra = self.pairs.gather(np.zeros(1, np.int64))
            yield Batch(
                source_ids=extra.source_ids,
                target_ids=extra.target_ids.new_full((1, 2), self.pairs.pad_id),
            )
