"""How a run ends before its end: by a signal, or by a limit of time; between two updates."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import lightning
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console

from dragoman.errors import Stopped
from dragoman.training.checkpoints import Checkpoints

PATIENCE_S = 7.0  # for the update at hand, from the signal on; then it is given up

# What stops a run: Ctrl-C, a scheduler, and a terminal or a connection that goes.
_STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class SignalWatch:
    """Takes the signals that stop a run: at once, or, while it trains, at the end of the update."""

    def __init__(self, console: Console) -> None:
        self.received: signal.Signals | None = None
        self.is_training = False
        self._console = console
        self._before: dict[signal.Signals, object] = {}

    def take(self) -> None:
        """Take the signals from whoever has them; no longer those that are ignored, as by nohup."""
        for number in (*_STOPPING, signal.SIGALRM):
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, self._handle):
                self._before.setdefault(number, handler)
                signal.signal(number, self._handle)

    def give_back(self) -> None:
        """Let the signals do what they did before."""
        self.stop_waiting()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def stop_waiting(self) -> None:
        """Take all the time there is, from now on."""
        if self.received:
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal; the second, and one that comes outside of the training, stops at once.

        Raises:
            Stopped: At once.
        """
        if number == signal.SIGALRM:
            assert self.received is not None
            told = (
                f"{self.received.name}: stopped within an update, which took too long to wait for"
            )
            raise Stopped(told, self.received)
        received = signal.Signals(number)
        if self.received and received.name == "SIGHUP":
            return  # a terminal that goes sends it twice: by its shell, and by the system
        if self.received or not self.is_training:
            raise Stopped(f"{received.name}: stopped", number)
        self.received = received
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
        with suppress(OSError, SystemExit):  # the terminal may have gone; rich's way to say so
            self._console.print(
                f"{received.name}: stopping after this update; once more to stop at once",
                highlight=False,
            )


@contextmanager
def watch_signals(console: Console) -> Iterator[SignalWatch]:
    """Give who takes the signals of this process, as long as the context lasts.

    Only the main thread can take signals: in another they do what they did.
    """
    watch = SignalWatch(console)
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    try:
        watch.take()
        yield watch
    finally:
        watch.give_back()


class StopTraining(Exception):  # noqa: N818 - it is no fault
    """Takes a training down once its checkpoint is written: Lightning would swallow an interrupt."""


class Stopping(Checkpoint):
    """Ends the training between two updates: by a signal, or after `max_minutes`, with a checkpoint.

    On all ranks at the same update, whichever was asked to stop. Lightning calls the callbacks of
    this base last, in the order of the Trainer's list: it belongs behind its `checkpoints`.

    Args:
        max_minutes: Counted from the start of the training in this process; 0: no limit.
    """

    def __init__(self, watch: SignalWatch, checkpoints: Checkpoints, max_minutes: float) -> None:
        self._watch, self._checkpoints = watch, checkpoints
        self._max_s = 60.0 * max_minutes
        self._begun_s = 0.0

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Begin to count the time; take the signals from Lightning, which would save nothing."""
        self._begun_s = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._watch.take()
        self._watch.is_training = True

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Stop, if the update is whole, and nothing follows that belongs to it."""
        if self._checkpoints.may_save:
            self._stop_if_asked(trainer)
            self._look_at_the_time(trainer)

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Stop before a validation: it will be made by who goes on."""
        if self._watch.is_training:
            self._stop_if_asked(trainer)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop in a validation: it will be made again by who goes on."""
        if self._watch.is_training:
            self._stop_if_asked(trainer)

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Stop, if the time is over."""
        if self._watch.is_training and self._checkpoints.is_whole:
            self._look_at_the_time(trainer)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """From now on a signal stops at once."""
        self._watch.is_training = False

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        """From now on a signal stops at once."""
        self._watch.is_training = False

    def _look_at_the_time(self, trainer: lightning.Trainer) -> None:
        if not self._max_s:
            return
        if self._agree(trainer, time.monotonic() - self._begun_s >= self._max_s):
            self._checkpoints.save(trainer)  # before a validation that no other run would make
            trainer.should_stop = True

    def _stop_if_asked(self, trainer: lightning.Trainer) -> None:
        if not self._agree(trainer, self._watch.received is not None):
            return
        self._watch.stop_waiting()
        if self._checkpoints.is_whole:
            self._checkpoints.save(trainer)
        raise StopTraining

    def _agree(self, trainer: lightning.Trainer, is_wanted: bool) -> bool:
        """Return whether any rank wants it."""
        if trainer.world_size == 1:
            return is_wanted
        return bool(trainer.strategy.reduce_boolean_decision(is_wanted, all=False))
