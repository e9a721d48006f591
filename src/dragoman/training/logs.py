"""The curves of a training: written by Lightning's loggers, read back for the report.

Nothing here imports Lightning or torch before a training needs it, so that a report starts fast.
"""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dragoman.errors import DataError
from dragoman.settings import LoggerName

if TYPE_CHECKING:
    from lightning.pytorch.loggers import CSVLogger, Logger

METRICS_FILE: Final = Path("logs") / "metrics.csv"

# The module that a logger needs, and what installs it.
_PACKAGES: Final[dict[LoggerName, tuple[str, str]]] = {
    "tensorboard": ("tensorboard", '"dragoman[tensorboard]"'),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
    "comet": ("comet_ml", "comet-ml"),
    "litlogger": ("litlogger", "litlogger"),
}


def find_logger_errors(names: Sequence[LoggerName]) -> list[str]:
    """Return what is wrong with `training.loggers`: missing packages, none beside others."""
    errors = [
        f"training.loggers: {name} needs a package that is not installed: pip install "
        f"{_PACKAGES[name][1]}"
        for name in dict.fromkeys(names)
        if name in _PACKAGES and not find_spec(_PACKAGES[name][0])
    ]
    if "none" in names and len(set(names)) > 1:
        errors.append("training.loggers: none cannot be combined with other loggers")
    return errors


def make_loggers(
    names: Sequence[LoggerName],
    folder: Path,
    step: int = 0,
    unlogged: Mapping[str, float] | None = None,
) -> "list[Logger]":
    """Return the CSV logger (`logs/metrics.csv`) and those of `training.loggers`, for `folder`.

    Args:
        step: Steps that a resumed run has done: its curves are continued from there.
        unlogged: What the last of these had not logged yet when the checkpoint was written.
    """
    from lightning.pytorch import loggers

    run = folder.name.removesuffix(".training")
    makers: dict[str, Callable[[], Any]] = {
        "tensorboard": lambda: loggers.TensorBoardLogger(
            folder, "", "tensorboard", default_hp_metric=False, purge_step=step or None
        ),
        "wandb": lambda: loggers.WandbLogger(run, folder),
        "mlflow": lambda: loggers.MLFlowLogger(
            "dragoman", run_name=run, save_dir=str(folder / "mlruns")
        ),
        "comet": lambda: loggers.CometLogger(name=run, offline_directory=str(folder / "comet")),
        "litlogger": lambda: loggers.LitLogger(root_dir=folder / "litlogger", name=run),
    }
    auto = "tensorboard" if find_spec("tensorboard") else "none"
    chosen = dict.fromkeys(auto if name == "auto" else name for name in names)
    csv_logger = _make_csv_logger(folder, step, unlogged or {})
    return [csv_logger, *(makers[name]() for name in chosen if name != "none")]


def _make_csv_logger(folder: Path, step: int, unlogged: Mapping[str, float]) -> "CSVLogger":
    """Return the logger of the CSV file, which gets the rows of the first `step` steps again."""
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.utilities import rank_zero_warn

    class PatientCSVLogger(CSVLogger):
        """A full disk does not end the training: rows are kept, and written with the next ones."""

        def save(self) -> None:
            try:
                super().save()
            except OSError as error:
                rank_zero_warn(f"the curves cannot be written: {error}")

    path = folder / METRICS_FILE
    rows: list[dict[str, str]] = []
    if step and path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdecimal()]
        path.unlink()  # Lightning would, with a warning
    logger = PatientCSVLogger(folder, name="", version=METRICS_FILE.parent.name)
    indices = [int(row.pop("step")) for row in rows]
    for index, row in zip(indices, rows, strict=True):
        if index < step:  # Lightning counts from 0
            texts = {name: text for name, text in row.items() if name and text}
            numbers: dict[str, Any] = {
                n: int(t) if t.isdecimal() else float(t) for n, t in texts.items()
            }
            logger.log_metrics(numbers, index)
    if unlogged and step - 1 not in indices:  # killed right after the checkpoint
        logger.log_metrics(dict(unlogged), step - 1)
    if step:
        logger.save()
    return logger


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves in a `{out}.training` folder: (step, value) points by name, in order.

    `update_loss`, `learning_rate` and `tokens_per_s` every few steps; `train_loss`, `valid_loss` and
    every other `valid_` score at each validation. Of two values of a step the later written counts;
    values that are not finite are left out. Without a log the result is empty.

    Raises: DataError, when the file is not the log of a training.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return {}
    found: dict[str, dict[int, float]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = int(row.pop("step")) + 1  # Lightning counts from 0
                for name, value in row.items():
                    if value and name != "epoch" and math.isfinite(number := float(value)):
                        found.setdefault(name, {})[step] = number
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: not the log of a training: {error!r}") from error
    return {name: sorted(points.items()) for name, points in sorted(found.items())}
