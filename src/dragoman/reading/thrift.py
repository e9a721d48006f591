"""Reads Thrift structs in the compact protocol, as the footer and the pages of a Parquet file have.

pyarrow tells some of what stands in them, but ends the whole process at some broken footers (26.0:
`terminate called after throwing an instance of 'parquet::ParquetException'`, from
`RowGroupMetaData.column`), and tells nothing of pages.
Source: thrift-compact-protocol.md, Apache Thrift.
"""

from typing import Any, Final

_BOOLEANS: Final = (1, 2)
_BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 3, 4, 5, 6, 7, 8, 9, 10, 12
_DEEPEST: Final = 16

Value = Any  # an integer, a Struct, a list of these; None: anything else
Struct = dict[tuple[int, int], Value]
"""The fields by their number and the kind that they were written as: a reader passes others by."""


def read_struct(data: bytes, at: int = 0) -> tuple[Struct, int]:
    """Return the struct that begins at byte `at`, and where it ends.

    Raises: IndexError, when it is cut; ValueError, when it is none.
    """
    return _read_struct(data, at, _DEEPEST)


def find_i32(struct: Struct, number: int, missing: int = -1) -> int:
    """Return the value of a field of kind i32."""
    found: int = struct.get((number, _I32), missing)
    return found


def find_i64(struct: Struct, number: int, missing: int = -1) -> int:
    """Return the value of a field of kind i64."""
    found: int = struct.get((number, _I64), missing)
    return found


def find_struct(struct: Struct, number: int) -> Struct:
    """Return a field that is a struct; an empty one where there is none."""
    found: Struct = struct.get((number, _STRUCT), {})
    return found


def find_structs(struct: Struct, number: int) -> list[Struct]:
    """Return a field that is a list of structs; an empty one where there is none."""
    found: list[Value] = struct.get((number, _LIST), [])
    return [one for one in found if isinstance(one, dict)]


def _read_struct(data: bytes, at: int, depth: int) -> tuple[Struct, int]:
    fields: Struct = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _read_integer(data, at)
        kind = head & 15
        if (number, kind) in fields:  # readers differ in which they take
            raise ValueError(f"field {number} stands twice")
        # A boolean is told by its kind.
        fields[number, kind], at = (
            (None, at) if kind in _BOOLEANS else _read_value(data, at, kind, depth)
        )
    return fields, at + 1


def _read_value(data: bytes, at: int, kind: int, depth: int) -> tuple[Value, int]:
    if kind in (_I16, _I32, _I64):
        return _read_integer(data, at)
    if kind == _BINARY:
        length, at = _read_varint(data, at)
        return None, _skip(data, at, length)
    if kind == _DOUBLE:
        return None, _skip(data, at, 8)
    if kind in (_BYTE, *_BOOLEANS):
        return None, _skip(data, at, 1)
    if depth == 0:
        raise ValueError("structs stand too deep in one another")
    if kind == _STRUCT:
        return _read_struct(data, at, depth - 1)
    if kind in (_LIST, _SET):
        return _read_list(data, at, depth - 1)
    raise ValueError(f"there is no kind of value {kind}")


def _read_list(data: bytes, at: int, depth: int) -> tuple[list[Value], int]:
    size, kind = data[at] >> 4, data[at] & 15
    at += 1
    if size == 15:
        size, at = _read_varint(data, at)
    values = []
    for _ in range(size):
        value, at = _read_value(data, at, kind, depth)
        values.append(value)
    return values, at


def _skip(data: bytes, at: int, length: int) -> int:
    if at + length > len(data):
        raise IndexError("the struct is cut")
    return at + length


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    raw, at = _read_varint(data, at)
    return raw >> 1 ^ -(raw & 1), at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has over 64 bits")
