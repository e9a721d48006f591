"""Reads JSONL: one object a line, the columns are its fields."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from dragoman.errors import DataError, shorten
from dragoman.reading.row_errors import (
    BAD_JSON,
    EMPTY_LINE,
    MISSING_FIELD,
    NOT_TEXT,
    RowError,
    find_line_error,
    find_value_error,
)
from dragoman.reading.tables import WHOLE_ROW, Row, Table, empty_table
from dragoman.reading.text_files import Block

_LINES_TO_SEARCH = 100
_KINDS = {dict: "an object", list: "a list", bool: "true or false"}


def open_jsonl(blocks: Iterator[Block], file: str) -> Table:
    """Return the table of a JSONL file; the first object gives the names of the columns.

    A number as a value is its text as written (1.50 stays "1.50"); null is an empty text.

    Raises: DataError, here and while rows are read, when the file cannot be read.
    """
    held: list[Block] = []
    names: tuple[str, ...] = ()
    while not names and not (held and held[-1].first > _LINES_TO_SEARCH):
        block = next(blocks, None)
        if block is None:
            break
        held.append(block)
        rows = (_parse(file, 0, line) for line in block.lines[:_LINES_TO_SEARCH])
        names = next((tuple(row) for row in rows if row and not isinstance(row, RowError)), ())
    if not held:
        return empty_table(file)
    if not names:
        first = _parse(file, 1, next(filter(None, held[0].lines), ""))
        found = f"it begins with: {first.detail}" if isinstance(first, RowError) else "it has none"
        raise DataError(
            f"{file}: this is not JSONL: no line is an object with named fields, such as "
            f'{{"source": "...", "target": "..."}}; {found}; set data.format to what it is'
        )

    def read(columns: Sequence[int]) -> Iterator[Row | RowError]:
        wanted = [None if column == WHOLE_ROW else names[column] for column in columns]
        for block in chain(held, blocks):
            for number, line in enumerate(block.lines, block.first):
                error = None if block.is_clean else find_line_error(file, number, line)
                row = error or _parse(file, number, line)
                if isinstance(row, RowError):
                    yield row
                else:
                    yield _take_fields(file, number, row, wanted, line)

    return Table(file=file, names=names, sample=names, read=read)


def _take_fields(
    file: str, number: int, row: dict[str, Any], names: list[str | None], line: str
) -> Row | RowError:
    """Return the fields `names` of a row; None stands for the whole line, as written."""
    values = []
    for name in names:
        if name is None:
            values.append(line.strip())
            continue
        if name not in row:
            shown = shorten(", ".join(map(repr, islice(row, 20))) or "none")
            found = f"no field {name!r}; found: {shown}"
            return RowError(file, number, MISSING_FIELD, found)
        value = "" if row[name] is None else row[name]
        if not isinstance(value, str):
            found = f"field {name!r} holds {_KINDS[type(value)]}, expected text"
            return RowError(file, number, NOT_TEXT, found)
        error = find_value_error(file, number, repr(name), value)
        if error is not None:
            return error
        values.append(value)
    return number, values


def _parse(file: str, number: int, line: str) -> dict[str, Any] | RowError:
    if not line or line.isspace():
        return RowError(file, number, EMPTY_LINE, "the line is empty")
    try:
        row = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        found = f"invalid JSON: {error.msg} at character {error.colno}"
        return RowError(file, number, BAD_JSON, found)
    except (ValueError, RecursionError) as error:
        return RowError(file, number, BAD_JSON, f"invalid JSON: {error}")
    if not isinstance(row, dict):
        return RowError(file, number, BAD_JSON, "the line is not a JSON object")
    return row


def _take_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):  # JSON does not define which one counts
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"field {shorten(repr(twice))} occurs twice")
    return row


def _refuse_constant(constant: str) -> str:
    raise ValueError(f"{constant} is not a JSON value")


# Numbers keep their text as written.
_DECODER = json.JSONDecoder(
    parse_int=str,
    parse_float=str,
    parse_constant=_refuse_constant,
    object_pairs_hook=_take_pairs,
)
