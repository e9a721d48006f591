"""The rows to inspect: read once, split as fit would split them, and held column by column."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dragoman.presets import Choice, choose_settings
from dragoman.reading.pairs import Pair, read_pairs
from dragoman.reading.row_errors import RowError, RowErrors
from dragoman.reading.statistics import PairStatistics, collect_statistics, split_of
from dragoman.settings import DataSettings, Settings

_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it loses nothing


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """The usable rows of a file, or of a split of it; `lines` (N,) are line numbers in `file`.

    `name` is train, valid or test; `shown`, what people call it: the file, where a split is a part.
    """

    name: str
    shown: str
    file: str
    files: tuple[str, ...]
    sources: list[str]
    targets: list[str]
    features: list[tuple[str, ...]]
    lines: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sources)

    @cached_property
    def source_keys(self) -> NDArray[np.uint64]:
        """A 64-bit hash of each source with its features, (N,); good in this process only."""
        return _hash(self.sources) * _MIX + _hash(self.features)

    @cached_property
    def pair_keys(self) -> NDArray[np.uint64]:
        """A 64-bit hash of each row, (N,)."""
        return self.source_keys * _MIX + _hash(self.targets)

    def side(self, name: str) -> list[str]:
        """Return the texts of "source" or "target"."""
        return self.sources if name == "source" else self.targets


@dataclass(frozen=True, kw_only=True)
class Reading:
    """All that was read: `files` as they are, and the `splits` that fit would make, by name.

    They are the same, but where validation or test rows are a part of the training file.
    """

    files: dict[str, SplitRows]
    splits: dict[str, SplitRows]
    faults: list[RowError]
    fault_counts: dict[str, int]
    statistics: PairStatistics
    choice: Choice


def read_rows(paths: Sequence[str | Path], settings: Settings) -> Reading:
    """Read all pairs, leaving out faulty rows, and part them as fit would with these settings.

    Raises:
        DataError: A file cannot be read, or has no usable row at all.
    """
    faults = _FirstFaults()
    columns = _Columns()
    statistics = collect_statistics(
        columns.take(read_pairs(paths, _lenient(settings.data), faults))
    )
    data = settings.data
    is_parallel = all(len(files) == 2 for files in (paths, data.valid, data.test) if files)
    choice = choose_settings(settings, statistics, is_parallel=is_parallel)
    chosen = choice.settings.data
    if chosen.leading_tags and not data.leading_tags:  # the sources are read without their tags
        faults, columns = _FirstFaults(), _Columns()
        for _ in columns.take(read_pairs(paths, _lenient(chosen), faults)):
            pass
    whole = columns.finish("train", tuple(map(str, paths)))
    splits = _part(whole, chosen)
    files = {"train": whole if len(splits) > 1 else splits["train"]}
    for split, given in (("valid", chosen.valid), ("test", chosen.test)):
        if given:
            columns = _Columns()
            for _ in columns.take(read_pairs(given, _lenient(chosen), faults)):
                pass
            files[split] = splits[split] = columns.finish(split, tuple(given))
    return Reading(
        files=files,
        splits=splits,
        faults=faults.first,
        fault_counts=dict(faults.counts),
        statistics=statistics,
        choice=choice,
    )


def _part(whole: SplitRows, data: DataSettings) -> dict[str, SplitRows]:
    """Part the rows of the training file by the hash of their sources, as fit does."""
    valid_fraction = 0.0 if data.valid else data.valid_fraction
    test_fraction = 0.0 if data.test else data.test_fraction
    if valid_fraction == test_fraction == 0.0:
        return {"train": dataclasses.replace(whole, shown="train")}
    names = np.array(
        [split_of(source, (), valid_fraction, test_fraction) for source in whole.sources]
    )
    parts = {"train": _take(whole, "train", names == "train")}
    for split, fraction in (("valid", valid_fraction), ("test", test_fraction)):
        if fraction:
            parts[split] = _take(whole, split, names == split)
    return parts


def _take(rows: SplitRows, name: str, chosen: NDArray[np.bool_]) -> SplitRows:
    indices = np.flatnonzero(chosen)
    return SplitRows(
        name=name,
        shown=name,
        file=rows.file,
        files=rows.files,
        sources=[rows.sources[i] for i in indices],
        targets=[rows.targets[i] for i in indices],
        features=[rows.features[i] for i in indices],
        lines=rows.lines[indices],
    )


@dataclass
class _Columns:
    """Gathers the columns of the pairs that pass through."""

    file: str = ""
    sources: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    features: list[tuple[str, ...]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def take(self, pairs: Iterator[Pair]) -> Iterator[Pair]:
        """Yield `pairs`, and keep them."""
        known: dict[tuple[str, ...], tuple[str, ...]] = {}  # few different ones: kept once
        for pair in pairs:
            self.sources.append(pair.source)
            self.targets.append(pair.target)
            self.features.append(known.setdefault(pair.features, pair.features))
            self.lines.append(pair.line)
            self.file = pair.file
            yield pair

    def finish(self, name: str, files: tuple[str, ...]) -> SplitRows:
        return SplitRows(
            name=name,
            shown=Path(self.file).name if name == "train" else name,
            file=self.file,
            files=files,
            sources=self.sources,
            targets=self.targets,
            features=self.features,
            lines=np.array(self.lines, np.int64),
        )


class _FirstFaults(RowErrors):
    """Counts faulty rows, and keeps the first few of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first: list[RowError] = []

    def add(self, file: str | Path, line: int, reason: str, detail: str) -> None:
        """Count one row; keep it, where it is among the first of its kind."""
        super().add(file, line, reason, detail)
        if self.counts[reason] <= self._shown:
            self.first.append(RowError(str(file), line, reason, detail))


def _lenient(data: DataSettings) -> DataSettings:
    return data.model_copy(update={"broken_rows": "skip", "long_rows": "skip"})


def _hash(values: Sequence[object]) -> NDArray[np.uint64]:
    return np.fromiter(map(hash, values), np.int64, len(values)).view(np.uint64)
