"""Settings from a YAML file and from dotted arguments: merged, checked, all errors at once."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dragoman.characters import find_surrogate
from dragoman.errors import SettingsError, later_format_reason, shorten
from dragoman.settings import Section, Settings

FORMAT = 1
"""Of config.yaml; raised when an older dragoman would misread it."""

# Settings of older model folders and checkpoints: name then -> name now, in the same section (None:
# removed). Only stored settings are read so; on the command line an old name gets "did you mean".
_RENAMED: dict[str, str | None] = {
    "training.path": "training.implementation",
    "training.export": None,  # CTranslate2 computes the weights as they are
    "decoding.cut_mark": "decoding.truncation_mark",
}
_RENAMED_VALUES = {("training.implementation", "fast"): "fused"}

# What other toolkits call a setting, for "did you mean".
_ELSEWHERE = {
    "optimization.learning_rate": "lr max_lr peak_lr learningrate",
    "optimization.warmup_steps": "warmup warmup_updates num_warmup_steps",
    "optimization.clip_norm": "max_grad_norm gradient_clip_val grad_clip clip",
    "training.seed": "random_seed manual_seed seed_everything",
    "training.max_steps": "epochs max_epochs max_epoch num_epochs num_train_epochs train_steps "
    "max_update max_updates steps",
    "training.batch_tokens": "batch_size batchsize bs train_batch_size per_device_train_batch_size",
    "decoding.batch_tokens": "batch_size batchsize bs",
    "training.accumulate": "accum_count update_freq gradient_accumulation_steps accumulate_grad_batches",
    "training.patience": "early_stopping early_stopping_patience",
    "training.checkpoint_every": "save_every save_steps save_interval save_checkpoint_steps",
    "training.precision": "fp16 bf16 amp",
    "training.accelerator": "device gpu use_gpu cuda",
    "training.devices": "gpus num_gpus n_gpu ngpus",
    "data.valid": "dev dev_file validation_file",
    "model.d_model": "hidden_size hidden_dim hidden embed_dim embedding_dim emb_dim rnn_size dim",
    "model.num_encoder_layers": "num_layers layers n_layers num_hidden_layers encoder_layers enc_layers",
    "model.num_decoder_layers": "decoder_layers dec_layers",
    "model.nhead": "heads num_heads n_heads n_head num_attention_heads attention_heads",
    "model.dim_feedforward": "d_ff ffn_dim ffn_embed_dim intermediate_size transformer_ff",
    "decoding.beam_size": "beam num_beams beams",
    "decoding.num_hypotheses": "nbest n_best num_return_sequences",
}


@dataclass
class _Draft:
    """Unchecked values by dotted name, each with the place where it was typed."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def set(self, name: str, value: object, place: str) -> None:
        self.values[name] = value
        self.places[name] = place


def read_settings(
    config: Path | None = None, arguments: Sequence[str] = (), *, is_whole: bool = True
) -> Settings:
    """Return the settings of a YAML file, with dotted arguments over them.

    `arguments` are as typed: `["--model.d_model", "256", "--tokenizer.shared=true"]`. A setting
    that neither sets has its default and is not in `model_fields_set`: a preset may still set it.
    `is_whole`: no others, such as those of a model, will be merged with them, so that conflicts are
    errors.

    Raises:
        SettingsError: Lists all errors of both, each with its place and "did you mean".
    """
    draft = _Draft()
    if config is not None:
        try:
            content = config.read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise SettingsError(f"{config}: the settings cannot be read: {reason}") from error
        _take_file(content, str(config), draft)
    _read_arguments(arguments, draft)
    return _check(draft, is_whole=is_whole)


SettingsLike = Settings | Mapping[str, Any] | None


