"""Lightning's Trainer as the settings want it: checkpoints, early stopping, what is shown and kept."""

from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from rich.console import Console

from dragoman.settings import Settings, TrainingSettings
from dragoman.training.averaging import average_weights
from dragoman.training.callbacks import CollapseWarning
from dragoman.training.precision import find_device
from dragoman.training.progress import ProgressBar
from dragoman.training.samples import SAMPLES_FILE, SampleLog
from dragoman.training.texts import Texts
from dragoman.training.update_log import UpdateLog


def make_trainer(
    settings: Settings, precision: str, folder: Path, console: Console, texts: Texts
) -> lightning.Trainer:
    """Return the Trainer of the resolved `settings`; checkpoints and samples go into `folder`.

    It has no loggers yet: some of them write at once, which is for who trains in earnest.

    Args:
        precision: Lightning's name of the number format.
        console: Where progress is shown.
        texts: Reads the ids of the pairs, for people.
    """
    training, optimization = settings.training, settings.optimization
    assert training.monitor != "auto"
    monitor, mode = f"valid_{training.monitor}", training.monitor_mode
    checkpoints = folder / "checkpoints"
    callbacks: list[Callback] = [
        ModelCheckpoint(checkpoints, "best", monitor, mode=mode, enable_version_counter=False),
        ModelCheckpoint(
            checkpoints,
            "last",
            every_n_train_steps=training.valid_every,
            enable_version_counter=False,
        ),
        UpdateLog(_find_interval(training), settings),
        ProgressBar(console, monitor, mode, training.max_minutes),
        SampleLog(folder / SAMPLES_FILE, texts),
        CollapseWarning(console, settings, texts),
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
        logger=False,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _find_interval(training: TrainingSettings) -> int:
    """Return the updates between two points of a curve: 50, or less in a short run, for 100 points."""
    return max(1, min(50, training.valid_every, training.max_steps // 100))
