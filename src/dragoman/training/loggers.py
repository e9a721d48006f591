"""Where the curves of a training go: a CSV file always, and Lightning's other loggers by setting."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from dragoman.settings import LoggerName
from dragoman.training.curves import METRICS_FILE


@dataclass(frozen=True, kw_only=True)
class _Package:
    """What a logger needs: the module that it imports, and what installs it."""

    module: str
    requirement: str


_NEEDED: dict[LoggerName, _Package] = {
    "tensorboard": _Package(module="tensorboard", requirement='"dragoman[tensorboard]"'),
    "wandb": _Package(module="wandb", requirement="wandb"),
    "mlflow": _Package(module="mlflow", requirement="mlflow"),
    "comet": _Package(module="comet_ml", requirement="comet-ml"),
    "litlogger": _Package(module="litlogger", requirement="litlogger"),
}


def find_logger_faults(names: Sequence[LoggerName]) -> list[str]:
    """Return what is wrong with `training.loggers`: a package that is missing, none beside others."""
    faults = [
        f"training.loggers: {name} needs a package that is not installed: pip install "
        f"{_NEEDED[name].requirement}"
        for name in dict.fromkeys(names)
        if name in _NEEDED and not _is_installed(name)
    ]
    if "none" in names and len(set(names)) > 1:
        faults.append("training.loggers: none stands alone, without other loggers beside it")
    return faults


def make_loggers(names: Sequence[LoggerName], folder: Path, step: int = 0) -> list[Logger]:
    """Return the loggers of `training.loggers`; what they write on this disk goes into `folder`.

    The first is that of the CSV file, `logs/metrics.csv`. TensorBoard's library is not imported
    before there is something to log.

    Args:
        step: Updates that the run has behind it: their curves are gone on with.
    """
    loggers: list[Logger] = [_make_csv_logger(folder, step)]
    wanted = dict.fromkeys(names)
    if "auto" in wanted and _is_installed("tensorboard"):
        wanted["tensorboard"] = None
    return loggers + [_make(name, folder, step) for name in wanted if name in _NEEDED]


class PatientCSVLogger(CSVLogger):
    """Lightning's CSV logger, for which a full disk is no reason to end a training.

    What could not be written is tried again with what comes next.
    """

    def save(self) -> None:
        """Write the rows that are waiting, if they can be written."""
        try:
            super().save()
        except OSError as error:
            rank_zero_warn(f"the curves cannot be written: {error}")


def _make_csv_logger(folder: Path, step: int) -> CSVLogger:
    """Return the logger of the CSV file, with the rows of the first `step` updates in it again."""
    path = folder / METRICS_FILE
    rows: list[dict[str, str]] = []
    if step and path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdecimal()]
        path.unlink()  # Lightning would, and warn of it
    logger = PatientCSVLogger(folder, name="", version=METRICS_FILE.parent.name)
    for row in rows:
        if (at := int(row.pop("step"))) < step:  # Lightning counts from 0
            values: dict[str, Tensor | float] = {}
            values.update((name, _read(text)) for name, text in row.items() if name and text)
            logger.log_metrics(values, at)
    if rows:
        logger.save()
    return logger


def _read(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)


def _is_installed(name: LoggerName) -> bool:
    return find_spec(_NEEDED[name].module) is not None


def _make(name: LoggerName, folder: Path, step: int) -> Logger:
    from lightning.pytorch import loggers

    run = folder.name.removesuffix(".training")
    match name:
        case "tensorboard":
            return loggers.TensorBoardLogger(
                folder,
                name="",
                version="tensorboard",
                default_hp_metric=False,
                purge_step=step or None,
            )
        case "wandb":
            return loggers.WandbLogger(name=run, save_dir=folder)
        case "mlflow":
            return loggers.MLFlowLogger(
                experiment_name="dragoman", run_name=run, save_dir=str(folder / "mlruns")
            )
        case "comet":
            return loggers.CometLogger(name=run, offline_directory=str(folder / "comet"))
        case "litlogger":
            return loggers.LitLogger(root_dir=folder / "litlogger", name=run)  # type: ignore[return-value]
        case _:
            raise AssertionError(name)
