"""Reads TSV (a tab always separates), CSV (with quotes), and parallel text (line by line)."""

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, zip_longest
from operator import itemgetter
from typing import BinaryIO

from dragoman.errors import DataError
from dragoman.reading.row_errors import (
    BAD_CSV,
    EMPTY_LINE,
    OVER_LONG,
    WRONG_COLUMNS,
    RowError,
    find_line_error,
)
from dragoman.reading.tables import WHOLE_ROW, Row, Table, dump_row, empty_table, label_columns
from dragoman.reading.text_files import Block, read_blocks

_MOST_RECORD_LINES = 1 << 16
_LARGEST_LIMIT = (1 << 31) - 1  # of csv, on every system


def open_tsv(blocks: Iterator[Block], file: str, *, has_header: bool) -> Table:
    """Return the table of a TSV file; its first line that is not empty gives the columns.

    Raises: DataError, here and while rows are read, when the file cannot be read.
    """
    first = next(blocks, None)
    if first is None:
        return empty_table(file)
    names = None
    if has_header:
        error = find_line_error(file, 1, first.lines[0])
        if error is not None:
            raise DataError(f"{file}:1: the header cannot be read: {error.detail}")
        names = tuple(first.lines[0].split("\t"))
        first = Block(first.first + 1, first.lines[1:], first.is_clean)
    held = [first]
    while not any(held[-1].lines) and (block := next(blocks, None)):
        held.append(block)
    sample = names or tuple(next(filter(None, held[-1].lines), "").split("\t"))
    width = len(sample)

    def read(columns: Sequence[int]) -> Iterator[Row | RowError]:
        choose = _choose(columns, label_columns(names, width))
        for block in chain(held, blocks):
            is_clean = block.is_clean
            for number, line in enumerate(block.lines, block.first):
                error = None if is_clean else find_line_error(file, number, line)
                fields = line.split("\t")
                if error is not None:
                    yield error
                elif len(fields) != width:
                    yield _describe_width(file, number, fields if line else [], width)
                else:
                    yield number, choose(fields)

    return Table(file=file, names=names, sample=sample, read=read)


def open_csv(blocks: Iterator[Block], file: str, *, has_header: bool, max_characters: int) -> Table:
    """Return the table of a CSV file; fields of `max_characters` characters can be read.

    Raises: DataError, here and while rows are read, when the file cannot be read.
    """
    # The limit belongs to the whole process; it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), min(max_characters + 1, _LARGEST_LIMIT)))
    records = _read_records(blocks, file)
    held: list[tuple[int, list[str]] | RowError] = []
    sample: tuple[str, ...] = ()
    while not sample:
        first = next(records, None)
        if first is None:
            return empty_table(file)
        if isinstance(first, RowError):
            raise DataError(f"{file}:{first.line}: the first line cannot be read: {first.detail}")
        sample = tuple(first[1])
        if not (sample and has_header):
            held.append(first)
    names, width = sample if has_header else None, len(sample)

    def read(columns: Sequence[int]) -> Iterator[Row | RowError]:
        choose = _choose(columns, label_columns(names, width))
        for record in chain(held, records):
            if isinstance(record, RowError):
                yield record
            elif len(record[1]) != width:
                yield _describe_width(file, record[0], record[1], width)
            else:
                yield record[0], choose(record[1])

    return Table(file=file, names=names, sample=sample, read=read)


def _read_records(blocks: Iterator[Block], file: str) -> Iterator[tuple[int, list[str]] | RowError]:
    """Yield each record with the number of its first line, or the error in it.

    Raises: DataError, when a quote is not closed: the rest cannot be split into rows.
    """
    first = 1
    line_error: RowError | None = None

    def read_lines() -> Iterator[str]:
        nonlocal line_error
        for block in blocks:
            for number, line in enumerate(block.lines, block.first):
                if number - first >= _MOST_RECORD_LINES:
                    raise _describe_open_quote(file, first, "it goes on for over 65,000 lines")
                if not block.is_clean:
                    line_error = line_error or find_line_error(file, number, line)
                yield line + "\n"

    reader = csv.reader(read_lines(), strict=True)
    while True:
        first, line_error = reader.line_num + 1, None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            found = str(error)
            if reader.line_num > first or "unexpected end" in found:
                raise _describe_open_quote(
                    file, first, f"line {reader.line_num}: {found}"
                ) from error
            if "field limit" in found:
                detail = f"a field has over {csv.field_size_limit()} characters"
                yield RowError(file, first, OVER_LONG, detail)
            elif "new-line character" in found:
                yield RowError(file, first, BAD_CSV, "a carriage return is outside quotes")
            else:
                yield RowError(file, first, BAD_CSV, found)
        else:
            yield line_error or (first, fields)


def _describe_open_quote(file: str, line: int, found: str) -> DataError:
    return DataError(
        f"{file}:{line}: a quote in this row is opened and not closed ({found}): close it, write a "
        "quote inside a quoted field twice, or set data.format to what the file is"
    )


def open_parallel(streams: Sequence[BinaryIO], files: Sequence[str]) -> Table:
    """Return the table of one text stream (one column), or of two (source and target).

    Raises: DataError, here and while rows are read, when a file cannot be read, and at the end
    when their numbers of lines differ.
    """
    sides = [_read_lines(stream, file) for stream, file in zip(streams, files, strict=True)]

    def read(columns: Sequence[int]) -> Iterator[Row | RowError]:
        choose = _choose(columns, label_columns(None, len(files)))
        for number, lines in enumerate(zip_longest(*sides), 1):
            texts = [line for line in lines if isinstance(line, str)]
            if len(texts) == len(lines):
                yield number, choose(texts)
            elif None in lines:
                counts = [
                    number - (line is None) + sum(1 for _ in side)
                    for line, side in zip(lines, sides, strict=True)
                ]
                raise DataError(
                    f"{files[0]} has {counts[0]} lines and {files[1]} has {counts[1]} lines: "
                    "in parallel text line n of one belongs to line n of the other; align them"
                )
            else:
                yield next(line for line in lines if isinstance(line, RowError))

    return Table(file=files[0], names=None, sample=("",) * len(files), read=read)


def _read_lines(stream: BinaryIO, file: str) -> Iterator[str | RowError]:
    for block in read_blocks(stream, file):
        if block.is_clean:
            yield from block.lines
        else:
            for number, line in enumerate(block.lines, block.first):
                yield find_line_error(file, number, line) or line


def _choose(columns: Sequence[int], labels: Sequence[str]) -> Callable[[list[str]], Sequence[str]]:
    """Return a function from all fields of a row to those at `columns`, in their order."""
    if WHOLE_ROW in columns:
        return lambda fields: [
            dump_row(labels, fields) if column == WHOLE_ROW else fields[column]
            for column in columns
        ]
    if list(columns) == list(range(len(labels))):
        return lambda fields: fields
    if len(columns) == 1:
        return itemgetter(slice(columns[0], columns[0] + 1))
    return itemgetter(*columns)


def _describe_width(file: str, line: int, fields: list[str], width: int) -> RowError:
    if not fields:
        return RowError(file, line, EMPTY_LINE, "the line is empty")
    found = f"{len(fields)} column{'s' if len(fields) > 1 else ''}, expected {width}"
    return RowError(file, line, WRONG_COLUMNS, found)