def as_settings(given: SettingsLike, *, is_whole: bool = True) -> Settings:
    """Return the settings that a Python caller gives: `Settings`, or a dict, nested or dotted.

    Raises:
        SettingsError: Lists all errors, as `read_settings`; or they are something else.
    """
    if given is None or isinstance(given, Settings):
        return given or Settings()
    if not isinstance(given, Mapping):
        raise SettingsError(
            "settings: expected a dict such as {'model.d_model': 128}, or Settings, found "
            f"{type(given).__name__}; `read_settings` reads a YAML file"
        )
    draft = _Draft()
    for name, value in _flatten(given):
        if isinstance(value, list | tuple):
            value = [str(one) if isinstance(one, Path) else one for one in value]
        draft.set(name, str(value) if isinstance(value, Path) else value, shorten(name))
    return _check(draft, is_whole=is_whole)


def parse_config(content: bytes, place: str) -> Settings:
    """Return the settings in `content`, YAML; `place` is its file name, for messages."""
    draft = _Draft()
    _take_file(content, place, draft)
    return _check(draft)


def _check(draft: _Draft, *, is_whole: bool = True) -> Settings:
    """Return the settings of a draft, or raise all of its errors at once."""
    draft.errors += [
        f"{draft.places[name]}: this is a group of settings ({name}.…), not a setting with a value"
        for name in draft.values
        if any(other.startswith(f"{name}.") for other in draft.values)
    ]
    settings = Settings()
    try:
        settings = Settings.model_validate(_nest(draft.values))
    except ValidationError as error:
        draft.errors += [text for details in error.errors() for text in _describe(details, draft)]
    if is_whole:
        draft.errors += find_conflicts(settings, draft.places)
    if draft.errors:
        raise SettingsError.gather(list(dict.fromkeys(draft.errors)))
    return settings


def find_conflicts(settings: Settings, places: Mapping[str, str] | None = None) -> list[str]:
    """Return the errors of settings that conflict; an empty list if none do.

    `places` says where each setting was typed, by name.
    """
    places = places or {}
    model = settings.model
    errors = [
        f"{places.get(name, name)}: {text!r} is not UTF-8; a file of such a name has to be renamed"
        for name, value in list_set_values(settings)
        for text in (value if isinstance(value, tuple) else (value,))
        if isinstance(text, str) and find_surrogate(text) is not None
    ]
    if model.d_model % model.nhead:
        where = places.get("model.nhead") or places.get("model.d_model") or "model.nhead"
        errors.append(
            f"{where}: d_model {model.d_model} is not a multiple of nhead {model.nhead}; "
            f"every head has the same width"
        )
    if model.positions == "learned" and settings.data.max_tokens > model.max_positions:
        errors.append(
            f"{places.get('model.max_positions', 'model.max_positions')}: {model.max_positions} "
            f"learned positions are less than data.max_tokens {settings.data.max_tokens}; make them "
            "equal, or set model.positions sinusoidal"
        )
    if model.positions == "learned" and settings.optimization.subword_dropout > 0.0:
        errors.append(
            "optimization.subword_dropout makes sequences longer, and model.positions learned ends; "
            "set model.positions sinusoidal or rotary"
        )
    warmup, max_steps = settings.optimization.warmup_steps, settings.training.max_steps
    if "optimization.warmup_steps" in places and warmup >= max_steps:
        errors.append(
            f"{places['optimization.warmup_steps']}: {warmup} is not less than training.max_steps "
            f"{max_steps}; the learning rate would never reach its peak"
        )
    if settings.data.valid_fraction + settings.data.test_fraction >= 1.0:
        errors.append("data.valid_fraction and data.test_fraction leave nothing to train on")
    decoding = settings.decoding
    if decoding.num_hypotheses > decoding.num_candidates:
        name = "num_samples" if decoding.method == "sampling" else "beam_size"
        errors.append(
            f"decoding.num_hypotheses: {decoding.num_hypotheses} is more than the "
            f"{decoding.num_candidates} candidates; raise decoding.{name}"
        )
    if decoding.method == "diverse" and decoding.beam_size % decoding.diverse_groups:
        errors.append(
            f"decoding.beam_size: {decoding.beam_size} is not a multiple of "
            f"decoding.diverse_groups {decoding.diverse_groups}; all groups have the same size"
        )
    if decoding.minimum_risk != "none" and decoding.num_candidates == 1:
        errors.append(
            "decoding.minimum_risk: there is only one candidate; raise "
            "decoding.beam_size, or set decoding.method sampling and raise decoding.num_samples"
        )
    if decoding.require_grounding != "none" and decoding.records == "none":
        errors.append(
            f"decoding.require_grounding: {decoding.require_grounding} is for outputs that are records, "
            "and decoding.records is none; leave it out, or name the format in decoding.records"
        )
    kinds = ("regex", "json_schema", "choices", "grammar")
    if len(given := [kind for kind in kinds if getattr(decoding, kind)]) > 1:
        errors.append(
            f"{' and '.join(f'decoding.{kind}' for kind in given)} are both set; give one"
        )
    return errors


