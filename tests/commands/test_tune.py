import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml

import dragoman
from conftest import quiet_console, write_pairs
from dragoman.cli import main
from dragoman.commands.tune import read_space
from dragoman.configuration import read_settings
from dragoman.errors import DataError, MissingPackageError, SettingsError

TINY = {
    "model.d_model": 32, "model.num_encoder_layers": 1, "model.num_decoder_layers": 1,
    "model.dim_feedforward": 64, "model.positions": "sinusoidal", "training.batch_tokens": 512,
    "training.max_steps": 20, "training.valid_every": 5, "data.test_fraction": 0.1,
}  # fmt: skip
SPACE = {
    "optimization.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
    "model.dropout": [0.0, 0.1],
}


def tune(pairs, out, **options):
    given = {"space": SPACE, "trials": 2, "console": quiet_console(), **options}
    return dragoman.tune(pairs, out, {**TINY, **given.pop("settings", {})}, **given)


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    pairs = write_pairs(folder / "pairs.tsv", 300)
    return pairs, tune(pairs, folder / "tuned", trials=3)


def test_the_first_trial_is_the_default_and_the_best_is_no_worse(search):
    _, found = search
    assert [trial.number for trial in found.trials] == [0, 1, 2]
    assert found.trials[0].settings == {}
    assert found.best.score == min(trial.score for trial in found.trials)
    assert found.monitor == "valid_token_error_rate"


def test_the_best_settings_are_a_config_of_fit(search):
    _, found = search
    settings = read_settings(found.config)
    assert settings.model.d_model == 32
    for name, value in found.best.settings.items():
        section, _, key = name.partition(".")
        assert getattr(getattr(settings, section), key) == value


def test_the_page_shows_each_trial_and_loads_nothing(search):
    page = search[1].page.read_text(encoding="utf-8")
    assert page.count("<tr><td>") == 3
    assert "<svg" in page
    assert not re.search(r"(src|href)=\"http", page)


def test_more_trials_continue_the_search(search):
    pairs, before = search
    after = tune(pairs, before.config.parent, trials=4)
    assert after.trials[:3] == before.trials
    assert len(after.trials) == 4


def test_another_search_is_refused(search):
    pairs, found = search
    with pytest.raises(SettingsError, match="a search with other pairs, settings or space"):
        tune(pairs, found.config.parent, settings={"training.seed": 2})


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="Windows has none")
def test_pairs_may_come_by_a_pipe_and_missing_ones_are_named(search, tmp_path):
    pairs, before = search
    read, write = os.pipe()
    os.write(write, pairs.read_bytes())
    os.close(write)
    after = tune(Path(f"/dev/fd/{read}"), before.config.parent, trials=len(before.trials))
    os.close(read)
    assert after.trials[:3] == before.trials  # another test may have added one
    with pytest.raises(DataError, match=r"gone\.tsv: there is no such file"):
        dragoman.tune(tmp_path / "gone.tsv", tmp_path / "tuned", console=quiet_console())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_search_repeats_the_trial_that_was_cut(tmp_path):
    pairs, out = write_pairs(tmp_path / "pairs.tsv", 300), tmp_path / "tuned"
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    options = [f"--{name}={value}" for name, value in TINY.items()]
    command = [
        "tune",
        str(pairs),
        "--out",
        str(out),
        "--space",
        str(space),
        "--trials",
        "2",
        *options,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "dragoman", *command], stderr=subprocess.DEVNULL
    )
    while not (out / "trials" / "1.training").is_dir():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main([*command, "--json"]) == 0
    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{out / 'study.db'}")
    cut, repeated = study.trials[1], study.trials[2]
    assert cut.state.name == "FAIL"
    assert repeated.state.name == "COMPLETE"
    assert repeated.params == cut.params
    assert len(study.trials) == 3


@pytest.mark.parametrize("space", [{"model.nhead": [3, 5]}, {"data.max_tokens": [4, 5]}])
def test_a_trial_with_impossible_settings_is_a_failed_one(tmp_path, space):
    pairs = write_pairs(tmp_path / "pairs.tsv", 200)
    # Its steps end before a validation: then the last weights are judged.
    found = tune(pairs, tmp_path / "tuned", space=space, settings={"training.max_steps": 4})
    assert [trial.state for trial in found.trials] == ["complete", "failed"]
    assert found.best.score is not None
    assert next(iter(space)).partition(".")[2] in found.trials[1].error
    assert found.best.number == 0
    json.dumps(found.to_dict())


def test_a_trial_behind_the_others_is_pruned(search, tmp_path):
    pairs, _ = search
    out = tmp_path / "tuned"
    tune(pairs, out, trials=1)
    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{out / 'study.db'}")
    for _ in range(5):
        study.add_trial(
            optuna.trial.create_trial(
                value=0.5, intermediate_values={0: 0.5, 1: 0.5, 2: 0.5, 3: 0.5}
            )
        )
    found = tune(pairs, out, trials=7)
    assert found.trials[-1].state == "pruned"


def test_without_ray_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    pairs = write_pairs(tmp_path / "pairs.tsv", 50)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r'pip install "dragoman\[ray\]"'):
        tune(pairs, tmp_path / "tuned", workers=2)


@pytest.mark.parametrize(
    "interval",
    [{"low": 0.2, "high": 0.1}, {"low": 0, "high": 0.1, "log": True}],
)
def test_an_interval_that_is_none_is_refused(interval, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", 50)
    with pytest.raises(SettingsError, match=r"space: model.dropout: low must be a number below"):
        tune(pairs, tmp_path / "tuned", space={"model.dropout": interval})
    assert not (tmp_path / "tuned").exists()


def test_bounds_are_numbers_of_their_setting(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "optimization.learning_rate: {low: 1e-4, high: 1e-2, log: true}\n"
        "optimization.weight_decay: {low: 0, high: 1}\n"
    )
    pairs = write_pairs(tmp_path / "pairs.tsv", 100)
    brief = {"training.max_steps": 1}
    found = tune(pairs, tmp_path / "tuned", space=read_space(path), settings=brief)
    chosen = found.trials[1].settings
    assert 1e-4 < chosen["optimization.learning_rate"] < 1e-2
    assert 0.0 < chosen["optimization.weight_decay"] < 1.0


def test_faults_of_a_space_are_all_named(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", 50)
    space = {
        "model.dropuot": [0.1],
        "model.dropout": [2.0],
        "model.nhead": 4,
        "training.max_steps": [5],
        "training.valid_rows": [10],
        "tokenizer.target.kind": ["characters", "bpe"],
    }
    with pytest.raises(SettingsError) as error:
        tune(pairs, tmp_path / "tuned", space=space)
    for part in ("did you mean model.dropout", "model.dropout", "model.nhead: give a list",
                 "training.max_steps: also set", "training.valid_rows: decides how trials are scored",
                 "trials with other tokens are comparable only by their texts"):  # fmt: skip
        assert part in str(error.value)
