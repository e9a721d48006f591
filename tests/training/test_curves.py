import csv
import subprocess
import sys

import pytest

from dragoman.errors import DataError
from dragoman.training.curves import read_curves


def write_log(folder, rows):
    (folder / "logs").mkdir()
    names = sorted({name for row in rows for name in row})
    with (folder / "logs" / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def test_each_curve_has_its_points_by_updates_done(tmp_path):
    write_log(
        tmp_path,
        [
            {"step": 49, "update_loss": 3.5, "epoch": 0},
            {"step": 99, "update_loss": 2.5, "epoch": 0},
            {"step": 99, "valid_chrf": 12.25},
            {"step": 149, "update_loss": "nan"},
            {"step": 99, "valid_chrf": 13.0},
        ],
    )
    assert read_curves(tmp_path) == {
        "update_loss": [(50, 3.5), (100, 2.5)],
        "valid_chrf": [(100, 13.0)],
    }


def test_no_log_gives_no_curves_and_a_foreign_file_is_told(tmp_path):
    assert read_curves(tmp_path) == {}
    write_log(tmp_path, [{"a": "x", "b": "y"}])
    with pytest.raises(DataError, match="not the log of a training"):
        read_curves(tmp_path)


def test_reading_curves_loads_neither_torch_nor_lightning():
    code = (
        "import dragoman.training.curves, sys\n"
        "assert not {'torch', 'lightning', 'torchmetrics'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
