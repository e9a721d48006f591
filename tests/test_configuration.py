import contextlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dragoman.configuration import (
    find_conflicts,
    list_set_values,
    list_settings,
    merge_settings,
    read_settings,
)
from dragoman.errors import SettingsError
from dragoman.settings import Settings
from dragoman.text.bundle import dump_settings


def faults_of(config=None, arguments=()):
    with pytest.raises(SettingsError) as caught:
        read_settings(config, arguments)
    return str(caught.value)


def test_arguments_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text("model:\n  d_model: 64\n  nhead: 2\ntraining.seed: 5\n")
    settings = read_settings(config, ["--model.d_model", "96", "--tokenizer.shared"])
    assert settings.model.d_model == 96
    assert settings.model.nhead == 2
    assert settings.training.seed == 5
    assert settings.tokenizer.shared
    assert settings.model.num_encoder_layers == Settings().model.num_encoder_layers


def test_all_faults_come_at_once_each_with_its_place_and_the_likely_name(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text(
        "model:\n  d_modle: 64\n  nhead: four\ntraning:\n  seed: 1\nd_model: 3\n"
        "optimization:\n  schedule: cosin\n"
    )
    told = faults_of(config, ["--training.max_step", "3", "--model.dropout", "1.5", "word"])
    assert (
        f"{config}:2: model.d_modle: there is no such setting; did you mean model.d_model?" in told
    )
    assert f"{config}:3: model.nhead: 'four' is not a whole number" in told
    assert (
        f"{config}:5: traning.seed: there is no such setting; did you mean training.seed?" in told
    )
    assert f"{config}:6: d_model: there is no such setting; did you mean model.d_model?" in told
    assert (
        "'cosin' is not one of inverse_sqrt, cosine, linear, constant; did you mean cosine?" in told
    )
    assert "--training.max_step: there is no such setting; did you mean training.max_steps?" in told
    assert "--model.dropout: 1.5 is too large: less than 1" in told
    assert "'word': expected --name value" in told
    assert told.startswith("8 faults:")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: [", ":1: not valid YAML"),
        ("- 1\n- 2\n", "expected lines of `name: value`, found a list"),
        ("'[x': 1\n", ":1: [x: there is no such setting"),
        ("<<: 1\n", ":1: <<: there is no such setting"),
        ("model: {positions: learned, max_positions: 9}\n", "9 learned positions are less than"),
        ("optimization.warmup_steps: 50000\n", "would never reach its peak"),
        ("model:\n  nhead: 2\n  nhead: 4\n", ":3: model.nhead is set twice"),
        ("model:\n", ":1: model has no value"),
        ("model: 3\n", "this is a group of settings (model.…)"),
        ("training:\n  seed: soon\n", ":2: training.seed: 'soon' is not a whole number"),
        ("1: 2\n", ":1: 1: there is no such setting"),
    ],
)
def test_a_broken_file_is_told_by_line(tmp_path, text, told):
    config = tmp_path / "settings.yaml"
    config.write_text(text)
    assert told in faults_of(config)


def test_a_missing_file_is_named(tmp_path):
    assert f"{tmp_path / 'no.yaml'}: the settings cannot be read" in faults_of(tmp_path / "no.yaml")


def test_an_empty_file_sets_nothing(tmp_path):
    (tmp_path / "settings.yaml").write_text("# nothing\n")
    assert read_settings(tmp_path / "settings.yaml") == Settings()


def test_lists_and_positions_are_typed_plainly():
    settings = read_settings(None, ["--data.features", "3, tense", "--data.source=2"])
    assert settings.data.features == ("3", "tense")
    assert settings.data.source == "2"


def test_what_yaml_makes_of_plain_words_is_understood(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text("data:\n  header: yes\n  features: 3\n  source: 2\n")
    data = read_settings(config, ["--data.valid="]).data
    assert (data.header, data.features, data.source, data.valid) == ("yes", ("3",), "2", ())


def test_settings_that_do_not_go_together_are_told():
    assert "not a multiple of nhead 3" in faults_of(None, ["--model.nhead", "3"])
    told = ["--data.valid_fraction", "0.6", "--data.test_fraction", "0.5"]
    assert "leave nothing to train on" in faults_of(None, told)
    assert find_conflicts(Settings()) == []


def test_defaults_fill_only_what_was_left_open():
    typed = read_settings(None, ["--model.d_model", "64", "--data.features", "3"])
    merged = merge_settings(typed, {"model.d_model": 512, "model.nhead": 8, "data.source": "9"})
    assert (merged.model.d_model, merged.model.nhead, merged.data.source) == (64, 8, "9")
    assert dict(list_set_values(typed)) == {"model.d_model": 64, "data.features": ("3",)}


def test_what_is_written_is_read_back(tmp_path):
    settings = read_settings(None, ["--model.d_model", "64", "--tokenizer.source.separator", "\t:"])
    (tmp_path / "config.yaml").write_text(dump_settings(settings))
    assert read_settings(tmp_path / "config.yaml") == settings


def test_every_setting_has_a_place_in_the_list():
    names = list(list_settings())
    assert len(names) == len(set(names))
    flat = yaml.safe_load(dump_settings(Settings()))
    for name in names:
        value = flat
        for part in name.split("."):
            value = value[part]


@given(text=st.text(max_size=60))
def test_no_text_makes_a_traceback(tmp_path_factory, text):
    config = tmp_path_factory.mktemp("config") / "settings.yaml"
    config.write_text(text, encoding="utf-8", newline="")
    with contextlib.suppress(SettingsError):
        read_settings(config, [text])
