"""The rows to inspect, by file and by split, and the result: findings with example rows, sizes."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from dragoman.characters import JOINERS, SIGNS, is_hidden
from dragoman.reading.pairs import Pair
from dragoman.reading.row_errors import name_file
from dragoman.settings import DataSettings, Settings

Severity = Literal["fault", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("fault", "warning", "note")
MOST_EXAMPLES = 10
_MOST_CHARACTERS = 48  # of each side of an example
_MOST_ROWS = 500_000  # held of each file and split; and their characters:
_MOST_HELD_CHARACTERS = 100_000_000
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
    sampled_from: int = 0  # number of rows that these are a sample of; 0: these are all

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
        """A 64-bit hash of each source, in NFC, with its features, (N,); valid in this process only."""
        return _hash([normalize("NFC", source) for source in self.sources]) * _MIX + _hash(
            [pair.features for pair in self.pairs]
        )

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
        return dataclasses.replace(self, pairs=pairs, sampled_from=self.num_rows)

    @property
    def num_rows(self) -> int:
        """Number of rows, also of those that are not in a sample."""
        return self.sampled_from or len(self)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row, as a short excerpt with visible codes for hidden characters."""

    file: str
    line: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of problem, or of what is good to know, in one file.

    `severity`: fault, fit would stop; warning, training or scores suffer; note, good to know.
    `count` is in rows; `examples` are the first of them.
    """

    kind: str
    title: str
    severity: Severity
    count: int
    message: str
    remedy: str
    examples: tuple[Example, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values; the message is called "told", as in version 0.1."""
        content = asdict(self)
        return {**content, "told": content.pop("message"), "examples": list(content["examples"])}


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A row whose target may be wrong: a model writes `output` instead."""

    file: str
    line: int
    source: str  # after its features
    target: str
    output: str
    log_odds: float  # of output against target, in nats


@dataclass(frozen=True, kw_only=True)
class SplitFigures:
    """The sizes of a split; lengths as min, p5, median, p95, p99, max and mean."""

    files: tuple[str, ...]
    rows: int
    sources: int  # different ones, features included
    lengths: Mapping[str, Mapping[str, float]]  # source_characters, ..., target_tokens

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        lengths = {name: dict(values) for name, values in self.lengths.items()}
        return {"files": list(self.files), "rows": self.rows, "sources": self.sources, **lengths}


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The findings, the most severe first, and the settings that fit would choose."""

    splits: Mapping[str, SplitFigures]
    findings: tuple[Finding, ...]
    settings: Settings  # resolved as in fit
    reasons: tuple[str, ...]  # for what was chosen
    notes: tuple[str, ...]  # on how lengths were measured
    suspects: tuple[Suspect, ...] = ()  # the most doubtful first; of an inspection with a model

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        data = self.settings.data
        return {
            "splits": {name: figures.to_dict() for name, figures in self.splits.items()},
            "limits": {"characters": data.max_characters, "tokens": data.max_tokens},
            "findings": [finding.to_dict() for finding in self.findings],
            "preset": {"name": self.settings.preset, "reasons": list(self.reasons)},
            "notes": list(self.notes),
            "doubtful_targets": [asdict(one) for one in self.suspects],
        }


def report(
    rows: SplitRows,
    found: Sequence[int] | NDArray[np.int64],
    kind: str,
    title: str,
    message: str,
    remedy: str,
    *,
    severity: Severity = "warning",
    at: Mapping[int, str] | str = "",
    notes: Mapping[int, str] | None = None,
) -> Iterator[Finding]:
    """Yield a finding about the rows at `found`, if there are any; the first ones are its examples.

    Args:
        message: Follows "1,234 of 5,678 rows (21.7%) of train".
        at: What the example of each row, or of every row, shows: see `show_row`.
        notes: Of the examples, by the index of the row.
    """
    if not len(found):
        return
    share = 100 * len(found) / len(rows)
    percent = (
        f"{share:.1f}%" if share >= 0.1 else f"{share:.2f}%" if share >= 0.01 else "under 0.01%"
    )
    sample = f" (a sample of its {rows.sampled_from:,} rows)" if rows.sampled_from else ""
    shown_share = f"{len(found):,} of {len(rows):,} rows ({percent}) of {rows.shown}{sample}"
    shown = [int(i) for i in found[:MOST_EXAMPLES]]
    yield Finding(
        kind=kind,
        title=title,
        severity=severity,
        count=len(found),
        message=f"{shown_share} {message}",
        remedy=remedy,
        examples=tuple(
            show_row(rows, i, at if isinstance(at, str) else at[i], notes[i] if notes else "")
            for i in shown
        ),
    )


