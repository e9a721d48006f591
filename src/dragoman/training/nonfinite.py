"""What is said, and done, when a loss or a gradient is not finite: named, counted, stopped in the end."""

from collections.abc import Sequence
from typing import Final

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from dragoman.data.batch import Batch
from dragoman.errors import TrainingError
from dragoman.model.loss import sum_losses
from dragoman.settings import Settings
from dragoman.training.datamodule import PairDataModule
from dragoman.training.module import Pairs, TransformerTraining, as_batch

MOST_IN_A_ROW: Final = 5  # updates that may be left out one after another
_MOST_NAMED: Final = 5  # rows
_MOST_TRIED: Final = 256  # rows whose own loss is computed


class BrokenNumbers(Callback):
    """Tells of each update that the module has left out, with its rows; stops after a few in a row."""

    def __init__(self, console: Console, settings: Settings) -> None:
        self.num_skipped = 0  # in all
        self._console, self._settings = console, settings
        self._batches: list[Batch] = []  # of the update at hand
        self._step = 0

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Take note of the updates that are done."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: Pairs,
        batch_idx: int,
    ) -> None:
        """Tell of an update that was left out.

        Raises:
            TrainingError: It is one too many in a row.
        """
        assert isinstance(pl_module, TransformerTraining)
        self._batches.append(as_batch(batch))
        if trainer.global_step == self._step:
            return
        self._step, batches, self._batches = trainer.global_step, self._batches, []
        if not pl_module.num_skipped:
            return
        self.num_skipped += 1
        names = _name_rows(trainer, find_broken_rows(pl_module, batches))
        told = (
            f"update {trainer.global_step:,}: a loss or a gradient that is not finite: left out, the "
            f"weights stay as they were ({pl_module.num_skipped} in a row, {self.num_skipped} in all); "
            f"{names}"
        )
        if trainer.is_global_zero:
            self._console.print(f"warning: {told}", highlight=False, soft_wrap=True, markup=False)
        if pl_module.num_skipped >= MOST_IN_A_ROW:
            raise TrainingError(f"{told}\n{self._advise()}")

    def _advise(self) -> str:
        rate, warmup = (
            self._settings.optimization.learning_rate,
            self._settings.optimization.warmup_steps,
        )
        return (
            f"stopped after {MOST_IN_A_ROW} in a row. Usual causes, the likeliest first:\n"
            f"  - too high a learning rate, or too short a warm-up: optimization.learning_rate "
            f"{rate:g} (try {rate / 3:.2g}), optimization.warmup_steps {warmup}\n"
            "  - a number format of too few bits: training.precision 32-true\n"
            "  - rows of the data that are not what they should be: the ones named above; see "
            "dragoman inspect\n"
            "These make another run, which begins anew; the checkpoints of this one stay."
        )


def find_broken_rows(module: TransformerTraining, batches: Sequence[Batch]) -> list[Batch]:
    """Return the rows whose own loss is not finite, as batches of one; all, where none is alone so."""
    network = module.network
    was_training = network.training
    network.eval()
    broken: list[Batch] = []
    rows = [_take_row(batch, row) for batch in batches for row in range(len(batch))]
    with torch.no_grad():
        for one in rows[:_MOST_TRIED]:
            loss = sum_losses(network, one.source_ids, one.target_ids).loss
            if not torch.isfinite(loss):
                broken.append(one)
    network.train(was_training)
    return broken or rows


def _take_row(batch: Batch, row: int) -> Batch:
    return Batch(
        source_ids=batch.source_ids[row : row + 1],
        target_ids=batch.target_ids[row : row + 1],
        rows=None if batch.rows is None else batch.rows[row : row + 1],
    )


def _name_rows(trainer: lightning.Trainer, found: Sequence[Batch]) -> str:
    data = trainer.datamodule  # type: ignore[attr-defined]
    told = f"{len(found):,} rows"
    named = [one.rows for one in found[:_MOST_NAMED] if one.rows is not None]
    if named and isinstance(data, PairDataModule):
        names = [name for rows in named for name in data.data.name_rows(rows)]
        told += f": {', '.join(names)}{', …' if len(found) > len(named) else ''}"
    return told
