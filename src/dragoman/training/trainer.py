"""Lightning's Trainer for the settings, with callbacks: averaging, early stopping, skipped steps.

And the pace of a run, measured on its own batches, and the number of steps that fills a time limit.
"""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal

import lightning
import torch
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import Tensor, distributed
from torch.utils.data import DataLoader

from dragoman.configuration import merge_settings
from dragoman.data.dataset import Batch
from dragoman.errors import SettingsError, TrainingError, is_out_of_memory
from dragoman.model.loss import sum_losses
from dragoman.presets import limit_warmup
from dragoman.settings import Settings
from dragoman.training.callbacks import SAMPLES_FILE, CollapseWarning, ProgressBar, SampleLog
from dragoman.training.checkpoints import AtomicCheckpointIO, Checkpoints
from dragoman.training.datamodule import PairDataModule
from dragoman.training.device import explain_out_of_memory, find_device
from dragoman.training.graceful_stop import GracefulStop
from dragoman.training.module import Pairs, TransformerTraining, as_batch
from dragoman.training.ranks import Ranks, disarm
from dragoman.training.resume import EARLY_STOPPING, RngAndMetricState
from dragoman.training.run_context import RunContext, StartTimer, print_plain
from dragoman.training.validation_metrics import Texts

MOST_IN_A_ROW: Final = 5  # skipped steps, one after another, that end a training
_MOST_NAMED: Final = 5  # rows
_MOST_COMPUTED: Final = 256  # rows of a step whose loss is computed separately

# So many steps are measured, the first of which are slow: libraries prepare themselves.
_FEWEST_STEPS, _MOST_STEPS, _LONGEST_S = 6, 100, 15.0
_VALID_BATCHES = 5  # of all lengths

