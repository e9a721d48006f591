"""How large the pages of a Parquet file are once unpacked, told by their headers, before any is.

A few hundred bytes can stand for gigabytes, and the sizes in the footer need not be true. The
headers of the pages bind the reader.
Source: parquet.thrift (FileMetaData, PageHeader), Apache Parquet.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import pyarrow
import pyarrow.compute
import pyarrow.parquet
from pyarrow import types

from dragoman.errors import DataError
from dragoman.reading.thrift import (
    Struct,
    find_i32,
    find_i64,
    find_struct,
    find_structs,
    read_struct,
)

_LARGEST_PAGE: Final = 1 << 27  # bytes; writers make pages of 1 MiB, DuckDB of up to 100 MB
_LARGEST_FOOTER: Final = 1 << 26
_MOST_PAGES: Final = 1 << 20  # of a column in a row group
_BATCH_BYTES: Final = 1 << 25
_HEADER_BYTES: Final = (1 << 12, 1 << 24)  # what is read at first, and what at most
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_DELTA_BYTE_ARRAY: Final = 7
_BY_DICTIONARY: Final = (2, 8)


class _Page(NamedTuple):
    """What the header of a page says."""

    num_bytes: int
    """Of its content, unpacked."""
    num_values: int
    encoding: int
    is_data: bool

    @property
    def is_coded(self) -> bool:
        """Whether its values are places in the dictionary."""
        return self.is_data and self.encoding in _BY_DICTIONARY


class PageSizes:
    """Tells how many rows of an open Parquet file may be unpacked at a time."""

    def __init__(self, path: Path, file: pyarrow.parquet.ParquetFile) -> None:
        """Read the footer.

        Raises: DataError, when it is broken or too large.
        """
        self._path = path
        self._file = file
        self._groups = find_structs(_read_footer(path), 4)
        self._categories = {
            field.name for field in file.schema_arrow if types.is_dictionary(field.type)
        }

    def find_batch_rows(self, group: int, leaves: Sequence[int], most: int) -> int:
        """Return how many rows of a row group may be unpacked at a time, at most `most`.

        So many that the columns `leaves` of them take some megabytes; rows that hold lists go by
        their mean. The largest page comes on top.

        Raises: DataError, when a page is too large, or a header is broken.
        """
        chunks = find_structs(self._groups[group], 1)
        num_rows = max(1, find_i64(self._groups[group], 3))
        row_bytes = 1.0
        with self._path.open("rb") as stream:
            for leaf in leaves:
                pages = list(_read_pages(self._path, stream, find_struct(chunks[leaf], 3)))
                row_bytes += self._measure_row(group, leaf, pages, num_rows)
        return max(1, min(most, int(_BATCH_BYTES / row_bytes)))

    def _measure_row(self, group: int, leaf: int, pages: Sequence[_Page], num_rows: int) -> float:
        """Return the most bytes that the values of a row may take, on average over a page."""
        column = self._file.metadata.schema.column(leaf)
        for page in pages:
            self._check_size(column.path, page.num_bytes)
        if column.max_repetition_level:
            return sum(page.num_bytes for page in pages) / num_rows
        plain = [page for page in pages if page.is_data and not page.is_coded]
        if column.path in self._categories:  # pyarrow holds the values of all its pages
            self._check_size(column.path, sum(page.num_bytes for page in plain))
        most = float(column.length) if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0.0
        for page in plain:
            # By this encoding each value may repeat the one before it, and be as long as the page.
            num_values = 1 if page.encoding == _DELTA_BYTE_ARRAY else max(1, page.num_values)
            most = max(most, page.num_bytes / num_values)
        if column.physical_type == "BYTE_ARRAY" and any(page.is_coded for page in pages):
            most = max(most, self._measure_dictionary(group, column.path, pages, num_rows))
        return most

    def _measure_dictionary(
        self, group: int, name: str, pages: Sequence[_Page], num_rows: int
    ) -> int:
        """Return the length of the longest value in the dictionary: each row may be that."""
        first = next(page for page in pages if page.is_data)
        longest = max((page.num_bytes for page in pages if not page.is_data), default=0)
        if not first.is_coded or longest * num_rows <= _LARGEST_PAGE:  # no need to look
            return longest
        with pyarrow.parquet.ParquetFile(
            self._path, metadata=self._file.metadata, read_dictionary=[name], pre_buffer=False
        ) as opened:
            batch = next(opened.iter_batches(1, row_groups=[group], columns=[name]), None)
        place = -1 if batch is None else batch.schema.get_field_index(name)
        if batch is None or place < 0 or not types.is_dictionary(batch.column(place).type):
            return longest  # it lies in a struct
        lengths = pyarrow.compute.binary_length(batch.column(place).dictionary)
        return int(pyarrow.compute.max(lengths).as_py() or 0)

    def _check_size(self, column: str, num_bytes: int) -> None:
        if num_bytes > _LARGEST_PAGE:
            raise DataError(
                f"{self._path}: a page of column {column!r} unpacks to {num_bytes:,} bytes, over "
                f"{_LARGEST_PAGE:,}; write the file anew with smaller pages, as plain text"
            )


def _read_footer(path: Path) -> Struct:
    with path.open("rb") as stream:
        stream.seek(-8, 2)
        tail = stream.read(8)
        length = int.from_bytes(tail[:4], "little")
        if length > _LARGEST_FOOTER:
            raise DataError(
                f"{path}: its footer has {length:,} bytes, over {_LARGEST_FOOTER:,}; write the "
                "file anew with larger row groups"
            )
        stream.seek(-8 - length, 2)
        data = stream.read(length)
    try:
        return read_struct(data)[0]
    except (IndexError, ValueError) as error:
        raise DataError(f"{path}: the file is corrupt: its footer is broken ({error})") from error


def _read_pages(path: Path, stream: BinaryIO, chunk: Struct) -> Iterator[_Page]:
    """Yield what the headers of the pages of a ColumnMetaData say, up to the last that is read."""
    num_values, at, first = find_i64(chunk, 5), find_i64(chunk, 9), find_i64(chunk, 11)
    if 0 < first < at:
        at = first
    seen = count = 0
    while seen < num_values:
        header, num_header_bytes = _read_header(path, stream, at)
        kind, num_bytes, num_packed = (find_i32(header, number) for number in (1, 2, 3))
        inner = find_struct(header, {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(kind, 0))
        page = _Page(
            num_bytes=num_bytes,
            num_values=find_i32(inner, 1, 0),
            encoding=find_i32(inner, 4 if kind == _DATA_V2 else 2, 0),
            is_data=kind in (_DATA, _DATA_V2),
        )
        count += 1
        if min(num_bytes, num_packed, page.num_values) < 0 or count > _MOST_PAGES:
            raise _damage(path, at)
        yield page
        at += num_header_bytes + num_packed
        seen += page.num_values if page.is_data else 0


def _read_header(path: Path, stream: BinaryIO, at: int) -> tuple[Struct, int]:
    for limit in _HEADER_BYTES:
        try:
            stream.seek(at)
            return read_struct(stream.read(limit))
        except IndexError:  # it goes on after what was read
            continue
        except (OSError, ValueError, OverflowError) as error:
            raise _damage(path, at) from error
    raise _damage(path, at)


def _damage(path: Path, at: int) -> DataError:
    return DataError(f"{path}: the file is corrupt: no header of a page at byte {at:,}")
