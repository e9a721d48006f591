"""How far the training is: a live bar for people."""

import time
from contextlib import suppress
from datetime import timedelta
from typing import Any, Literal

import lightning
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dragoman.training.meter import Metered, as_training

_WIDE = 110  # columns of a terminal in which a bar has room beside the figures


class ProgressBar(Metered):
    """Shows updates done, loss, the monitored score and its best, target tokens a second, time left.

    Reads the loss a few times a second at most, so that it costs the training nothing.

    Args:
        monitor: Name of the score as it is logged.
        max_minutes: Limit of the training; 0: none.
    """

    def __init__(
        self,
        console: Console,
        monitor: str,
        mode: Literal["min", "max"],
        max_minutes: float = 0.0,
    ) -> None:
        super().__init__()
        self._monitor, self._mode, self._max_minutes = monitor, mode, max_minutes
        self._is_wide = console.width >= _WIDE
        shape = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=None))
        self._bar = Progress(
            *(shape if self._is_wide else ()),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TextColumn("[cyan]{task.fields[left]}"),
            console=console,
            refresh_per_second=2,
        )
        self._task = self._bar.add_task("training", total=None, figures="", left="")
        self._next_look_s = self._begun_s = 0.0
        self._first_step = 0
        self._loss = self._tokens_per_s = 0.0  # smoothed
        self._best: tuple[float, int] | None = None  # score, updates done

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the meter, and the best score."""
        return {**super().state_dict(), "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._best = state_dict["best"]

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Show the bar, on the first rank."""
        self._bar.disable = not trainer.is_global_zero
        self._first_step, self._begun_s = trainer.global_step, time.monotonic()
        self._bar.reset(self._task, total=trainer.max_steps, completed=self._first_step)
        super().on_train_start(trainer, pl_module)
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
        super().on_validation_start(trainer, pl_module)
        self._bar.update(self._task, description="checking")

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Say that it goes on; where no bar can be seen, as in a file, write a line."""
        super().on_validation_end(trainer, pl_module)
        self._bar.update(self._task, description="training")
        scores = trainer.callback_metrics
        if self._monitor in scores and not trainer.sanity_checking:
            self._compare(float(scores[self._monitor]), trainer.global_step)
        if trainer.is_global_zero and not self._bar.console.is_terminal:
            told = ", ".join(
                f"{name} {scores[name]:.4g}"
                for name in ("train_loss", "valid_loss", self._monitor)
                if name in scores
            )
            best = f" ({self._tell_best(trainer.global_step)})" if self._best else ""
            self._bar.console.print(
                f"update {trainer.global_step:,}: {told}{best}", highlight=False, soft_wrap=True
            )

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
        """Give the terminal back, if it is still there."""
        with suppress(OSError, SystemExit):
            self._bar.stop()

    def _look(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        figures = []
        if (found := self.meter.read(as_training(pl_module))) is not None:
            keep = 0.7 if self._tokens_per_s else 0.0
            self._loss = keep * self._loss + (1 - keep) * found[0]
            speed = found[1] * trainer.world_size
            self._tokens_per_s = keep * self._tokens_per_s + (1 - keep) * speed
        if self._tokens_per_s:
            figures.append(f"loss {self._loss:.3f}")
        score = trainer.callback_metrics.get(self._monitor)
        if score is not None and self._best:
            named = f"{self._monitor.removeprefix('valid_')} {float(score):.2f}"
            told = self._tell_best(trainer.global_step)
            figures.append(f"{named} ({told if self._is_wide else f'best {self._best[0]:.2f}'})")
        if self._tokens_per_s:
            figures.append(f"{self._tokens_per_s:,.0f} tokens/s")
        self._bar.update(
            self._task,
            completed=trainer.global_step,
            figures="  ".join(figures),
            left=self._tell_left(trainer),
        )

    def _compare(self, score: float, step: int) -> None:
        """Keep the better of this score and the best one."""
        sign = 1.0 if self._mode == "max" else -1.0
        if self._best is None or sign * score > sign * self._best[0]:
            self._best = (score, step)

    def _tell_best(self, step: int) -> str:
        assert self._best is not None
        score, at = self._best
        return "the best so far" if at == step else f"best {score:.4g} at {at:,}"

    def _tell_left(self, trainer: lightning.Trainer) -> str:
        """Return the time left, validations included: by the pace until now, and by the limit."""
        spent_s, done = time.monotonic() - self._begun_s, trainer.global_step - self._first_step
        if done <= 0:
            return ""
        left_s = spent_s / done * (trainer.max_steps - trainer.global_step)
        if self._max_minutes:
            left_s = min(left_s, max(0.0, 60 * self._max_minutes - spent_s))
        return f"{timedelta(seconds=round(left_s))}{' left' if self._is_wide else ''}"
