import contextlib
from typing import Literal, get_args, get_origin

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from dragoman.configuration import (
    as_settings,
    find_conflicts,
    flatten_settings,
    list_set_values,
    merge_for_use,
    merge_settings,
    read_settings,
    update_stored,
)
from dragoman.errors import SettingsError
from dragoman.model_folder.folder import dump_settings
from dragoman.settings import DecodingSettings, ModelSettings, Section, Settings


def errors_of(config=None, arguments=()):
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


def test_all_errors_are_reported_at_once_with_place_and_likely_name(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text(
        "model:\n  d_modle: 64\n  nhead: four\ntraning:\n  seed: 1\nd_model: 3\n"
        "optimization:\n  schedule: cosin\n"
    )
    message = errors_of(config, ["--training.max_step", "3", "--model.dropout", "1.5", "word"])
    assert (
        f"{config}:2: model.d_modle: there is no such setting; did you mean model.d_model?"
        in message
    )
    assert f"{config}:3: model.nhead: 'four' is not a whole number" in message
    assert (
        f"{config}:5: traning.seed: there is no such setting; did you mean training.seed?"
        in message
    )
    assert f"{config}:6: d_model: there is no such setting; did you mean model.d_model?" in message
    assert (
        "'cosin' is not one of inverse_sqrt, cosine, linear, constant; did you mean cosine?"
        in message
    )
    assert (
        "--training.max_step: there is no such setting; did you mean training.max_steps?" in message
    )
    assert "--model.dropout: 1.5 is too large: give at most 0.99" in message
    assert "'word': expected --name value" in message
    assert message.startswith("8 errors:")


@pytest.mark.parametrize(
    ("text", "message"),
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
def test_an_invalid_file_is_reported_by_line(tmp_path, text, message):
    config = tmp_path / "settings.yaml"
    config.write_text(text)
    assert message in errors_of(config)


def test_a_missing_file_is_named(tmp_path):
    assert f"{tmp_path / 'no.yaml'}: the settings cannot be read" in errors_of(tmp_path / "no.yaml")


def test_an_empty_file_sets_nothing(tmp_path):
    (tmp_path / "settings.yaml").write_text("# nothing\n")
    assert read_settings(tmp_path / "settings.yaml") == Settings()


def test_lists_are_typed_with_commas_and_columns_as_positions():
    settings = read_settings(None, ["--data.features", "3, tense", "--data.source=2"])
    assert settings.data.features == ("3", "tense")
    assert settings.data.source == "2"


@pytest.mark.parametrize(
    ("typed", "tokens"),
    [
        ("a,b", ("a", "b")),
        (" the", (" the",)),
        ("a, b", ("a", " b")),
        (",", (",",)),
        ('","', (",",)),
        ('",", " the"', (",", " the")),
        ('"', ('"',)),
        ("1,2", ("1", "2")),
        ("[" * 100_000, ("[" * 100_000,)),
    ],
)
def test_a_forbidden_token_may_have_a_space_or_a_comma(typed, tokens, tmp_path):
    arguments = [f"--decoding.forbidden_tokens={typed}"]
    assert read_settings(None, arguments).decoding.forbidden_tokens == tokens
    (tmp_path / "settings.yaml").write_text(f"decoding:\n  forbidden_tokens: {list(tokens)!r}\n")
    assert read_settings(tmp_path / "settings.yaml").decoding.forbidden_tokens == tokens


def test_yaml_booleans_and_numbers_are_read_as_words(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text("data:\n  header: yes\n  features: 3\n  source: 2\n")
    data = read_settings(config, ["--data.valid="]).data
    assert (data.header, data.features, data.source, data.valid) == ("yes", ("3",), "2", ())


def test_conflicting_settings_are_reported():
    assert "not a multiple of nhead 3" in errors_of(None, ["--model.nhead", "3"])
    message = ["--data.valid_fraction", "0.6", "--data.test_fraction", "0.5"]
    assert "leave nothing to train on" in errors_of(None, message)
    assert find_conflicts(Settings()) == []
    words, values = ["--decoding.num_hypotheses=2"], {"decoding.num_hypotheses": 2}
    assert "more than the 1 candidates" in errors_of(None, words)
    # With a model's settings they may agree.
    for typed in (read_settings(None, words, is_whole=False), as_settings(values, is_whole=False)):
        wide = Settings(decoding=DecodingSettings(beam_size=2))
        assert merge_for_use(typed, wide).decoding.num_hypotheses == 2
        with pytest.raises(SettingsError, match="more than the 1 candidates"):
            merge_for_use(typed, Settings())


def test_a_setting_of_another_method_is_refused_for_a_trained_model():
    typed = as_settings({"decoding.temperature": 0.7, "decoding.diverse_groups": 3}, is_whole=False)
    with pytest.raises(SettingsError) as error:
        merge_for_use(typed, Settings())
    assert "decoding.temperature: decoding.method beam does not use it" in str(error.value)
    assert "set decoding.method diverse, or leave it out" in str(error.value)
    sampling = Settings(decoding=DecodingSettings(method="sampling", temperature=0.7))
    typed = as_settings({"decoding.temperature": 0.5}, is_whole=False)
    assert merge_for_use(typed, sampling).decoding.temperature == 0.5
    greedy = as_settings({"decoding.method": "beam"}, is_whole=False)
    assert merge_for_use(greedy, sampling).decoding.method == "beam"  # the model's own stay unused


def test_defaults_fill_only_what_was_left_open():
    typed = read_settings(None, ["--model.d_model", "64", "--data.features", "3"])
    merged = merge_settings(typed, {"model.d_model": 512, "model.nhead": 8, "data.source": "9"})
    assert (merged.model.d_model, merged.model.nhead, merged.data.source) == (64, 8, "9")
    assert dict(list_set_values(typed)) == {"model.d_model": 64, "data.features": ("3",)}


def test_what_is_written_is_read_back(tmp_path):
    settings = read_settings(None, ["--model.d_model", "64", "--tokenizer.source.separator", "\t:"])
    (tmp_path / "config.yaml").write_text(dump_settings(settings))
    assert read_settings(tmp_path / "config.yaml") == settings


def test_renamed_settings_of_a_stored_config_load_and_typed_ones_are_suggested(tmp_path):
    config = tmp_path / "config.yaml"
    old = "training:\n  path: fast\ndecoding:\n  cut_mark: ' [cut]'\n"
    config.write_text("version: 0.1.0\n" + old)
    settings = read_settings(config)
    assert settings.training.implementation == "fused"
    assert settings.decoding.truncation_mark == " [cut]"
    stored = {"decoding": {"cut_mark": "!"}, "training.path": "reference"}
    updated = {"decoding": {"truncation_mark": "!"}, "training.implementation": "reference"}
    assert update_stored(stored) == updated
    config.write_text(old)
    message = errors_of(config, ["--training.path", "fast"])
    assert (
        "--training.path: there is no such setting; did you mean training.implementation?"
        in message
    )
    assert f"{config}:4: decoding.cut_mark" in message
    assert "there is no such setting; it was removed" in errors_of(None, ["--training.export=none"])


def test_every_setting_is_listed_once():
    names = list(flatten_settings(Settings()))
    assert len(names) == len(find_leaves(Settings))
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


NO_SETTINGS = {
    "deep lists": "data: " + "[" * 200_000,
    "a name that is a list": "? [a, b]\n: 1\n",
    "a name that is a mapping": "? {a: b}\n: 1\n",
    "an alias of itself": "data: {features: &a [x, *a]}\n",
    "no date": "data: {source: 2026-13-45}\n",
    "no truth": "data: {leading_tags: !!bool perhaps}\n",
    "no whole number": 'data: {max_tokens: !!int ""}\n',
    "a call": "data: {source: !!python/object/apply:os.system ['touch CALLED']}\n",
    "a name in a module": "data: {source: !!python/name:os.system }\n",
    "infinity": "optimization: {learning_rate: .inf}\n",
    "not a number": "optimization: {learning_rate: .nan}\n",
    "beyond the numbers": "optimization: {learning_rate: 1.0e+999}\n",
    "a huge whole number": f"model:\n  d_model: {'9' * 500_000}\n",
    "a cursor that moves": 'data: {"\\e[2Jx": 1}\n',
}


@pytest.mark.parametrize("text", NO_SETTINGS.values(), ids=NO_SETTINGS)
def test_a_value_that_cannot_be_a_setting_is_an_error_of_the_file(text, tmp_path):
    (tmp_path / "settings.yaml").write_text(text)
    message = errors_of(tmp_path / "settings.yaml", [])
    assert "settings.yaml" in message
    assert "\x1b" not in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("evaluation.confidence_level", "0.9999999999999999"),
        ("decoding.length_penalty", "1e300"),
        ("decoding.min_length_ratio", "1e308"),
        ("decoding.max_length_ratio", "1e308"),
        ("decoding.max_length_extra", "1" + 30 * "0"),
        ("model.dropout", "0.9999999999999999"),
        ("model.d_model", "1" + 30 * "0"),
        ("training.seed", "99999999999"),
        ("training.accumulate", "1" + 30 * "0"),
    ],
)
def test_a_value_that_nothing_can_compute_with_is_too_large(name, value):
    assert f"--{name}: " in errors_of(None, [f"--{name}", value])
    assert "is too large: give" in errors_of(None, [f"--{name}", value])


def test_a_call_in_a_file_of_settings_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text(NO_SETTINGS["a call"])
    assert "constructor" in errors_of(tmp_path / "settings.yaml", [])
    assert not (tmp_path / "CALLED").exists()


def test_a_yaml_alias_is_read(tmp_path):
    (tmp_path / "settings.yaml").write_text("model: {d_model: &width 64, dim_feedforward: *width}")
    assert read_settings(tmp_path / "settings.yaml").model.dim_feedforward == 64


def test_the_format_of_a_file_of_settings_is_that_of_this_version_or_an_older_one(tmp_path):
    (tmp_path / "settings.yaml").write_text("format: 1\nmodel: {d_model: 64}\n")
    assert read_settings(tmp_path / "settings.yaml").model.d_model == 64
    (tmp_path / "settings.yaml").write_text("format: 2\nmodel: {d_model: 64}\n")
    message = errors_of(tmp_path / "settings.yaml", [])
    assert ":1: its format is 2, and this dragoman (" in message
    assert "pip install --upgrade dragoman" in message
    (tmp_path / "settings.yaml").write_text("format: new\n")
    assert "expected a whole number" in errors_of(tmp_path / "settings.yaml", [])


def find_leaves(section, prefix="") -> dict[str, FieldInfo]:
    """The field of every setting by its dotted name."""
    leaves = {}
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            leaves.update(find_leaves(kind, f"{prefix}{name}."))
        else:
            leaves[f"{prefix}{name}"] = info
    return leaves


any_time = hypothesis.settings(deadline=None)
LEAVES = find_leaves(Settings)


def draw_value(info) -> st.SearchStrategy[object]:
    """Values of a setting, most of them in range."""
    kind = info.annotation
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(-1, 12) | st.sampled_from([64, 300, 5000, 10**9])
    if kind is float:
        return st.floats(0, 1, exclude_max=True) | st.floats(-1, 1e9) | st.floats()
    text = st.text(max_size=6) | st.sampled_from(
        ["a,b", " x ", "true", "1", "null", "a\x85b", "\ufeff"]
    )
    return st.lists(text, max_size=3) if kind is not str else text


@any_time
@given(
    chosen=st.dictionaries(st.sampled_from(sorted(LEAVES)), st.none(), max_size=8), data=st.data()
)
def test_any_settings_that_are_valid_are_read_back_from_what_is_written(
    tmp_path_factory, chosen, data
):
    values = {name: data.draw(draw_value(LEAVES[name])) for name in chosen}
    try:
        settings = merge_settings(Settings(), values)
    except ValidationError:
        return
    config = tmp_path_factory.mktemp("config") / "config.yaml"
    config.write_text(dump_settings(settings), encoding="utf-8")
    if errors := find_conflicts(settings, {name: name for name in LEAVES}):
        assert all(error.partition(":")[2] in errors_of(config) for error in errors)
    else:
        assert read_settings(config) == settings


names = st.sampled_from(
    [*sorted(LEAVES), "model", "data", "modle.d_model", "x", "", "..", "version"]
)
words = st.lists(
    st.text(max_size=8)
    | st.sampled_from(["--", "--=", "--model", "-x", "9" * 5000, "\ud800", "nan", "1e999"])
    | st.builds("--{}={}".format, names, st.text(max_size=6) | st.integers().map(str))
    | names.map("--{}".format),
    max_size=6,
)
blocks = st.recursive(
    st.text(max_size=6)
    | st.sampled_from(["*a", "&a", "!!int x", "2001-99-99", "0x_", "._", "1:99", "<<", "!x", "@"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]")
        | st.lists(st.tuples(names | inner, inner), max_size=3).map(
            lambda pairs: "{" + ", ".join(f"{name}: {value}" for name, value in pairs) + "}"
        )
    ),
    max_leaves=6,
)
lines = st.lists(st.builds("{}: {}".format, names | st.just("a: &a"), blocks), max_size=6)


@any_time
@given(content=lines.map("\n".join) | blocks, words=words)
def test_any_yaml_and_any_words_give_settings_or_a_settings_error(tmp_path_factory, content, words):
    config = tmp_path_factory.mktemp("config") / "settings.yaml"
    config.write_bytes(content.encode(errors="surrogatepass"))
    for file, typed in ((config, words), (None, words), (config, [])):
        with contextlib.suppress(SettingsError):
            assert isinstance(read_settings(file, typed), Settings)


@any_time
@given(content=st.binary(max_size=60))
def test_any_bytes_give_settings_or_a_settings_error(tmp_path_factory, content):
    config = tmp_path_factory.mktemp("config") / "settings.yaml"
    config.write_bytes(content)
    with contextlib.suppress(SettingsError):
        assert isinstance(read_settings(config), Settings)


def test_a_dict_is_read_as_a_file_is(tmp_path):
    nested = {"model": {"d_model": 64}, "training.max_steps": "9", "data": {"valid": [tmp_path]}}
    settings = as_settings(nested)
    assert (settings.model.d_model, settings.training.max_steps) == (64, 9)
    assert settings.data.valid == (str(tmp_path),)
    assert "nhead" not in settings.model.model_fields_set
    assert as_settings(None) == as_settings({}) == as_settings(Settings()) == Settings()
    assert as_settings({"model": ModelSettings(nhead=2)}) == as_settings({"model.nhead": 2})
    with pytest.raises(SettingsError, match="2 errors") as raised:
        as_settings({"model": {"d_modle": 3}, "training.max_steps": None})
    assert "model.d_modle: there is no such setting; did you mean model.d_model?" in str(
        raised.value
    )
    for other in (["--model.d_model", "3"], "settings.yaml", 5, ModelSettings()):
        with pytest.raises(SettingsError, match="settings: expected a dict such as"):
            as_settings(other)


@pytest.mark.parametrize(
    ("typed", "setting"),
    [("batch_size", "training.batch_tokens"), ("lr", "optimization.learning_rate"),
     ("learning-rate", "optimization.learning_rate"), ("num_train_epochs", "training.max_steps"),
     ("model.hidden_size", "model.d_model"), ("num_layers", "model.num_encoder_layers"),
     ("dropout", "model.dropout"), ("num_beams", "decoding.beam_size"),
     ("random-seed", "training.seed"), ("device", "training.accelerator")],
)  # fmt: skip
def test_the_names_of_other_toolkits_get_did_you_mean(typed, setting):
    with pytest.raises(SettingsError, match=f"did you mean {setting}[?]"):
        read_settings(None, [f"--{typed}", "3"])