def merge_settings(
    settings: Settings, values: Mapping[str, Any], *, overrule: bool = False
) -> Settings:
    """Return `settings` with `values` (by dotted name) for what is not set yet.

    `overrule`: `values` replace what is set, too.
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
    """Return the settings of a trained model, overridden by the typed ones.

    Raises: SettingsError, when a typed setting is for training only, or some conflict.
    """
    check_sections(typed, "a trained model", ("data", "decoding", "evaluation"))
    if dict(list_set_values(typed)).keys() & {
        "decoding.max_length_ratio",
        "decoding.max_length_extra",
    }:
        typed = merge_settings(typed, {"decoding.max_length": 0})  # not the bound that fit set
    merged = merge_settings(typed, dict(list_set_values(trained)))
    labels = trained.data.features
    if len(merged.data.features) != len(labels):
        raise SettingsError(
            f"--data.features {','.join(merged.data.features)}: the model has "
            + (
                f"{len(labels)} features, {', '.join(labels)}: give their columns, or"
                if labels
                else "none;"
            )
            + " leave the setting out"
        )
    errors = find_conflicts(merged)
    errors += [
        f"decoding.{name}: decoding.method {merged.decoding.method} does not use it; set "
        f"decoding.method {method}, or leave it out"
        for name, method in _OF_METHOD.items()
        if method != merged.decoding.method
        and getattr(typed.decoding, name)
        not in (getattr(Settings().decoding, name), getattr(trained.decoding, name))
    ]
    if errors:
        raise SettingsError.gather(errors)
    return merged


_OF_METHOD = {
    **dict.fromkeys(("num_samples", "temperature", "top_k", "top_p"), "sampling"),
    **dict.fromkeys(("diverse_groups", "diverse_strength"), "diverse"),
}  # fmt: skip


def merge_for_start(typed: Settings, trained: Settings) -> Settings:
    """Return the typed settings of a run that starts from a trained model, with those that it fixes.

    Held-out fractions are among them, so that no pair of its training becomes one to validate on.
    A teacher whose probabilities are learned fixes the same, except the sizes.

    Raises: SettingsError, when typed ones are not those of its weights and tokens; names each.
    """
    known, remedy = f"the model to start from, {typed.training.start_from}", "train without --from"
    sections: tuple[str, ...] = ("model.", "tokenizer.")
    if not typed.training.start_from:
        known, remedy = f"the teacher, {typed.token_teacher}", "set optimization.distillation 0"
        sections = ("tokenizer.",)
    values = {
        name: value
        for name, value in flatten_settings(trained).items()
        if name.startswith(sections) or name.removeprefix("data.") in _OF_START
    }
    given, may_differ = dict(list_set_values(typed)), ("model.dropout", "tokenizer.training_rows")
    if not trained.data.features:
        del values["data.features_separator"]  # chosen, if features are added
    if trained.data.records == "auto":
        values["data.records"] = "text"  # it learned targets as written
    errors = [
        f"--{name}: {given[name]!r}, but {known}, has {value!r}; leave it out, or {remedy}"
        for name, value in values.items()
        if given.get(name, value) != value and name not in may_differ
        # A model without tags can get some.
        if not name.startswith("data.") or (name == "data.leading_tags" and value)
    ]
    if errors:
        raise SettingsError.gather(errors)
    return merge_settings(typed, values)


_OF_START = (
    "source", "target", "columns", "features", "features_separator", "leading_tags", "records", "record_fields",
    "valid_fraction", "test_fraction", "max_characters", "max_tokens",
)  # fmt: skip


def check_sections(typed: Settings, user: str, sections: Sequence[str]) -> None:
    """Check that all typed settings are in `sections`, those that `user` takes."""
    for name, _ in list_set_values(typed):
        if (section := name.partition(".")[0]) not in sections:
            is_use = section in ("data", "decoding", "evaluation")
            raise SettingsError(
                f"--{name}: {'is not used' if is_use else 'is for training only'}; {user} takes "
                f"{', '.join(f'{one}.*' for one in sections)}"
            )


def list_set_values(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of each setting that was set explicitly."""
    return _flatten(section.model_dump(exclude_unset=True), prefix)


