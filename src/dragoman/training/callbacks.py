"""What a training shows: the progress bar, a warning, the time to the first step."""

import logging
import time
import warnings
from contextlib import suppress
from datetime import timedelta
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dragoman.errors import shorten
from dragoman.settings import Settings
from dragoman.training.checkpoints import Checkpoints
from dragoman.training.collapse import CollapseWatch, find_patience, list_causes
from dragoman.training.module import TransformerTraining
from dragoman.training.startup import StartClock
from dragoman.training.texts import Texts

_WIDE = 110  # columns of a terminal in which a bar fits beside the numbers


class ProgressBar(Callback):
    """Shows steps, loss, monitored score, speed and time left; a line per validation without a terminal.

    Lightning's own bar (2.6.6) counts the batches of one epoch, waits for the device after every
    micro-batch and replaces rich's global console. This one counts steps and reads twice a second.

    Args:
        max_minutes: Time limit of the training; 0: none.
    """

    def __init__(
        self, console: Console, checkpoints: Checkpoints, max_minutes: float = 0.0
    ) -> None:
        self._console, self._checkpoints = console, checkpoints
        self._max_s = 60.0 * max_minutes
        self._is_wide = console.width >= _WIDE
        bar = (TextColumn("{task.description}", style="bold"), BarColumn(bar_width=None))
        self._bar = Progress(
            *(bar if self._is_wide else ()),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TextColumn("{task.fields[left]}", style="cyan", markup=False),
            console=console,
            refresh_per_second=2,
        )
        self._task = self._bar.add_task("training", total=None, numbers="", left="")
        self._first_step = 0
        self._started_s = self._next_update_s = 0.0

    def on_train_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Show the bar, on the first rank."""
        self._first_step, self._started_s = trainer.global_step, time.monotonic()
        self._bar.disable = not (trainer.is_global_zero and self._console.is_terminal)
        self._bar.reset(self._task, total=trainer.max_steps, completed=self._first_step)
        self._bar.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Update the bar, at most twice a second: reading the loss waits for the device."""
        if not self._bar.disable and (now_s := time.monotonic()) >= self._next_update_s:
            self._update(trainer)
            self._next_update_s = now_s + 0.5

    def on_validation_start(self, *_: object) -> None:
        """Show that a validation runs."""
        self._bar.update(self._task, description="validating")

    def on_validation_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Print the scores where there is no bar, as in a file."""
        self._bar.update(self._task, description="training")
        if trainer.sanity_checking or not trainer.is_global_zero or self._console.is_terminal:
            return
        scores, monitor = trainer.callback_metrics, self._checkpoints.monitor
        shown = [
            f"{name} {scores[name]:.4g}"
            for name in ("train_loss", "valid_loss", monitor)
            if name in scores
        ]
        best = f" ({self._describe_best(trainer)})" if monitor in scores else ""
        self._console.print(
            f"step {trainer.global_step:,}: {', '.join(shown)}{best}",
            highlight=False,
            soft_wrap=True,
        )

    def on_train_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Leave the last state on the screen."""
        self._update(trainer)
        self._bar.stop()

    def on_exception(self, *_: object) -> None:
        """Give the terminal back, if it is still there."""
        with suppress(OSError, SystemExit):  # rich raises SystemExit where nobody reads
            self._bar.stop()

    def _update(self, trainer: lightning.Trainer) -> None:
        module, scores = trainer.lightning_module, trainer.callback_metrics
        assert isinstance(module, TransformerTraining)
        numbers = []
        if trainer.global_step > self._first_step:
            numbers.append(f"loss {float(module.step_loss):.3f}")
        if (score := scores.get(self._checkpoints.monitor)) is not None:
            name = self._checkpoints.monitor.removeprefix("valid_")
            numbers.append(f"{name} {float(score):.2f} ({self._describe_best(trainer)})")
        if trainer.global_step > self._first_step:
            speed = scores.get("tokens_per_s")
            numbers.append(
                f"{float(module.measure_speed() if speed is None else speed):,.0f} tokens/s"
            )
        self._bar.update(
            self._task,
            completed=trainer.global_step,
            numbers="  ".join(numbers),
            left=self._estimate_time_left(trainer),
        )

    def _describe_best(self, trainer: lightning.Trainer) -> str:
        """Return how the last score compares; `Checkpoints` may not have seen it yet."""
        checkpoints, step = self._checkpoints, trainer.global_step
        score = float(trainer.callback_metrics[checkpoints.monitor])
        is_best = checkpoints.is_better(score)
        if not self._is_wide and self._console.is_terminal:
            return f"best {score if is_best else checkpoints.best_score:.2f}"
        if is_best or checkpoints.best_step in (-1, step):
            return "the best so far"
        return f"best {checkpoints.best_score:.4g} at {checkpoints.best_step:,}"

    def _estimate_time_left(self, trainer: lightning.Trainer) -> str:
        """Return the time left, validations included, by the speed so far and the time limit."""
        spent_s, done = time.monotonic() - self._started_s, trainer.global_step - self._first_step
        if done <= 0:
            return ""
        left_s = spent_s / done * (trainer.max_steps - trainer.global_step)
        if self._max_s:
            left_s = min(left_s, max(0.0, self._max_s - spent_s))
        return f"{timedelta(seconds=round(left_s))}{' left' if self._is_wide else ''}"


