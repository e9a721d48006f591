"""Settings from a YAML file and from dotted arguments: merged, checked, all faults at once."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dragoman.errors import SettingsError, shorten
from dragoman.settings import DecodingSettings, Section, Settings
from dragoman.settings_file import parse_settings, read_settings_file

# Settings of older model folders and checkpoints: name then -> name now, in the same section (None:
# removed). Only stored settings are read so; on the command line an old name gets "did you mean".
_RENAMED: dict[str, str | None] = {
    "training.path": "training.implementation",
    "decoding.cut_mark": "decoding.truncation_mark",
}
_RENAMED_VALUES = {("training.implementation", "fast"): "fused"}

# Beyond these a model folder could claim any amount of memory before its weights are looked at.
_LARGEST = {
    "model.d_model": 1 << 16,
    "model.num_encoder_layers": 1000,
    "model.num_decoder_layers": 1000,
    "model.dim_feedforward": 1 << 20,
    "model.max_positions": 1 << 20,
    "data.max_characters": 10**9,
    "data.max_tokens": 10**9,
    "decoding.beam_size": 10_000,
    "decoding.num_samples": 100_000,
    "decoding.max_length_ratio": 10_000,
    "decoding.max_length_extra": 10**7,
    "decoding.min_length": 10**7,
    "decoding.batch_tokens": 10**8,
    "evaluation.resamples": 10**6,
}


@dataclass
class _Draft:
    """Values by dotted name, with the place that each was typed at, before they are checked."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def set(self, name: str, value: object, place: str) -> None:
        self.values[name] = value
        self.places[name] = place


def read_settings(config: Path | None = None, arguments: Sequence[str] = ()) -> Settings:
    """Return the settings of a YAML file, with dotted arguments over them.

    `arguments` are as typed: `["--model.d_model", "256", "--tokenizer.shared=true"]`. What neither
    sets has its default, and is not in `model_fields_set`, so that a preset may still fill it.

    Raises:
        SettingsError: Lists every fault of both, each with its place and, for a misspelt name, the
            likely one.
    """
    draft = _Draft()
    if config is not None:
        _take_file(read_settings_file(config), str(config), draft)
    _read_arguments(arguments, draft)
    return _check(draft)


def parse_config(text: str, place: str) -> Settings:
    """Return the settings in `text`, YAML; `place` is the name of the file that it came from.

    Raises:
        SettingsError: As `read_settings`.
    """
    draft = _Draft()
    _take_file(text, place, draft)
    return _check(draft)


def _check(draft: _Draft) -> Settings:
    """Return the settings of a draft.

    Raises:
        SettingsError: Lists every fault.
    """
    draft.faults += [
        f"{draft.places[name]}: this is a group of settings ({name}.…), not a setting with a value"
        for name in draft.values
        if any(other.startswith(f"{name}.") for other in draft.values)
    ]
    settings = Settings()
    try:
        settings = Settings.model_validate(_nest(draft.values))
    except ValidationError as error:
        draft.faults += [fault for details in error.errors() for fault in _describe(details, draft)]
    draft.faults += find_conflicts(settings, draft.places)
    if draft.faults:
        raise SettingsError.gather(list(dict.fromkeys(draft.faults)))
    return settings


def find_conflicts(settings: Settings, places: Mapping[str, str] | None = None) -> list[str]:
    """Return the faults of settings that do not go together; an empty list if there are none."""
    places = places or {}
    model, faults = settings.model, _find_excess(settings, places)
    if model.d_model % model.nhead:
        where = places.get("model.nhead") or places.get("model.d_model") or "model.nhead"
        faults.append(
            f"{where}: d_model {model.d_model} is not a multiple of nhead {model.nhead}; "
            f"every head takes an equal part"
        )
    if model.positions == "learned" and settings.data.max_tokens > model.max_positions:
        faults.append(
            f"{places.get('model.max_positions', 'model.max_positions')}: {model.max_positions} "
            f"learned positions are less than data.max_tokens {settings.data.max_tokens}; make them "
            "equal, or set model.positions sinusoidal"
        )
    warmup, max_steps = settings.optimization.warmup_steps, settings.training.max_steps
    if "optimization.warmup_steps" in places and warmup >= max_steps:
        faults.append(
            f"{places['optimization.warmup_steps']}: {warmup} is not less than training.max_steps "
            f"{max_steps}; the learning rate would never reach its peak"
        )
    if settings.data.valid_fraction + settings.data.test_fraction >= 1.0:
        faults.append("data.valid_fraction and data.test_fraction leave nothing to train on")
    return faults + _find_decoding_conflicts(settings.decoding)


