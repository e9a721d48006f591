"""Lightning's Trainer as the settings want it: checkpoints, logs, early stopping, the progress bar."""

from pathlib import Path

import lightning
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from dragoman.settings import Settings
from dragoman.training.averaging import average_weights
from dragoman.training.callbacks import ProgressBar
from dragoman.training.precision import find_device


def make_trainer(
    settings: Settings, precision: str, folder: Path, console: Console
) -> lightning.Trainer:
    """Return the Trainer of `settings`; checkpoints and logs go into `folder`.

    Args:
        precision: Lightning's name of the number format.
        console: Where progress is shown.
    """
    training, optimization = settings.training, settings.optimization
    monitor = f"valid_{training.monitor}"
    mode = "max" if training.monitor == "exact_match" else "min"
    checkpoints = folder / "checkpoints"
    callbacks: list[Callback] = [
        ModelCheckpoint(checkpoints, "best", monitor, mode=mode, enable_version_counter=False),
        ModelCheckpoint(
            checkpoints,
            "last",
            every_n_train_steps=training.valid_every,
            enable_version_counter=False,
        ),
        LearningRateMonitor("step"),
        ProgressBar(console, monitor),
    ]
    if optimization.average_decay:
        callbacks.insert(0, average_weights(optimization.average_decay))
    if training.patience:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=training.patience))
    return lightning.Trainer(
        accelerator=find_device(training),
        devices=1,
        use_distributed_sampler=False,  # the loaders share out the batches themselves
        precision=precision,  # type: ignore[arg-type]
        max_steps=training.max_steps,
        max_epochs=-1,
        max_time={"minutes": training.max_minutes} if training.max_minutes else None,  # type: ignore[dict-item]
        accumulate_grad_batches=training.accumulate,
        gradient_clip_val=optimization.clip_norm or None,
        val_check_interval=training.valid_every * training.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=min(50, training.valid_every),
        logger=CSVLogger(folder, name="", version="logs"),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