class CollapseWarning(Callback):
    """Says, once an episode, that outputs have become all alike, empty or endless, and why."""

    def __init__(self, console: Console, settings: Settings, texts: Texts | None = None) -> None:
        self._console, self._settings, self._texts = console, settings, texts
        self._watch = CollapseWatch(find_patience(settings))
        self._loss = 0.0  # of the training, when it was last told

    def state_dict(self) -> dict[str, Any]:
        """Return what the watch has seen."""
        return self._watch.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._watch.load_state_dict(state_dict)

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Look at the outputs of the validation; one outside of the fit is the last."""
        if not trainer.sanity_checking:
            self._look(trainer, pl_module, is_last=trainer.state.fn != TrainerFn.FITTING)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Look once more, where the last update has been validated: nothing better will come."""
        self._loss = float(trainer.callback_metrics.get("train_loss", 0.0))
        assert isinstance(pl_module, TransformerTraining)
        if pl_module.validated_step == trainer.global_step:
            self._look(trainer, pl_module, is_last=True)

    def _look(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, *, is_last: bool
    ) -> None:
        assert isinstance(module, TransformerTraining)
        outputs, step = module.outputs, trainer.global_step
        if outputs is None or not self._watch.see(outputs, step, is_last=is_last):
            return
        if not trainer.is_global_zero:
            return
        lines = [f"warning: update {step:,}: {fault}" for fault in outputs.describe()]
        if module.decoded_rows:
            lines.append(f"  for example: {self._tell_row(module)}")
        loss = float(trainer.callback_metrics.get("train_loss", self._loss))
        causes = list_causes(self._settings, step, was_sound=self._watch.was_sound, loss=loss)
        lines += ["  usual causes, the likeliest first:", *(f"  - {cause}" for cause in causes)]
        for line in lines:
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _tell_row(self, module: TransformerTraining) -> str:
        row = module.decoded_rows[len(module.decoded_rows) // 2]
        if self._texts is None:
            return f"{row.source} -> {list(row.hypothesis)}, reference {row.reference}"
        texts = self._texts
        source, output = texts.read_source(row.source), texts.read_output(row.hypothesis)
        told = [shorten(text) for text in (source, output, texts.read_reference(row.reference))]
        return "{!r} -> {!r}, reference {!r}".format(*told)


class FirstStep(Callback):
    """Prints the time to the first step, then leaves the Trainer's callbacks."""

    def __init__(self, clock: StartClock, console: Console) -> None:
        self._clock, self._console = clock, console
        self._first_step = 0

    def on_train_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Note the steps that a resumed run has done."""
        self._first_step = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Print it after the batch that ends the first step."""
        if trainer.global_step == self._first_step:
            return
        self._clock.mark("first step")
        if trainer.is_global_zero:
            self._console.print(f"first step after {self._clock.total_s:.1f} s", highlight=False)
        # A new list: Lightning is iterating over the old one.
        trainer.callbacks = [other for other in trainer.callbacks if other is not self]  # type: ignore[attr-defined]


def hush_lightning() -> None:
    """Keep Lightning's banners ("GPU available: False", tips) off the terminal; warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A call of Lightning's own that torch 2.13 has deprecated (lightning 2.6.6).
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")
    # A rehearsal does not validate.
    warnings.filterwarnings("ignore", "You defined a `validation_step` but have no")
    # A checkpoint of an older version holds states of callbacks that are gone.
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used to")
    # Our steps are counted over epochs: a short epoch loses no entry of the log.
    warnings.filterwarnings(
        "ignore", "The number of training batches .* is smaller than the logging"
    )