_SPARE = 0.05  # of the time: steps are not equally long, and machines are shared
_OTHER_S = 5.0  # for writing, exporting and the report
_VALID_SHARE = 0.1  # of the time goes into validations, unless they would be too few or many
_VALIDATIONS = (5, 40)


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
    callbacks: list[Callback] = [
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
        callbacks.insert(0, WeightAveraging(optimization.average_decay))
    options = {
        "max_steps": training.max_steps,
        "gradient_clip_val": optimization.clip_norm or None,
        "val_check_interval": training.valid_every * training.accumulate,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        # 50 steps between two points of a curve; fewer in a short run, for 100 points.
        "log_every_n_steps": max(1, min(50, training.valid_every, training.max_steps // 100)),
        "default_root_dir": folder,
    }
    return _make_trainer(settings, precision, context.ranks, callbacks, options)


def _make_trainer(
    settings: Settings,
    precision: str,
    ranks: Ranks,
    callbacks: list[Callback],
    options: Mapping[str, Any],
) -> lightning.Trainer:
    strategy, environment = ranks.choose_strategy()
    trainer = lightning.Trainer(
        accelerator=find_device(settings.training),
        strategy=strategy,
        devices=ranks.num_local,
        num_nodes=ranks.num_nodes,
        use_distributed_sampler=False,  # the loaders deal out the batches themselves
        precision=precision,  # type: ignore[arg-type]
        max_epochs=-1,
        accumulate_grad_batches=settings.training.accumulate,
        logger=False,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), environment],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    disarm(trainer)
    return trainer


class EarlyStopping(lightning_callbacks.EarlyStopping):
    """Lightning's early stopping; a resumed run takes its patience from the settings.

    `patience`: validations without a better score before the training stops; 0: never. NaN, such as an
    error rate over empty references, is no better score.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"], patience: int) -> None:
        super().__init__(monitor, mode=mode, patience=patience or sys.maxsize, check_finite=False)

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


class WeightAveraging(lightning_callbacks.WeightAveraging):
    """An exponential moving average of the weights, on the device of the model.

    Its decay is `decay` (in [0, 1)), but less in the first steps, (1 + n) / (10 + n) after n of
    them, so that the random start is soon forgotten. Lightning swaps the average in for
    validations, checkpoints, and at the end.
    Source: Morales-Brotons et al. 2024; the warm-up is that of TensorFlow's moving average.

    Lightning 2.6.6 makes the average before the model is moved to its device, so it would stay on the CPU
    and every step would copy all weights there. torch 2.13 reads the number of steps from the device
    three times a step; here it stays on the CPU.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False)
        self.decay = decay

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Move the average to the device of the model."""
        assert self._average_model is not None
        self._average_model.module.to(pl_module.device)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        """Move the average towards the weights, after a step."""
        if trainer.global_step <= self._latest_update_step:
            return
        self._latest_update_step = trainer.global_step
        average = self._average_model
        assert average is not None
        averaged = list[Tensor](average.module.parameters())
        current = list[Tensor](pl_module.parameters())
        if n := int(average.n_averaged):
            torch._foreach_lerp_(averaged, current, 1.0 - min(self.decay, (1 + n) / (10 + n)))
        else:
            torch._foreach_copy_(averaged, current)
        average.n_averaged += 1


class NonFiniteSteps(Callback):
    """Reports each step that the module has skipped, with its rows; ends the run after a few."""

    def __init__(self, console: Console) -> None:
        self.num_skipped = 0  # in all
        self._console = console
        self._batches: list[Batch] = []  # of the current step
        self._step = 0

    def on_train_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Note the steps that a resumed run has done."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: Pairs,
        batch_idx: int,
    ) -> None:
        """Report the step if it was skipped.

        Raises: TrainingError, when too many in a row were skipped.
        """
        assert isinstance(pl_module, TransformerTraining)
        self._batches.append(as_batch(batch))
        if trainer.global_step == self._step:
            return
        self._step, batches, self._batches = trainer.global_step, self._batches, []
        if not pl_module.num_skipped:
            return
        self.num_skipped += 1
        rows = _name_nonfinite_rows(trainer, pl_module, batches)
        if trainer.world_size > 1:
            named: list[str] = [""] * trainer.world_size
            distributed.all_gather_object(named, rows)
            rows = "; ".join(f"rank {rank}: {one}" for rank, one in enumerate(named))
        message = (
            f"step {trainer.global_step:,} skipped: non-finite loss or gradient "
            f"({pl_module.num_skipped} in a row, {self.num_skipped} in all); {rows}"
        )
        if trainer.is_global_zero:
            print_plain(self._console, f"warning: {message}")
        elif pl_module.num_skipped >= MOST_IN_A_ROW:
            raise SystemExit(2)  # rank 0 says why
        if pl_module.num_skipped >= MOST_IN_A_ROW:
            optimization = pl_module.optimization
            rate, warmup_steps = optimization.learning_rate, optimization.warmup_steps
            raise TrainingError(
                f"{message}\nstopped after {MOST_IN_A_ROW} in a row. Usual causes, the likeliest "
                "first:\n"
                "  - the learning rate is too high, or the warm-up too short: "
                f"optimization.learning_rate {rate:g} (try {rate / 3:.2g}), "
                f"optimization.warmup_steps {warmup_steps}\n"
                "  - the precision is too low: training.precision 32-true\n"
                "  - rows of the data are wrong: those named above; see dragoman inspect\n"
                "Changing these needs a new run; the checkpoints of this one stay."
            )


def _name_nonfinite_rows(
    trainer: lightning.Trainer, module: TransformerTraining, batches: Sequence[Batch]
) -> str:
    """Name the rows with a non-finite loss; all rows if there is none."""
    network, was_training = module.network, module.network.training
    rows = [
        Batch(
            source_ids=batch.source_ids[i : i + 1],
            target_ids=batch.target_ids[i : i + 1],
            rows=None if batch.rows is None else batch.rows[i : i + 1],
        )
        for batch in batches
        for i in range(len(batch))
    ]
    network.eval()
    with torch.no_grad():
        found = [
            one
            for one in rows[:_MOST_COMPUTED]
            if not torch.isfinite(sum_losses(network, one.source_ids, one.target_ids).loss)
        ] or rows
    network.train(was_training)
    message, data = f"{len(found):,} rows", trainer.datamodule  # type: ignore[attr-defined]
    named = [one.rows for one in found[:_MOST_NAMED] if one.rows is not None]
    if named and isinstance(data, PairDataModule):
        names = [name for one in named for name in data.data.name_rows(one)]
        message += f": {', '.join(names)}{', …' if len(found) > len(named) else ''}"
    return message


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of the parts of a run."""

    step_s: float
    validation_s: float
    scoring_s: float  # of all held-out rows, at the end


def measure_pace(
    module: TransformerTraining,
    data_module: PairDataModule,
    settings: Settings,
    precision: str,
    *,
    ranks: Ranks,
    longest_s: float = _LONGEST_S,
    timer: StartTimer | None = None,
) -> Pace:
    """Train for some steps and validate some batches. It changes `module`: train another one.

    Args:
        longest_s: Seconds after which no further step is measured.
        timer: Its phase "first step" ends with the first step.

    Raises: TrainingError, when the memory is too small.
    """
    steps = _StepTimer(longest_s, timer)
    options = {"max_steps": _MOST_STEPS, "limit_val_batches": 0, "enable_checkpointing": False}
    trainer = _make_trainer(settings, precision, ranks, [steps], options)
    try:
        trainer.fit(module, train_dataloaders=data_module.train_dataloader())
        batches = list(data_module.val_dataloader())  # sorted by length
        chosen = batches[:: max(1, len(batches) // _VALID_BATCHES)]
        loader: DataLoader[Batch] = DataLoader(chosen, batch_size=None)  # type: ignore[arg-type]
        trainer.limit_val_batches = len(chosen)
        started_s = time.monotonic()
        trainer.validate(module, loader, verbose=False)
    except Exception as error:
        if is_out_of_memory(error):
            raise explain_out_of_memory(error, module.current_batch, settings) from error
        raise
    validation_s = (time.monotonic() - started_s) * len(batches) / len(chosen)
    steps_s = [after - before for before, after in pairwise(steps.times_s)]
    rows = data_module.num_rows
    # Rank 0 scores alone; on CPUs, with the cores of all ranks of its machine.
    num_shares = ranks.num_ranks if find_device(settings.training) == "cuda" else ranks.num_nodes
    num_decoded = module.decoded_fraction * rows["valid"]
    greedy_s = validation_s * num_shares * (rows["valid"] + rows["test"]) / num_decoded
    return Pace(
        step_s=fmean(steps_s[len(steps_s) // 2 :]),
        validation_s=validation_s,
        scoring_s=settings.decoding.num_candidates * greedy_s,
    )


class _StepTimer(Callback):
    """Notes the time after each step, marks the first, and stops once enough have been timed."""

    def __init__(self, longest_s: float, timer: StartTimer | None) -> None:
        self.times_s: list[float] = []
        self._longest_s, self._timer = longest_s, timer

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == len(self.times_s):
            return  # the step has more batches
        self.times_s.append(time.monotonic())
        if len(self.times_s) == 1 and self._timer is not None:
            self._timer.mark("first step")
        spent_s = self.times_s[-1] - self.times_s[0]
        is_enough = spent_s > self._longest_s and len(self.times_s) >= _FEWEST_STEPS
        trainer.should_stop = trainer.strategy.broadcast(is_enough)  # all ranks at the same step


def plan_steps(
    settings: Settings, typed: Mapping[str, Any], pace: Pace, available_s: float
) -> Settings:
    """Return `settings` with as many steps as `available_s` allows, and validations among them.

    A schedule that ends at zero ends there: cut before its end, also by early stopping, a run loses
    most of what its last steps would gain. Values in `typed` (by dotted name) stay.

    Raises: SettingsError, when no time is left for the training.
    """
    train_s = (1.0 - _SPARE) * (available_s - pace.scoring_s - _OTHER_S)
    few, many = _VALIDATIONS
    num_validations = min(many, max(few, int(_VALID_SHARE * train_s / pace.validation_s)))
    step_s = pace.step_s
    if "training.valid_every" in typed:
        step_s += pace.validation_s / settings.training.valid_every
    else:
        train_s -= num_validations * pace.validation_s
    if train_s < step_s:
        raise SettingsError(
            f"training.max_minutes: {settings.training.max_minutes:g} leave no time for the "
            f"training: reading has taken its part, a validation takes {pace.validation_s:.0f} s, "
            f"and the scores at the end {pace.scoring_s:.0f} s"
        )
    max_steps = int(train_s / step_s)
    planned = {
        "training.max_steps": max_steps,
        "training.valid_every": math.ceil(max_steps / num_validations),
        "training.patience": 0,
        "optimization.warmup_steps": limit_warmup(settings, max_steps),
    }
    changes = {name: value for name, value in planned.items() if name not in typed}
    return merge_settings(settings, changes, overrule=True)