def show_row(rows: SplitRows, i: int, at: str = "", note: str = "") -> Example:
    """Return row `i` as an example: an excerpt of both sides, around `at` where it occurs."""
    pair = rows.pairs[i]
    source = " ".join([*pair.features, show_text(pair.source, at)])
    text = f"{source} → {show_text(pair.target, at)}{note and f'   ({note})'}"
    return Example(file=pair.file, line=pair.line, text=text)


def show_text(text: str, at: str = "", longest: int = _MOST_CHARACTERS) -> str:
    """Return an excerpt of `text`, around `at` where it occurs; hidden characters as <U+200B>.

    Joiners count as hidden only where `at` is one.
    """
    start = max(0, text.find(at) - longest // 3) if at and len(text) > longest else 0
    shown = "".join(
        SIGNS.get(character, f"<U+{ord(character):04X}>")
        if is_hidden(character) and (character not in JOINERS or character in at)
        else character
        for character in text[start : start + longest]
    )
    return f"{'…' * (start > 0)}{shown}{'…' * (start + longest < len(text))}"


class HeldRows:
    """Rows of any number in bounded memory: evenly spread ones, once there are too many."""

    def __init__(self, stride: int = 1) -> None:
        self.pairs: list[Pair] = []
        self.stride = stride
        """Of so many rows one is held; `stride` at first: the rows that come are a sample."""
        self._first_stride, self._num_added, self._num_characters = stride, 0, 0

    def add(self, pair: Pair) -> None:
        """Hold this row, perhaps."""
        if self._num_added % (self.stride // self._first_stride) == 0:
            self.pairs.append(pair)
            self._num_characters += len(pair.source) + len(pair.target)
        self._num_added += 1
        if len(self.pairs) > _MOST_ROWS or self._num_characters > _MOST_HELD_CHARACTERS:
            self.pairs = self.pairs[::2]
            self.stride *= 2
            self._num_characters = sum(len(one.source) + len(one.target) for one in self.pairs)

    def hold(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Yield all of `pairs`, and hold some."""
        for pair in pairs:
            self.add(pair)
            yield pair

    @property
    def sampled_from(self) -> int:
        """Number of rows that these are a sample of; 0: these are all."""
        return self._num_added * self._first_stride if self.stride > 1 else 0


def group_rows(
    pairs: Iterable[tuple[str, Pair]],
    paths: Sequence[str | Path],
    data: DataSettings,
    stride: int = 1,
) -> tuple[dict[str, SplitRows], dict[str, SplitRows]]:
    """Return the rows of each file, and the rows of each split, both by name; none is empty.

    They are the same, except where validation or test rows are part of the training file.

    Args:
        pairs: Each with the name of its split.
        paths: The training file, or both files of parallel text.
        stride: Of the training file, one row in so many is given.
    """
    given: dict[str, tuple[str, ...]] = {"valid": data.valid, "test": data.test}
    by_split = {name: HeldRows(1 if given.get(name) else stride) for name in ("train", *given)}
    whole = HeldRows(stride)
    for split, pair in pairs:
        by_split[split].add(pair)
        if not given.get(split):
            whole.add(pair)
    training_files = tuple(map(name_file, paths))

    def make(name: str, shown: str, held: HeldRows) -> SplitRows:
        return SplitRows(
            name=name,
            shown=shown,
            files=given.get(name) or training_files,
            pairs=held.pairs,
            sampled_from=held.sampled_from,
        )

    splits = {name: make(name, name, held) for name, held in by_split.items() if held.pairs}
    files = {name: rows for name, rows in splits.items() if name == "train" or given[name]}
    if any(name not in files for name in splits):
        files["train"] = make("train", Path(whole.pairs[0].file).name, whole)
    return files, splits


def spread(total: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of the numbers below `total`, evenly spread."""
    if total <= most:
        return np.arange(total)
    return np.linspace(0, total - 1, most).astype(np.int64)


def _hash(values: Sequence[object]) -> NDArray[np.uint64]:
    return np.fromiter(map(hash, values), np.int64, len(values)).view(np.uint64)
