"""The data of a run: pairs read from their files once, then a tokenizer and ids, in one folder.

    train.text.arrow …   the pairs as text, by the file they came from (train, valid, test)
    train.arrow …        their ids by split, memory-mapped
    tokenizer.json findings.json

Once `encode` has returned, a run no longer needs its files of pairs: they may change, or go.
"""

import gc
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain, compress, islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import TypeAdapter

from dragoman.data.cache import NOT_IN_KEYS, Cache, make_key, name_entry
from dragoman.data.dataset import EncodedPairs
from dragoman.data.preparation import (
    FILE_SHIFT,
    IDS_SCHEMA,
    ROWS_PER_CHUNK,
    SPLITS,
    TEXT_SCHEMA,
    Found,
    compute,
    find_fractions,
    join_parts,
    read_batches,
    write_ids,
    write_rows,
    write_text,
)
from dragoman.errors import DataError, ModelFolderError, SettingsError
from dragoman.model_folder.folder import WEIGHTS, ModelFolder, list_models
from dragoman.reading.pairs import (
    Pair,
    Part,
    RowErrors,
    are_parallel,
    check_rows,
    cut_table,
    describe_layout,
    give_same_pairs,
    list_files,
    name_columns,
    settle_columns,
)
from dragoman.reading.row_errors import RowError, name_file, name_row
from dragoman.reading.statistics import PairStatistics, Split, collect_statistics
from dragoman.settings import DataSettings, Settings
from dragoman.storage import sha256
from dragoman.tokenizers.tokenizer import PairTokenizer

TAUGHT = "outputs of the teacher"
"""The file, by which messages name them, of pairs that training.teacher gives."""

_PART_LINES = ROWS_PER_CHUNK  # of a file, read by one process
_FEWEST_PAIRS = 100_000  # of a file that is cached by itself, too: fewer take a second
_FEWEST_CHARACTERS = 1_000_000  # in all pairs: fewer are prepared in under a second, and not cached
_TOKENIZER, _FINDINGS, _PARTS = "tokenizer.json", "findings.json", "parts"
_FILES = [
    *(f"{split}{suffix}" for split in SPLITS for suffix in (".text.arrow", ".arrow")),
    _TOKENIZER,
    _FINDINGS,
]


@dataclass(frozen=True, kw_only=True)
class _Findings:
    """What was found while the pairs were read and encoded; kept with them."""

    statistics: PairStatistics
    num_rows: dict[Split, int]
    notes: list[str]
    invalid_rows: dict[str, int]  # by kind
    invalid_examples: list[RowError]
    settings: dict[str, Any]  # of data and tokenizer, resolved


