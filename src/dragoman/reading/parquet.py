"""Reads Parquet and Arrow files, a batch of rows at a time."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow
import pyarrow.parquet
from pyarrow import types

from dragoman.characters import find_surrogate
from dragoman.errors import DataError
from dragoman.reading.row_errors import RowError, find_line_error, name_file
from dragoman.reading.tables import WHOLE_ROW, Row, Table, dump_row, dump_value, label_columns
from dragoman.reading.text_files import FilePosition, check_file

_BATCH_ROWS = 4096
_BATCH_BYTES = 1 << 25
_BUFFER_BYTES = 1 << 20
_LIMITS: Final = {"thrift_string_size_limit": 1 << 24, "thrift_container_size_limit": 1 << 17}
_TEXT_KINDS = "string large_string string_view binary large_binary binary_view null"
# What pyarrow raises for a corrupt file; Python decodes names, texts and dates.
_CORRUPT = (pyarrow.ArrowException, OSError, ValueError, OverflowError, IndexError)


def open_parquet(
    path: Path, position: FilePosition | None = None, paths: Sequence[str] = ()
) -> Table:
    """Return the table of a Parquet file; `line` is the number of the row, from 1.

    A null is an empty text, an integer its digits; a struct is a JSON object, without its nulls.

    `paths`: columns in use; one such as "translation.en" may be a field of a nested column.

    Raises: DataError, here and while rows are read, when the file cannot be read.
    """
    check_file(path)
    try:
        with pyarrow.parquet.ParquetFile(path, **_LIMITS) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except _CORRUPT as error:
        raise DataError(
            f"{name_file(path)}: it is not a complete Parquet file: {_first_line(error)}"
        ) from error
    if position is not None:
        position.num_rows = metadata.num_rows

    def read_batches(names: list[str] | None) -> Iterator[pyarrow.RecordBatch]:
        # Without pre_buffer and threads the memory does not grow with the size of a row group.
        with pyarrow.parquet.ParquetFile(
            path,
            metadata=metadata,
            buffer_size=_BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
            **_LIMITS,
        ) as file:
            for group in range(metadata.num_row_groups):
                sizes = metadata.row_group(group)
                row_bytes = max(1.0, sizes.total_byte_size / max(1, sizes.num_rows))
                num_rows = max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / row_bytes)))
                yield from file.iter_batches(num_rows, [group], names, use_threads=False)

    return _make_table(path, schema, paths, read_batches, metadata.num_rows)


def open_arrow(path: Path, paths: Sequence[str] = ()) -> Table:
    """Return the table of an Arrow file, or stream as the library datasets writes it.

    Rows, `paths` and errors are those of `open_parquet`.
    """
    check_file(path)

    def open_batches() -> pyarrow.RecordBatchReader:
        source = pyarrow.memory_map(str(path))
        try:
            file = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            return pyarrow.ipc.open_stream(source)
        batches = (file.get_batch(i) for i in range(file.num_record_batches))
        return pyarrow.RecordBatchReader.from_batches(file.schema, batches)

    def read_batches(_: list[str] | None) -> Iterator[pyarrow.RecordBatch]:
        for batch in open_batches():
            batch.validate(full=True)
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.slice(start, _BATCH_ROWS)

    try:
        schema = open_batches().schema
    except _CORRUPT as error:
        raise DataError(
            f"{name_file(path)}: it is not a complete Arrow file: {_first_line(error)}"
        ) from error
    return _make_table(path, schema, paths, read_batches, None)


def _make_table(
    path: Path,
    schema: pyarrow.Schema,
    paths: Sequence[str],
    read_batches: Callable[[list[str] | None], Iterator[pyarrow.RecordBatch]],
    num_rows: int | None,
) -> Table:
    others = [one for one in dict.fromkeys(paths) if one not in schema.names]
    nested = [one for one in others if _find_field(schema, one)]
    names = (*schema.names, *nested)
    positions = tuple(str(1 + i) for i in range(len(names)))

    def read(columns: Sequence[int]) -> Iterator[Row | RowError]:
        wanted = [None if column == WHOLE_ROW else names[column] for column in columns]
        needed = [name for name in wanted if name is not None]
        for name in needed:
            _check_column(path, schema, name)
        number = 0
        try:
            for batch in read_batches(needed if len(needed) == len(wanted) else None):
                texts = [
                    _dump_rows(batch)
                    if name is None
                    else [text or "" for text in _read_texts(_take_column(batch, name))]
                    for name in wanted
                ]
                for fields in zip(*texts, strict=True):
                    number += 1
                    invalid: RowError | None = None
                    for text in fields:
                        if not text.isascii() or "\0" in text:
                            invalid = invalid or find_line_error(name_file(path), number, text)
                    yield invalid or (number, fields)
        except _CORRUPT as error:
            raise DataError(
                f"{name_file(path)}: the file is corrupt: reading ended after row {number} "
                f"({_first_line(error)})"
            ) from error
        if num_rows not in (None, number):
            raise DataError(
                f"{name_file(path)}: the file is corrupt: it should have {num_rows} rows, and has "
                f"{number}"
            )

    has_names = names != positions
    shown = names if has_names else None
    return Table(file=name_file(path), names=shown, sample=names, read=read, nested=nested)


def _find_field(schema: pyarrow.Schema, path: str) -> pyarrow.Field | None:
    """Return the field at a path such as "translation.en"."""
    if path in schema.names:
        return schema.field(path)
    first, *rest = path.split(".")
    if schema.names.count(first) != 1:
        return None
    field = schema.field(first)
    for name in rest:
        place = field.type.get_field_index(name) if types.is_struct(field.type) else -1
        if place < 0:
            return None
        field = field.type.field(place)
    return field


def _take_column(batch: pyarrow.RecordBatch, path: str) -> pyarrow.Array:
    if path in batch.schema.names:
        return batch.column(path)
    first, *rest = path.split(".")
    column = batch.column(first)
    for name in rest:  # null where the outer value is
        column = column.flatten()[column.type.get_field_index(name)]
    return column


def _dump_rows(batch: pyarrow.RecordBatch) -> list[str]:
    """Return the rows as JSON objects; values that Python does not have (nanoseconds) as text.

    Bytes that are no text, such as pictures, are null.
    """
    labels = label_columns(batch.schema.names, batch.num_columns)
    columns: list[list[object]] = []
    for column in batch.columns:
        try:
            columns.append([*_read_texts(column)] if _is_text(column.type) else column.to_pylist())
            if "binary" in str(column.type):
                columns[-1] = [None if _is_no_text(one) else one for one in columns[-1]]
        except (ValueError, OverflowError, KeyError, pyarrow.ArrowException):
            columns.append([*_read_texts(column)])
    return [dump_row(labels, fields) for fields in zip(*columns, strict=True)]


def _is_no_text(value: object) -> bool:
    return isinstance(value, str) and find_surrogate(value) is not None


def _read_texts(column: pyarrow.Array) -> list[str | None]:
    """Return values as text, None for null; bytes that are not UTF-8 as with surrogateescape."""
    if types.is_struct(column.type):
        rows = map(_leave_out_nulls, column.to_pylist())
        return [None if row is None else dump_value(row) for row in rows]
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return list(column.cast(pyarrow.large_string()).to_pylist())
    except (pyarrow.ArrowInvalid, UnicodeDecodeError):
        return [
            None if value is None else value.decode(errors="surrogateescape")
            for value in column.cast(pyarrow.large_binary()).to_pylist()
        ]


def _leave_out_nulls(value: object) -> object:
    """Return a struct as a dict without its nulls: structs cannot leave a field out."""
    if isinstance(value, list):
        return [*map(_leave_out_nulls, value)]
    if isinstance(value, dict):
        return {name: _leave_out_nulls(one) for name, one in value.items() if one is not None}
    return value


def _check_column(path: Path, schema: pyarrow.Schema, name: str) -> None:
    if schema.names.count(name) > 1:
        raise DataError(
            f"{name_file(path)}: {schema.names.count(name)} columns have the name {name!r}"
        )
    field = _find_field(schema, name)
    assert field is not None
    kind = field.type
    values = kind.value_type if types.is_dictionary(kind) else kind
    if not _is_text(kind) and not types.is_integer(values) and not types.is_struct(kind):
        raise DataError(
            f"{name_file(path)}: column {name!r} holds {kind}, expected text, integers or structs; "
            "write it as text, in the form that the model should see"
        )


def _is_text(kind: pyarrow.DataType) -> bool:
    values = kind.value_type if types.is_dictionary(kind) else kind
    return str(values) in _TEXT_KINDS.split()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