def _find_excess(settings: Settings, places: Mapping[str, str]) -> list[str]:
    """Return what is so large that it would take all memory, and that no model needs."""
    faults = []
    for name, largest in _LARGEST.items():
        section, _, last = name.partition(".")
        value = getattr(getattr(settings, section), last)
        if value > largest:
            found = f"{value:,}" if value < 10**15 else "a number of over 15 digits"
            faults.append(f"{places.get(name, name)}: {found} is too large: at most {largest:,}")
    return faults


def _find_decoding_conflicts(decoding: DecodingSettings) -> list[str]:
    faults = []
    if decoding.num_hypotheses > decoding.num_candidates:
        name = "num_samples" if decoding.method == "sampling" else "beam_size"
        faults.append(
            f"decoding.num_hypotheses: {decoding.num_hypotheses} of {decoding.num_candidates} "
            f"candidates cannot be given; raise decoding.{name}"
        )
    if decoding.method == "diverse" and decoding.beam_size % decoding.diverse_groups:
        faults.append(
            f"decoding.beam_size: {decoding.beam_size} is not a multiple of "
            f"decoding.diverse_groups {decoding.diverse_groups}; every group has an equal part"
        )
    if decoding.minimum_risk != "none" and decoding.num_candidates == 1:
        faults.append(
            "decoding.minimum_risk: there is one candidate to choose from; raise "
            "decoding.beam_size, or set decoding.method sampling and raise decoding.num_samples"
        )
    kinds = ("regex", "json_schema", "choices", "grammar")
    if len(given := [kind for kind in kinds if getattr(decoding, kind)]) > 1:
        faults.append(
            f"{' and '.join(f'decoding.{kind}' for kind in given)} are both set; an output follows one"
        )
    return faults


def merge_settings(
    settings: Settings, values: Mapping[str, Any], *, overrule: bool = False
) -> Settings:
    """Return `settings` with `values` (by dotted name) wherever nothing is set yet.

    `overrule`: put them in the place of what is set, too.
    """
    chosen = dict(list_set_values(settings))
    both = {**chosen, **values} if overrule else {**values, **chosen}
    return Settings.model_validate(_nest(both))


