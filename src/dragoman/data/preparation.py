"""Text and ids of the pairs, part by part, in several processes.

The parts of a file are the same with any number of processes, and so is what is written.
"""

import functools
import gc
import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import compress, islice, pairwise, repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dragoman.errors import DataError, SettingsError
from dragoman.reading.pairs import Pair, Part, RowErrors, read_part
from dragoman.reading.row_errors import RowError
from dragoman.reading.statistics import Split, is_in_part, place_of
from dragoman.settings import DataSettings
from dragoman.tokenizers.tokenizer import UNKNOWN_ID, PairTokenizer

ROWS_PER_CHUNK = 65_536
FILE_SHIFT = 40  # a line in the k-th of several files, from 0, is stored as line + (k << 40)
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
_IDS = pa.list_(pa.int32())
IDS_SCHEMA = pa.schema([("source", _IDS), ("target", _IDS), ("line", pa.int64())])
TEXT_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("target", pa.string()),
        ("features", pa.list_(pa.string())),
        ("line", pa.int64()),
        ("place", pa.float64()),  # of the source, by which it has its split
    ]
)
_PACKED = pa.ipc.IpcWriteOptions(compression="zstd")  # of files that are joined soon, or cached
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found while a file of text or ids was made."""

    file: str  # its name; without rows there is none
    num_rows: int
    errors: RowErrors  # of rows that are left out
    unknown: RowErrors = field(default_factory=RowErrors)  # texts outside of the vocabulary

    def dump(self) -> list[Any]:
        """Return it as plain JSON values, for `load`."""
        both = (self.errors, self.unknown)
        return [self.file, self.num_rows, *((dict(one.counts), one.examples) for one in both)]

    @classmethod
    def load(cls, content: Sequence[Any]) -> "Found":
        """Return what `dump` gave."""
        file, num_rows, *both = content
        errors, unknown = (
            RowErrors(counts=Counter(counts), examples=[RowError(*one) for one in examples])
            for counts, examples in both
        )
        return cls(file=file, num_rows=num_rows, errors=errors, unknown=unknown)


class TextBatch(NamedTuple):
    """Some pairs as text, by column."""

    sources: list[str]
    targets: list[str]
    features: Sequence[tuple[str, ...]]
    lines: NDArray[np.int64]
    files: NDArray[np.int64]  # the number of the file of each
    places: NDArray[np.float64]

    def find_splits(self, role: Split, settings: DataSettings) -> NDArray[np.int64]:
        """Return the split of each row of a file with this role, as its place in SPLITS.

        That of a training file is by `split_of`; -1: it is not in data.train_fraction.
        """
        if role != "train":
            return np.full(len(self.places), SPLITS.index(role))
        valid, test = find_fractions(settings)
        places = np.where(self.places < valid, 1, np.where(self.places >= 1.0 - test, 2, 0))
        if settings.train_fraction < 1.0:
            is_in = [is_in_part(source, settings.train_fraction) for source in self.sources]
            places[(places == 0) & ~np.array(is_in, dtype=bool)] = -1
        return places

    def pairs(self, names: Sequence[str]) -> Iterator[Pair]:
        """Yield the pairs; `names` are those of the files."""
        files = (names[min(number, len(names) - 1)] for number in self.files.tolist())
        return map(Pair, self.sources, self.targets, self.features, self.lines.tolist(), files)


def write_text(
    part: Part, path: Path, settings: DataSettings, labels: Sequence[str] | None
) -> list[Found]:
    """Write the pairs of a part to `path`; `labels` as in `read_pairs`.

    Raises: DataError, when it cannot be read.
    """
    errors, num_rows = RowErrors(), 0
    rows = read_part(part, settings, [errors], labels)
    with pa.ipc.new_file(str(path), TEXT_SCHEMA, options=_PACKED) as writer:
        while chunk := list(islice(rows, ROWS_PER_CHUNK)):
            *columns, _ = zip(*chunk, strict=True)
            places = [*map(place_of, columns[0])]
            writer.write_batch(pa.record_batch([*columns, places], schema=TEXT_SCHEMA))
            num_rows += len(chunk)
    return [Found(file=path.name, num_rows=num_rows, errors=errors)]


def read_batches(text: Path, first: int = 0, count: int | None = None) -> Iterator[TextBatch]:
    """Yield the batches of pairs in a file of text, from the `first` on."""
    reader = pa.ipc.open_file(pa.memory_map(str(text)))
    end = reader.num_record_batches if count is None else first + count
    for i in range(first, end):
        source, target, features, line, place = reader.get_batch(i).columns
        sides = [side.to_numpy(zero_copy_only=False).tolist() for side in (source, target)]
        symbols = features.values.to_numpy(zero_copy_only=False).tolist()
        rows = [tuple(symbols[a:b]) for a, b in pairwise(features.offsets.tolist())]
        files, lines = np.divmod(line.to_numpy(), 1 << FILE_SHIFT)
        shown = rows if symbols else repeat((), len(lines))
        yield TextBatch(sides[0], sides[1], [*shown], lines, files, place.to_numpy())


def write_ids(
    text: Path,
    batch: int,
    number: int,
    folder: Path,
    role: Split,
    names: Sequence[str],
    tokenizer: Path,
    settings: DataSettings,
) -> list[Found]:
    """Write the ids of a batch of `text` to a file in `folder` for each split: NUMBER.train.arrow.

    Rows over `data.max_tokens` are left out. `role`, `names`: of the files that the pairs are from.
    """
    encoder = _load(tokenizer, tokenizer.stat().st_mtime_ns)
    [columns] = read_batches(text, batch, 1)
    splits = columns.find_splits(role, settings)
    pairs = [*columns.pairs(names)]
    return [
        write_rows(
            [*compress(pairs, (splits == place).tolist())],
            folder / f"{number}.{split}.arrow", split, encoder, settings,
        )
        for place, split in enumerate(SPLITS)
    ]  # fmt: skip


def write_rows(
    rows: Sequence[Pair],
    path: Path,
    split: Split,
    encoder: PairTokenizer,
    settings: DataSettings,
) -> Found:
    """Write the ids of `rows` to `path`, but of those over `data.max_tokens`."""
    texts = [pair.source for pair in rows]
    sources = encoder.encode_sources(texts, [pair.features for pair in rows])
    targets = encoder.encode_targets([pair.target for pair in rows], texts)
    kept, long_rows, unknown = [], RowErrors(), RowErrors(shown=3)
    for pair, source, target in zip(rows, sources, targets, strict=True):
        length = max(len(source), len(target))
        if length <= settings.max_tokens:
            kept.append((source, target, pair.line))
            if UNKNOWN_ID in target:
                named = encoder.target.name_unknown(pair.target)
                unknown.add(pair.file, pair.line, f"{split} target", named)
            if UNKNOWN_ID in source:
                named = encoder.name_unknown(pair.source, pair.features)
                unknown.add(pair.file, pair.line, f"{split} source", named)
        else:
            detail = f"{length:,} tokens, over data.max_tokens {settings.max_tokens:,}"
            long_rows.add(pair.file, pair.line, "over data.max_tokens", detail)
    if kept:
        write_id_rows(path, [[*zip(*kept, strict=True)]], packed=True)
    return Found(file=path.name, num_rows=len(kept), errors=long_rows, unknown=unknown)


def write_id_rows(
    path: Path, batches: Sequence[Sequence[Sequence[Any]]], *, packed: bool = False
) -> None:
    """Write ids to `path`; a batch is the sources, the targets, and their lines."""
    options = _PACKED if packed else None
    with pa.ipc.new_file(str(path), IDS_SCHEMA, options=options) as writer:
        for batch in batches:
            writer.write_batch(pa.record_batch([*map(list, batch)], schema=IDS_SCHEMA))


def join_parts(parts: Iterable[tuple[Path, int]], path: Path, schema: pa.Schema) -> None:
    """Write the batches of files of `schema` to one; the number beside each is that of its file."""
    place = schema.get_field_index("line")
    with pa.ipc.new_file(str(path), schema) as writer:
        for part, number in parts:
            reader = pa.ipc.open_file(pa.memory_map(str(part)))
            for i in range(reader.num_record_batches):
                columns = reader.get_batch(i).columns
                if number:
                    columns[place] = pa.array(columns[place].to_numpy() + (number << FILE_SHIFT))
                writer.write_batch(pa.record_batch(columns, schema=schema))


def find_fractions(settings: DataSettings) -> tuple[float, float]:
    """Return the fractions of a training file that are for validation and test."""
    return (
        0.0 if settings.valid else settings.valid_fraction,
        0.0 if settings.test else settings.test_fraction,
    )


def compute(
    function: Callable[..., _Result], tasks: Sequence[tuple[Any, ...]], num_processes: int
) -> list[_Result | DataError]:
    """Return what `function` gives for each of `tasks`, or its error.

    `num_processes`: at most, with this one; 0: one for each core. Few tasks get fewer.
    """
    if not num_processes:
        has_affinity = hasattr(os, "sched_getaffinity")
        num_processes = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    num_others = min(num_processes, len(tasks) // 2) - 1
    others = [_start() for _ in range(num_others)]
    waiting, results = enumerate(tasks), dict[int, _Result | DataError]()

    def work(other: "subprocess.Popen[bytes] | None" = None) -> None:
        for place, task in waiting:  # those that no other thread has taken
            try:
                results[place] = _call(other, function, task) if other else function(*task)
            except DataError as error:
                results[place] = error

    with ThreadPoolExecutor(max(1, len(others))) as pool:
        done = [pool.submit(work, other) for other in others]
        try:
            work()
            for one in done:
                one.result()
        finally:
            for other in others:
                other.kill()
                other.communicate()
    return [results[place] for place in range(len(tasks))]


@contextmanager
def computing_apart(function: Callable[..., object], *task: Any) -> Iterator[None]:  # noqa: ANN401
    """Run `function` in another process meanwhile, and wait for its end, but not for a result."""
    other = _start()
    try:
        _send(other, function, task)
        yield
        other.communicate()
    finally:
        other.kill()
        other.wait()


def serve() -> None:
    """Run the tasks of another process, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that process ends this one
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores have a process each
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    gc.disable()
    with suppress(EOFError):
        while True:
            function, task = pickle.load(sys.stdin.buffer)
            try:
                answer = function(*task)
            except Exception as error:
                answer = error
            pickle.dump(answer, answers)
            answers.flush()


def _start() -> "subprocess.Popen[bytes]":
    # Not by multiprocessing: it would run the caller's script again in each process.
    return subprocess.Popen(
        [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def _send(
    process: "subprocess.Popen[bytes]", function: Callable[..., object], task: tuple[Any, ...]
) -> None:
    assert process.stdin is not None
    pickle.dump((function, task), process.stdin)
    process.stdin.flush()


def _call(
    process: "subprocess.Popen[bytes]", function: Callable[..., _Result], task: tuple[Any, ...]
) -> _Result:
    assert process.stdout is not None
    try:
        _send(process, function, task)
        answer: _Result | Exception = pickle.load(process.stdout)
    except (EOFError, OSError, pickle.UnpicklingError) as error:
        raise SettingsError(
            "data.processes: a process that prepared the data has ended, perhaps for want of memory: "
            "set data.processes 1"
        ) from error
    if isinstance(answer, Exception):
        raise answer
    return answer


@functools.lru_cache(maxsize=1)
def _load(path: Path, _: int) -> PairTokenizer:
    return PairTokenizer.load(path)
