"""Reads TSV (a tab always separates), CSV (with quotes), and parallel text (line by line)."""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from operator import itemgetter
from typing import TYPE_CHECKING

from dragoman.errors import DataError
from dragoman.reading.row_errors import (
    BAD_CSV,
    EMPTY_LINE,
    OVER_LONG,
    WRONG_COLUMNS,
    RowError,
    find_line_error,
)
from dragoman.reading.tables import (
    PREDICTED,
    WHOLE_ROW,
    Row,
    Table,
    dump_row,
    empty_table,
    is_header,
    label_columns,
    names_wanted,
)
from dragoman.reading.text_files import Block, Utf8Stream, read_blocks
from dragoman.settings import DataSettings

if TYPE_CHECKING:
    import _csv

_SAMPLE_LINES = 200
_EXCEL_SEPARATOR = re.compile(r'"?sep=(.)"?\r?')
_QUOTED_CELL = re.compile(r'^"|\t"', re.MULTILINE)
_MOST_CHECKED_BLOCKS = 10  # with quoted cells
_MOST_RECORD_LINES = 1 << 16
_LARGEST_LIMIT = (1 << 31) - 1  # of csv, on every system


@dataclass(frozen=True, kw_only=True)
class _Dialect:
    """How a line is split into cells."""

    separator: str
    has_quotes: bool
    """Quotes are syntax: a cell in quotes may hold the separator, line ends, and quotes, twice."""
    drops_spaces: bool = False  # spaces after a separator are not text

    def read(self, lines: Iterable[str]) -> "_csv.Reader":
        """Return the cells of each row of `lines`."""
        return csv.reader(
            lines, strict=True, delimiter=self.separator, skipinitialspace=self.drops_spaces
        )

    def describe(self, usual: "_Dialect") -> Iterator[str]:
        """Yield in words what is not as in `usual`."""
        if self.separator != usual.separator:
            name = {"\t": "tabs", ";": "semicolons", ",": "commas"}.get(self.separator)
            yield f"separated by {name or repr(self.separator)}"
        if self.has_quotes and not usual.has_quotes:
            yield "quotes around a cell are not text"
        if self.drops_spaces:
            yield "spaces after a separator are not text"


_FOUND_IN_CSV = [_Dialect(separator=one, has_quotes=True) for one in ";\t"]


def open_delimited(
    blocks: Iterator[Block],
    file: str,
    settings: DataSettings,
    *,
    is_csv: bool,
    is_stream: bool = False,
) -> Table:
    """Return the table of a TSV or CSV file; its first row that is not empty gives the columns.

    What the settings leave open is found in the first lines, and named in the notes of the table;
    of a stream, a live one perhaps, in its first line.

    Raises: DataError, here and while rows are read, when the file cannot be read.
    """
    first = next(blocks, None)
    if first is None:
        return empty_table(file)
    separator, notes = settings.separator, list[str]()
    may_name = is_csv or not is_stream  # a line of plain text may be anything
    if may_name and (found := _EXCEL_SEPARATOR.fullmatch(first.lines[0])):
        separator = found[1] if separator == "auto" else separator
        notes.append(f"line 1 ({found[0].strip()}) names the separator")
        first = Block(first.first + 1, first.lines[1:], first.is_clean)
    blocks = chain([first], blocks)
    usual = _Dialect(separator="," if is_csv else "\t", has_quotes=is_csv)
    dialect = usual
    if separator != "auto":
        dialect = _Dialect(separator=separator, has_quotes=is_csv or separator != "\t")
    sample = [line for line in first.lines[:_SAMPLE_LINES] if line.strip()]
    wanted = (settings.source, settings.target, *settings.features)
    is_prediction = bool(sample) and {*sample[0].split("\t")} >= PREDICTED
    if dialect.has_quotes:
        lines = sample[:1] if is_stream else sample
        candidates = [dialect, *_FOUND_IN_CSV] if separator == "auto" else [dialect]
        found_dialect = _find_dialect(lines, candidates)
        # One line of a stream is not enough, unless it names columns.
        if not is_stream or (
            found_dialect != dialect
            and is_header(next(found_dialect.read(lines)), wanted=wanted, is_csv=True)
        ):
            dialect = found_dialect
    elif not is_stream and settings.format == "auto" and not is_prediction:
        if _needs_quotes(sample):
            dialect = replace(dialect, has_quotes=True)
        elif _QUOTED_CELL.search("\n".join(sample)):
            notes.append("quotes around a cell are text (data.format=csv data.separator=tab: not)")
        elif separator == "auto":
            blocks = _refuse_late_quotes(blocks, file)
    notes += dialect.describe(usual)

    def names_columns(cells: Sequence[str]) -> bool:
        if settings.header == "auto":
            if is_stream and not dialect.has_quotes:  # a line is a source, unless a name is wanted
                is_named = len(cells) > 1 and names_wanted(cells, wanted)
            else:
                is_named = is_header(cells, wanted=wanted, is_csv=dialect.has_quotes)
            if is_named:
                notes.append("the first line is the header")
            elif len(cells) > 1 and not is_stream:  # plain lines have no header to look for
                notes.append("the first line is a row, not a header")
            return is_named
        return settings.header == "yes"

    if dialect.has_quotes:
        # The limit belongs to the whole process; it is only ever raised.
        longest = min(settings.max_characters + 1, _LARGEST_LIMIT)
        csv.field_size_limit(max(csv.field_size_limit(), longest))
        records = _read_records(blocks, file, dialect, first.first - 1)
    else:
        records = _split_lines(blocks, file, dialect.separator)
    table = _make_table(records, file, names_columns, notes)
    return replace(table, is_by_line=not dialect.has_quotes)


