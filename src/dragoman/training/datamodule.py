"""The data of a run for Lightning: loaders of batches, of this rank."""

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning
from torch import distributed

from dragoman.configuration import SettingsLike, as_settings
from dragoman.data.augmentation import make_augmentations
from dragoman.data.run_data import RunData
from dragoman.data.sampler import EvaluationLoader, TrainingLoader
from dragoman.errors import SettingsError
from dragoman.model_folder.folder import find_start
from dragoman.presets import choose_settings, leave_room_for_outputs
from dragoman.reading.in_memory import Pairs, as_files
from dragoman.reading.pairs import Pair, list_weights
from dragoman.reading.statistics import Split
from dragoman.tokenizers.tokenizer import PairTokenizer
from dragoman.training.device import plan_micro_batches


class PairDataModule(lightning.LightningDataModule):
    """Pairs read, split, made into ids, and batched by a token budget; batches are `Batch` objects.

    `prepare_data` reads the pairs. Settings that are still open are then chosen by the pairs, as
    `fit` does, by `choose_settings` and `leave_room_for_outputs`; resolved ones are taken as they
    are. After it: `settings` (resolved), `tokenizer`, `num_rows` by split, `sha256` by file, `notes`
    (what was chosen and what was left out) and `cache_note` (what the cache had or has now).

    Args:
        pairs: As `fit` takes them: files, rows, or a table; (): those of data.train.
        folder: Where the data are written, by the first rank; None, and on the other ranks: a
            temporary folder, removed with this object.
        data: The data, if they have been prepared already; then `settings` must be resolved.
        weights: With `data`, those of `list_weights`.
        num_threads: Those of all ranks of this machine, by which batches are made up; None: torch's.
    """

    tokenizer: PairTokenizer
    num_rows: dict[Split, int]
    sha256: dict[str, str]  # empty, if a file is not a regular one
    cache_note: str  # "": there is nothing to report

    def __init__(
        self,
        pairs: Pairs,
        settings: SettingsLike = None,
        folder: Path | None = None,
        *,
        data: RunData | None = None,
        weights: Sequence[float] = (),
        num_threads: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = as_settings(settings)
        self.notes: list[str] = []
        self._pairs, self._folder, self._weights = pairs, folder, weights
        self._num_threads = num_threads
        self._data: RunData | None = None
        if data is not None:
            self._take(data)

    @property
    def data(self) -> RunData:
        """The data, once they are prepared."""
        assert self._data is not None, "call prepare_data first"
        return self._data

    @property
    def folder(self) -> Path:
        """The folder of the data."""
        return self.data.folder

    def prepare_data(self) -> None:
        """Read the pairs, train the tokenizer, and write the ids; once.

        Raises:
            SettingsError: They name a teacher.
            DataError: Files or rows are invalid, or nothing is left to train on or to validate on.
        """
        if self._data is not None:
            return
        if self.settings.training.teacher or self.settings.data.unlabelled:
            raise SettingsError(
                "training.teacher, data.unlabelled: only `dragoman fit` trains on outputs of a teacher; "
                "leave them out, or write the outputs by `dragoman predict` and give them as pairs"
            )
        folder = self._folder
        if folder is None or self._rank()[0] > 0:  # two ranks cannot write into one folder
            folder = Path(tempfile.mkdtemp(prefix="dragoman-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        settings, start = find_start(self.settings)
        with as_files(self._pairs) as paths:
            self._weights = list_weights(paths or settings.data.train, settings.data)
            data = RunData.read(paths or settings.data.train, settings, folder, start)
            choice = choose_settings(settings, data.statistics, is_parallel=data.is_parallel)
            data.encode(choice.settings)
        ids = data.ids("train")
        self.settings, room = leave_room_for_outputs(
            data.label_columns(choice.settings), ids.source_lengths, ids.target_lengths
        )
        self._take(data)
        self.notes = [*choice.reasons, *data.notes, *room, *self.describe_weights()]

    def setup(self, stage: str) -> None:
        """Prepare the data if `prepare_data` has not been called in this process.

        Lightning calls that in one process of a machine; the others prepare their own here.
        """
        self.prepare_data()

    def describe_weights(self) -> list[str]:
        """Return a message on how often the training files are drawn, if they have weights."""
        num_pairs = Counter[float]()
        for count, weight in self.data.weigh_rows(self._weights):
            num_pairs[weight] += count
        total = sum(weight * count for weight, count in num_pairs.items())
        shown = " + ".join(f"{weight:g} x {count:,}" for weight, count in num_pairs.items())
        return [f"weights: an epoch is {shown} = {total:,.0f} pairs"] if shown else []

    def train_dataloader(self) -> TrainingLoader:
        """Return the training batches of this rank."""
        training = self.settings.training
        rank, num_ranks = self._rank()
        return TrainingLoader(
            self.data.ids("train"),
            training.batch_tokens,
            micro_batch_tokens=plan_micro_batches(training, self._num_threads),
            seed=training.seed,
            rank=rank,
            num_ranks=num_ranks,
            augmentations=make_augmentations(self.settings.optimization, self.tokenizer),
            weights=self.data.weigh_rows(self._weights),
            accumulate=training.accumulate,
        )

    def val_dataloader(self) -> EvaluationLoader:
        """Return the validation batches of this rank."""
        return self._evaluation_loader("valid")

    def test_dataloader(self) -> EvaluationLoader:
        """Return the test batches of this rank."""
        return self._evaluation_loader("test")

    def read_split(self, split: Split) -> Iterator[Pair]:
        """Yield the pairs of one split as text, in the order of their file."""
        return self.data.read_split(split)

    def _evaluation_loader(self, split: Split) -> EvaluationLoader:
        rank, num_ranks = self._rank()
        ids, most = self.data.ids(split), self.settings.decoding.batch_tokens
        seed = self.settings.training.seed
        return EvaluationLoader(ids, most, seed=seed, rank=rank, num_ranks=num_ranks)

    def _take(self, data: RunData) -> None:
        self._data, self.tokenizer, self.num_rows = data, data.tokenizer, data.num_rows
        self.sha256, self.cache_note = data.sha256, data.cache_note

    def _rank(self) -> tuple[int, int]:
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1
