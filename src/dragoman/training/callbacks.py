"""What happens beside the training: a live progress bar, and no advertisement."""

import logging
import time
import warnings

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from dragoman.training.module import TransformerTraining
from dragoman.training.startup import StartClock


class ProgressBar(Callback):
    """Shows updates done, loss, the last validation's score, target tokens a second, time left.

    Reads the loss a few times a second at most, so that it costs the training nothing.
    """

    def __init__(self, console: Console, monitor: str) -> None:
        self._monitor = monitor
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=2,
        )
        self._task = TaskID(0)
        self._next_look_s = 0.0
        self._tokens_seen = 0.0
        self._seen_at_s = 0.0
        self._tokens_per_s = 0.0

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Show the bar, on the first rank."""
        self._bar.disable = not trainer.is_global_zero
        self._task = self._bar.add_task(
            "training", total=trainer.max_steps, completed=trainer.global_step, figures=""
        )
        self._seen_at_s = time.monotonic()
        self._bar.start()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Bring the bar up to date, unless that was done just now."""
        now = time.monotonic()
        if now >= self._next_look_s:
            self._look(trainer, pl_module)
            self._next_look_s = now + 0.5

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Say that the model is being checked."""
        self._bar.update(self._task, description="checking")

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Say that it goes on; where no bar can be seen, as in a file, write a line."""
        self._tokens_seen, self._seen_at_s = 0.0, time.monotonic()
        self._bar.update(self._task, description="training")
        if trainer.is_global_zero and not self._bar.console.is_terminal:
            scores = trainer.callback_metrics
            told = ", ".join(
                f"{name} {scores[name]:.4g}"
                for name in ("train_loss", "valid_loss", self._monitor)
                if name in scores
            )
            self._bar.console.print(f"update {trainer.global_step:,}: {told}", highlight=False)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Leave the last state on the screen."""
        self._look(trainer, pl_module)
        self._bar.stop()

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        """Give the terminal back."""
        self._bar.stop()

    def _look(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TransformerTraining)
        loss = pl_module.train_metrics.mean_loss
        total, num_tokens = torch.stack((loss.total, loss.num_tokens.float())).tolist()
        figures = []
        if num_tokens:
            figures.append(f"loss {total / num_tokens:.3f}")
        score = trainer.callback_metrics.get(self._monitor)
        if score is not None:
            figures.append(f"{self._monitor.removeprefix('valid_')} {score:.2f}")
        self._measure_speed(num_tokens)
        if self._tokens_per_s:
            figures.append(f"{self._tokens_per_s:,.0f} tokens/s")
        self._bar.update(self._task, completed=trainer.global_step, figures="  ".join(figures))

    def _measure_speed(self, num_tokens: float) -> None:
        """Take the rate since the last look, smoothed; validations are left out."""
        now = time.monotonic()
        if num_tokens > self._tokens_seen:
            rate = (num_tokens - self._tokens_seen) / max(1e-6, now - self._seen_at_s)
            self._tokens_per_s = (
                0.7 * self._tokens_per_s + 0.3 * rate if self._tokens_per_s else rate
            )
        self._tokens_seen, self._seen_at_s = num_tokens, now


class FirstUpdate(Callback):
    """Says how long it took to the first update, then leaves the Trainer's callbacks."""

    def __init__(self, clock: StartClock, console: Console) -> None:
        self._clock, self._console = clock, console
        self._first_step = 0

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Take note of the updates that a resumed run has behind it."""
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Say it after the batch that ends the first update."""
        if trainer.global_step > self._first_step:
            self._clock.mark("first update")
            if trainer.is_global_zero:
                told = f"first update after {self._clock.total_s:.1f} s"
                self._console.print(told, highlight=False)
            # A new list: Lightning is walking over the old one.
            trainer.callbacks = [other for other in trainer.callbacks if other is not self]  # type: ignore[attr-defined]


def hush_lightning() -> None:
    """Keep Lightning's banners ("GPU available: False", tips) off the terminal; warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A call of Lightning's own that torch 2.13 has deprecated (lightning 2.6.6).
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")
    # A rehearsal does not validate.
    warnings.filterwarnings("ignore", "You defined a `validation_step` but have no")
    # Our steps are counted over epochs: a short epoch loses no entry of the log.
    warnings.filterwarnings(
        "ignore", "The number of training batches .* is smaller than the logging"
    )
