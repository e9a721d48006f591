"""The data of a run: pairs read from their files once, then a tokenizer and ids, in one folder.

    train.text.arrow …   the pairs as text, by the file they came from (train, valid, test)
    train.arrow …        their ids by split, memory-mapped
    tokenizer.json findings.json

Once `encode` has returned, a run no longer needs its files of pairs: they may change, or go.
"""

import gc
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice, pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter

from dragoman.data.cache import Cache, make_key
from dragoman.data.dataset import FILE_SHIFT, ROWS_PER_CHUNK, EncodedPairs, encode_splits
from dragoman.errors import DataError, ModelFolderError
from dragoman.model_folder.folder import WEIGHTS, ModelFolder
from dragoman.reading.pairs import (
    Pair,
    RowErrors,
    are_parallel,
    describe_layout,
    give_same_pairs,
    list_files,
    read_pairs,
)
from dragoman.reading.row_errors import RowError, name_file, name_row
from dragoman.reading.statistics import (
    PairStatistics,
    Split,
    collect_statistics,
    is_in_part,
    split_of,
)
from dragoman.settings import DataSettings, Settings
from dragoman.storage import sha256
from dragoman.tokenizers.tokenizer import PairTokenizer

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
TAUGHT = "outputs of the teacher"
"""The file, by which messages name them, of pairs that training.teacher gives."""

