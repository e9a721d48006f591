"""Steps that were skipped for a non-finite loss or gradient: reported with their rows, counted."""

from collections.abc import Sequence
from typing import Final

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import distributed

from dragoman.data.dataset import Batch
from dragoman.errors import TrainingError
from dragoman.model.loss import sum_losses
from dragoman.training.datamodule import PairDataModule
from dragoman.training.module import Pairs, TransformerTraining, as_batch
from dragoman.training.run_context import print_plain

MOST_IN_A_ROW: Final = 5  # skipped steps, one after another, that end a training
_MOST_NAMED: Final = 5  # rows
_MOST_COMPUTED: Final = 256  # rows of a step whose loss is computed separately


class NonFiniteSteps(Callback):
    """Reports each step that the module has skipped, with its rows; ends the run after a few."""

    def __init__(self, console: Console) -> None:
        self.num_skipped = 0  # in all
        self._console = console
        self._batches: list[Batch] = []  # of the current step
        self._step = 0

    def on_train_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Note the steps that a resumed run has done."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: Pairs,
        batch_idx: int,
    ) -> None:
        """Report the step if it was skipped.

        Raises: TrainingError, when too many in a row were skipped.
        """
        assert isinstance(pl_module, TransformerTraining)
        self._batches.append(as_batch(batch))
        if trainer.global_step == self._step:
            return
        self._step, batches, self._batches = trainer.global_step, self._batches, []
        if not pl_module.num_skipped:
            return
        self.num_skipped += 1
        rows = _name_rows(trainer, find_nonfinite_rows(pl_module, batches))
        if trainer.world_size > 1:
            named: list[str] = [""] * trainer.world_size
            distributed.all_gather_object(named, rows)
            rows = "; ".join(f"rank {rank}: {one}" for rank, one in enumerate(named))
        message = (
            f"step {trainer.global_step:,} skipped: non-finite loss or gradient "
            f"({pl_module.num_skipped} in a row, {self.num_skipped} in all); {rows}"
        )
        if trainer.is_global_zero:
            print_plain(self._console, f"warning: {message}")
        elif pl_module.num_skipped >= MOST_IN_A_ROW:
            raise SystemExit(2)  # rank 0 says why
        if pl_module.num_skipped >= MOST_IN_A_ROW:
            optimization = pl_module.optimization
            rate, warmup_steps = optimization.learning_rate, optimization.warmup_steps
            raise TrainingError(
                f"{message}\nstopped after {MOST_IN_A_ROW} in a row. Usual causes, the likeliest "
                "first:\n"
                "  - the learning rate is too high, or the warm-up too short: "
                f"optimization.learning_rate {rate:g} (try {rate / 3:.2g}), "
                f"optimization.warmup_steps {warmup_steps}\n"
                "  - the precision is too low: training.precision 32-true\n"
                "  - rows of the data are wrong: those named above; see dragoman inspect\n"
                "Changing these needs a new run; the checkpoints of this one stay."
            )


def find_nonfinite_rows(module: TransformerTraining, batches: Sequence[Batch]) -> list[Batch]:
    """Return the rows with a non-finite loss, as batches of one; all rows if there is none."""
    network = module.network
    was_training = network.training
    network.eval()
    rows = [
        Batch(
            source_ids=batch.source_ids[i : i + 1],
            target_ids=batch.target_ids[i : i + 1],
            rows=None if batch.rows is None else batch.rows[i : i + 1],
        )
        for batch in batches
        for i in range(len(batch))
    ]
    with torch.no_grad():
        found = [
            one
            for one in rows[:_MOST_COMPUTED]
            if not torch.isfinite(sum_losses(network, one.source_ids, one.target_ids).loss)
        ]
    network.train(was_training)
    return found or rows


def _name_rows(trainer: lightning.Trainer, found: Sequence[Batch]) -> str:
    data = trainer.datamodule  # type: ignore[attr-defined]
    message = f"{len(found):,} rows"
    named = [one.rows for one in found[:_MOST_NAMED] if one.rows is not None]
    if named and isinstance(data, PairDataModule):
        names = [name for rows in named for name in data.data.name_rows(rows)]
        message += f": {', '.join(names)}{', …' if len(found) > len(named) else ''}"
    return message
