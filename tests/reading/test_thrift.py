"""Claims about Thrift structs: what was written is read, and any bytes end in time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.reading.thrift import find_i32, find_i64, find_struct, find_structs, read_struct


def varint(number: int) -> bytes:
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


def zigzag(number: int) -> bytes:
    return varint(number << 1 if number >= 0 else (-number << 1) - 1)


def write(fields: dict[int, object]) -> bytes:
    """Write integers as i64, texts, lists of structs, structs."""
    written = b""
    for number, value in fields.items():
        kind, content = {
            int: lambda value: (6, zigzag(value)),
            bytes: lambda value: (8, varint(len(value)) + value),
            list: lambda value: (9, b"\xfc" + varint(len(value)) + b"".join(map(write, value))),
            dict: lambda value: (12, write(value)),
            bool: lambda value: (1 if value else 2, b""),
        }[type(value)](value)
        written += bytes([kind]) + zigzag(number) + content
    return written + b"\0"


numbers = st.integers(-(2**62), 2**62)
structs = st.recursive(
    st.dictionaries(st.integers(1, 2000), numbers | st.binary(max_size=5) | st.booleans()),
    lambda inner: st.dictionaries(
        st.integers(1, 2000), numbers | inner | st.lists(inner, max_size=3), max_size=3
    ),
    max_leaves=6,
)


def check(fields, found) -> None:
    assert len(found) == len(fields)
    for number, value in fields.items():
        if type(value) is int:
            assert find_i64(found, number) == value
            assert find_i32(found, number) == -1
        elif isinstance(value, dict):
            check(value, find_struct(found, number))
        elif isinstance(value, list):
            for one, other in zip(value, find_structs(found, number), strict=True):
                check(one, other)


@given(fields=structs, rest=st.binary(max_size=3))
@settings(deadline=None)
def test_what_was_written_is_read(fields, rest):
    data = write(fields)
    found, end = read_struct(data + rest)
    assert end == len(data)
    check(fields, found)
    for cut in range(len(data)):
        with pytest.raises(IndexError):
            read_struct(data[:cut])


@given(data=st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_a_struct_or_refused(data):
    try:
        assert read_struct(data)[1] <= len(data)
    except (IndexError, ValueError):
        return


@pytest.mark.parametrize(
    "data",
    [
        b"\x1c" * 100 + bytes(100),  # structs in structs
        b"\x19" + b"\x19" * 100,  # lists in lists
        b"\x16" + b"\xff" * 20 + b"\0",  # a number without end
        b"\x15\x02\x05\x02\x02\0",  # field 1 twice
        b"\x1d\0",  # no such kind
    ],
)
def test_what_would_mislead_is_refused(data):
    with pytest.raises(ValueError, match=r"deep|bits|twice|kind"):
        read_struct(data)