def update_stored(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return stored settings (nested, or by dotted name) under their names of today.

    `prefix` is the section that `content` is, with its dot; settings that no longer exist are left
    out.
    """
    updated: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            updated[name] = update_stored(value, f"{prefix}{name}.")
        elif (now := _RENAMED.get(f"{prefix}{name}", f"{prefix}{name}")) is not None:
            updated[now.removeprefix(prefix)] = _RENAMED_VALUES.get((now, str(value)), value)
    return updated


def merge_for_use(typed: Settings, trained: Settings) -> Settings:
    """Return the settings of a trained model with those that were typed in their place.

    Raises:
        SettingsError: One belongs to the training, or they do not go together.
    """
    values = dict(list_set_values(typed))
    in_use = ("data", "decoding", "evaluation")
    if fixed := [name for name in values if name.partition(".")[0] not in in_use]:
        raise SettingsError(
            f"--{fixed[0]}: belongs to the training; a trained model takes data.*, decoding.* and "
            "evaluation.*"
        )
    merged = merge_settings(typed, dict(list_set_values(trained)))
    if faults := find_conflicts(merged):
        raise SettingsError.gather(faults)
    return merged


def list_set_values(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of each setting that was set and not left at its default."""
    for name in sorted(section.model_fields_set):
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from list_set_values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def flatten_settings(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Return the value of every setting by its dotted name, as plain JSON values."""
    flat: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            flat.update(flatten_settings(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def list_settings(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every setting."""
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from list_settings(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def suggest(name: str, known: Sequence[str]) -> str:
    """Return "; did you mean X?" for the known name that `name` most likely stands for, or ""."""
    if now := _RENAMED.get(name):
        return f"; did you mean {now}?"
    by_last: dict[str, str] = {}
    for one in known:
        by_last.setdefault(one.rpartition(".")[2], one)
    if (last := name.rpartition(".")[2]) in by_last:
        return f"; did you mean {by_last[last]}?"
    if longer := [one for one in known if name and one.startswith(name)]:
        return f"; did you mean {longer[0]}?"
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return f"; did you mean {close[0]}?"
    if close := difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.7):
        return f"; did you mean {by_last[close[0]]}?"
    return ""


def _take_file(text: str, place: str, draft: _Draft) -> None:
    """Put the settings of a file into `draft`, each with its line."""
    found = parse_settings(text, place)
    is_stored = any(setting.name == "version" for setting in found)  # written by dragoman
    for setting in found:
        if is_stored and setting.name in _RENAMED:
            for now, value in update_stored({setting.name: setting.value}).items():
                draft.set(now, value, f"{place}:{setting.line}: {setting.name}")
            continue
        name, where = setting.name, f"{place}:{setting.line}"
        if name in draft.values:
            draft.faults.append(f"{where}: {shorten(name)} is set twice in this file")
        if setting.value is None:
            draft.faults.append(
                f"{where}: {shorten(name)} has no value; give one, or take the line out"
            )
        else:
            draft.set(name, setting.value, f"{where}: {shorten(name)}")


def _read_arguments(arguments: Sequence[str], draft: _Draft) -> None:
    """Put `--name=value`, or `--name value`; a last `--name`, or one before another, is true."""
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--") or option == "--":
            draft.faults.append(f"{option!r}: expected --name value; see --help for the names")
            continue
        name, has_value, value = option.removeprefix("--").partition("=")
        if not has_value:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        if name == "version":
            draft.faults.append("--version: this is written by dragoman, not set; for the version "
                                "of dragoman itself: dragoman --version")  # fmt: skip
        draft.set(name, value, f"--{name}")


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        inner = nested
        for section in sections:
            below = inner.get(section)
            if not isinstance(below, dict):  # a value where a section belongs: a fault by now
                below = inner[section] = {}
            inner = below
        inner[last] = value
    return nested


def _describe(details: ErrorDetails, draft: _Draft) -> list[str]:
    """Return the faults of one error: where each was typed, what was found, what to do."""
    name = ".".join(str(part) for part in details["loc"] if not isinstance(part, int))
    if details["type"] == "extra_forbidden":  # of a section, each setting that was typed in it
        known = list(list_settings())
        return [
            f"{place}: there is no such setting{suggest(typed, known)}"
            for typed, place in draft.places.items()
            if typed == name or typed.startswith(f"{name}.")
        ]
    return [_describe_value(name, details, draft)]


def _describe_value(name: str, details: ErrorDetails, draft: _Draft) -> str:
    place = draft.places.get(name) or next(
        (typed for set_name, typed in draft.places.items() if set_name.startswith(f"{name}.")), name
    )
    found, context = _show(details["input"]), details.get("ctx", {})
    quoted = repr(found) if isinstance(details["input"], str) else found
    match details["type"]:
        case "literal_error":
            choices = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
            hint = suggest(str(details["input"])[:80], choices)
            return f"{place}: {quoted} is not one of {', '.join(choices)}{hint}"
        case "int_parsing" | "int_type" | "int_from_float":
            return f"{place}: {quoted} is not a whole number"
        case "float_parsing" | "float_type":
            return f"{place}: {quoted} is not a number"
        case "bool_parsing" | "bool_type":
            return f"{place}: {quoted} is neither true nor false"
        case "greater_than_equal":
            return f"{place}: {found} is too small: at least {context['ge']}"
        case "greater_than":
            return f"{place}: {found} is too small: more than {context['gt']}"
        case "less_than":
            return f"{place}: {found} is too large: less than {context['lt']}"
        case "less_than_equal":
            return f"{place}: {found} is too large: at most {context['le']}"
        case "model_type" | "model_attributes_type":
            return f"{place}: this is a group of settings ({name}.…), not a setting with a value"
    return f"{place}: {details['msg']}"


def _show(value: object) -> str:
    """Return a value for a message; what is no plain value, and may be endless, by its kind."""
    if isinstance(value, str):
        return shorten(value)
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a huge number"
    return str(value) if isinstance(value, int | float) else f"a {type(value).__name__}"
