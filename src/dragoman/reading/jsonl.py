"""Reads JSONL, one object a line, and JSON arrays of objects; the columns are their fields."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Any

from dragoman.errors import DataError, shorten
from dragoman.reading.row_errors import (
    BAD_JSON,
    EMPTY_LINE,
    MISSING_FIELD,
    NO_RECORD,
    NOT_TEXT,
    OVER_LONG,
    RowError,
    find_line_error,
    find_value_error,
)
from dragoman.reading.tables import WHOLE_ROW, Row, Table, empty_table, find_pair, find_source
from dragoman.reading.text_files import Block

_LINES_TO_SEARCH = 100
_MISSING = object()
_MOST_CHARACTERS = 1 << 22  # of an object: parsed, it takes up to 30 times as much memory
_GAP = re.compile(r"[\s,]*")  # between two objects of an array
_KINDS = {list: "a list", bool: "true or false"}
_WRAPPED = ' or an object; of records, such as {"items": [...]}'


class _Number(str):
    """A number as it is written."""


def open_jsonl(blocks: Iterator[Block], file: str, paths: Sequence[str] = ()) -> Table:
    """Return the table of a JSONL file, or of a JSON array of objects.

    The first object gives the names of the columns, or, where it lacks a column in use, the first one
    that has all, or else a source.

    A number as a value is its text as written (1.50 stays "1.50"); null is an empty text; an object
    is its JSON.

    `paths`: columns in use; one such as "translation.en" may be a field of a nested object.

    Raises: DataError, here and while rows are read, when the file cannot be read.
    """
    first = next(blocks, None)
    if first is None:
        return empty_table(file)
    start = next(filter(None, map(str.strip, first.lines)), "")
    is_array = start.startswith("[")
    rows = (_read_array if is_array else _read_lines)(chain([first], blocks), file)
    held: list[_Parsed] = []
    names: tuple[str, ...] = ()
    nested: list[str] = []
    typed = {path for path in paths if path != "auto" and not path.isdigit()}
    # Of a live stream, no line is awaited to find better names.
    most = _LINES_TO_SEARCH if is_array else min(_LINES_TO_SEARCH, len(first.lines))
    best = 0  # 3: the columns in use, 2: a source, 1: any
    while best < 3 and len(held) < (most if best else _LINES_TO_SEARCH):
        if (found := next(rows, None)) is None:
            break
        held.append(found)
        row = found[1]
        if not isinstance(row, RowError) and row:
            others = [path for path in dict.fromkeys(paths) if path not in row]
            inner = [path for path in others if _find(row, path) is not _MISSING]
            own = (*row, *inner)
            rank = 1 if find_source(own) is None else 2
            if typed <= {*own} and ("auto" not in paths or find_pair(own)):
                rank = 3
            if rank > best:
                names, nested, best = own, inner, rank
    if not names:
        error = held[0][1] if held else None
        shown = f"it begins with: {error.detail}" if isinstance(error, RowError) else "it has none"
        raise DataError(
            f"{file}: this is not JSONL: no line is an object with named fields, such as "
            f'{{"source": "...", "target": "..."}}; {shown}; set data.format to what it is'
        )

    def read(columns: Sequence[int]) -> Iterator[Row | RowError]:
        wanted = [None if column == WHOLE_ROW else names[column] for column in columns]
        for number, row, text in chain(held, rows):
            if isinstance(row, RowError):
                yield row
            else:
                yield _take_fields(file, number, row, wanted, text)

    notes = ["one JSON array"] if is_array else []
    return Table(
        file=file,
        names=names,
        sample=names,
        read=read,
        notes=notes,
        is_by_line=not is_array,
        nested=nested,
    )


_Parsed = tuple[int, dict[str, Any] | RowError, str]
"""Number of the line, the object, and its JSON."""


def _read_lines(blocks: Iterable[Block], file: str) -> Iterator[_Parsed]:
    for block in blocks:
        for number, line in enumerate(block.lines, block.first):
            error = None if block.is_clean else find_line_error(file, number, line)
            yield number, error or _parse(file, number, line), line.strip()


def _read_array(blocks: Iterable[Block], file: str) -> Iterator[_Parsed]:
    """Yield the objects of one JSON array, whose text is held in memory.

    Raises: DataError, where the array is not valid JSON: the rest cannot be split into objects.
    """
    lines = list[str]()
    for block in blocks:
        for number, one in enumerate(() if block.is_clean else block.lines, block.first):
            if error := find_line_error(file, number, one):
                raise DataError(f"{file}:{number}: {error.detail}")
        lines += block.lines
    text = "\n".join(lines)
    end = text.index("[") + 1
    line = 1 + text.count("\n", 0, end)
    while (start := end + len(_GAP.match(text, end)[0])) < len(text):  # type: ignore[index]
        line += text.count("\n", end, start)
        if text[start] == "]":
            if text[start + 1 :].strip():
                raise DataError(f"{file}:{line}: there is text after the end of the array")
            return
        try:
            row, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            shown = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise DataError(
                f"{file}:{line}: invalid JSON in the object that begins here: {shown}"
            ) from error
        broken = RowError(file, line, BAD_JSON, "the value is not a JSON object")
        yield line, row if isinstance(row, dict) else broken, text[start:end].replace("\n", " ")
        line += text.count("\n", start, end)
    raise DataError(f"{file}: the array has no end: the file is truncated")


def _find(row: dict[str, Any], path: str) -> object:
    """Return the field at a path such as "translation.en", or _MISSING."""
    value: object = row
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return _MISSING
        value = value[name]
    return value


def _take_fields(
    file: str, number: int, row: dict[str, Any], names: list[str | None], line: str
) -> Row | RowError:
    """Return the fields `names` of a row; None stands for the whole line, as written."""
    values = []
    for name in names:
        if name is None:
            values.append(line)
            continue
        value: object = row[name] if name in row else _find(row, name)
        if value is _MISSING:
            shown = shorten(", ".join(map(repr, islice(row, 20))) or "none")
            found = f"no field {name!r}; found: {shown}"
            return RowError(file, number, MISSING_FIELD, found)
        if isinstance(value, dict):
            try:
                value = _dump(value)
            except RecursionError:
                found = f"field {name!r} is nested too deeply"
                return RowError(file, number, NOT_TEXT, found)
        value = "" if value is None else value
        if not isinstance(value, str):
            found = f"field {name!r} holds {_KINDS[type(value)]}, expected text"
            found += _WRAPPED if isinstance(value, list) else ""
            return RowError(file, number, NOT_TEXT, found)
        error = find_value_error(file, number, repr(name), value)
        if error is not None:
            return error
        values.append(str(value))
    return number, values


def _dump(value: object, ranks: Mapping[str, int] | None = None) -> str:
    """Return a value as JSON, its numbers as written; with `ranks` compactly, fields by their rank."""
    if isinstance(value, _Number):
        return str(value)
    comma, colon = (", ", ": ") if ranks is None else (",", ":")
    if isinstance(value, dict):
        names = (
            value if ranks is None else sorted(value, key=lambda one: ranks.get(one, len(ranks)))
        )
        fields = (f"{_dump(name)}{colon}{_dump(value[name], ranks)}" for name in names)
        return f"{{{comma.join(fields)}}}"
    if isinstance(value, list):
        return f"[{comma.join(_dump(one, ranks) for one in value)}]"
    return json.dumps(value, ensure_ascii=False)


def write_record(file: str, number: int, text: str, fields: tuple[str, ...]) -> str | RowError:
    """Return a target that is a JSON object in the form that models learn: compact, in one order.

    Parsed, it equals `text`: nothing but the order of the fields changes, and numbers stay as written.

    `fields`: names in their order, the same in nested objects; others follow, as in `text`.
    """
    row = _parse(file, number, text, "the target")
    if isinstance(row, RowError):
        return row._replace(kind=NO_RECORD)
    try:
        written = _dump(row, _rank(fields))
    except RecursionError:
        return RowError(file, number, NO_RECORD, "the target is a record nested too deeply")
    return find_value_error(file, number, "the target", written) or written


@lru_cache(maxsize=8)
def _rank(fields: tuple[str, ...]) -> dict[str, int]:
    return {name: place for place, name in enumerate(fields)}


def list_objects(text: str) -> list[list[str]] | None:
    """Return the names in a JSON object and in each object in it; None: `text` is no JSON object."""
    row = _parse("", 0, text)
    found: list[list[str]] = []
    waiting: list[object] = [row]
    for value in waiting:
        if isinstance(value, dict):
            found.append([*value])
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return None if isinstance(row, RowError) else found


def read_record(text: str) -> dict[str, Any] | None:
    """Return the JSON object that an output is; None: it is none, or a field of it occurs twice."""
    try:
        row = json.loads(text, object_pairs_hook=_take_pairs)
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()  # no 1e999, no "\ud800"
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _parse(file: str, number: int, line: str, name: str = "the line") -> dict[str, Any] | RowError:
    if not line or line.isspace():
        return RowError(file, number, EMPTY_LINE, f"{name} is empty")
    if len(line) > _MOST_CHARACTERS:
        found = f"the object has over {_MOST_CHARACTERS:,} characters"
        return RowError(file, number, OVER_LONG, found)
    try:
        row = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        found = f"{name} is invalid JSON: {error.msg} at character {error.colno}"
        return RowError(file, number, BAD_JSON, found)
    except (ValueError, RecursionError) as error:
        return RowError(file, number, BAD_JSON, f"{name} is invalid JSON: {error}")
    if not isinstance(row, dict):
        return RowError(file, number, BAD_JSON, f"{name} is not a JSON object")
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
    parse_int=_Number,
    parse_float=_Number,
    parse_constant=_refuse_constant,
    object_pairs_hook=_take_pairs,
)
