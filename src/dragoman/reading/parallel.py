"""Reads parallel text: line n of one file is the source, line n of the other the target."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import BinaryIO

from dragoman.errors import DataError
from dragoman.reading.row_errors import RowError, find_line_error
from dragoman.reading.tables import WHOLE_ROW, Row, Table, dump_row, label_columns
from dragoman.reading.text_files import read_blocks


def open_parallel(streams: Sequence[BinaryIO], files: Sequence[str]) -> Table:
    """Return the table of one text stream (one column), or of two (source and target).

    Raises: DataError, here and while rows are read, when a file cannot be read, and at the end
    when their numbers of lines differ.
    """
    sides = [_read_lines(stream, file) for stream, file in zip(streams, files, strict=True)]

    labels = label_columns(None, len(files))

    def read(columns: Sequence[int]) -> Iterator[Row | RowError]:
        for row in _join(sides, files):
            if isinstance(row, RowError):
                yield row
            else:
                line, texts = row
                yield (
                    line,
                    [
                        dump_row(labels, texts) if column == WHOLE_ROW else texts[column]
                        for column in columns
                    ],
                )

    return Table(file=files[0], names=None, sample=("",) * len(files), read=read)


def _join(sides: list[Iterator[str | RowError]], files: Sequence[str]) -> Iterator[Row | RowError]:
    for number, lines in enumerate(zip_longest(*sides), 1):
        texts = [line for line in lines if isinstance(line, str)]
        if len(texts) == len(lines):
            yield number, texts
            continue
        if None in lines:
            counts = [
                number - (line is None) + sum(1 for _ in side)
                for line, side in zip(lines, sides, strict=True)
            ]
            raise DataError(
                f"{files[0]} has {counts[0]} lines and {files[1]} has {counts[1]} lines: "
                "in parallel text line n of one belongs to line n of the other; align them"
            )
        yield next(line for line in lines if isinstance(line, RowError))


def _read_lines(stream: BinaryIO, file: str) -> Iterator[str | RowError]:
    for block in read_blocks(stream, file):
        if block.is_clean:
            yield from block.lines
        else:
            for number, line in enumerate(block.lines, block.first):
                yield find_line_error(file, number, line) or line
