"""The rows to inspect, grouped by file and by split, in memory."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dragoman.reading.pairs import Pair
from dragoman.settings import DataSettings

_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it is reversible


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """The valid rows of a file, or of a split of it.

    `name` is train, valid or test; `shown` is for messages: the file's name where the splits are
    parts of it.
    """

    name: str
    shown: str
    files: tuple[str, ...]
    pairs: list[Pair]
    sampled_from: int = 0
    """Number of rows that these are a sample of; 0: these are all."""

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def sources(self) -> list[str]:
        """The sources of all rows."""
        return [pair.source for pair in self.pairs]

    @cached_property
    def targets(self) -> list[str]:
        """The targets of all rows."""
        return [pair.target for pair in self.pairs]

    @cached_property
    def source_keys(self) -> NDArray[np.uint64]:
        """A 64-bit hash of each source with its features, (N,); valid in this process only."""
        return _hash(self.sources) * _MIX + _hash([pair.features for pair in self.pairs])

    @cached_property
    def pair_keys(self) -> NDArray[np.uint64]:
        """A 64-bit hash of each row, (N,); valid in this process only."""
        return self.source_keys * _MIX + _hash(self.targets)

    def side(self, name: str) -> list[str]:
        """Return the texts of "source" or "target"."""
        return self.sources if name == "source" else self.targets

    def sample(self, most: int) -> "SplitRows":
        """Return at most `most` of the rows, evenly spread, in their order."""
        if len(self) <= most:
            return self
        pairs = [self.pairs[i] for i in spread(len(self), most)]
        return dataclasses.replace(self, pairs=pairs, sampled_from=len(self))


def group_rows(
    pairs: Iterable[tuple[str, Pair]], paths: Sequence[str | Path], data: DataSettings
) -> tuple[dict[str, SplitRows], dict[str, SplitRows]]:
    """Return the rows of each file, and the rows of each split, both by name; none is empty.

    They are the same, except where validation or test rows are part of the training file.

    Args:
        pairs: Each with the name of its split.
        paths: The training file, or both files of parallel text.
    """
    by_split: dict[str, list[Pair]] = {"train": [], "valid": [], "test": []}
    for split, pair in pairs:
        by_split[split].append(pair)
    training_files = tuple(map(str, paths))
    given = {"valid": data.valid, "test": data.test}
    splits = {
        name: SplitRows(name=name, shown=name, files=given.get(name) or training_files, pairs=rows)
        for name, rows in by_split.items()
        if rows
    }
    files = {name: rows for name, rows in splits.items() if name == "train" or given[name]}
    if held_out := [name for name in splits if name not in files]:
        whole = [pair for name in ("train", *held_out) for pair in by_split[name]]
        whole.sort(key=lambda pair: pair.line)
        shown = Path(whole[0].file).name
        files["train"] = SplitRows(name="train", shown=shown, files=training_files, pairs=whole)
    return files, splits


def spread(total: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of the numbers below `total`, evenly spread."""
    if total <= most:
        return np.arange(total)
    return np.linspace(0, total - 1, most).astype(np.int64)


def _hash(values: Sequence[object]) -> NDArray[np.uint64]:
    return np.fromiter(map(hash, values), np.int64, len(values)).view(np.uint64)
