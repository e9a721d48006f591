"""The targets of training sources, found by a hash of the source: see decoding.memory.

memory.safetensors has 18 bytes for each source, and each distinct target once.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, cast
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dragoman.errors import ModelFolderError
from dragoman.reading.pairs import Pair
from dragoman.reading.row_errors import name_row

MEMORY = "memory.safetensors"
_TYPES = {
    "hashes": np.uint64,  # of the sources, ascending
    "targets": np.uint32,  # which one each source has
    "files": np.uint16,  # where the first pair of each source stands
    "lines": np.uint32,
    "ends": np.uint64,  # of each target in the text
    "text": np.uint8,  # UTF-8
}


_DAMAGED = (OSError, SafetensorError, LookupError, TypeError, ValueError, RecursionError)


class Remembered(NamedTuple):
    """The target of a training source, and a pair that has it: `file:line`."""

    target: str
    row: str


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetMemory:
    """The targets of all training sources that have only one."""

    tensors: dict[str, NDArray[Any]]
    """By name: see `_TYPES`."""
    files: tuple[str, ...]
    """Names of the files of pairs."""
    confidence: float
    """Probability that a target is right, as measured on repeated sources; in (0, 1)."""

    @property
    def num_bytes(self) -> int:
        """Size of the table."""
        return sum(one.nbytes for one in self.tensors.values())

    def __len__(self) -> int:
        return len(self.tensors["hashes"])

    def find(self, source: str, features: Sequence[str]) -> Remembered | None:
        """Return the target of a source with its features; None: it has none, or several."""
        tensors = self.tensors
        if (place := _find_place(tensors["hashes"], source, features)) is None:
            return None
        target = int(tensors["targets"][place])
        start, end = (int(tensors["ends"][i]) if i >= 0 else 0 for i in (target - 1, target))
        text = tensors["text"][start:end].tobytes().decode(errors="replace")
        file = self.files[tensors["files"][place]]
        return Remembered(text, name_row(file, int(tensors["lines"][place])))

    def write(self, folder: Path) -> None:
        """Write the table into `folder`."""
        about = {"files": self.files, "confidence": self.confidence}
        save_file(self.tensors, folder / MEMORY, {"memory": json.dumps(about)})

    @classmethod
    def read(cls, folder: Path) -> "TargetMemory | None":
        """Return the table in `folder`; None: it has none.

        Raises: ModelFolderError, when the file is damaged.
        """
        path = folder / MEMORY
        if not path.exists():
            return None
        try:
            with cast(Any, safe_open(path, framework="np")) as file:  # untyped
                tensors = {name: file.get_tensor(name) for name in _TYPES}
                about = json.loads((file.metadata() or {})["memory"])
            files, confidence = tuple(map(str, about["files"])), float(about["confidence"])
            memory = cls(tensors=tensors, files=files, confidence=confidence)
            if problem := memory._find_problem():
                raise ValueError(problem)
        except _DAMAGED as error:
            raise ModelFolderError(
                f"{path}: not a valid memory: {error}; delete it: the model then predicts alone"
            ) from error
        return memory

    def _find_problem(self) -> str:
        """Return what is wrong with the tensors; "" if nothing is."""
        if any(one.dtype != _TYPES[name] or one.ndim != 1 for name, one in self.tensors.items()):
            return "a tensor is of another type or shape"
        hashes, targets, files, lines, ends, text = (self.tensors[name] for name in _TYPES)
        if not len(hashes) == len(targets) == len(files) == len(lines):
            return "the tensors differ in length"
        is_ordered = (hashes[1:] > hashes[:-1]).all() and (ends[1:] >= ends[:-1]).all()
        last = [(targets, len(ends)), (files, len(self.files)), (ends, len(text) + 1)]
        if not is_ordered or any(len(one) and one.max() >= limit for one, limit in last):
            return "a place is out of range"
        return "" if 1e-6 <= self.confidence < 1.0 else f"the confidence is {self.confidence}"


@dataclass(frozen=True, kw_only=True)
class SourceGroups:
    """The rows of training pairs, grouped by source with its features; G groups.

    Rows are numbers from 0, in the order of the pairs.
    """

    hashes: NDArray[np.uint64]  # (G,), ascending
    first: NDArray[np.int64]  # (G,), first row of each group
    has_one_target: NDArray[np.bool_]  # (G,)
    left_out: NDArray[np.int64]  # (K,), a row of each group whose other rows have one target
    others: NDArray[np.int64]  # (K,), another row of that group

    @classmethod
    def collect(cls, pairs: Iterable[Pair]) -> "SourceGroups":
        """Group `pairs`, at least one."""
        keys = ((hash_source(one.source, one.features), hash(one.target)) for one in pairs)
        rows = np.fromiter(keys, [("source", np.uint64), ("target", np.int64)])
        order = np.argsort(rows["source"], kind="stable")
        source, target = rows["source"][order], rows["target"][order]
        starts = np.flatnonzero(np.r_[True, source[1:] != source[:-1]])
        sizes = np.diff(np.r_[starts, len(source)])
        has_one_target = _are_equal(target, starts)
        left_out = starts + (source[starts] % sizes.astype(np.uint64)).astype(np.int64)
        others = np.where(left_out > starts, starts, np.minimum(starts + 1, len(source) - 1))
        target[left_out] = np.where(sizes > 1, target[others], target[left_out])
        is_answered = (sizes > 1) & _are_equal(target, starts)
        return cls(
            hashes=source[starts],
            first=order[starts],
            has_one_target=has_one_target,
            left_out=order[left_out[is_answered]],
            others=order[others[is_answered]],
        )

    def find(self, source: str, features: Sequence[str]) -> int | None:
        """Return the first row of a source that has one target; None: it has none, or several."""
        place = _find_place(self.hashes, source, features)
        return None if place is None or not self.has_one_target[place] else int(self.first[place])

    def remember(
        self, pairs: Iterable[Pair], files: Sequence[str], confidence: float, max_bytes: int
    ) -> TargetMemory | None:
        """Return the table of the sources that have one target; None: it has over `max_bytes`.

        `pairs` are those that were grouped.
        """
        rows = self.first[self.has_one_target]
        numbers, texts = {name: i for i, name in enumerate(files)}, dict[str, int]()
        columns, size = np.zeros((3, len(rows)), np.int64), 18 * len(rows)
        groups, is_wanted = iter(np.argsort(rows)), np.zeros(int(rows.max(initial=0)) + 1, bool)
        is_wanted[rows] = True
        for pair in (one for one, is_first in zip(pairs, is_wanted, strict=False) if is_first):
            if pair.target not in texts:
                texts[pair.target] = len(texts)
                size += len(pair.target.encode()) + 8
            if size > max_bytes or len(files) > np.iinfo(np.uint16).max:
                return None
            columns[:, next(groups)] = texts[pair.target], numbers.get(pair.file, 0), pair.line
        encoded = [text.encode() for text in texts]
        ends = np.cumsum([len(one) for one in encoded])
        text = np.frombuffer(b"".join(encoded), "u1")
        values = (self.hashes[self.has_one_target], *columns, ends, text)
        tensors = {
            name: np.ascontiguousarray(value, kind)
            for (name, kind), value in zip(_TYPES.items(), values, strict=True)
        }
        return TargetMemory(tensors=tensors, files=tuple(files), confidence=confidence)


def find_shared(memories: Sequence[TargetMemory | None]) -> TargetMemory | None:
    """Return the table of an ensemble: the one that all its models have; None: they differ."""
    tables = [one.tensors if one else {} for one in memories]
    is_same = all(
        np.array_equal(one.get(name, ()), tables[0].get(name, ()))
        for one in tables
        for name in _TYPES
    )
    return memories[0] if is_same else None


def hash_source(source: str, features: Sequence[str]) -> int:
    """Return 64 bits of a source with its features, in the Unicode form NFC."""
    text = normalize("NFC", "\0".join((source, *features)))
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _find_place(hashes: NDArray[np.uint64], source: str, features: Sequence[str]) -> int | None:
    wanted = np.uint64(hash_source(source, features))
    place = int(np.searchsorted(hashes, wanted))
    return place if place < len(hashes) and hashes[place] == wanted else None


def _are_equal(values: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether the values of each group, which begins at its start, are equal."""
    low, high = (one.reduceat(values, starts) for one in (np.minimum, np.maximum))
    return np.asarray(low == high)
