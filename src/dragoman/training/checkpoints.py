"""Checkpoints: when one is written, and how; each file is complete or absent, and holds no pickle.

    checkpoints/step-1200.ckpt   everything needed to resume after 1,200 steps; the newest are kept
    checkpoints/best.ckpt        the same, where the validation score was best

Lightning's ModelCheckpoint saves before the validation of the same step, and Lightning 2.6.6 then
skips that validation on resume; `Checkpoints` saves after it. Lightning's own writer leaves a
truncated file where $TMPDIR is on another disk, and torch.load accepts a file with flipped bits.
"""

import math
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from dragoman.errors import CheckpointError
from dragoman.storage import is_staged, link_or_copy, staged_file
from dragoman.training.run_context import TextConsole, print_plain

BEST = "best.ckpt"
RECORD = "dragoman"  # key of a checkpoint: the run that it belongs to

_NUM_KEPT = 2  # beside the best: the newest, and the one before in case the newest is damaged
_STATE = "Checkpoints"
_PROBE_BYTES = 1 << 20


class Checkpoints(Checkpoint):
    """Writes a checkpoint every `every` steps, and whenever the monitored score is the best so far.

    A run resumed from any of them equals an uninterrupted one, together with `RngAndMetricState`, a
    loader that stores its position (`TrainingLoader`), and the plugin `AtomicCheckpointIO`.

    If a checkpoint cannot be written (a full disk), a warning is printed, the existing ones stay,
    and the next is written when it is due.

    Args:
        every: Steps between two checkpoints.
        record: Plain values stored in every checkpoint under `RECORD`: the run that it belongs to.
        console: None: standard error; a Console cannot be sent to another process.
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
        self._console = console
        self._saved_step = self._last_step = 0
        # A step may take several micro-batches: a checkpoint between them would not be exact.
        self.is_whole = True
        self.awaits_validation = False  # due at this very step, and not finished

    @property
    def state_key(self) -> str:
        """The key of this callback's state in every checkpoint."""
        return _STATE

    def state_dict(self) -> dict[str, Any]:
        """Return the best score, and whether the last step is complete and validated."""
        names = ("best_score", "best_step", "is_whole", "awaits_validation")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, but take the best score from the file of the best checkpoint, if any."""
        self.awaits_validation = state_dict["awaits_validation"]
        if not (self.folder / BEST).is_file():
            return
        try:
            best = find_state(read_checkpoint(self.folder / BEST, is_mapped=True))
        except CheckpointError as error:
            self._warn(f"{error}: the next validation writes a new best checkpoint")
        else:
            self.best_score, self.best_step = best["best_score"], best["best_step"]

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, module: object, checkpoint: dict[str, Any]
    ) -> None:
        """Store the record of the run."""
        checkpoint[RECORD] = self.record

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, module: object, checkpoint: dict[str, Any]
    ) -> None:
        """With other batches or steps, begin an epoch, as `TrainingLoader` does, with a whole step."""
        before, now = (
            one and one["settings"]["training"] for one in (checkpoint[RECORD], self.record)
        )
        if all(before.get(name) == now.get(name) for name in ("batch_tokens", "accumulate")):
            return
        # Lightning counts batches, and ends a step or validates where their number is a multiple.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        counts = {"total": checkpoint["global_step"] * now["accumulate"], "current": 0}
        for kind, count in counts.items():
            by_state = progress[kind]
            done = by_state["processed"]
            progress[kind] = {name: count + one - done for name, one in by_state.items()}
        progress["is_last_batch"] = False

    def on_train_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Clean up after a killed run; run the validation that it had not finished, if any."""
        self._saved_step = self._last_step = trainer.global_step
        if trainer.is_global_zero:
            sweep_partial(self.folder)
        if self.awaits_validation:
            # As Lightning's training loop does, which would skip it (lightning 2.6.6).
            val_loop = trainer.fit_loop.epoch_loop.val_loop
            val_loop.restarting = False
            trainer.validating = True
            val_loop.run()
            trainer.training = True
            torch.set_grad_enabled(True)
            val_loop._has_run = False  # so that the training loop counts the step as validated

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Write a checkpoint if one is due; after the validation, if that is due as well."""
        self.is_whole = trainer.global_step > self._last_step
        self._last_step = trainer.global_step
        fit_loop = trainer.fit_loop  # Lightning 2.6.6 has no public way to ask
        assert fit_loop._data_fetcher is not None
        self.awaits_validation = fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher)
        if self.may_save and self._is_due(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Write a checkpoint if one is due, or if the score is the best so far."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self.awaits_validation = False
        before = self.best_score, self.best_step
        score, is_best = trainer.callback_metrics.get(self.monitor), False
        if score is not None and self.is_better(float(score)):
            self.best_score, self.best_step = float(score), trainer.global_step
            is_best = True
        is_written = True
        if self._is_due(trainer):
            is_written = self.save(trainer, is_best=is_best)
        elif is_best:
            is_written = self._write(trainer, self.folder / BEST)
        if not is_written:
            self.best_score, self.best_step = before

    @property
    def may_save(self) -> bool:
        """Whether the last step is complete, with its validation if one was due."""
        return self.is_whole and not self.awaits_validation

    def is_better(self, score: float) -> bool:
        """Whether `score` is better than the best so far."""
        return score < self.best_score if self.mode == "min" else score > self.best_score

    def save(self, trainer: lightning.Trainer, *, is_best: bool = False) -> bool:
        """Write a checkpoint of the last step, unless it has one; call it on all ranks.

        The step has to be complete; a validation that is due is run by the resumed run. Returns
        False, after a warning, if the checkpoint could not be written.
        """
        assert self.is_whole
        if trainer.global_step == self._saved_step:
            return True
        path = self.folder / f"step-{trainer.global_step}.ckpt"
        is_written = self._write(trainer, path, also=self.folder / BEST if is_best else None)
        self._saved_step = trainer.global_step  # or tried to: the next is tried when it is due
        if is_written and trainer.is_global_zero:
            numbered = [path for path in list_checkpoints(self.folder) if path.name != BEST]
            _remove(numbered[_NUM_KEPT:])
        return is_written

    def _is_due(self, trainer: lightning.Trainer) -> bool:
        if not self.is_whole or trainer.global_step == self._saved_step:
            return False
        is_last = trainer.should_stop or trainer.global_step == trainer.max_steps
        return is_last or trainer.global_step - self._saved_step >= self.every

    def _write(self, trainer: lightning.Trainer, path: Path, also: Path | None = None) -> bool:
        """Write to `path` and, as a hard link or a copy, to `also`; return whether it succeeded."""
        failure: OSError | None = None
        try:
            trainer.save_checkpoint(path)
        except OSError as error:
            failure = error
            trainer.strategy.barrier()  # the other ranks wait at the end of `save_checkpoint`
        if also is not None and trainer.is_global_zero and failure is None:
            try:
                with staged_file(also) as partial:
                    link_or_copy(path, partial)
            except OSError as error:
                failure = error
        if failure is not None:
            self._warn(
                f"step {trainer.global_step:,}: no checkpoint, {path} cannot be written: "
                f"{failure.strerror or failure}; training continues, earlier checkpoints stay"
            )
        is_written: bool = trainer.strategy.broadcast(failure is None)
        return is_written

    def _warn(self, message: str) -> None:
        print_plain(self._console or TextConsole(stderr=True), f"warning: {message}")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, flushes it to disk, then renames it."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: object | None = None,
    ) -> None:
        """Write `checkpoint` to `path`.

        Raises: OSError, when it cannot be written; the old file at `path` is unchanged.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(path) as partial, partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch says that writing failed, but not why
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                raise OSError(f"torch could not write it: {error}") from error

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Return the checkpoint at `path`, always with `weights_only`: see `read_checkpoint`."""
        return read_checkpoint(Path(path))


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of `folder`, the newest first; the best, whose step is unknown, last."""
    numbered = [path for path in folder.glob("step-*.ckpt") if path.stem[5:].isdecimal()]
    numbered.sort(key=lambda path: int(path.stem[5:]), reverse=True)
    return [*numbered, *folder.glob(BEST)]


def read_checkpoint(path: Path, *, is_mapped: bool = False) -> dict[str, Any]:
    """Return a checkpoint, with its tensors on the CPU.

    `is_mapped`: map the tensors from the file: for reading something else, and soon.

    Raises:
        CheckpointError: It is missing, truncated, changed, or holds more than plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (changed := archive.testzip()) is not None:
                raise CheckpointError(f"{path}: damaged: {changed} has a wrong checksum")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except CheckpointError:
        raise
    except Exception as error:  # torch and zipfile raise many types, depending on the damage
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: not a complete checkpoint: {reason}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a checkpoint, but a {type(state).__name__}")
    return state


def find_state(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of `Checkpoints` in a checkpoint."""
    state: dict[str, Any] = checkpoint["callbacks"][_STATE]
    return state


def sweep_partial(folder: Path) -> None:
    """Remove the unfinished files of a killed run."""
    _remove(filter(is_staged, folder.glob(".*")))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()
