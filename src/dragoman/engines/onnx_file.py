"""Compares a graph of ONNX with the kind that dragoman writes, before ONNX Runtime is given it.

The file is a protobuf; what is in it is walked through here, because the package onnx need not be
installed where a model is used. A graph must consist of the operators that an export has, without
graphs inside, and its parameters lie in the file itself, or in the one named after it, and have the
sizes that they claim. What the graph computes is not looked at: one of these operators alone can join
a tensor with itself again and again, so that a crafted graph may take all memory once it is run.
Source: onnx.proto, IR version 9.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dragoman.errors import ModelFolderError, shorten
from dragoman.model_folder.folder_files import FolderFile

LARGEST_BYTES = (1 << 31) - 1  # of a protobuf
_LARGEST_DATA_BYTES = 1 << 35
_MOST_PARTS = 200_000

_OPERATORS = frozenset(
    [
        "Add",
        "And",
        "Cast",
        "Concat",
        "Cos",
        "Equal",
        "Gather",
        "Gelu",
        "Gemm",
        "LayerNormalization",
        "LogSoftmax",
        "MatMul",
        "Mul",
        "Not",
        "Or",
        "Range",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Shape",
        "Sin",
        "Slice",
        "Softmax",
        "Split",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
_WIDTHS = {1: 4, 7: 8, 9: 1}  # bytes of float, int64, bool
# By message, the numbers of the fields that an export has, and what they are called here.
_MODEL = {1: "ir_version", 2: "producer", 3: "producer_version", 7: "graph", 8: "operators"}
_GRAPH = {1: "node", 2: "name", 5: "parameter", 11: "input", 12: "output"}
_NODE = {1: "input", 2: "output", 3: "name", 4: "operator", 5: "attribute", 7: "domain"}
_ATTRIBUTE = {1: "name", 2: "float", 3: "number", 7: "floats", 8: "numbers", 20: "type"}
_TENSOR = {1: "sizes", 2: "type", 8: "name", 9: "content", 13: "elsewhere", 14: "is_elsewhere"}
_ENTRY = {1: "key", 2: "value"}

Field = tuple[str, int | memoryview]


@dataclass(frozen=True, kw_only=True)
class _Counter:
    """How many parts there have been: a graph has hundreds."""

    left: list[int]

    def take(self) -> None:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise ValueError(f"it has more than {_MOST_PARTS:,} parts")


def read_graph(path: Path) -> bytes | None:
    """Return the content of a graph, once it is compared; None: parameters lie in a file beside it.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFolderError: It is not one that dragoman writes; says why.
    """
    content = FolderFile(path, LARGEST_BYTES).read()
    data_name = f"{path.name}.data"
    try:
        has_data = _check_model(memoryview(content), data_name)
    except ValueError as error:
        raise ModelFolderError(f"{path}: not a graph that dragoman exported: {error}") from error
    if not has_data:
        return content
    FolderFile(path.with_name(data_name), _LARGEST_DATA_BYTES)  # a plain file, and there
    return None


def _check_model(content: memoryview, data_name: str) -> bool:
    """Return whether parameters lie in a file beside it."""
    counter, has_data = _Counter(left=[_MOST_PARTS]), False
    for name, value in _walk(content, _MODEL, counter):
        if name == "graph":
            for part, inner in _walk(_take_message(value), _GRAPH, counter):
                if part == "node":
                    _check_node(_take_message(inner), counter)
                elif part == "parameter":
                    has_data |= _check_parameter(_take_message(inner), data_name, counter)
    return has_data


def _check_node(content: memoryview, counter: _Counter) -> None:
    for name, value in _walk(content, _NODE, counter):
        if name == "operator" and (operator := _take_text(value)) not in _OPERATORS:
            raise ValueError(f"the operator {shorten(operator)} is in no export")
        if name == "domain" and _take_text(value):
            raise ValueError(f"the operators of {shorten(_take_text(value))} are in no export")
        if name == "attribute":
            for _ in _walk(_take_message(value), _ATTRIBUTE, counter):
                pass  # a graph or a tensor inside is an unknown field


def _check_parameter(content: memoryview, data_name: str, counter: _Counter) -> bool:
    """Return whether the parameter lies in the file beside the graph."""
    sizes: list[int] = []
    kind, num_bytes, name_of_it, elsewhere = 0, 0, "", dict[str, str]()
    for name, value in _walk(content, _TENSOR, counter):
        if name == "sizes":
            sizes += [value] if isinstance(value, int) else list(_read_numbers(value))
        elif name == "type":
            kind = _take_number(value)
        elif name == "name":
            name_of_it = shorten(_take_text(value))
        elif name == "content":
            num_bytes = len(_take_message(value))
        elif name == "elsewhere":
            entry = {n: _take_text(v) for n, v in _walk(_take_message(value), _ENTRY, counter)}
            elsewhere[entry.get("key", "")] = entry.get("value", "")
    if kind not in _WIDTHS or len(sizes) > 4:
        raise ValueError(f"{name_of_it}: of a kind that no export has")
    if elsewhere:
        if elsewhere.get("location") != data_name or not elsewhere.keys() <= {
            "location", "offset", "length", "checksum",
        }:  # fmt: skip
            where = shorten(elsewhere.get("location", ""))
            raise ValueError(f"{name_of_it}: lies in {where}, and not in {data_name}")
        num_bytes = int(elsewhere.get("length", "0")[:20])
    if num_bytes != _WIDTHS[kind] * math.prod(sizes):
        raise ValueError(f"{name_of_it}: {num_bytes:,} bytes for the sizes {sizes}")
    return bool(elsewhere)


def _walk(content: memoryview, names: Mapping[int, str], counter: _Counter) -> Iterator[Field]:
    """Yield the fields of a message: numbers, and bytes that may be a message in their turn.

    Raises:
        ValueError: It is no message, or has a field that no export has.
    """
    place = 0
    while place < len(content):
        counter.take()
        key, place = _read_number(content, place)
        name, wire = names.get(key >> 3), key & 7
        if name is None:
            raise ValueError(f"it has a part (field {key >> 3}) that no export has")
        if wire == 0:
            number, place = _read_number(content, place)
            yield name, number
        elif wire in (1, 2, 5):
            count = {1: 8, 5: 4}.get(wire, 0)
            if wire == 2:
                count, place = _read_number(content, place)
            if place + count > len(content):
                raise ValueError("it is cut short")
            yield name, content[place : place + count]
            place += count
        else:
            raise ValueError("it is no protobuf")


def _read_number(content: memoryview, place: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            raise ValueError("it is cut short")
        byte = content[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise ValueError("it is no protobuf")


def _read_numbers(content: memoryview) -> Iterator[int]:
    place = 0
    while place < len(content):
        number, place = _read_number(content, place)
        yield number


def _take_number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("it is no protobuf of ONNX")
    return value


def _take_message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it is no protobuf of ONNX")
    return value


def _take_text(value: int | memoryview) -> str:
    return bytes(_take_message(value)[:1000]).decode("utf-8", errors="replace")
