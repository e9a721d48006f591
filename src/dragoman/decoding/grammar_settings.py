"""What decoding.regex, json_schema and grammar say, as grammars of llguidance; and its faults."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from dragoman.errors import DataError, SettingsError
from dragoman.reading.text_files import check_file

# llguidance would ask our tokenizer how it cuts bytes that are bound to come, and allow nothing
# else. Off: a constraint forbids what does not match, and leaves the rest to the model.
_OPTIONS: Final = '\n%llguidance {"no_forcing": true}\n'

# By default llguidance allows any amount: a model that is unsure would write nothing else.
_WHITESPACE: Final = r"[ \t]{1,16}|\r?\n[ \t]{0,16}"

_DOCS: Final = "https://github.com/guidance-ai/llguidance/blob/main/docs"
REMEDIES: Final = {
    "regex": "write it as Rust's regex crate reads it, without look-around; the whole output "
    "must match, so that ^ and $ are not needed",
    "json_schema": f"change the schema; what is supported: {_DOCS}/json_schema.md",
    "grammar": f"change the grammar; how it is written: {_DOCS}/syntax.md",
}


def write_grammars(setting: str, value: str) -> list[dict[str, Any]]:
    """Return what `setting` ("regex", "json_schema" or "grammar") says, as llguidance's grammars.

    The first is the one on top.

    Raises:
        SettingsError: A file cannot be read, or the value is none that llguidance could read.
    """
    match setting:
        case "regex":
            return [{"lark_grammar": _regex_to_lark(value) + _OPTIONS}]
        case "json_schema":
            top = {"lark_grammar": f"start: @schema{_OPTIONS}"}
            return [top, {"name": "schema", "json_schema": _parse_schema(value)}]
        case _:
            return [{"lark_grammar": _read(setting, value) + _OPTIONS}]


def _regex_to_lark(regex: str) -> str:
    # Both of these llguidance 1.9.1 would read as another expression, without a word.
    if (len(regex) - len(regex.rstrip("\\"))) % 2:
        raise SettingsError(
            f"decoding.regex: {regex!r} ends with a lone backslash; write two for a backslash"
        )
    if "\n" in regex and re.search(r"\(\?[a-zA-Z]*x", regex):
        raise SettingsError(
            "decoding.regex: an expression with the flag x has to stand on one line"
        )
    return f"start: /{import_llguidance('regex').regex_to_lark(regex, '')}/"


def _parse_schema(value: str) -> dict[str, Any] | bool:
    """Return the schema that `value` is, or that is in the file of this name."""
    text, where = value.strip(), "decoding.json_schema"
    if not text.startswith("{") and text not in ("true", "false"):
        text, where = _read("json_schema", value), f"{where}: {value}"
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{where}: it is no JSON: {error}") from error
    if not isinstance(schema, dict | bool):
        raise SettingsError(f"{where}: a schema is an object {{…}}, true or false")
    if schema is False:
        return schema
    schema = {} if schema is True else schema
    options = schema.get("x-guidance", {})
    if not isinstance(options, dict) or "whitespace_flexible" in options:
        return schema
    return {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE, **options}}


def _read(setting: str, name: str) -> str:
    path = Path(name)
    try:
        check_file(path)
        return path.read_text(encoding="utf-8-sig")
    except DataError as error:
        raise SettingsError(f"decoding.{setting}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"decoding.{setting}: {path}: cannot be read: {error}") from error


def import_llguidance(setting: str) -> ModuleType:
    """Return llguidance, which is an extra.

    Raises:
        SettingsError: It is not installed; names `setting` and says how to install it.
    """
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"decoding.{setting}: it needs llguidance, which is not installed: "
            'pip install "dragoman[guided]"'
        ) from error
    return llguidance


def shorten(message: str, setting: str) -> str:
    """Return the part of llguidance's message that is about what the user wrote."""
    for mark in ("<non-verbose/>", "<state>", "<backtrace>"):
        message = message.partition(mark)[0]
    if setting == "regex":  # without the grammar that we put around the expression
        message = message.partition("\n   1 | ")[0]
        message = message.rpartition(" (in regex): ")[2]
    ours = r"\n\s*\d+ \| (?:%llguidance \{\"no_forcing.*)?$"
    return re.sub(ours, "", message.rstrip(), flags=re.MULTILINE)
