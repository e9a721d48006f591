"""What a training shows: the progress bar, samples, a warning of collapse, the time to the first step."""

import json
import logging
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dragoman.errors import shorten
from dragoman.settings import Settings
from dragoman.storage import staged_file
from dragoman.training.checkpoints import Checkpoints
from dragoman.training.module import TransformerTraining
from dragoman.training.run_context import LINE_EVERY_S, StartTimer, print_plain
from dragoman.training.validation_metrics import DecodedRow, Texts

SAMPLES_FILE = "samples.jsonl"
NUM_SAMPLES = 10

_FEWEST_ROWS: Final = 16  # fewer say nothing about a collapse
_COLD_STEPS, _TIMED_STEPS = 10, 40  # the first are slow
_BRIEF_S = 60.0  # nobody asks how long a shorter run takes


class ProgressBar(Callback):
    """Shows steps, loss, speed and time left, and a line per validation, which stays.

    Without a terminal, a line every `LINE_EVERY_S` seconds instead of the bar.

    Lightning's own bar (2.6.6) counts the batches of one epoch, waits for the device after every
    micro-batch and replaces rich's global console. This one counts steps and reads twice a second.

    Args:
        timer: Its phases end with the first step, which is reported.
        end_s: When the time limit ends, on `time.monotonic`; None: no limit.
    """

    def __init__(
        self, console: Console, timer: StartTimer, checkpoints: Checkpoints, end_s: float | None
    ) -> None:
        self._console, self._timer, self._checkpoints = console, timer, checkpoints
        self._end_s = end_s
        self._bar = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TextColumn("{task.fields[left]}", style="cyan", markup=False),
            console=console,
            refresh_per_second=2,
        )
        self._task = self._bar.add_task("training", total=None, numbers="", left="")
        self._first_step, self._numbers = 0, ""
        self._started_s = self._next_update_s = self._warm_s = 0.0

    def on_train_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Show the bar, on the first rank."""
        self._first_step, self._started_s = trainer.global_step, time.monotonic()
        self._bar.disable = not (trainer.is_global_zero and self._console.is_terminal)
        self._bar.reset(self._task, total=trainer.max_steps, completed=self._first_step)
        self._bar.start()
        self._next_update_s = self._started_s + self._interval_s

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Report the first step; update the bar, but not at every step: it waits for the device."""
        if "first step" not in self._timer.phases and trainer.global_step > self._first_step:
            self._timer.mark("first step")
            if trainer.is_global_zero:
                print_plain(self._console, f"first step after {self._timer.total_s:.1f} s")
        done = trainer.global_step - self._first_step
        if done == _COLD_STEPS:
            self._warm_s = time.monotonic()
        elif done == _TIMED_STEPS and self._warm_s:
            # Nobody has limited the time: say how long the run will take, once.
            step_s = (time.monotonic() - self._warm_s) / (_TIMED_STEPS - _COLD_STEPS)
            left_s = step_s * (trainer.max_steps - trainer.global_step)
            self._warm_s = 0.0  # also where a step has several batches
            if left_s > _BRIEF_S and not self._end_s and trainer.is_global_zero:
                self._print(
                    f"about {left_s / 60:,.0f} minutes for {trainer.max_steps:,} steps, and the "
                    "validations; --max-time plans fewer or more"
                )
        if trainer.is_global_zero and time.monotonic() >= self._next_update_s:
            self._update(trainer)
            if self._bar.disable:
                step, last = trainer.global_step, trainer.max_steps
                self._print(f"step {step:,} of {last:,}: {self._numbers}")

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Print a line now and then in a long validation without a bar."""
        is_due = time.monotonic() >= self._next_update_s
        if trainer.is_global_zero and self._bar.disable and is_due:
            self._print(f"validating after step {trainer.global_step:,}")

    def on_validation_start(self, *_: object) -> None:
        """Show that a validation runs."""
        self._bar.update(self._task, description="validating")

    def on_validation_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Print the scores, above the bar if there is one."""
        self._bar.update(self._task, description="training")
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        step, scores, checkpoints = trainer.global_step, trainer.callback_metrics, self._checkpoints
        names = dict.fromkeys(("train_loss", "valid_loss", checkpoints.monitor))
        shown = ", ".join(f"{name} {scores[name]:.4g}" for name in names if name in scores)
        if (score := scores.get(checkpoints.monitor)) is not None:
            # `checkpoints` may not have seen it yet.
            is_best = checkpoints.is_better(float(score)) or checkpoints.best_step in (-1, step)
            earlier = f"best {checkpoints.best_score:.4g} at {checkpoints.best_step:,}"
            shown += f" ({'the best so far' if is_best else earlier})"
        self._print(f"step {step:,}: {shown}")

    def on_train_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Leave the last state on the screen."""
        self._update(trainer)
        self._bar.stop()

    def on_exception(self, *_: object) -> None:
        """Give the terminal back, if it is still there."""
        with suppress(OSError, SystemExit):  # rich raises SystemExit where nobody reads
            self._bar.stop()

    @property
    def _interval_s(self) -> float:
        return LINE_EVERY_S if self._bar.disable else 0.5

    def _print(self, line: str) -> None:
        print_plain(self._console, line)
        self._next_update_s = time.monotonic() + self._interval_s

    def _update(self, trainer: lightning.Trainer) -> None:
        module, left = _as_training(trainer), ""
        if (done := trainer.global_step - self._first_step) > 0:
            speed = trainer.callback_metrics.get("tokens_per_s", module.measure_speed())
            self._numbers = f"loss {float(module.step_loss):.3f}  {float(speed):,.0f} tokens/s"
            now_s = time.monotonic()
            step_s = (now_s - self._started_s) / done  # validations included
            left_s = step_s * (trainer.max_steps - trainer.global_step)
            if self._end_s:
                left_s = min(left_s, max(0.0, self._end_s - now_s))
            left = f"{timedelta(seconds=round(left_s))} left"
            if self._bar.disable:
                self._numbers += f"  {left}"
        self._bar.update(
            self._task, completed=trainer.global_step, numbers=self._numbers, left=left
        )
        self._next_update_s = time.monotonic() + self._interval_s


class SampleLog(Callback):
    """Appends samples to a JSONL file (step, source, reference, prediction), and to loggers of text.

    The same rows each time, evenly spread over the lengths of the sources. They cost nothing: the
    validation has decoded them anyway.

    `path`: the file; its folder must exist when the first validation ends.
    """

    def __init__(self, path: Path, texts: Texts) -> None:
        self._path, self._texts = path, texts

    def on_validation_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Write the samples, on the first rank."""
        rows = _as_training(trainer).decoded_rows
        if trainer.sanity_checking or not trainer.is_global_zero or not rows:
            return
        step, texts = trainer.global_step, self._texts
        samples = [
            {
                "source": texts.read_source(row.source),
                "reference": texts.read_reference(row.reference),
                "prediction": texts.read_output(row.hypothesis),
            }
            for row in choose_spread(rows)
        ]
        lines = [json.dumps({"step": step, **sample}, ensure_ascii=False) for sample in samples]
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
        except OSError as error:  # a full disk does not end the training
            rank_zero_warn(f"{self._path}: the samples cannot be written: {error.strerror}")
        for logger in trainer.loggers:
            _log_text(logger, samples, max(0, step - 1))  # Lightning counts steps from 0


