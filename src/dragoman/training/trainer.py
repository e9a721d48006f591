"""Lightning's Trainer as the settings want it: checkpoints, early stopping, what is shown and kept."""

from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback

from dragoman.settings import Settings, TrainingSettings
from dragoman.training.averaging import average_weights
from dragoman.training.callbacks import SAMPLES_FILE, CollapseWarning, ProgressBar, SampleLog
from dragoman.training.checkpoints import AtomicCheckpointIO, Checkpoints
from dragoman.training.early_stopping import Patience
from dragoman.training.graceful_stop import GracefulStop
from dragoman.training.nonfinite import BrokenNumbers
from dragoman.training.precision import find_device
from dragoman.training.resume import RngAndMetricState
from dragoman.training.run_context import Surroundings
from dragoman.training.validation_metrics import Texts


def make_trainer(
    settings: Settings,
    precision: str,
    folder: Path,
    texts: Texts,
    checkpoints: Checkpoints,
    around: Surroundings,
) -> lightning.Trainer:
    """Return the Trainer of the resolved `settings`; samples go into `folder`.

    It has no loggers yet: some of them write at once, which is for who trains in earnest.

    Args:
        precision: Lightning's name of the number format.
        texts: Reads the ids of the pairs, for people.
    """
    training, optimization = settings.training, settings.optimization
    assert training.monitor != "auto"
    console = around.console
    monitor, mode = checkpoints.monitor, checkpoints.mode
    callbacks: list[Callback] = [
        RngAndMetricState(),
        ProgressBar(console, around.clock, checkpoints, training.max_minutes),
        SampleLog(folder / SAMPLES_FILE, texts),
        CollapseWarning(console, settings, texts),
        BrokenNumbers(console, settings),
        Patience(monitor, mode, training.patience),
        checkpoints,
        GracefulStop(around.watch, checkpoints, training.max_minutes),
    ]
    if optimization.average_decay:
        callbacks.insert(0, average_weights(optimization.average_decay))
    return lightning.Trainer(
        accelerator=find_device(training),
        devices=1,
        use_distributed_sampler=False,  # the loaders share out the batches themselves
        precision=precision,  # type: ignore[arg-type]
        max_steps=training.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=training.accumulate,
        gradient_clip_val=optimization.clip_norm or None,
        val_check_interval=training.valid_every * training.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        log_every_n_steps=_find_log_interval(training),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _find_log_interval(training: TrainingSettings) -> int:
    """Return the steps between two points of a curve: 50, fewer in a short run, for 100 points."""
    return max(1, min(50, training.valid_every, training.max_steps // 100))
