"""When a checkpoint is written: after whole updates and finished validations, so that it can be exact.

Lightning's ModelCheckpoint writes before the validation of the same update, and Lightning 2.6.6
then leaves that validation out when it goes on; this one writes after it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from dragoman.errors import CheckpointError
from dragoman.training.checkpoint_files import (
    BEST,
    copy_file,
    name_checkpoint,
    read_checkpoint,
    remove_old,
    sweep_partial,
)

RECORD = "dragoman"  # where a checkpoint says what run it is of

_NUM_KEPT = 2  # beside the best: one, and one before it, should the newest be damaged
_STATE = "Checkpoints"


class Checkpoints(Checkpoint):
    """Writes a checkpoint every so many updates, and whenever the monitored score is the best yet.

    A run goes on from any of them as if it had not been interrupted, with `RankStates` beside it, a
    loader that knows its place (`TrainingLoader`), and `AtomicCheckpointIO` among the plugins.

    A checkpoint that cannot be written (a full disk) is told, and tried again at the next; those
    that are there stay as they are.

    Args:
        every: Updates from one checkpoint to the next.
        monitor: Name of the score as it is logged.
        record: Plain values that every checkpoint holds under `RECORD`: what run it is of.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        monitor: str,
        mode: Literal["min", "max"],
        *,
        record: Mapping[str, Any] | None = None,
        console: Console | None = None,
    ) -> None:
        self.folder, self.every = folder, every
        self.monitor, self.mode = monitor, mode
        self.record = dict(record or {})
        self.best_score = math.inf if mode == "min" else -math.inf
        self.best_step = -1
        self._console = console  # None: standard error; a Console cannot be sent to another process
        self._saved_step = self._last_step = 0
        # An update may be made of several batches: between them, no checkpoint could be exact.
        self.is_whole = True
        self.awaits_validation = False  # it is due at this very update, and not finished
        self._is_averaged = False  # the average is in the place of the weights

    @property
    def state_key(self) -> str:
        """The name of this callback's state, in every checkpoint."""
        return _STATE

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as plain values."""
        return {
            "best_score": self.best_score,
            "best_step": self.best_step,
            "is_whole": self.is_whole,
            "awaits_validation": self.awaits_validation,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state; but of the best score that of the file there is, if any is."""
        self.awaits_validation = state_dict["awaits_validation"]
        if not (self.folder / BEST).is_file():
            return
        try:
            best = find_state(read_checkpoint(self.folder / BEST, is_mapped=True))
        except CheckpointError as error:
            self._warn(f"{error}: the next validation gives a new best one")
        else:
            self.best_score, self.best_step = best["best_score"], best["best_step"]

    def on_save_checkpoint(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Add what run it is of."""
        checkpoint[RECORD] = self.record

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Sweep up after a run that was killed; make the validation that it was in, if any."""
        self._saved_step = self._last_step = trainer.global_step
        if trainer.is_global_zero:
            sweep_partial(self.folder)
        if self.awaits_validation:
            _validate_again(trainer)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Write a checkpoint, if one is due and no validation is."""
        self.is_whole = trainer.global_step > self._last_step
        self._last_step = trainer.global_step
        self.awaits_validation = will_validate(trainer)
        if self.may_save and self._is_due(trainer):
            self.save(trainer)

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Write a checkpoint, if one is due, or if the score is the best yet."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self.awaits_validation = False
        before = self.best_score, self.best_step
        is_best, is_written = self._take_score(trainer), True
        if self._is_due(trainer):
            is_written = self.save(trainer, is_best=is_best)
        elif is_best:
            is_written = self._write(trainer, self.folder / BEST)
        if not is_written:
            self.best_score, self.best_step = before

    def on_validation_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Take note that the average, if there is one, has just taken the place of the weights."""
        self._is_averaged = True

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Take note that the weights are back in their place."""
        self._is_averaged = False

    @property
    def may_save(self) -> bool:
        """Whether nothing more belongs to the update that has just been made."""
        return self.is_whole and not self.awaits_validation

    def save(self, trainer: lightning.Trainer, *, is_best: bool = False) -> bool:
        """Write a checkpoint of the update at hand, unless there is one; to be called on all ranks.

        Returns False if it could not be written, which has been told then.

        The update has to be whole. Within a validation the checkpoint is of the moment before it:
        who goes on makes the validation.
        """
        assert self.is_whole
        if trainer.global_step == self._saved_step:
            return True
        was_averaged = self._is_averaged
        if was_averaged:
            _swap_average(trainer)
        path = self.folder / name_checkpoint(trainer.global_step)
        is_written = self._write(trainer, path, also=self.folder / BEST if is_best else None)
        if was_averaged:
            _swap_average(trainer)
        self._saved_step = trainer.global_step  # or tried to: the next try is when the next is due
        if is_written and trainer.is_global_zero:
            remove_old(self.folder, _NUM_KEPT)
        return is_written

    def _is_due(self, trainer: lightning.Trainer) -> bool:
        if not self.is_whole or trainer.global_step == self._saved_step:
            return False
        is_last = trainer.should_stop or trainer.global_step == trainer.max_steps
        return is_last or trainer.global_step - self._saved_step >= self.every

    def _take_score(self, trainer: lightning.Trainer) -> bool:
        """Return whether the score is the best yet, and remember it if so."""
        score = trainer.callback_metrics.get(self.monitor)
        if score is None or not self.is_better(float(score)):
            return False
        self.best_score, self.best_step = float(score), trainer.global_step
        return True

    def is_better(self, score: float) -> bool:
        """Return whether `score` is better than the best."""
        if self.mode == "min":
            return score < self.best_score
        return score > self.best_score

    def _write(self, trainer: lightning.Trainer, path: Path, also: Path | None = None) -> bool:
        """Write to `path`, and, under a second name, to `also`; return whether it could be done."""
        try:
            trainer.save_checkpoint(path)
            if also is not None and trainer.is_global_zero:
                copy_file(path, also)
        except OSError as error:
            if trainer.world_size > 1:  # the other ranks are waiting
                raise
            self._warn(
                f"update {trainer.global_step:,}: no checkpoint, {path} cannot be written: "
                f"{error.strerror or error}; the training goes on, those before it stay"
            )
            return False
        return True

    def _warn(self, told: str) -> None:
        console = self._console or Console(stderr=True)
        console.print(f"warning: {told}", highlight=False, soft_wrap=True, markup=False)


def find_state(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of `Checkpoints` in a checkpoint."""
    state: dict[str, Any] = checkpoint["callbacks"][_STATE]
    return state


def will_validate(trainer: lightning.Trainer) -> bool:
    """Return whether a validation follows the batch that has just ended."""
    fit_loop = trainer.fit_loop  # Lightning 2.6.6 tells it nowhere in public
    assert fit_loop._data_fetcher is not None
    return fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher)


def _validate_again(trainer: lightning.Trainer) -> None:
    """Make the validation that belongs to the update from which the run goes on.

    As Lightning's training loop does it, which would leave it out (lightning 2.6.6).
    """
    val_loop = trainer.fit_loop.epoch_loop.val_loop
    val_loop.restarting = False
    trainer.validating = True
    val_loop.run()
    trainer.training = True
    torch.set_grad_enabled(True)
    val_loop._has_run = False  # so that the loop comes by, and counts the update it belongs to


def _swap_average(trainer: lightning.Trainer) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback.on_validation_epoch_end(trainer, trainer.lightning_module)
