"""Stops a run before its end, by a signal or a time limit: between two steps, with a checkpoint."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from rich.console import Console

from dragoman.errors import Stopped
from dragoman.training.checkpoints import Checkpoints
from dragoman.training.module import TransformerTraining, gather_over_ranks
from dragoman.training.run_context import print_plain

_TIME_IS_UP = 0.5  # as a request to stop; others are the numbers of signals
GRACE_PERIOD_S = 7.0  # from the signal on, for the current step to finish

# Ctrl-C, a scheduler, a lost terminal or connection.
_STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_REQUEUE = getattr(signal, "SIGUSR1", None)  # in a job of SLURM: some time before its limit
# Windows has none: there, a step may take its time.
_ALARM = getattr(signal, "SIGALRM", None)


class SignalHandler:
    """Handles the signals that stop a run: at once, or, during training, after the current step."""

    def __init__(self, console: Console) -> None:
        self.received: signal.Signals | None = None
        self.is_training = False
        self._console = console
        self._before: dict[signal.Signals, object] = {}

    def install(self) -> None:
        """Handle the signals, in the main thread only; ignored ones stay ignored, as under nohup."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python refuses it
        in_job = _REQUEUE if "SLURM_JOB_ID" in os.environ else None
        for number in (*_STOP_SIGNALS, *filter(None, (_ALARM, in_job))):
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, self._handle):
                self._before.setdefault(number, handler)
                signal.signal(number, self._handle)

    def restore(self) -> None:
        """Restore the handlers from before `install`."""
        self.end_grace_period()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def end_grace_period(self) -> None:
        """Stop the timer: the step has finished, and writing the checkpoint may take its time."""
        if self.received and _ALARM:
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; a second one, or one outside of the training, stops at once."""
        if number == _ALARM:
            assert self.received is not None
            message = f"{self.received.name}: stopped within a step that did not finish in time"
            raise Stopped(message, self.received)
        received = signal.Signals(number)
        if self.received and received.name == "SIGHUP":
            return  # a lost terminal sends it twice: from its shell, and from the system
        is_second, self.received = self.received is not None, received
        if is_second or not self.is_training:
            raise Stopped(f"{received.name}: stopped", number)
        if _ALARM and received != _REQUEUE:
            signal.setitimer(signal.ITIMER_REAL, GRACE_PERIOD_S)
        with suppress(OSError, SystemExit):  # rich raises SystemExit where nobody reads
            message = f"{received.name}: stopping after this step; send it again to stop at once"
            print_plain(self._console, message)


@contextmanager
def handle_signals(console: Console) -> Iterator[SignalHandler]:
    """Handle the stop signals of this process, if this is its main thread."""
    handler = SignalHandler(console)
    try:
        handler.install()
        yield handler
    finally:
        handler.restore()


class StopTraining(Exception):  # noqa: N818 - not an error
    """Ends the training after its checkpoint is written: Lightning would swallow an interrupt."""


class GracefulStop(Checkpoint):
    """Stops between two steps, on a signal or at `end_s`, and writes a checkpoint.

    All ranks stop at the same step, whichever received the signal. Lightning calls callbacks of the
    base class Checkpoint last, in the order of the Trainer's list: put this one behind `checkpoints`.

    `end_s`: time on `time.monotonic`; None: no limit.
    """

    def __init__(
        self, signals: SignalHandler, checkpoints: Checkpoints, end_s: float | None
    ) -> None:
        self._signals, self._checkpoints = signals, checkpoints
        self._end_s = end_s
        self._is_stopping = False

    def on_train_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Take the signals from Lightning, which would save nothing."""
        self._signals.install()
        self._signals.is_training = True

    def on_train_batch_start(self, *_: object) -> None:
        """Stop; only now have the loggers written the step of the checkpoint."""
        if self._is_stopping:
            raise StopTraining

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        """Let the module send what this rank wants along with the sums of the step."""
        assert isinstance(pl_module, TransformerTraining)
        pl_module.stop_request = self._find_request(trainer)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        """Write the checkpoint, if the step is complete and no validation follows."""
        if self._checkpoints.may_save:
            assert isinstance(pl_module, TransformerTraining)
            is_alone = trainer.world_size == 1  # then a signal after the sums counts as well
            request = self._find_request(trainer) if is_alone else pl_module.stop_request
            self._is_stopping = self._save_if_signalled(trainer, request)
            self._stop_in_time(trainer, request)

    def on_validation_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Stop before a validation: the resumed run will do it."""
        if self._may_stop and self._save_if_signalled(trainer, self._agree(trainer)):
            raise StopTraining

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Stop within a validation: the resumed run will repeat it."""
        if self._may_stop and (request := self._agree(trainer)) > _TIME_IS_UP:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):  # the average stands in for the weights
                    callback.on_validation_epoch_end(trainer, trainer.lightning_module)
            self._save_if_signalled(trainer, request)
            raise StopTraining

    def on_validation_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Stop after a validation, at the time limit."""
        if self._may_stop:
            self._stop_in_time(trainer, self._agree(trainer))

    def on_train_end(self, *_: object) -> None:
        """From now on, a signal stops at once."""
        self._signals.is_training = False
        if self._is_stopping:
            raise StopTraining

    def on_exception(self, *_: object) -> None:
        """From now on, a signal stops at once."""
        self._signals.is_training = False

    @property
    def _may_stop(self) -> bool:
        return self._signals.is_training and self._checkpoints.is_whole

    def _stop_in_time(self, trainer: lightning.Trainer, request: float) -> None:
        if request == _TIME_IS_UP:
            self._checkpoints.save(trainer)  # before a validation that no other run would do
            trainer.should_stop = True

    def _save_if_signalled(self, trainer: lightning.Trainer, request: float) -> bool:
        if request <= _TIME_IS_UP:
            return False
        self._signals.end_grace_period()
        self._signals.received = self._signals.received or signal.Signals(int(request))
        self._checkpoints.save(trainer)
        return True

    def _find_request(self, trainer: lightning.Trainer) -> float:
        """Return the number of a signal that this rank has received, `_TIME_IS_UP`, or 0."""
        if self._signals.received is not None:
            return float(self._signals.received)
        is_late = self._end_s is not None and time.monotonic() >= self._end_s
        return _TIME_IS_UP if is_late and trainer.is_global_zero else 0.0

    def _agree(self, trainer: lightning.Trainer) -> float:
        """Return the greatest request of all ranks, outside of steps."""
        request = self._find_request(trainer)
        if trainer.world_size == 1:
            return request
        own = torch.tensor([request], device=trainer.strategy.root_device)
        return float(gather_over_ranks(own).max())