_FEWEST_CHARACTERS = 1_000_000  # in all pairs: fewer are prepared in under a second, and not cached
_TOKENIZER, _FINDINGS = "tokenizer.json", "findings.json"
_FILES = [
    *(f"{split}{suffix}" for split in SPLITS for suffix in (".text.arrow", ".arrow")),
    _TOKENIZER,
    _FINDINGS,
]
_TEXT_COLUMNS = pa.schema(
    [
        ("source", pa.string()),
        ("target", pa.string()),
        ("features", pa.list_(pa.string())),
        ("line", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class _Findings:
    """What was found while the pairs were read and encoded; kept with them."""

    statistics: PairStatistics
    num_rows: dict[Split, int]
    notes: list[str]
    invalid_rows: dict[str, int]  # by kind
    invalid_examples: list[RowError]
    settings: dict[str, Any]  # of data and tokenizer, resolved


class RunData:
    """The data of a run in `folder`: first `read`, then `encode`; or `reopen`.

    After `read`: `statistics`, by which open settings are chosen, `invalid_rows`, and `sha256` by
    file. After `encode`: `tokenizer`, `num_rows` by split, `notes` (messages for the user),
    `digests` (the SHA-256 of each file in `folder`, by name) and `cache_note` (what became of the
    prepared data in the cache; "" if there is nothing to report).
    """

    statistics: PairStatistics
    tokenizer: PairTokenizer

    def __init__(self, paths: Sequence[str | Path], settings: DataSettings, folder: Path) -> None:
        self.folder = folder
        self._files: dict[Split, Sequence[str | Path]] = {
            "train": paths,
            "valid": settings.valid,
            "test": settings.test,
        }
        self.sha256: dict[str, str] = {}
        self.digests: dict[str, str] = {}
        self.num_rows: dict[Split, int] = {}
        self.notes: list[str] = []
        self.cache_note = ""
        self._settings = settings  # with which the text is split
        self._ids: dict[Split, EncodedPairs] = {}
        self.invalid_rows = RowErrors()
        self._digests: dict[str, list[list[str]]] = {}
        self._cache: Cache | None = None
        self._cached: _Findings | None = None
        self._key = ""
        self._start: PairTokenizer | None = None

    @classmethod
    def read(
        cls,
        paths: Sequence[str | Path],
        settings: Settings,
        folder: Path,
        start: ModelFolder | None = None,
    ) -> "RunData":
        """Read all pairs into `folder`, or find them in the cache.

        Args:
            settings: As typed by the user; data.valid and data.test name more files.
            start: The model whose tokenizer is kept and extended; None: a new one is trained.

        Raises:
            DataError: A file cannot be read, or has invalid rows that are not to be skipped.
        """
        data = cls(paths, settings.data, folder)
        data._start = start.tokenizer if start else None
        data._files = {split: list_files(files) for split, files in data._files.items()}
        data._digests = data._digest_files()
        data.sha256 = {name: digest for files in data._digests.values() for name, digest in files}
        if start:
            weights = Path(settings.training.start_from) / WEIGHTS
            data.sha256[str(weights)] = sha256(weights)
        is_cached = data._digests and not settings.training.teacher
        data._cache = Cache.open(settings.data.cache) if is_cached else None
        if data._cache:
            before = data._start and data._start.to_dict()
            data._key = make_key({**data._digests, "start": before}, settings)
            digests = data._cache.take(data._key, folder)
            data._cached = data._load() if digests else None
            data.digests = digests
        data.statistics = data._cached.statistics if data._cached else data._read_files()
        return data

    @property
    def paths(self) -> list[str]:
        """The names of the training files."""
        return [*map(name_file, self._files["train"])]

    def encode(self, settings: Settings, teach: Callable[[], Iterable[Pair]] | None = None) -> None:
        """Train the tokenizer and write the ids of each split; `settings` are resolved.

        Args:
            teach: Called when `read_split` gives the final text; returns more training pairs.

        Raises:
            DataError: Rows are invalid, or nothing is left to train on or to validate on.
        """
        used = settings.model_dump(mode="json", include={"data", "tokenizer"})
        used["data"].pop("cache")
        has_new_pairs = not give_same_pairs(settings.data, self._settings)
        self._settings = settings.data
        if self._cached and self._cached.settings == used:
            self._adopt(self._cached)
            self.cache_note = f"prepared data: from the cache {self._cache and self._cache.folder}"
            return
        if self._cached or has_new_pairs:  # without their tags, other rows may be invalid
            self._read_files()
        taught = teach() if teach else ()
        with _without_garbage_collection():
            self.tokenizer = PairTokenizer.train(
                chain(self.read_split("train"), taught), settings.tokenizer, self._start
            )
            more: Iterator[tuple[Split, Pair]] = (("train", pair) for pair in taught)
            num_rows, long_rows, unknown = encode_splits(
                chain(self.read_splits(), more),
                self.tokenizer,
                {split: self.folder / f"{split}.arrow" for split in SPLITS},
                settings.data,
                _number([*self.paths, TAUGHT]),
            )
            self._check_counts(num_rows)
            given = [files for files in self._files.values() if files]
            notes = [note for files in given if (note := describe_layout(files, settings.data))]
            notes += self._find_leaks()
            if settings.tokenizer.pointers and self.tokenizer.pointers is None:
                notes.append(
                    "warning: tokenizer.pointers does nothing: the targets are no records with values "
                    "that stand in their sources; they are spelled"
                )
        for errors in (self.invalid_rows, long_rows):
            if errors.total:
                notes.append(f"rows left out: {errors.report()}")
        if unknown.total:
            notes.append(
                "warning: targets with symbols that the vocabulary lacks, so that no output can "
                "equal them; raise tokenizer.training_rows, or set tokenizer.target.kind bpe, where "
                f"they matter: {unknown.report()}"
            )
        findings = _Findings(
            statistics=self.statistics,
            num_rows=num_rows,
            notes=notes,
            invalid_rows=dict(self.invalid_rows.counts),
            invalid_examples=self.invalid_rows.examples,
            settings=used,
        )
        self.tokenizer.save(self.folder / _TOKENIZER)
        content = json.dumps(asdict(findings), default=sorted)
        (self.folder / _FINDINGS).write_text(content, encoding="utf-8")
        self.digests = {name: sha256(self.folder / name) for name in _FILES}
        self._adopt(findings)
        characters = self.statistics.num_pairs * (
            self.statistics.source.mean_characters + self.statistics.target.mean_characters
        )
        if self._cache and characters >= _FEWEST_CHARACTERS:
            self._keep_in(self._cache)

    @classmethod
    def reopen(
        cls,
        paths: Sequence[str | Path],
        settings: DataSettings,
        folder: Path,
        digests: Mapping[str, str],
    ) -> "RunData":
        """Return the data that an earlier run has left in `folder`; `settings` are resolved.

        Reads all of them, about 1 s for a gigabyte, to compare them with their `digests`.

        Raises:
            DataError: They are incomplete, or have changed.
        """
        data = cls(paths, settings, folder)
        data.digests = dict(digests)
        data._adopt(data._load())
        return data

    def move(self, folder: Path) -> None:
        """Move the data into `folder`, on the same disk, which is made for them.

        Raises:
            OSError: It cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            (self.folder / name).replace(folder / name)
        self.folder = folder
        self._open_ids()

    def read_split(self, split: Split) -> Iterator[Pair]:
        """Yield the pairs of one split as text, in the order of their file."""
        files = self._files[split]
        if split != "train" and files:
            return _read_text(self.folder / f"{split}.text.arrow", files)
        return (pair for name, pair in self.read_splits() if name == split)

    def read_splits(self) -> Iterator[tuple[Split, Pair]]:
        """Yield all pairs as text, each with its split: the training file first."""
        data = self._settings
        fractions = (
            0.0 if data.valid else data.valid_fraction,
            0.0 if data.test else data.test_fraction,
        )
        for split, files in self._files.items():
            for pair in _read_text(self.folder / f"{split}.text.arrow", files):
                if split != "train":
                    yield split, pair
                    continue
                found = split_of(pair.source, pair.features, *fractions)
                if found != "train" or is_in_part(pair.source, data.train_fraction):
                    yield found, pair

    @property
    def is_parallel(self) -> bool:
        """Whether all pairs come from two files of parallel text."""
        return are_parallel(self._files.values(), self._settings)

    def ids(self, split: Split) -> EncodedPairs:
        """Return the ids of one split."""
        return self._ids[split]

    def name_rows(self, rows: NDArray[np.int64]) -> list[str]:
        """Return file and line of each of these training pairs."""
        found = (divmod(line, 1 << FILE_SHIFT) for line in self._ids["train"].find_lines(rows))
        names = [*self.paths, TAUGHT]
        return [name_row(names[file], line) for file, line in found]

    def count_source_tokens(self) -> tuple[int, ...]:
        """Return how often each source id occurs in the training pairs, from id 0."""
        counts = self._ids["train"].count_source_ids(self.tokenizer.source_vocab_size)
        return tuple(counts.tolist())

    def _read_files(self) -> PairStatistics:
        """Write the text of all pairs; return the statistics of those in the training file."""
        self.invalid_rows = RowErrors()
        with _without_garbage_collection():
            for split, files in self._files.items():
                pairs = read_pairs(files, self._settings, self.invalid_rows) if files else ()
                written = _write_text(pairs, self.folder / f"{split}.text.arrow", files)
                if split == "train":
                    statistics = collect_statistics(written)
                else:
                    for _ in written:
                        pass
        num_pairs = max(1, round(statistics.num_pairs * self._settings.train_fraction))
        return replace(statistics, num_pairs=num_pairs)

    def _find_leaks(self) -> Iterator[str]:
        """Count the sources, features included, of given files that are training sources too."""
        given = [split for split in SPLITS[1:] if self._files[split]]
        held_out = {
            split: {(pair.features, pair.source) for pair in self.read_split(split)}
            for split in given
        }
        everything = set().union(*held_out.values())
        train = ((pair.features, pair.source) for pair in self.read_split("train")) if given else ()
        leaked = everything.intersection(train)
        for split, sources in held_out.items():
            if found := len(sources & leaked):
                yield (
                    f"leak: {found:,} of the {len(sources):,} sources of data.{split} are in the "
                    "training pairs too; scores on them measure memory"
                )

    def _check_counts(self, counts: Mapping[Split, int]) -> None:
        purposes: dict[Split, str] = {"train": "training", "valid": "validation"}
        for split, purpose in purposes.items():
            if counts[split] == 0:
                raise DataError(
                    f"{', '.join(self.paths)}: {sum(counts.values())} pairs with "
                    f"{self.statistics.num_sources} different sources leave none for {purpose}; all "
                    "pairs of a source go to the same split: give more pairs, or a separate file "
                    "with data.valid, or another data.valid_fraction "
                    f"(now {self._settings.valid_fraction})"
                )

    def _load(self) -> _Findings:
        if missing := [name for name in _FILES if not (self.folder / name).is_file()]:
            raise DataError(
                f"{self.folder}: the data of the run are incomplete: {', '.join(missing)} missing"
            )
        try:
            changed = [
                name
                for name, digest in self.digests.items()
                if sha256(self.folder / name) != digest
            ]
            if changed:
                raise ValueError(f"{', '.join(changed)}: changed since the run started")
            content = json.loads((self.folder / _FINDINGS).read_bytes())
            self.tokenizer = PairTokenizer.load(self.folder / _TOKENIZER)
            self._open_ids()
            return TypeAdapter(_Findings).validate_python(content)
        except (ValueError, OSError, ModelFolderError) as error:
            raise DataError(
                f"{self.folder}: the data of the run cannot be used: {error}; put them back, or "
                "start from scratch with --overwrite"
            ) from error

    def _adopt(self, findings: _Findings) -> None:
        self.statistics = findings.statistics
        self.num_rows, self.notes = findings.num_rows, findings.notes
        self.invalid_rows = RowErrors.restore(findings.invalid_rows, findings.invalid_examples)
        self._open_ids()

    def _open_ids(self) -> None:
        self._ids = {split: EncodedPairs(self.folder / f"{split}.arrow") for split in SPLITS}

    def _keep_in(self, cache: Cache) -> None:
        self.cache_note = f"prepared data: kept in the cache {cache.folder}"
        if self._digest_files() != self._digests:
            self.cache_note = "prepared data: not kept, the files have changed while they were read"
            return
        try:
            cache.keep(self._key, self.folder, self.digests)
        except OSError as error:
            reason = f"{cache.folder} cannot be written ({error.strerror})"
            self.cache_note = f"prepared data: not kept, {reason}"

    def _digest_files(self) -> dict[str, list[list[str]]]:
        """Return name and SHA-256 of each file by role; nothing if one is not a regular file.

        The names count: messages name rows by file, and the suffix tells the format.
        """
        files = self._files
        try:
            if not all(Path(name).is_file() for names in files.values() for name in names):
                return {}
            return {
                split: [[name_file(name), sha256(Path(name))] for name in names]
                for split, names in files.items()
            }
        except OSError:
            return {}  # reading them reports what is wrong


def _write_text(pairs: Iterable[Pair], path: Path, files: Sequence[str | Path]) -> Iterator[Pair]:
    """Yield `pairs`; write them to `path` on the way, their file as its number in `files`."""
    iterator, numbers = iter(pairs), _number(files)
    with pa.ipc.new_file(str(path), _TEXT_COLUMNS) as writer:
        while chunk := list(islice(iterator, ROWS_PER_CHUNK)):
            *columns, lines, names = zip(*chunk, strict=True)
            if len(files) > 1:
                places = zip(lines, names, strict=True)
                lines = tuple(line + (numbers.get(name, 0) << FILE_SHIFT) for line, name in places)
            writer.write_batch(pa.record_batch([*columns, lines], schema=_TEXT_COLUMNS))
            yield from chunk


def _number(files: Sequence[str | Path]) -> dict[str, int]:
    return {name_file(file): number for number, file in enumerate(files)}


def _read_text(path: Path, files: Sequence[str | Path]) -> Iterator[Pair]:
    """Yield the pairs that `_write_text` wrote, read from `files`."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    names = [*map(name_file, files)]
    for i in range(reader.num_record_batches):
        source, target, features, line = reader.get_batch(i).columns
        sides = [side.to_numpy(zero_copy_only=False).tolist() for side in (source, target)]
        symbols = features.values.to_numpy(zero_copy_only=False).tolist()
        rows = [tuple(symbols[a:b]) for a, b in pairwise(features.offsets.tolist())]
        numbers, lines = np.divmod(line.to_numpy(), 1 << FILE_SHIFT)
        file = (names[min(number, len(names) - 1)] for number in numbers.tolist())
        yield from map(Pair, *sides, rows if symbols else repeat(()), lines.tolist(), file)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Spare the search for cycles while millions of rows come and go: there are none in them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
