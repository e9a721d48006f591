"""Reads Parquet files, a batch of rows at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
from pyarrow import types

from dragoman.errors import DataError
from dragoman.text.faults import Fault, find_line_fault
from dragoman.text.files import FilePosition, check_file
from dragoman.text.table import WHOLE_ROW, Row, Table, dump_row

_BATCH_ROWS = 4096
_BUFFER_BYTES = 1 << 20
_TEXT_KINDS = (
    types.is_string,
    types.is_large_string,
    types.is_string_view,
    types.is_binary,
    types.is_large_binary,
    types.is_integer,
    types.is_null,
)


def open_parquet(path: Path, position: FilePosition | None = None) -> Table:
    """Return the table of a Parquet file; `line` is the number of the row, from 1.

    A null is an empty text, an integer its digits.

    Raises: DataError, here and while rows are read, when the file cannot be read.
    """
    check_file(path)
    try:
        file = pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        schema = file.schema_arrow
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: it is not a whole Parquet file: {_first_line(error)}") from error
    names = tuple(schema.names)
    if position is not None:
        position.num_rows = file.metadata.num_rows

    def read(columns: Sequence[int]) -> Iterator[Row | Fault]:
        chosen = [None if column == WHOLE_ROW else names[column] for column in columns]
        _check_columns(path, schema, [name for name in chosen if name is not None])
        return _read(file, path, chosen)

    return Table(file=str(path), names=names, sample=names, read=read)


def _read(
    file: pyarrow.parquet.ParquetFile, path: Path, names: list[str | None]
) -> Iterator[Row | Fault]:
    """Give the fields `names` of each row; None stands for the whole row."""
    number = 0
    wanted = None if None in names else names
    try:
        # Without pre_buffer and threads the memory does not grow with the size of a row group.
        for batch in file.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False):
            columns = [
                _dump_rows(batch) if name is None else _take_texts(batch.column(name))
                for name in names
            ]
            for fields in zip(*columns, strict=True):
                number += 1
                yield _check_fields(str(path), number, fields) or (number, fields)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: the file is corrupt: reading ended after row {number} ({_first_line(error)})"
        ) from error


def _dump_rows(batch: pyarrow.RecordBatch) -> list[str]:
    names, columns = batch.schema.names, [column.to_pylist() for column in batch.columns]
    return [dump_row(names, fields) for fields in zip(*columns, strict=True)]


def _take_texts(column: pyarrow.Array) -> list[str]:
    try:
        values = column.cast(pyarrow.large_string()).to_pylist()
    except (pyarrow.ArrowInvalid, UnicodeDecodeError):
        values = [
            None if value is None else value.decode(errors="surrogateescape")
            for value in column.cast(pyarrow.large_binary()).to_pylist()
        ]
    return ["" if value is None else value for value in values]


def _check_fields(file: str, number: int, fields: tuple[str, ...]) -> Fault | None:
    for text in fields:
        if not text.isascii() or "\0" in text:
            fault = find_line_fault(file, number, text)
            if fault is not None:
                return fault
    return None


def _check_columns(path: Path, schema: pyarrow.Schema, names: Sequence[str]) -> None:
    for name in names:
        if schema.names.count(name) > 1:
            raise DataError(f"{path}: {schema.names.count(name)} columns have the name {name!r}")
        kind = schema.field(name).type
        text = kind.value_type if types.is_dictionary(kind) else kind
        if not any(is_kind(text) for is_kind in _TEXT_KINDS):
            raise DataError(
                f"{path}: column {name!r} holds {kind}, expected text or integers; "
                "write it as text, in the form that the model shall see"
            )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
