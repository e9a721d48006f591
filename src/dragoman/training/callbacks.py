"""What is said beside the training: a warning, the first update, and no advertisement."""

import logging
import warnings
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from dragoman.errors import shorten
from dragoman.settings import Settings
from dragoman.training.collapse import CollapseWatch, find_patience, list_causes
from dragoman.training.module import TransformerTraining
from dragoman.training.startup import StartClock
from dragoman.training.texts import Texts


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
