"""A few validation rows with what the model makes of them, written down at each validation."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

from dragoman.storage import staged_file
from dragoman.training.decoded_outputs import DecodedRow
from dragoman.training.module import TransformerTraining
from dragoman.training.texts import Texts

SAMPLES_FILE = "samples.jsonl"
NUM_SAMPLES = 10


class SampleLog(Callback):
    """Appends samples to a JSONL file (step, source, reference, prediction), and to loggers of text.

    They are the same rows each time, spread over the lengths of the sources, and cost nothing: the
    validation has decoded them anyway.

    Args:
        path: The file; its folder is there when the first validation ends.
    """

    def __init__(self, path: Path, texts: Texts) -> None:
        self._path, self._texts = path, texts

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Write down the samples, on the first rank."""
        assert isinstance(pl_module, TransformerTraining)
        if trainer.sanity_checking or not trainer.is_global_zero or not pl_module.decoded_rows:
            return
        step = trainer.global_step
        samples = [self._read(row) for row in choose_spread(pl_module.decoded_rows)]
        lines = [json.dumps({"step": step, **sample}, ensure_ascii=False) for sample in samples]
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
        except OSError as error:  # a full disk is no reason to end a training
            rank_zero_warn(f"{self._path}: the samples cannot be written: {error.strerror}")
        for logger in trainer.loggers:
            _log_text(logger, samples, max(0, step - 1))  # Lightning counts updates from 0

    def _read(self, row: DecodedRow) -> dict[str, str]:
        return {
            "source": self._texts.read_source(row.source),
            "reference": self._texts.read_reference(row.reference),
            "prediction": self._texts.read_output(row.hypothesis),
        }


def cut_samples(path: Path, step: int) -> None:
    """Leave in the file only samples of the first `step` updates; who goes on writes the others.

    Raises:
        OSError: It cannot be written.
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    with staged_file(path) as partial:
        partial.write_text("".join(line for line in lines if _find_step(line) <= step), "utf-8")


def choose_spread(rows: Sequence[DecodedRow], count: int = NUM_SAMPLES) -> list[DecodedRow]:
    """Return `count` rows, or all of fewer, evenly spread over the lengths of the sources."""
    by_length = sorted(rows, key=lambda row: len(row.source))
    count = min(count, len(rows))
    return [by_length[place * (len(rows) - 1) // max(1, count - 1)] for place in range(count)]


def _find_step(line: str) -> float:
    """Return the updates before a sample; without end where a line was cut by a death."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _log_text(logger: Logger, samples: Sequence[dict[str, str]], step: int) -> None:
    """Give the samples to a logger that takes text: as a table (Wandb), or as Markdown (TensorBoard)."""
    columns = list(samples[0])
    rows = [list(sample.values()) for sample in samples]
    if log_text := getattr(logger, "log_text", None):
        log_text("samples", columns=columns, data=rows, step=step)
    elif add_text := getattr(getattr(logger, "experiment", None), "add_text", None):
        lines = (columns, ["---"] * len(columns), *rows)
        table = "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines)
        add_text("samples", table, step)


def _escape(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
