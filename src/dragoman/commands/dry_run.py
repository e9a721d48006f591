"""How long a run will take: measured by its first steps."""

import time

import lightning
from lightning.pytorch.callbacks import Callback

from dragoman.data.sampler import TrainingLoader
from dragoman.settings import TrainingSettings
from dragoman.training.module import TransformerTraining
from dragoman.training.precision import find_device
from dragoman.training.startup import StartClock

_REHEARSED_STEPS = 4


def estimate_time(
    module: TransformerTraining,
    loader: TrainingLoader,
    training: TrainingSettings,
    precision: str,
    clock: StartClock,
) -> str:
    """Make a few updates, and return what all would take; the first is the end of `clock`'s phases."""
    timer = _StepTimer(clock)
    trainer = lightning.Trainer(
        accelerator=find_device(training),
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_steps=1 + _REHEARSED_STEPS,
        max_epochs=-1,
        accumulate_grad_batches=training.accumulate,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[timer],
    )
    trainer.fit(module, train_dataloaders=loader)
    times_s = timer.times_s
    batch_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1)
    batches_an_epoch = len(loader)
    num_batches = training.max_steps * training.accumulate
    return (
        f"{batches_an_epoch:,} batches an epoch of at most {training.batch_tokens:,} tokens; "
        f"{training.max_steps:,} updates are {num_batches / batches_an_epoch:,.1f} epochs\n"
        f"estimated time: {batch_s * num_batches / 60:,.1f} minutes at {batch_s:.2f} s a batch, "
        "without validation"
        + (f"; stops after {training.max_minutes:g} minutes" if training.max_minutes else "")
    )


class _StepTimer(Callback):
    """Takes the time of each batch."""

    def __init__(self, clock: StartClock) -> None:
        self.times_s: list[float] = []
        self._clock: StartClock | None = clock

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if self._clock and trainer.global_step:
            self._clock.mark("first step")
            self._clock = None
        self.times_s.append(time.monotonic())
