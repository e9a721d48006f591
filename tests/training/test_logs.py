import csv
import importlib.util
import subprocess
import sys
import warnings
from typing import ClassVar

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger

from conftest import BRIEF, SMALL, quiet_console, write_pairs
from dragoman import read_settings
from dragoman.commands.fit import fit
from dragoman.errors import DataError, SettingsError
from dragoman.model_folder.folder import dump_settings
from dragoman.settings import Settings
from dragoman.training.logs import find_logger_errors, make_loggers, read_curves

HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None


def missing_logger():
    modules = {"wandb": "wandb", "comet": "comet_ml", "litlogger": "litlogger"}
    return next(name for name, module in modules.items() if not importlib.util.find_spec(module))


def test_the_csv_file_is_always_written(tmp_path):
    [only] = make_loggers(("none",), tmp_path)
    assert isinstance(only, CSVLogger)
    assert [type(logger).__name__ for logger in make_loggers(("auto",), tmp_path)] == [
        "PatientCSVLogger", *(["TensorBoardLogger"] if HAS_TENSORBOARD else [])
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_loggers_are_separated_by_commas_and_stored_in_the_config(tmp_path):
    settings = read_settings(None, ["--training.loggers", "tensorboard,wandb"])
    assert settings.training.loggers == ("tensorboard", "wandb")
    (tmp_path / "config.yaml").write_text(dump_settings(settings))
    assert read_settings(tmp_path / "config.yaml") == Settings.model_validate(settings.model_dump())


def test_an_unknown_logger_gets_a_suggestion():
    with pytest.raises(SettingsError, match=r"'tensorbord' is not one of .*mean tensorboard\?"):
        read_settings(None, ["--training.loggers", "none,tensorbord"])


def test_a_missing_package_is_reported_before_the_data_are_read(tmp_path):
    name = missing_logger()
    settings = read_settings(None, ["--training.loggers", name])
    with pytest.raises(SettingsError, match=f"{name} needs a package .* pip install"):
        fit(tmp_path / "missing.tsv", tmp_path / "model", settings, console=quiet_console())
    assert list(tmp_path.iterdir()) == []


def test_none_excludes_other_loggers():
    assert find_logger_errors(("none",)) == []
    [fault] = find_logger_errors(("none", "auto"))
    assert "none cannot be combined" in fault


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="tensorboard is not installed")
def test_tensorboard_gets_curves_samples_and_settings(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", 200)
    words = [*SMALL, *BRIEF, "--training.valid_every", "1", "--training.loggers", "tensorboard"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # of TensorBoard's own imports
        fit(pairs, tmp_path / "model", read_settings(None, words), console=quiet_console())
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        folder = tmp_path / "model.training" / "tensorboard"
        events = EventAccumulator(str(folder))
        events.Reload()
    tags = events.Tags()
    assert {"valid_loss", "update_loss", "learning_rate", "tokens_per_s"} <= set(tags["scalars"])
    assert "samples/text_summary" in tags["tensors"]
    [first, *_] = events.Tensors("samples/text_summary")
    assert b"| source | reference | prediction |" in first.tensor_proto.string_val[0]
    assert "training.max_steps: 3" in (folder / "hparams.yaml").read_text()


def test_a_logger_object_gets_curves_samples_and_settings(tmp_path):
    class Recorder(Logger):
        name, version = "recorder", 0
        scalars: ClassVar[set[str]] = set()
        hyperparameters: ClassVar[dict[str, object]] = {}
        texts: ClassVar[list[str]] = []

        def log_metrics(self, metrics, step=None):
            self.scalars.update(metrics)

        def log_hyperparams(self, params):
            self.hyperparameters.update(params)

        def log_text(self, key, columns, data, step):
            self.texts.append(key)

    recorder = Recorder()
    pairs, settings = (
        write_pairs(tmp_path / "pairs.tsv", 200),
        read_settings(None, [*SMALL, *BRIEF]),
    )
    fit(pairs, tmp_path / "model", settings, loggers=[recorder], console=quiet_console())
    assert {"valid_loss", "update_loss", "learning_rate", "tokens_per_s"} <= recorder.scalars
    assert recorder.hyperparameters["training.max_steps"] == 3
    assert recorder.texts == ["samples"]
    assert read_curves(tmp_path / "model.training")["update_loss"]


def test_settings_without_loggers_still_load(tmp_path):
    content = yaml.safe_load(dump_settings(Settings()))
    del content["training"]["loggers"]
    content["training"]["monitor"] = "token_error_rate"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    settings = read_settings(tmp_path / "config.yaml")
    assert settings.training.monitor == "token_error_rate"
    assert settings.training.loggers == ("auto",)


def write_log(folder, rows):
    (folder / "logs").mkdir()
    names = sorted({name for row in rows for name in row})
    with (folder / "logs" / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def test_each_curve_has_its_points_by_step(tmp_path):
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


def test_no_log_gives_no_curves_and_a_foreign_file_is_an_error(tmp_path):
    assert read_curves(tmp_path) == {}
    write_log(tmp_path, [{"a": "x", "b": "y"}])
    with pytest.raises(DataError, match="not the log of a training"):
        read_curves(tmp_path)


def test_reading_curves_loads_neither_torch_nor_lightning():
    code = (
        "import dragoman.training.logs, sys\n"
        "assert not {'torch', 'lightning', 'torchmetrics'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
