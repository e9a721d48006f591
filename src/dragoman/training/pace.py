"""How long a run takes, measured on its own batches, and the number of steps that fills a time limit."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from dragoman.configuration import merge_settings
from dragoman.data.dataset import Batch
from dragoman.errors import SettingsError, is_out_of_memory
from dragoman.presets import limit_warmup
from dragoman.settings import Settings
from dragoman.training.datamodule import PairDataModule
from dragoman.training.device import explain_out_of_memory, find_device
from dragoman.training.module import TransformerTraining
from dragoman.training.ranks import Ranks, disarm
from dragoman.training.run_context import StartTimer

# So many steps are measured, the first of which are slow: libraries prepare themselves.
_FEWEST_STEPS, _MOST_STEPS, _LONGEST_S = 6, 100, 15.0
_VALID_BATCHES = 5  # of all lengths

_SPARE = 0.05  # of the time: steps are not equally long, and machines are shared
_OTHER_S = 5.0  # for writing, exporting and the report
_VALID_SHARE = 0.1  # of the time goes into validations, unless they would be too few or many
_VALIDATIONS = (5, 40)


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
    strategy, environment = ranks.choose_strategy()
    trainer = lightning.Trainer(
        accelerator=find_device(settings.training),
        strategy=strategy,
        devices=ranks.num_local,
        num_nodes=ranks.num_nodes,
        use_distributed_sampler=False,
        precision=precision,  # type: ignore[arg-type]
        max_steps=_MOST_STEPS,
        max_epochs=-1,
        accumulate_grad_batches=settings.training.accumulate,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[steps],
        plugins=[environment],
    )
    disarm(trainer)
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
    num_decoded = module.decoded_fraction * rows["valid"]
    return Pace(
        step_s=fmean(steps_s[len(steps_s) // 2 :]),
        validation_s=validation_s,
        scoring_s=settings.decoding.num_candidates
        * validation_s  # greedy
        * (rows["valid"] + rows["test"])
        / num_decoded,
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