def _needs_quotes(sample: Sequence[str]) -> bool:
    """Return whether quotes are syntax in these lines of TSV, as Excel and pandas write them.

    They must be: a cell holds a tab, or a quote written twice; or all cells are in quotes.
    """
    text = "\n".join(sample)
    if not _QUOTED_CELL.search(text):
        return False
    quoted = _Dialect(separator="\t", has_quotes=True)
    width = _find_width(quoted, sample)
    if width < 2:
        return False
    for line in sample:
        if _QUOTED_CELL.search(line) and _find_width(quoted, [line]) == width:
            cells = next(quoted.read([line]))
            if line.count("\t") >= width or ('""' in line and any('"' in cell for cell in cells)):
                return True
    return len(sample) >= 10 and all(line.count('"') == 2 * width for line in sample)


def _refuse_late_quotes(blocks: Iterator[Block], file: str) -> Iterator[Block]:
    """Yield `blocks`, none of which may begin to use quotes as syntax: the first lines did not."""
    num_checks = _MOST_CHECKED_BLOCKS
    for block in blocks:
        if num_checks and (start := _QUOTED_CELL.search(text := "\n".join(block.lines))):
            num_checks -= 1
            number = text.count("\n", 0, start.start() + 1)
            if _needs_quotes(block.lines[number : number + _SAMPLE_LINES]):
                raise DataError(
                    f"{file}:{block.first + number}: from here on, quotes around a cell seem to be "
                    "syntax, as Excel and pandas write them: set data.format=csv data.separator=tab, "
                    "or data.format=tsv if they are text"
                )
        yield block


def _find_dialect(sample: Sequence[str], candidates: Sequence[_Dialect]) -> _Dialect:
    """Return the first of `candidates` that fits the first lines of a CSV file.

    The first one is the usual one: others are tried only if it sees one column. Spaces before a
    quote are dropped if the lines fit then.
    """
    usual = candidates[0]
    is_one_column = _find_width(usual, sample[:1]) < 2
    for candidate in candidates if is_one_column else [usual]:
        without_spaces = replace(candidate, drops_spaces=True)
        if _has_spaces_before_quotes(candidate, sample) and _find_width(without_spaces, sample) > 1:
            return without_spaces
        if _find_width(candidate, sample) > 1:
            return candidate
    return usual


