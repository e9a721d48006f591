"""Texts that are records, JSON objects or `field: value`: their fields, and where each value stands.

A record is a multiset of (field, value). Fields of nested objects are dotted; each item of a list,
and each value of a repeated field, is a value of its field. An item that is itself an object or a
list is one value. null, and an empty value of a `field: value`, are not values.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from json.decoder import JSONArray, JSONObject  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from string import whitespace
from typing import Any, Literal, NamedTuple

Format = Literal["json", "\n", "|", ";"]  # JSON, or the separator of `field: value`
Record = Counter[tuple[str, str]]

SEPARATORS: tuple[Format, ...] = ("\n", "|", ";")
SETTINGS: dict[str, Format] = {"json": "json", "lines": "\n", "|": "|", ";": ";"}
"""The format that each value of decoding.records names; none and auto name no format."""
_LEAST_FIELDS = 2.0  # per record, on average: any text before a colon looks like one
_LEAST_RECURRING = 1.3  # of fields whose names occur four times on average, or more
# A field begins with a letter, is short, and a space stands after its colon: 12:30, https://.
_FIELD = re.compile(r"\s*([^\W\d_][^:|;\n]{0,39}?)\s*:(?:\s+|\Z)(.*)", re.DOTALL)
_FIRST_COMMA = re.compile(r"\A\s*, *")


class Field(NamedTuple):
    """A value of a record, and its place in the text of the record."""

    name: str
    value: str  # JSON: the same for all values that are equal as JSON, such as 1 and 1.0
    text: str  # what the value spells: of a JSON string, without quotes and escapes
    start: int  # text_of_the_record[start:end] is the value as written, quotes included
    end: int


def detect_format(texts: Sequence[str], *, most_others: float = 0.0) -> Format | None:
    """Return the format in which all of `texts` are records; None: they are not.

    Of several separators, the one that gives the most fields is chosen.

    Args:
        most_others: The fraction of texts that need not be records.
    """
    if not texts:
        return None
    most = int(most_others * len(texts))
    if _count_fields(texts, "json", most) is not None:
        return "json"
    counts = [(_count_fields(texts, one, most) or Counter()) for one in SEPARATORS]
    totals = [one.total() for one in counts]
    best = totals.index(found := max(totals))
    least = _LEAST_RECURRING if found >= 4 * len(counts[best]) else _LEAST_FIELDS
    return SEPARATORS[best] if found >= least * (len(texts) - most) else None


def parse_record(text: str, form: Format) -> Record | None:
    """Return the fields of `text` with their values; None: it is not a record.

    Text without a field continues the value before it. Values of JSON are compared as JSON: "1" is
    not 1, but 1.0 is.
    """
    fields = list_fields(text, form)
    return None if fields is None else Counter((one.name, one.value) for one in fields)


def list_fields(text: str, form: Format, *, splits_items: bool = False) -> list[Field] | None:
    """Return the fields of `text` in their order, with the place of each; None: it is no record.

    Args:
        splits_items: An item of a list that is itself an object or a list is not one value: its
            own values are listed, as `lines.price`.
    """
    if form != "json":
        stretches = _cut_lines(text, form)
        return None if stretches is None else [field for _, _, field in stretches if field.value]
    content = _parse_json(text)
    if content is None:
        return None
    fields = []
    for name, node in _list_values(content, splits_items=splits_items):
        plain = node.content if isinstance(node.content, str) else text[node.start : node.end]
        fields.append(Field(name, _write(node), plain, node.start, node.end))
    return fields


def leave_out(text: str, form: Format, starts: Collection[int]) -> str:
    """Return the record `text` without the values that start at `starts`; JSON stays JSON."""
    if not starts:
        return text
    if form == "json":
        content = _parse_json(text)
        return text if content is None else _write_without(text, content, starts)
    kept = [
        text[start:end]
        for start, end, field in _cut_lines(text, form) or ()
        if field.start not in starts
    ]
    return form.join(kept).strip()


def _count_fields(texts: Sequence[str], form: Format, most_others: int) -> Counter[str] | None:
    """Return the names of fields in `texts`; None if more than `most_others` are no records."""
    counts = Counter[str]()
    for text in texts:
        fields = list_fields(text, form)
        most_others -= fields is None
        if most_others < 0:
            return None
        counts.update(field.name for field in fields or ())
    return counts


def _cut_lines(text: str, separator: str) -> list[tuple[int, int, Field]] | None:
    """Return the start and end of each `field: value`, and the field; its value may be empty."""
    found: list[tuple[str, int, int, int]] = []  # name; where it starts, its value starts, it ends
    start = 0
    for part in text.split(separator):
        end = start + len(part)
        match = _FIELD.fullmatch(part)
        if match:
            found.append((match[1], start, start + match.start(2), end))
        elif found:
            found[-1] = (*found[-1][:3], end)
        elif part.strip():
            return None
        start = end + 1
    stretches = []
    for name, start, value_start, end in found:
        raw = text[value_start:end]
        # A final separator, as in "a: x; b: y;", was joined to the last value.
        value = raw.strip().rstrip(separator + whitespace)
        first = value_start + len(raw) - len(raw.lstrip())
        stretches.append((start, end, Field(name, value, value, first, first + len(value))))
    return stretches or None


@dataclass(frozen=True, slots=True)
class _Node:
    """A value of JSON and its place; objects keep their repeated names."""

    content: Any  # a tuple of (name, node) for an object, a list of nodes, or a plain value
    start: int
    end: int


class _PlacingDecoder(json.JSONDecoder):
    """Python's JSON parser; each value becomes a `_Node`."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=tuple, parse_constant=_refuse)
        self.parse_object = lambda given, strict, scan, *rest: JSONObject(
            given, strict, _keep_places(scan), *rest
        )
        self.parse_array = lambda given, scan, *rest: JSONArray(given, _keep_places(scan), *rest)
        self.scan_once = _keep_places(py_make_scanner(self))


