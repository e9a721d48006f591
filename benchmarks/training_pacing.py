"""Lightning's loop, held between updates."""

from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from training_contender import Counts, Pacer


class Pacing(Callback):
    """Tells `pacer` of each batch, and of each update."""

    def __init__(self, pacer: Pacer, count: Callable[[Any], Counts]) -> None:
        self._pacer, self._count = pacer, count
        self._step = 0

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Count the batch."""
        self._pacer.count(self._count(batch))

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Wait here where the turn is over, unless the batch was only a part of an update."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._pacer.end_update()