def _has_spaces_before_quotes(dialect: _Dialect, sample: Sequence[str]) -> bool:
    if f'{dialect.separator} "' not in "\n".join(sample):
        return False
    lines = [line.removesuffix("\r") for line in sample if "\r" not in line[:-1]]
    reader = csv.reader(lines, delimiter=dialect.separator)
    return any(cell.startswith(' "') for cells in reader for cell in cells)


def _find_width(dialect: _Dialect, lines: Sequence[str]) -> int:
    """Return how many cells each row has; 0: they differ, or a quote is wrong."""
    widths = set[int]()
    try:
        for cells in dialect.read(line + "\n" for line in lines):
            widths.add(len(cells))
    except csv.Error as error:
        if "unexpected end" not in str(error) or len(lines) < _SAMPLE_LINES:
            return 0  # the last row may go on after a sample
    return widths.pop() if len(widths) == 1 else 0


_Record = tuple[int, list[str], RowError | None]
"""Number of the first line, the cells, and what is wrong with the row."""


def _make_table(
    records: Iterator[_Record],
    file: str,
    names_columns: Callable[[Sequence[str]], bool],
    notes: list[str],
) -> Table:
    """Return the table of `records`; empty lines before the header are rows, and errors."""
    held: list[_Record] = []
    for line, cells, error in records:
        if error is not None and not cells:
            raise DataError(f"{file}:{line}: the first line cannot be read: {error.detail}")
        held.append((line, cells, error))
        if cells not in ([], [""]):
            break
    if not held:
        return empty_table(file)
    line, cells, error = held[-1]
    sample, names = tuple(cells), None
    if cells and names_columns(sample):
        if error is not None:
            raise DataError(f"{file}:{line}: the header cannot be read: {error.detail}")
        names = sample
        held.pop()
    width = len(sample)

    def read(columns: Sequence[int]) -> Iterator[Row | RowError]:
        choose = _choose(columns, label_columns(names, width))
        for line, fields, error in chain(held, records):
            if error is not None:
                yield error
            elif len(fields) != width and fields in ([], [""]):
                yield RowError(file, line, EMPTY_LINE, "the line is empty")
            elif len(fields) != width:
                found = f"{len(fields)} column{'s' if len(fields) > 1 else ''}, expected {width}"
                yield RowError(file, line, WRONG_COLUMNS, found)
            else:
                yield line, choose(fields)

    return Table(file=file, names=names, sample=sample, read=read, notes=notes)


def _split_lines(blocks: Iterator[Block], file: str, separator: str) -> Iterator[_Record]:
    """Yield the cells of each line of a file in which quotes are text."""
    for block in blocks:
        is_clean = block.is_clean
        for number, line in enumerate(block.lines, block.first):
            error = None if is_clean else find_line_error(file, number, line)
            yield number, line.split(separator), error


def _read_records(
    blocks: Iterator[Block], file: str, dialect: _Dialect, num_skipped: int
) -> Iterator[_Record]:
    """Yield the cells of each row of a file in which quotes are syntax, after `num_skipped` lines.

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

    reader = dialect.read(read_lines())
    while True:
        first, line_error = num_skipped + reader.line_num + 1, None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            found = str(error)
            last = num_skipped + reader.line_num
            if last > first or "unexpected end" in found:
                raise _describe_open_quote(file, first, f"line {last}: {found}") from error
            kind = BAD_CSV
            if "field limit" in found:
                kind, found = OVER_LONG, f"a field has over {csv.field_size_limit()} characters"
            elif "new-line character" in found:
                found = "a carriage return is outside quotes"
            yield first, [], RowError(file, first, kind, found)
        else:
            yield first, fields, line_error


def _describe_open_quote(file: str, line: int, found: str) -> DataError:
    return DataError(
        f"{file}:{line}: a quote in this row is opened and not closed ({found}): close it, write a "
        "quote inside a quoted field twice, or set data.format to what the file is"
    )


def open_parallel(streams: Sequence[Utf8Stream], files: Sequence[str]) -> Table:
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

    sample = ("",) * len(files)
    return Table(file=files[0], names=None, sample=sample, read=read, is_by_line=True)


def _read_lines(stream: Utf8Stream, file: str) -> Iterator[str | RowError]:
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
