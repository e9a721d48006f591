"""Reads TSV, where a tab always separates, and CSV, with quotes."""

import csv
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
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

_MOST_EMPTY_LINES = 100_000  # before the first row: they are held until it is known
_MOST_RECORD_LINES = 1 << 16
_LARGEST_LIMIT = (1 << 31) - 1  # a long of C, on every system
_LONGEST_RECORD = 1 << 23  # characters
_FREE_LINES, _REPEATS = 1 << 20, 16  # lines that may be read again for broken quotes


def open_tsv(stream: BinaryIO, file: str, *, has_header: bool, drops_blank_end: bool) -> Table:
    """Return the table of a TSV stream; its first line that is not empty gives the columns.

    Raises: DataError, here and while rows are read, when the file cannot be read.
    """
    blocks = read_blocks(stream, file, drops_blank_end=drops_blank_end)
    first = next(blocks, None)
    if first is None:
        return empty_table(file)
    names = None
    if has_header:
        fault = find_line_error(file, 1, first.lines[0])
        if fault is not None:
            raise DataError(f"{file}:1: the header cannot be read: {fault.detail}")
        names = tuple(first.lines[0].split("\t"))
        first = Block(first.first + 1, first.lines[1:], first.is_clean)
    held = [first]
    while not any(held[-1].lines) and (block := next(blocks, None)):
        held.append(block)
        _check_start(file, block.first)
    sample = names or tuple(next(filter(None, held[-1].lines), "").split("\t"))

    def read(columns: Sequence[int]) -> Iterator[Row | RowError]:
        choose = _choose(columns, label_columns(names, len(sample)))
        return _read_tsv(chain(held, blocks), file, len(sample), choose)

    return Table(file=file, names=names, sample=sample, read=read)


def open_csv(
    stream: BinaryIO, file: str, *, has_header: bool, drops_blank_end: bool, longest: int
) -> Table:
    """Return the table of a CSV stream; a field may have `longest` characters at least.

    Raises: DataError, here and while rows are read, when the file cannot be read.
    """
    # The limit belongs to the whole process; it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), min(longest + 1, _LARGEST_LIMIT)))
    blocks = read_blocks(stream, file, keeps_returns=True, drops_blank_end=drops_blank_end)
    records = _read_records(_RecordLines(blocks, file), file)
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
            _check_start(file, first[0])
    names = sample if has_header else None

    def read(columns: Sequence[int]) -> Iterator[Row | RowError]:
        choose = _choose(columns, label_columns(names, len(sample)))
        return _read_csv(chain(held, records), file, len(sample), choose)

    return Table(file=file, names=names, sample=sample, read=read)


def _check_start(file: str, number: int) -> None:
    if number > _MOST_EMPTY_LINES:
        raise DataError(f"{file}: its first {_MOST_EMPTY_LINES:,} lines are empty; leave them out")


def _read_tsv(
    blocks: Iterator[Block], file: str, width: int, choose: Callable[[list[str]], Sequence[str]]
) -> Iterator[Row | RowError]:
    for block in blocks:
        is_clean = block.is_clean
        for number, line in enumerate(block.lines, block.first):
            fault = None if is_clean else find_line_error(file, number, line)
            fields = line.split("\t")
            if fault is not None:
                yield fault
            elif len(fields) != width:
                yield _count_columns(file, number, fields if line else [], width)
            else:
                yield number, choose(fields)


def _read_csv(
    records: Iterator[tuple[int, list[str]] | RowError],
    file: str,
    width: int,
    choose: Callable[[list[str]], Sequence[str]],
) -> Iterator[Row | RowError]:
    for record in records:
        if isinstance(record, RowError):
            yield record
        elif len(record[1]) != width:
            yield _count_columns(file, record[0], record[1], width)
        else:
            yield record[0], choose(record[1])


class _RecordLines:
    """Feeds lines to csv.reader; the lines after the first of a broken record can be given back.

    A record ends, as at the end of the file, before it fills the memory.
    """

    def __init__(self, blocks: Iterator[Block], file: str) -> None:
        self._file = file
        self._fresh = (
            (number, line, block.is_clean)
            for block in blocks
            for number, line in enumerate(block.lines, block.first)
        )
        self._returned: deque[tuple[int, str, bool]] = deque()
        self._num_returned = 0
        self._num_characters = 0
        self.taken: list[tuple[int, str, bool]] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self.taken) >= _MOST_RECORD_LINES or self._num_characters >= _LONGEST_RECORD:
            raise StopIteration
        item = self._returned.popleft() if self._returned else next(self._fresh)
        self.taken.append(item)
        self._num_characters += len(item[1])
        return item[1] + "\n"

    def begin(self) -> None:
        """Forget the lines of the last record."""
        self.taken.clear()
        self._num_characters = 0

    def give_back(self) -> None:
        """Let all lines but the first be read again.

        Raises: DataError, when that is to be done so often that it would never end.
        """
        self._returned.extendleft(reversed(self.taken[1:]))
        self._num_returned += len(self.taken) - 1
        number = self.taken[0][0]
        if self._num_returned > _FREE_LINES + _REPEATS * number:
            raise DataError(
                f"{self._file}:{number}: so many quotes before this line are opened and not closed "
                "that the file cannot be read as CSV; write a quote in a field twice, in quotes, "
                "or set data.format to what it is"
            )


def _read_records(lines: _RecordLines, file: str) -> Iterator[tuple[int, list[str]] | RowError]:
    """Give each record with the number of its first line.

    After a quote that is never closed, reading goes on at the next line: one row is lost, not all.
    """
    reader = csv.reader(lines, strict=True)
    while True:
        lines.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _describe_csv_error(file, lines.taken, str(error))
            lines.give_back()
            continue
        fault = next(filter(None, _find_faults(file, lines.taken)), None)
        yield fault or (lines.taken[0][0], fields)


def _find_faults(file: str, taken: list[tuple[int, str, bool]]) -> Iterator[RowError | None]:
    return (find_line_error(file, number, line) for number, line, clean in taken if not clean)


def _describe_csv_error(file: str, taken: list[tuple[int, str, bool]], error: str) -> RowError:
    number = taken[0][0]
    if len(taken) == 1 and "field limit" in error:
        return RowError(
            file, number, OVER_LONG, f"a field has over {csv.field_size_limit()} characters"
        )
    if "unexpected end" in error or "field limit" in error:
        return RowError(file, number, BAD_CSV, "a quote is opened and not closed")
    if "new-line character" in error:
        error = "a carriage return stands outside quotes"
    return RowError(file, number, BAD_CSV, error)


def _choose(columns: Sequence[int], labels: Sequence[str]) -> Callable[[list[str]], Sequence[str]]:
    if WHOLE_ROW in columns:
        return lambda fields: [
            dump_row(labels, fields) if column == WHOLE_ROW else fields[column]
            for column in columns
        ]
    if list(columns) == list(range(len(labels))):
        return _take_all
    if len(columns) == 1:
        return itemgetter(slice(columns[0], columns[0] + 1))
    return itemgetter(*columns)


def _take_all(fields: list[str]) -> list[str]:
    return fields


def _count_columns(file: str, line: int, fields: list[str], width: int) -> RowError:
    if not fields:
        return RowError(file, line, EMPTY_LINE, "the line is empty")
    found = f"{len(fields)} column{'s' if len(fields) > 1 else ''}, expected {width}"
    return RowError(file, line, WRONG_COLUMNS, found)