@dataclass(kw_only=True)
class _Table:
    """One file of pairs, or two of parallel text, while its text and its ids are made."""

    role: Split
    number: int  # among those of its role
    files: tuple[Path, ...]
    settings: DataSettings
    folder: Path
    keys: dict[str, str] = field(default_factory=dict)  # in the cache, of "text" and "ids"
    found: dict[str, list[Found]] = field(default_factory=dict)  # likewise
    first_batch: int = 0  # in the text of its role
    new: list[str] = field(default_factory=list)  # which are not from the cache

    @property
    def num_pairs(self) -> int:
        """Those of the text."""
        return sum(found.num_rows for found in self.found["text"])

    @property
    def num_batches(self) -> int:
        """Those of the text."""
        return sum(-(-found.num_rows // ROWS_PER_CHUNK) for found in self.found["text"])

    def list_files(self, kind: str, suffix: str) -> list[tuple[Path, int]]:
        """Return the files that were made, with this suffix, each with the number of the table."""
        names = [found.file for found in self.found[kind] if found.num_rows]
        folder = self.folder / kind
        return [(folder / name, self.number) for name in names if name.endswith(suffix)]


class RunData:
    """The data of a run in `folder`: first `read`, then `encode`; or `reopen`.

    After `read`: `statistics`, by which open settings are chosen, `invalid_rows`, and `sha256` by
    file. After `encode`: `tokenizer`, `num_rows` by split, `notes` (messages for the user),
    `digests` (the SHA-256 of each file in `folder`, by name) and `cache_note` (what became of the
    prepared data in the cache; "" if there is nothing to report).
    """

    statistics: PairStatistics
    tokenizer: PairTokenizer
    cache_note = ""
    _cache: Cache | None = None
    _cached: _Findings | None = None  # of the entry in the cache
    _key = ""  # of this entry
    _start: PairTokenizer | None = None
    _labels: tuple[str, ...] | None = None  # of the features of the model to start from
    _columns: tuple[str, ...] = ()  # names of source and target

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
        self._settings = settings  # with which the text is split
        self._ids: dict[Split, EncodedPairs] = {}
        self.invalid_rows = RowErrors()
        self._digests: dict[str, list[list[str]]] = {}
        self._tables: list[_Table] = []

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
        labels = start.settings.data.features if start else ()
        if labels and len(labels) == len(settings.data.features):
            data._labels = labels
        data._files = {split: list_files(files) for split, files in data._files.items()}
        data._digests = data._digest_files()
        data.sha256 = {name: digest for files in data._digests.values() for name, digest in files}
        known = [Path(one) for one in (settings.training.start_from, settings.token_teacher) if one]
        for model in chain.from_iterable(map(list_models, known)):
            data.sha256[str(model / WEIGHTS)] = sha256(model / WEIGHTS)
        is_cached = data._digests and not settings.training.teacher
        data._cache = Cache.open(settings.data.cache) if is_cached else None
        if data._cache:
            before = data._start and data._start.to_dict()
            data._key = make_key(
                {**data._digests, "start": before, "labels": data._labels}, settings
            )
            digests = data._cache.take(data._key, folder)
            data._cached = data._load() if digests else None
            data.digests = digests
        data.statistics = data._cached.statistics if data._cached else data._read_files()
        data._columns = name_columns(data._files["train"], settings.data)
        return data

    def label_columns(self, settings: Settings) -> Settings:
        """Return `settings` with the names of the columns, for later files.

        data.features are those of the features in the tokenizer.
        """
        named = {"features": self._labels, "columns": self._columns}
        data = settings.data.model_copy(update={name: one for name, one in named.items() if one})
        return settings.model_copy(update={"data": data})

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
        for name in NOT_IN_KEYS:
            used["data"].pop(name)
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
            num_pairs, tokens = self.statistics.num_pairs, settings.tokenizer
            if teach or num_pairs > tokens.training_rows:
                num_pairs = sum(1 for _ in chain(self.read_split("train"), taught))
            pairs = chain(self.read_split("train"), taught)
            self.tokenizer = PairTokenizer.train(pairs, tokens, self._start, num_pairs)
            num_rows, long_rows, unknown = self._write_ids(settings.data, taught)
            self._check_counts(num_rows)
            given = [files for files in self._files.values() if files]
            layouts = (
                describe_layout(one, settings.data, self._labels, given[:i])
                for i, one in enumerate(given)
            )
            notes = [*filter(None, layouts)]
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
                "warning: symbols that the vocabulary lacks: no output can equal such a target, and "
                "the model sees <unk> in such a source; add training pairs with them, raise "
                "tokenizer.training_rows, or set tokenizer.source.kind or tokenizer.target.kind bpe, "
                f"where they matter: {unknown.report()}"
            )
        findings = _Findings(
            statistics=self.statistics,
            num_rows=num_rows,
            notes=notes,
            invalid_rows=dict(self.invalid_rows.counts),
            invalid_examples=self.invalid_rows.examples,
            settings=used,
        )
        content = json.dumps(asdict(findings), default=sorted)
        (self.folder / _FINDINGS).write_text(content, encoding="utf-8")
        self.digests = {name: sha256(self.folder / name) for name in _FILES}
        self._adopt(findings)
        characters = self.statistics.num_pairs * (
            self.statistics.source.mean_characters + self.statistics.target.mean_characters
        )
        if self._cache and characters >= _FEWEST_CHARACTERS:
            self._keep_in(self._cache)
        self._forget_parts()

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
        """Yield the pairs of one split as text, in the order of their file.

        After `encode`, they are those that have ids: data.long_rows skip leaves rows out.
        """
        role = split if self._files[split] else "train"
        ids = self._ids.get(split) if self._settings.long_rows == "skip" else None
        names = [*map(name_file, self._files[role])]
        for batch in read_batches(self._text(role)):
            is_in = batch.find_splits(role, self._settings) == SPLITS.index(split)
            if ids is not None:
                is_in &= ids.has_lines((batch.files << FILE_SHIFT) + batch.lines)
            yield from compress(batch.pairs(names), is_in.tolist())

    def read_splits(self) -> Iterator[tuple[Split, Pair]]:
        """Yield all pairs as text, each with its split: the training files first."""
        return chain.from_iterable(map(self._read_role, SPLITS))

    def _read_role(self, role: Split, *span: int) -> Iterator[tuple[Split, Pair]]:
        names = [*map(name_file, self._files[role])]
        for batch in read_batches(self._text(role), *span):
            splits = batch.find_splits(role, self._settings).tolist()
            for place, pair in zip(splits, batch.pairs(names), strict=True):
                if place >= 0:
                    yield SPLITS[place], pair

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

    def weigh_rows(self, weights: Sequence[float]) -> list[tuple[int, float]]:
        """Return the numbers of consecutive training rows, each with the weight of their table.

        Outputs of a teacher have 1. Without weights there is nothing to return.

        Raises: SettingsError, when a weight leaves fewer than two rows of a table in an epoch.
        """
        counts = Counter[int]()
        for batch in self._ids["train"].chunks if weights else ():  # rank 0 may have moved the file
            counts[batch.column("line")[0].as_py() >> FILE_SHIFT] += batch.num_rows
        rows = list[tuple[int, float]]()
        for table, num_rows in counts.items():
            weight = weights[table] if table < len(weights) else 1.0
            if weight < 1.0 and num_rows * weight < 2.0:
                raise SettingsError(
                    f"--data.weights: {weight:g} of the {num_rows:,} training pairs of "
                    f"{self.paths[table]} are fewer than two in an epoch; give at least "
                    f"{min(1.0, 2 / num_rows):.2g}, or leave the file out"
                )
            rows.append((num_rows, weight))
        return rows

    def count_source_tokens(self) -> tuple[int, ...]:
        """Return how often each source id occurs in the training pairs, from id 0."""
        counts = self._ids["train"].count_source_ids(self.tokenizer.source_vocab_size)
        return tuple(counts.tolist())

    def _read_files(self) -> PairStatistics:
        """Write the text of all pairs; return the statistics of those in the training files."""
        self._forget_parts()
        self._ids = {}
        given = {role: paths for role, paths in self._files.items() if paths}
        settled, folder = settle_columns([*given.values()], self._settings), self.folder / _PARTS
        self._tables = [
            _Table(role=role, number=i, files=files, settings=own, folder=folder / f"{role}-{i}")
            for role, tables in zip(given, settled, strict=True)
            for i, (files, own) in enumerate(tables)
        ]
        self.invalid_rows = RowErrors()
        excluded = {*SPLITS, "valid_fraction", "test_fraction", "train_fraction", "max_tokens"}
        settings = self._settings.model_dump(mode="json", exclude={*excluded, *NOT_IN_KEYS})

        def list_tasks(table: _Table, folder: Path) -> list[tuple[Any, ...]]:
            parts = cut_table(table.files, table.settings, _PART_LINES)
            options = (table.settings, self._labels)
            return [(part, folder / f"{i}.arrow", *options) for i, part in enumerate(parts)]

        with _without_garbage_collection():
            self._prepare("text", write_text, [settings, self._labels], list_tasks)
            num_batches = Counter[Split]()
            for table in self._tables:
                table.first_batch = num_batches[table.role]
                num_batches[table.role] += table.num_batches
                errors = RowErrors().merge(found.errors for found in table.found["text"])
                check_rows(table.files, table.num_pairs, errors, self._settings)
                self.invalid_rows.merge([errors])
            for role in SPLITS:
                tables = [table for table in self._tables if table.role == role]
                parts = chain.from_iterable(table.list_files("text", "") for table in tables)
                join_parts(parts, self._text(role), TEXT_SCHEMA)
            names = [*map(name_file, self._files["train"])]
            batches = read_batches(self._text("train"))
            return collect_statistics(chain.from_iterable(one.pairs(names) for one in batches))

    def _write_ids(
        self, settings: DataSettings, taught: Iterable[Pair]
    ) -> tuple[dict[Split, int], RowErrors, RowErrors]:
        """Write the ids of each split; return the numbers of rows, and the errors.

        `taught`: more training pairs.
        The last value counts texts with tokens outside of the vocabulary; they are written.

        Raises:
            DataError: Rows are over `data.max_tokens`, and `data.long_rows` is error.
        """
        path = self.folder / _TOKENIZER
        self.tokenizer.save(path)

        def list_tasks(table: _Table, folder: Path) -> list[tuple[Any, ...]]:
            names = [*map(name_file, self._files[table.role])]
            fixed = (folder, table.role, names, path, settings)
            text, batches = self._text(table.role), range(table.num_batches)
            return [(text, table.first_batch + i, i, *fixed) for i in batches]

        held_out = find_fractions(settings)
        made_from = [sha256(path), *held_out, settings.train_fraction, settings.max_tokens]
        self._prepare("ids", write_ids, made_from, list_tasks)
        found = [one for table in self._tables for one in table.found["ids"]]
        more, rest = list[tuple[Path, int]](), iter(taught)
        while chunk := list(islice(rest, ROWS_PER_CHUNK)):
            file = self.folder / _PARTS / f"taught-{len(more)}.train.arrow"
            found.append(write_rows(chunk, file, "train", self.tokenizer, settings))
            more += [(file, len(self.paths))] if found[-1].num_rows else []
        long_rows = RowErrors().merge(one.errors for one in found)
        unknown = RowErrors(shown=3).merge(one.unknown for one in found)
        if long_rows.total and settings.long_rows == "error":
            raise DataError(
                f"{long_rows.report()}\nraise data.max_tokens, or set data.long_rows skip to train "
                "without these rows"
            )
        counts = dict[Split, int]()
        for split in SPLITS:
            suffix = f".{split}.arrow"
            counts[split] = sum(one.num_rows for one in found if one.file.endswith(suffix))
            parts = chain.from_iterable(table.list_files("ids", suffix) for table in self._tables)
            parts = chain(parts, more if split == "train" else ())
            join_parts(parts, self.folder / suffix[1:], IDS_SCHEMA)
        return counts, long_rows, unknown

    def _prepare(
        self,
        kind: str,
        function: Callable[..., list[Found]],
        made_from: object,
        list_tasks: Callable[[_Table, Path], list[tuple[Any, ...]]],
    ) -> None:
        """Take what `function` gives for the tasks of each table, or the cache has.

        `made_from`: what it depends on, besides the table.
        """
        tasks = list[list[tuple[Any, ...]]]()
        for table in self._tables:
            folder = table.folder / kind
            folder.mkdir(parents=True)
            if self._cache:
                files = [[name_file(file), self.sha256[name_file(file)]] for file in table.files]
                columns = [table.settings.source, table.settings.target]
                content = {"files": files, "by": made_from, "text": table.keys.get("text")}
                content |= {"columns": columns, "role": table.role}
                table.keys[kind] = name_entry(kind, content)
                if self._cache.take(table.keys[kind], folder):
                    stored = json.loads((folder / _FINDINGS).read_bytes())
                    table.found[kind] = [Found.load(one) for one in stored]
            tasks.append([] if kind in table.found else list_tasks(table, folder))
        results = iter(compute(function, [*chain(*tasks)], self._settings.processes))
        for table, own in zip(self._tables, tasks, strict=True):
            found = [*islice(results, len(own))]
            has_rows = (
                not isinstance(part, DataError)
                and any(one.num_rows + one.errors.total for one in part)
                for part in found
            )
            if kind == "text" and len(own) > 1 and not all(has_rows):
                # As one part, the file is read as it should be, or the message has the right line.
                found = compute(function, [(Part(table.files), *own[0][1:])], 1)
            for one in found:
                if isinstance(one, DataError):
                    raise one
                table.found[kind] = [*table.found.get(kind, []), *one]
            table.new += [kind] if own else []

    def _forget_parts(self) -> None:
        self._tables = []
        shutil.rmtree(self.folder / _PARTS, ignore_errors=True)

    def _text(self, role: Split) -> Path:
        return self.folder / f"{role}.text.arrow"

    def _find_leaks(self) -> Iterator[str]:
        """Count the sources, features included, of given files that are training sources too, in NFC."""
        given = [split for split in SPLITS[1:] if self._files[split]]
        held_out = {
            split: {
                (pair.features, normalize("NFC", pair.source)) for pair in self.read_split(split)
            }
            for split in given
        }
        everything = set().union(*held_out.values())
        sources = pa.array([source for _, source in everything], pa.string())
        reader = pa.ipc.open_file(pa.memory_map(str(self._text("train"))))
        leaked = set()
        for i in range(reader.num_record_batches if given else 0):
            composed = pc.utf8_normalize(reader.get_batch(i).column("source"), "NFC")
            if pc.any(pc.is_in(composed, sources)).as_py():
                train = (pair for split, pair in self._read_role("train", i, 1) if split == "train")
                leaked |= everything.intersection(
                    (pair.features, normalize("NFC", pair.source)) for pair in train
                )
        for split, found_sources in held_out.items():
            if found := len(found_sources & leaked):
                yield (
                    f"leak: {found:,} of the {len(found_sources):,} sources of data.{split} are in the "
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
        self.invalid_rows = RowErrors(
            counts=Counter(findings.invalid_rows), examples=findings.invalid_examples
        )
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
            for table in self._tables:
                for kind in table.new if table.num_pairs >= _FEWEST_PAIRS else ():
                    found, folder = [one.dump() for one in table.found[kind]], table.folder / kind
                    (folder / _FINDINGS).write_text(json.dumps(found))
                    digests = {file.name: sha256(file) for file in folder.iterdir()}
                    cache.keep(table.keys[kind], folder, digests)
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
