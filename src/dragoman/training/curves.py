"""The curves of a training, read from the file that it wrote; loads neither torch nor Lightning."""

import csv
import math
from pathlib import Path

from dragoman.errors import DataError

METRICS_FILE = Path("logs") / "metrics.csv"


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return, by name, the (updates done, value) points of each curve in a `{out}.training` folder.

    Among the names: `update_loss`, `learning_rate` and `tokens_per_s` every so many updates;
    `train_loss`, `valid_loss` and every other `valid_` score at each validation. Points stand in
    the order of the updates, one an update: of two, the later written. What is not a finite number
    is left out. An empty dictionary where nothing was logged.

    Raises:
        DataError: The file is there, and is not what a training writes.
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
