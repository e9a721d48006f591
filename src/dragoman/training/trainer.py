"""Lightning's Trainer for the settings, with its callbacks: averaging, early stopping, and others."""

import sys
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch import callbacks as lightning_callbacks
from torch import Tensor

from dragoman.settings import Settings
from dragoman.training.callbacks import SAMPLES_FILE, CollapseWarning, ProgressBar, SampleLog
from dragoman.training.checkpoints import AtomicCheckpointIO, Checkpoints
from dragoman.training.device import find_device
from dragoman.training.graceful_stop import GracefulStop
from dragoman.training.nonfinite import NonFiniteSteps
from dragoman.training.ranks import disarm
from dragoman.training.resume import EARLY_STOPPING, RngAndMetricState
from dragoman.training.run_context import RunContext
from dragoman.training.validation_metrics import Texts


def make_trainer(
    settings: Settings,
    precision: str,
    folder: Path,
    texts: Texts,
    checkpoints: Checkpoints,
    context: RunContext,
) -> lightning.Trainer:
    """Return the Trainer of the resolved `settings`; samples go into `folder`.

    It has no loggers yet: some of them write files as soon as they are made.
    """
    training, optimization, console = settings.training, settings.optimization, context.console
    end_s = None
    if training.max_minutes:  # from the start of the run, not of the training
        end_s = context.timer.started_s + 60.0 * training.max_minutes
    callbacks: list[lightning_callbacks.Callback] = [
        RngAndMetricState(),
        ProgressBar(console, context.timer, checkpoints, end_s),
        SampleLog(folder / SAMPLES_FILE, texts),
        CollapseWarning(console, settings, texts),
        NonFiniteSteps(console),
        EarlyStopping(checkpoints.monitor, checkpoints.mode, training.patience),
        checkpoints,
        GracefulStop(context.signals, checkpoints, end_s),
    ]
    if optimization.average_decay:
        callbacks.insert(0, average_weights(optimization.average_decay))
    strategy, environment = context.ranks.choose_strategy()
    trainer = lightning.Trainer(
        accelerator=find_device(training),
        strategy=strategy,
        devices=context.ranks.num_local,
        num_nodes=context.ranks.num_nodes,
        use_distributed_sampler=False,  # the loaders deal out the batches themselves
        precision=precision,  # type: ignore[arg-type]
        max_steps=training.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=training.accumulate,
        gradient_clip_val=optimization.clip_norm or None,
        val_check_interval=training.valid_every * training.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        # 50 steps between two points of a curve; fewer in a short run, for 100 points.
        log_every_n_steps=max(1, min(50, training.valid_every, training.max_steps // 100)),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), environment],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    disarm(trainer)
    return trainer


class EarlyStopping(lightning_callbacks.EarlyStopping):
    """Lightning's early stopping; a resumed run takes its patience from the settings.

    `patience`: validations without a better score before the training stops; 0: never.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"], patience: int) -> None:
        super().__init__(monitor, mode=mode, patience=patience or sys.maxsize)

    @property
    def state_key(self) -> str:
        """The name of this callback's state, in every checkpoint."""
        return EARLY_STOPPING

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, except the patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Stop at once if the patience had run out before."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def average_weights(decay: float) -> lightning_callbacks.WeightAveraging:
    """Return the callback that keeps an exponential moving average of the weights.

    Its decay is `decay` (in [0, 1)), but less in the first steps, (1 + n) / (10 + n) after n of
    them, so that the random start is soon forgotten. Lightning swaps the average in for
    validations, checkpoints, and at the end.
    Source: Morales-Brotons et al. 2024; the warm-up is that of TensorFlow's moving average.
    """
    return lightning_callbacks.WeightAveraging(use_buffers=False, multi_avg_fn=_Average(decay))


class _Average:
    """The step of the average; a class, because spawned processes pickle it."""

    def __init__(self, decay: float) -> None:
        self._decay = decay

    @torch.no_grad()
    def __call__(self, averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1.0 - min(self._decay, (1 + n) / (10 + n)))
