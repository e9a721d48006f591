"""The data of a run: from files of pairs to loaders of batches."""

import gc
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning
import numpy as np
from numpy.typing import NDArray

from dragoman.configuration import list_set_values, merge_settings
from dragoman.data.dataset import EncodedPairs
from dragoman.data.encoding import Split, encode_splits
from dragoman.data.folder import (
    SPLITS,
    Findings,
    keep_held_out,
    list_files,
    name_ids,
    read_findings,
    read_held_out,
    write_findings,
)
from dragoman.data.prepared import PreparedData
from dragoman.data.sampler import EvaluationLoader, TrainingLoader
from dragoman.errors import DataError
from dragoman.presets import choose_settings
from dragoman.reading.pairs import Pair, RowErrors, describe_columns, read_pairs
from dragoman.reading.statistics import PairStatistics, collect_statistics, split_of
from dragoman.settings import Settings
from dragoman.tokenizers.pair_tokenizer import PairTokenizer
from dragoman.training.precision import plan_parts
from dragoman.training.startup import StartClock


class PairDataModule(lightning.LightningDataModule):
    """Pairs read, split, cut into tokens, and batched by a token budget.

    After `prepare_data`: `settings` (resolved), `tokenizer`, `num_rows` by split, `sha256` by file,
    and `notes` (what was chosen and what was left out, for people). `told_of_cache` says whether
    the prepared data came from the cache, or are kept there (`data.cache`). Batches are `Batch`
    objects.

    Args:
        pairs: A file of pairs, or two parallel text files.
        folder: Where the ids are written; None: a temporary folder, gone with this object.
        clock: Takes the time of each phase.
    """

    def __init__(
        self,
        pairs: str | Path | Sequence[str | Path],
        settings: Settings | None = None,
        folder: Path | None = None,
        clock: StartClock | None = None,
    ) -> None:
        super().__init__()
        self._clock = clock or StartClock()
        self.paths = [pairs] if isinstance(pairs, str | Path) else list(pairs)
        self.settings = settings or Settings()
        self._set_by_hand = dict(list_set_values(self.settings))
        self.folder = folder or Path(tempfile.mkdtemp(prefix="dragoman-"))
        if folder is None:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.num_rows: dict[Split, int] = {}
        self.notes: list[str] = []
        self.sha256: dict[str, str] = {}
        self.told_of_cache = ""
        self._file = ""
        self._encoded: dict[Split, EncodedPairs] = {}

    def prepare_data(self) -> None:
        """Read the pairs, choose the open settings, train the tokenizer, and write the ids; once.

        Raises:
            DataError: Files or rows are broken, or nothing is left to train on or to validate on.
        """
        if self.num_rows:
            return
        with _without_garbage_collection():
            self._prepare()

    def _prepare(self) -> None:
        data = self.settings.data
        prepared = PreparedData(self.paths, data, self.folder)
        self.sha256 = prepared.sha256
        self._clock.mark("digest of the files")
        statistics = prepared.find_statistics(data) or collect_statistics(
            read_pairs(self.paths, data)
        )
        are_parallel = all(
            len(files) == 2 for files in (self.paths, data.valid, data.test) if files
        )
        choice = choose_settings(self.settings, statistics, is_parallel=are_parallel)
        self.settings = choice.settings
        if columns := describe_columns(self.paths, data):
            self.notes.append(f"columns: {columns}")
        self.notes += choice.reasons
        self._clock.mark("statistics")
        if found := prepared.find_ids(self.settings):
            self.tokenizer, findings = found
            self._clock.mark("tokens and ids, from the cache")
        else:
            findings = self._make_ids(statistics)
            write_findings(self.folder, self.tokenizer, findings)
            prepared.keep(statistics)
            self._clock.mark("keeping them")
        self.told_of_cache = prepared.told
        self.notes += findings.notes
        self._adopt(findings)
        self._make_room_for_outputs(self._encoded["train"])

    def _make_ids(self, statistics: PairStatistics) -> Findings:
        """Train the tokenizer, and write the ids of each split."""
        self.tokenizer = PairTokenizer.train(self.read_split("train"), self.settings.tokenizer)
        self._clock.mark("tokenizer")
        broken_rows, notes = RowErrors(), list[str]()
        num_rows, long_rows = encode_splits(
            keep_held_out(self._note_leaks(self._read_splits(broken_rows), notes), self.folder),
            self.tokenizer,
            {split: self.folder / name_ids(split) for split in SPLITS},
            self.settings.data,
        )
        notes += [
            f"rows left out: {faults.report()}"
            for faults in (broken_rows, long_rows)
            if faults.total
        ]
        self._check_counts(num_rows, statistics.num_sources)
        self._clock.mark("ids")
        file = next((pair.file for pair in self.read_split("train")), "")
        return Findings(num_rows=num_rows, notes=notes, file=file)

    def _adopt(self, findings: Findings) -> None:
        """Take the data that lie in the folder."""
        self._encoded = {split: EncodedPairs(self.folder / name_ids(split)) for split in SPLITS}
        self.num_rows, self._file = findings.num_rows, findings.file

    def reopen(self) -> None:
        """Take the data that lie in the folder already, from a run whose settings these are.

        Raises:
            DataError: They are not whole.
        """
        self.tokenizer, findings = read_findings(self.folder)
        self._adopt(findings)
        self._clock.mark("data of the run")

    def move(self, folder: Path) -> None:
        """Put the prepared data into `folder`, on the same disk, which is made for them.

        Raises:
            OSError: It cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for path in list_files(self.folder):
            path.replace(folder / path.name)
        self.folder = folder
        self._encoded = {split: EncodedPairs(folder / name_ids(split)) for split in SPLITS}

    def name_rows(self, rows: NDArray[np.int64]) -> list[str]:
        """Return, for people, where each of these training pairs stands: its file and line."""
        return [f"{self._file}:{line}" for line in self._encoded["train"].find_lines(rows)]

    def setup(self, stage: str) -> None:
        """Do nothing more, where `prepare_data` has been called.

        Lightning calls that on one process of a machine; the others find, or make, their own here.
        """
        self.prepare_data()

    def train_dataloader(self) -> TrainingLoader:
        """Return the training batches of this rank."""
        training = self.settings.training
        rank, num_ranks = self._rank()
        return TrainingLoader(
            self._encoded["train"],
            training.batch_tokens,
            part_tokens=plan_parts(training),
            seed=training.seed,
            rank=rank,
            num_ranks=num_ranks,
        )

    def val_dataloader(self) -> EvaluationLoader:
        """Return the validation batches of this rank."""
        return self._evaluation_loader("valid")

    def test_dataloader(self) -> EvaluationLoader:
        """Return the test batches of this rank."""
        return self._evaluation_loader("test")

    def read_split(self, split: Split) -> Iterator[Pair]:
        """Yield the pairs of one split as text, in the order of their file.

        After `prepare_data`, the held-out ones no longer need it.
        """
        if split != "train" and self.num_rows:
            return read_held_out(self.folder, split)
        return (pair for name, pair in self._read_splits() if name == split)

    def count_source_tokens(self) -> tuple[int, ...]:
        """Return how often each source id stands in the training pairs, from id 0."""
        counts = self._encoded["train"].count_source_ids(self.tokenizer.source_vocab_size)
        return tuple(counts.tolist())

    def _read_splits(self, faults: RowErrors | None = None) -> Iterator[tuple[Split, Pair]]:
        data = self.settings.data
        valid_fraction = 0.0 if data.valid else data.valid_fraction
        test_fraction = 0.0 if data.test else data.test_fraction
        for pair in read_pairs(self.paths, data, faults):
            yield split_of(pair.source, pair.features, valid_fraction, test_fraction), pair
        if data.valid:
            yield from (("valid", pair) for pair in read_pairs(data.valid, data, faults))
        if data.test:
            yield from (("test", pair) for pair in read_pairs(data.test, data, faults))

    def _evaluation_loader(self, split: Split) -> EvaluationLoader:
        rank, num_ranks = self._rank()
        return EvaluationLoader(
            self._encoded[split],
            self.settings.decoding.batch_tokens,
            seed=self.settings.training.seed,
            rank=rank,
            num_ranks=num_ranks,
        )

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _make_room_for_outputs(self, pairs: EncodedPairs) -> None:
        """Raise the longest output, where the training pairs need more and it was left open."""
        decoding = self.settings.decoding
        ends = pairs.target_lengths - 1  # without begin
        beyond = ends - (decoding.max_length_ratio * pairs.source_lengths).astype(np.int64)
        needed = int(beyond.max())
        if needed <= decoding.max_length_extra:
            return
        if "decoding.max_length_extra" in self._set_by_hand:
            self.notes.append(
                f"longest output: {int((beyond > decoding.max_length_extra).sum()):,} training "
                f"targets are longer than decoding.max_length_extra {decoding.max_length_extra} "
                f"allows; {needed} would do"
            )
            return
        self.settings = merge_settings(
            self.settings, {"decoding.max_length_extra": needed}, overrule=True
        )
        self.notes.append(f"longest output: decoding.max_length_extra {needed}, for long targets")

    def _note_leaks(
        self, pairs: Iterable[tuple[Split, Pair]], notes: list[str]
    ) -> Iterator[tuple[Split, Pair]]:
        """Yield `pairs`; note how many sources, features included, of given files are trained on."""
        data = self.settings.data
        held_out = {
            split: {(pair.features, pair.source) for pair in read_pairs(files, data)}
            for split, files in (("valid", data.valid), ("test", data.test))
            if files
        }
        found: dict[str, set[object]] = {split: set() for split in held_out}
        for split, pair in pairs:
            if split == "train":
                for name, sources in held_out.items():
                    if (source := (pair.features, pair.source)) in sources:
                        found[name].add(source)
            yield split, pair
        for name, leaked in found.items():
            if leaked:
                notes.append(
                    f"leak: {len(leaked):,} of the {len(held_out[name]):,} sources of data.{name} "
                    "stand in the training pairs too; scores on them show memory"
                )

    def _check_counts(self, counts: dict[Split, int], num_sources: int) -> None:
        named = ", ".join(str(path) for path in self.paths)
        total = sum(counts.values())
        needed: dict[Split, str] = {"train": "training", "valid": "validation"}
        for split, purpose in needed.items():
            if counts[split] == 0:
                raise DataError(
                    f"{named}: {total} pairs with {num_sources} different sources leave none for "
                    f"{purpose}; a source stands in one "
                    "split only: give more pairs, or a file of its own with data.valid, or another "
                    f"data.valid_fraction (now {self.settings.data.valid_fraction})"
                )


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Leave the search for cycles out while millions of rows come and go: there are none in them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
