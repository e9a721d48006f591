"""A YAML file of settings as values by dotted name; it may come from a stranger.

Only plain values are made of it, whatever tags it has. So that no crafted file takes the memory or
the time, its size and the number of its values are bounded, and an alias (`*name`) may stand for a
single value only.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from dragoman.errors import SettingsError, shorten
from dragoman.versions import tell_later

FORMAT = 1
"""Of config.yaml; raised where an older dragoman would read it wrongly."""

_LARGEST_BYTES = 1 << 20
_MOST_NODES = 20_000  # names and values: PyYAML takes some 50 us for each
_MOST_SETTINGS = 1000  # there are under a hundred
_LONGEST_NUMBER = 100  # characters of what is not text: a number, a date
# What PyYAML 6 lets through of a value that is not of its kind, as the date 2026-13-45.
_UNREADABLE = (ValueError, OverflowError, LookupError, AttributeError, TypeError)


class Setting(NamedTuple):
    """One setting of a file."""

    name: str
    """Dotted."""
    value: object
    """None: it has none."""
    line: int


def read_settings_file(path: Path) -> str:
    """Return the text of a file of settings; it may be a pipe.

    Raises:
        SettingsError: It cannot be read, or is too large to be one.
    """
    try:
        with path.open("rb") as file:
            return decode_settings(file.read(_LARGEST_BYTES + 1), str(path))
    except OSError as error:
        raise SettingsError(f"{path}: the settings cannot be read: {error}") from error


def decode_settings(content: bytes, place: str) -> str:
    """Return `content` as text.

    Raises:
        SettingsError: It is too large to be settings, or not UTF-8.
    """
    if len(content) > _LARGEST_BYTES:
        raise SettingsError(
            f"{place}: of over {_LARGEST_BYTES >> 20} MiB, so these are no settings"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{place}: the settings cannot be read: {error}") from error


def parse_settings(text: str, place: str) -> list[Setting]:
    """Return the settings in `text`, in their order; a name may come twice.

    `place` is the name of the file. The format, where it stands among them, is checked and left out.

    Raises:
        SettingsError: It is no YAML, too deep, too much, or of a later version.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if isinstance(root, yaml.MappingNode):
            found = list(_flatten(root, "", loader, place))
        elif root is None:
            found = []
        else:
            kind = "a list" if isinstance(root, yaml.SequenceNode) else "a value"
            raise SettingsError(f"{place}: expected lines of `name: value`, found {kind}")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{place}:{mark.line + 1}" if mark else place
        problem = getattr(error, "problem", None) or str(error)
        raise SettingsError(f"{where}: not valid YAML: {shorten(problem, 200)}") from error
    except RecursionError as error:
        raise SettingsError(f"{place}: nested too deep to be settings") from error
    if len(found) > _MOST_SETTINGS:
        raise SettingsError(f"{place}: {len(found):,} settings; there are not so many")
    for setting in found:
        if setting.name == "format":
            _check_format(setting, place)
    return [setting for setting in found if setting.name != "format"]


class _Loader(yaml.SafeLoader):
    """A loader that gives up on too many nodes, and on aliases of lists and mappings."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark: yaml.error.Mark = event.start_mark
        self._num_nodes += 1
        if self._num_nodes > _MOST_NODES:
            problem = f"more than {_MOST_NODES:,} names and values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        node = super().compose_node(parent, index)
        if not isinstance(node, yaml.ScalarNode):
            if isinstance(event, yaml.AliasEvent):
                problem = "an alias (*) of a list or a mapping; write it out"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        elif node.tag != "tag:yaml.org,2002:str" and len(node.value) > _LONGEST_NUMBER:
            problem = f"{shorten(node.value)!r} is neither text nor a number"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        return node


def _flatten(node: yaml.MappingNode, prefix: str, loader: _Loader, place: str) -> Iterator[Setting]:
    if node.tag != "tag:yaml.org,2002:map":
        where = f"{place}:{node.start_mark.line + 1}"
        raise SettingsError(f"{where}: a group of settings has no tag ({shorten(node.tag)})")
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise SettingsError(f"{place}:{line}: a name is a word, not a list or a mapping")
        name = f"{prefix}{key_node.value}"
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            yield from _flatten(value_node, f"{name}.", loader, place)
        else:
            yield Setting(name, _construct(value_node, loader, f"{place}:{line}", name), line)


def _construct(node: yaml.Node, loader: _Loader, where: str, name: str) -> object:
    try:
        value: object = loader.construct_object(node, deep=True)
    except _UNREADABLE as error:
        found = shorten(str(node.value))
        raise SettingsError(f"{where}: {shorten(name)}: {found} is no value") from error
    return value


def _check_format(setting: Setting, place: str) -> None:
    value, where = setting.value, f"{place}:{setting.line}"
    if type(value) is not int or value < 1:
        raise SettingsError(f"{where}: format: expected a whole number, as dragoman writes it")
    if value > FORMAT:
        raise SettingsError(f"{where}: {tell_later(value, FORMAT)}")
