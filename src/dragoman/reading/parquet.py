"""Reads Parquet files, a batch of rows at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
from pyarrow import types

from dragoman.errors import DataError
from dragoman.reading.row_errors import RowError, find_line_error
from dragoman.reading.tables import WHOLE_ROW, Row, Table, dump_row, label_columns
from dragoman.reading.text_files import FilePosition, check_file, strip_packing

_BATCH_ROWS = 4096
_BATCH_BYTES = 1 << 25
_BUFFER_BYTES = 1 << 20
_TEXT_KINDS = (
    types.is_string,
    types.is_large_string,
    types.is_string_view,
    types.is_binary,
    types.is_large_binary,
    types.is_binary_view,
    types.is_null,
)
# What pyarrow raises for a corrupt file; Python decodes names, texts and dates.
_CORRUPT = (pyarrow.ArrowException, OSError, ValueError, OverflowError, IndexError)


def open_parquet(path: Path, position: FilePosition | None = None) -> Table:
    """Return the table of a Parquet file; `line` is the number of the row, from 1.

    A null is an empty text, an integer its digits.

    Raises: DataError, here and while rows are read, when the file cannot be read.
    """
    if strip_packing(path) != path:
        raise DataError(f"{path}: Parquet is compressed inside; unpack the file first")
    check_file(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
        names = tuple(schema.names)
    except _CORRUPT as error:
        raise DataError(
            f"{path}: it is not a complete Parquet file: {_first_line(error)}"
        ) from error
    if position is not None:
        position.num_rows = metadata.num_rows

    def read(columns: Sequence[int]) -> Iterator[Row | RowError]:
        wanted = [None if column == WHOLE_ROW else names[column] for column in columns]
        for name in filter(None, wanted):
            _check_column(path, schema, name)
        return _read(path, metadata, wanted)

    return Table(file=str(path), names=names, sample=names, read=read)


def _read(
    path: Path, metadata: pyarrow.parquet.FileMetaData, names: list[str | None]
) -> Iterator[Row | RowError]:
    """Yield the fields `names` of each row; None stands for the whole row."""
    number = 0
    wanted = None if None in names else names
    try:
        # Without pre_buffer and threads the memory does not grow with the size of a row group.
        with pyarrow.parquet.ParquetFile(
            path,
            metadata=metadata,
            buffer_size=_BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
        ) as file:
            for group in range(metadata.num_row_groups):
                sizes = metadata.row_group(group)
                row_bytes = max(1.0, sizes.total_byte_size / max(1, sizes.num_rows))
                num_rows = max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / row_bytes)))
                for batch in file.iter_batches(num_rows, [group], wanted, use_threads=False):
                    columns = [
                        _dump_rows(batch)
                        if name is None
                        else [text or "" for text in _read_texts(batch.column(name))]
                        for name in names
                    ]
                    for fields in zip(*columns, strict=True):
                        number += 1
                        error = None
                        for text in fields:
                            if not text.isascii() or "\0" in text:
                                error = error or find_line_error(str(path), number, text)
                        yield error or (number, fields)
    except _CORRUPT as error:
        raise DataError(
            f"{path}: the file is corrupt: reading ended after row {number} ({_first_line(error)})"
        ) from error
    if number != metadata.num_rows:
        raise DataError(
            f"{path}: the file is corrupt: it should have {metadata.num_rows} rows, and has {number}"
        )


def _dump_rows(batch: pyarrow.RecordBatch) -> list[str]:
    """Return the rows as JSON objects; values that Python does not have (nanoseconds) as text."""
    labels = label_columns(batch.schema.names, batch.num_columns)
    columns: list[list[object]] = []
    for column in batch.columns:
        try:
            columns.append([*_read_texts(column)] if _is_text(column.type) else column.to_pylist())
        except (ValueError, OverflowError, KeyError, pyarrow.ArrowException):
            columns.append([*_read_texts(column)])
    return [dump_row(labels, fields) for fields in zip(*columns, strict=True)]


def _read_texts(column: pyarrow.Array) -> list[str | None]:
    """Return values as text, None for null; bytes that are not UTF-8 as with surrogateescape."""
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return list(column.cast(pyarrow.large_string()).to_pylist())
    except (pyarrow.ArrowInvalid, UnicodeDecodeError):
        return [
            None if value is None else value.decode(errors="surrogateescape")
            for value in column.cast(pyarrow.large_binary()).to_pylist()
        ]


def _check_column(path: Path, schema: pyarrow.Schema, name: str) -> None:
    if schema.names.count(name) > 1:
        raise DataError(f"{path}: {schema.names.count(name)} columns have the name {name!r}")
    kind = schema.field(name).type
    values = kind.value_type if types.is_dictionary(kind) else kind
    if not _is_text(kind) and not types.is_integer(values):
        raise DataError(
            f"{path}: column {name!r} holds {kind}, expected text or integers; "
            "write it as text, in the form that the model should see"
        )


def _is_text(kind: pyarrow.DataType) -> bool:
    values = kind.value_type if types.is_dictionary(kind) else kind
    return any(is_kind(values) for is_kind in _TEXT_KINDS)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