def _keep_places(
    scan: Callable[[str, int], tuple[Any, int]],
) -> Callable[[str, int], tuple[_Node, int]]:
    def scan_once(text: str, start: int) -> tuple[_Node, int]:
        content, end = scan(text, start)
        return _Node(content, start, end), end

    return scan_once


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = _PlacingDecoder()


def _parse_json(text: str) -> _Node | None:
    try:
        node: _Node = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    return node if isinstance(node.content, tuple) else None


def _list_values(
    node: _Node, field: str | None = None, *, splits_items: bool, is_item: bool = False
) -> Iterator[tuple[str, _Node]]:
    """Yield the field and node of each value in `node`, which is that of `field`, or the record."""
    content, is_split = node.content, splits_items or not is_item
    if isinstance(content, tuple) and is_split:
        for name, value in content:
            inner = name if field is None else f"{field}.{name}"
            yield from _list_values(value, inner, splits_items=splits_items)
    elif isinstance(content, list) and is_split:
        for item in content:
            yield from _list_values(item, field, splits_items=splits_items, is_item=True)
    elif content is not None:
        yield field or "", node


def _write(node: _Node) -> str:
    """Return the same text for all values that are equal as JSON."""
    value = node.content
    if isinstance(value, tuple):
        items = sorted((json.dumps(name), _write(each)) for name, each in value)
        return "{" + ",".join(f"{name}:{each}" for name, each in items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_write, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value)


def _write_without(text: str, node: _Node, starts: Collection[int]) -> str:
    """Return `node` as it is written in `text`, without the values that start at `starts`."""
    if not isinstance(node.content, tuple | list):
        return text[node.start : node.end]
    kept, end = "", node.start + 1
    for member in node.content:
        child = member[1] if isinstance(node.content, tuple) else member
        if child.start not in starts:
            piece = text[end : child.start] + _write_without(text, child, starts)
            kept += piece if kept else _FIRST_COMMA.sub("", piece)
        end = child.end
    return text[node.start] + kept + text[end : node.end]