def flatten_settings(section: BaseModel) -> dict[str, Any]:
    """Return all values by dotted name, as plain JSON values."""
    return dict(_flatten(section.model_dump(mode="json")))


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        inner = value.model_dump(exclude_unset=True) if isinstance(value, Section) else value
        if isinstance(inner, Mapping):
            yield from _flatten(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def suggest(name: str, known: Sequence[str]) -> str:
    """Return "; did you mean X?" with the most similar name of `known`, or ""."""
    if name in _RENAMED and _RENAMED[name] is None:
        return "; it was removed"
    last = name.rpartition(".")[2]
    plain = last.lower().replace("-", "_")
    by_last = {one.rpartition(".")[2]: one for one in reversed(known)}
    found = [
        _RENAMED.get(name),
        *(one for one, names in _ELSEWHERE.items() if one in known and plain in names.split()),
        by_last.get(last) or by_last.get(plain),
        *(one for one in known if name and one.startswith(name)),
        *difflib.get_close_matches(name, known, n=1, cutoff=0.6),
        *(by_last[one] for one in difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)),
    ]
    best = next(filter(None, found), None)
    return f"; did you mean {best}?" if best else ""


def _take_file(content: bytes, place: str, draft: _Draft) -> None:
    """Put the settings of a YAML file into `draft`, each with its line."""
    try:
        root = yaml.compose(content.decode("utf-8-sig"), yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise SettingsError(f"{place}: the settings cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{place}:{mark.line + 1}" if mark else place
        problem = shorten(str(getattr(error, "problem", None) or error), 200)
        raise SettingsError(f"{where}: not valid YAML: {problem}") from error
    except RecursionError as error:
        raise SettingsError(f"{place}: nested too deeply") from error
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a value"
        raise SettingsError(f"{place}: expected lines of `name: value`, found {kind}")
    found = list(_flatten_yaml(root, "", place))
    is_stored = any(name == "version" for name, _, _ in found)  # written by dragoman
    for name, value, line in found:
        where = f"{place}:{line}"
        if name == "format":
            if type(value) is not int or value < 1:
                raise SettingsError(
                    f"{where}: format: expected a whole number, as dragoman writes it"
                )
            if value > FORMAT:
                raise SettingsError(f"{where}: {later_format_reason(value, FORMAT)}")
            continue
        if name in draft.values:
            draft.errors.append(f"{where}: {shorten(name)} is set twice in this file")
        if value is None:
            draft.errors.append(f"{where}: {shorten(name)} has no value; give one, or remove it")
            continue
        current = update_stored({name: value}) if is_stored else {name: value}
        for current_name, current_value in current.items():
            draft.set(current_name, current_value, f"{where}: {shorten(name)}")


def _flatten_yaml(
    node: yaml.MappingNode, prefix: str, place: str
) -> Iterator[tuple[str, object, int]]:
    """Yield (dotted name, value, line) of each setting in a YAML mapping; tags run no code."""
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise SettingsError(f"{place}:{line}: a name is a word, not a list or a mapping")
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _flatten_yaml(value, f"{name}.", place)
            continue
        try:
            yield name, yaml.constructor.SafeConstructor().construct_object(value, deep=True), line
        except yaml.YAMLError as error:
            raise SettingsError(f"{place}:{line}: {shorten(name)}: {error}") from error
        except _BAD_VALUES as error:
            found = shorten(str(value.value))
            raise SettingsError(f"{place}:{line}: {shorten(name)}: {found} is no value") from error


# PyYAML 6 raises these for a value that is not of its kind, such as the date 2026-13-45.
_BAD_VALUES = (ValueError, OverflowError, LookupError, AttributeError, TypeError)


def _read_arguments(arguments: Sequence[str], draft: _Draft) -> None:
    """Put `--name=value` or `--name value` into `draft`; a `--name` without a value is true."""
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--") or option == "--":
            draft.errors.append(f"{option!r}: expected --name value; see --help all for the names")
            continue
        name, has_value, value = option.removeprefix("--").partition("=")
        if not has_value:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        if name == "version":
            draft.errors.append("--version: is written by dragoman and cannot be set; `dragoman "
                                "--version` prints the version")  # fmt: skip
        draft.set(name, value, f"--{name}")


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        inner = nested
        for section in sections:
            below = inner.get(section)
            if not isinstance(below, dict):  # a value in place of a section: already an error
                below = inner[section] = {}
            inner = below
        inner[last] = value
    return nested


def _describe(details: ErrorDetails, draft: _Draft) -> list[str]:
    """Return the messages of one pydantic error."""
    name = ".".join(str(part) for part in details["loc"] if not isinstance(part, int))
    if details["type"] == "extra_forbidden":  # for a section: each setting typed in it
        known = list(flatten_settings(Settings()))
        return [
            f"{place}: there is no such setting{suggest(typed, known)}"
            for typed, place in draft.places.items()
            if typed == name or typed.startswith(f"{name}.")
        ]
    place = draft.places.get(name) or next(
        (typed for set_name, typed in draft.places.items() if set_name.startswith(f"{name}.")), name
    )
    return [f"{place}: {describe_value(details, name)}"]


def describe_value(details: ErrorDetails, name: str = "") -> str:
    """Return what is wrong with the value of one pydantic error; `name` is that of the setting."""
    value, context = details["input"], details.get("ctx", {})
    found = shorten(value) if isinstance(value, str) else f"a {type(value).__name__}"
    if value is None:
        found = "null"
    if isinstance(value, int | float):
        found = "a huge number" if abs(value) >= 1e30 else str(value)
    quoted = repr(found) if isinstance(value, str) else found
    if details["type"] == "literal_error":
        choices = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        hint = suggest(str(value)[:80], choices)
        return f"{quoted} is not one of {', '.join(choices)}{hint}"
    for types, message in _MESSAGES.items():
        if details["type"] in types.split():
            return message.format(found=found, quoted=quoted, name=name, **context)
    return details["msg"].removeprefix("Value error, ")


_MESSAGES = {  # by the types of pydantic's errors
    "int_parsing int_type int_from_float": "{quoted} is not a whole number",
    "float_parsing float_type finite_number": "{quoted} is not a number",
    "bool_parsing bool_type": "{quoted} is neither true nor false",
    "string_type": "{quoted} is not a text",
    "greater_than_equal": "{found} is too small: give at least {ge}",
    "greater_than": "{found} is too small: give more than {gt}",
    "less_than": "{found} is too large: give less than {lt}",
    "less_than_equal": "{found} is too large: give at most {le}",
    "model_type model_attributes_type": "this is a group of settings ({name}.…), not a setting with "
    "a value",
}