def truncate_samples(path: Path, step: int) -> None:
    """Keep only the samples of the first `step` steps; the resumed run writes the others."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        with suppress(ValueError, KeyError, TypeError):  # a line that a crash has truncated
            if int(json.loads(line)["step"]) <= step:
                kept.append(line)
    with staged_file(path) as partial:
        partial.write_text("".join(kept), "utf-8")


def choose_spread(rows: Sequence[DecodedRow]) -> list[DecodedRow]:
    """Return `NUM_SAMPLES` rows, or all if there are fewer, spread over the source lengths."""
    by_length = sorted(rows, key=lambda row: len(row.source))
    count = min(NUM_SAMPLES, len(rows))
    return [by_length[place * (len(rows) - 1) // max(1, count - 1)] for place in range(count)]


def _log_text(logger: Logger, samples: Sequence[dict[str, str]], step: int) -> None:
    """Log the samples as a table (Wandb) or as Markdown (TensorBoard), if the logger takes text."""
    columns = list(samples[0])
    rows = [list(sample.values()) for sample in samples]
    if log_text := getattr(logger, "log_text", None):
        log_text("samples", columns=columns, data=rows, step=step)
    elif add_text := getattr(getattr(logger, "experiment", None), "add_text", None):
        escapes = str.maketrans({"\\": "\\\\", "|": "\\|", "\n": " "})
        lines = [columns, ["---"] * len(columns), *rows]
        table = [f"| {' | '.join(cell.translate(escapes) for cell in line)} |" for line in lines]
        add_text("samples", "\n".join(table), step)


class CollapseWarning(Callback):
    """Warns once a process if the outputs have become all alike, empty, endless or repetitive.

    Outputs of an untrained model are so, too. So the warning needs outputs that were fine before,
    three such validations in a row after the warm-up, or the end of the training.
    """

    def __init__(self, console: Console, settings: Settings, texts: Texts) -> None:
        self._console, self._optimization, self._texts = console, settings.optimization, texts
        # Steps until which any outputs are normal.
        warmup_steps, max_steps = settings.optimization.warmup_steps, settings.training.max_steps
        self._patient_until = max(3 * warmup_steps, max_steps // 10)
        self._was_sound = self._has_warned = False
        self._num_collapsed = 0  # validations in a row

    def on_validation_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Check the outputs of the validation; one outside of the fit is the last."""
        if not trainer.sanity_checking:
            self._check(trainer, is_last=trainer.state.fn != TrainerFn.FITTING)

    def on_train_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Check once more if the last step has been validated."""
        if _as_training(trainer).validated_step == trainer.global_step:
            self._check(trainer, is_last=True)

    def see(self, fault: str, step: int, *, is_last: bool = False) -> bool:
        """Take the result of `describe_collapse` after `step` steps; return whether to warn."""
        is_early = step < self._patient_until
        if not fault:
            self._num_collapsed = 0
            self._was_sound = self._was_sound or not is_early
            return False
        self._num_collapsed += 1
        is_due = is_last or self._was_sound or (self._num_collapsed >= 3 and not is_early)
        warns = is_due and not self._has_warned
        self._has_warned = self._has_warned or warns
        return warns

    def _check(self, trainer: lightning.Trainer, *, is_last: bool) -> None:
        rows, step = _as_training(trainer).decoded_rows, trainer.global_step
        fault = describe_collapse(rows)
        if not self.see(fault, step, is_last=is_last) or not trainer.is_global_zero:
            return
        row, rate = rows[len(rows) // 2], self._optimization.learning_rate
        source = shorten(self._texts.read_source(row.source))
        output = shorten(self._texts.read_output(row.hypothesis))
        reference = shorten(self._texts.read_reference(row.reference))
        print_plain(
            self._console,
            f"warning: step {step:,}: {fault}\n"
            f"  for example: {source!r} -> {output!r}, reference {reference!r}\n"
            f"  usual causes: too high a learning rate or too short a warm-up "
            f"(optimization.learning_rate {rate:g}, try {rate / 3:.2g}; optimization.warmup_steps "
            f"{self._optimization.warmup_steps}); targets that do not depend on their sources "
            "(swapped columns, shifted lines: see dragoman inspect); too few steps so far",
        )


def describe_collapse(rows: Sequence[DecodedRow]) -> str:
    """Return what is wrong if outputs are all alike, empty, endless or repetitive, else "".

    Always compared with the references (and the sources): those may be all alike, too.
    """
    if len(rows) < _FEWEST_ROWS:
        return ""
    sources = [tuple(row.source) for row in rows]
    references = [tuple(row.reference) for row in rows]
    outputs = [row.hypothesis for row in rows]
    faults = []
    expected = max(_find_likeness(references), _find_likeness(sources))
    if _find_likeness(outputs) - expected >= 0.2:
        (_, num_same), *_ = Counter(outputs).most_common(1)
        faults.append(
            f"{num_same / len(rows):.0%} of the outputs are the same ({len(set(outputs)):,} "
            f"different outputs of {len(rows):,} rows, {len(set(references)):,} different references)"
        )
    num_endless = sum(
        not row.is_complete and len(row.hypothesis) > 1.5 * len(row.reference) + 5 for row in rows
    )
    repeated, usual = (sum(map(_is_repetitive, texts)) for texts in (outputs, references))
    for name, num_found, num_expected in (
        ("are empty", outputs.count(()), references.count(())),
        ("repeat one token", repeated, usual),
        ("are truncated, far longer than their references", num_endless, 0),
    ):
        fraction, expected = num_found / len(rows), num_expected / len(rows)
        if fraction >= 0.5 and fraction - expected >= 0.3:
            faults.append(f"{fraction:.0%} of the outputs {name} (references: {expected:.0%})")
    return "; ".join(faults)


def _find_likeness(texts: Sequence[tuple[int, ...]]) -> float:
    """Return how often two random rows have the same text."""
    pairs = sum(count * (count - 1) for count in Counter(texts).values())
    return pairs / (len(texts) * (len(texts) - 1))


def _is_repetitive(ids: Sequence[int]) -> bool:
    """Whether at least half of the tokens equal the token before."""
    repeated = sum(one == other for one, other in pairwise(ids))
    return len(ids) >= 4 and repeated >= 0.5 * (len(ids) - 1)


def hush_lightning() -> None:
    """Keep Lightning's banners ("GPU available: False", tips) off the terminal; warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A call of Lightning's own that torch 2.13 has deprecated (lightning 2.6.6).
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")
    # A dry run does not validate.
    warnings.filterwarnings("ignore", "You defined a `validation_step` but have no")
    # A checkpoint of an older version holds states of callbacks that are gone.
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used to")
    # Our steps are counted over epochs: a short epoch loses no entry of the log.
    warnings.filterwarnings(
        "ignore", "The number of training batches .* is smaller than the logging"
    )


def _as_training(trainer: lightning.Trainer) -> TransformerTraining:
    module = trainer.lightning_module
    assert isinstance(module, TransformerTraining)
    return module
