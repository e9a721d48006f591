"""How long a run will take: measured by its first updates."""

import time

import lightning
from lightning.pytorch.callbacks import Callback

from dragoman.data.sampler import TrainingLoader
from dragoman.settings import TrainingSettings
from dragoman.training.module import TransformerTraining
from dragoman.training.precision import find_device

_REHEARSED_STEPS = 4


def estimate_time(
    module: TransformerTraining, loader: TrainingLoader, training: TrainingSettings, precision: str
) -> str:
    """Make a few updates, the first of which does not count, and return what all would take."""
    timer = _StepTimer()
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
    """Takes the time of each update."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.times_s.append(time.monotonic())
