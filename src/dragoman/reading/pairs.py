"""Reads pairs to train on, and sources to predict, from any of the formats."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dragoman.errors import DataError
from dragoman.reading.formats import open_pairs_table, open_sources_table
from dragoman.reading.row_errors import OVER_LONG, InvalidRow, RowError, RowErrors, find_side_error
from dragoman.reading.tables import (
    WHOLE_ROW,
    Columns,
    Table,
    choose_columns,
    choose_prefix_column,
    choose_source_columns,
)
from dragoman.reading.text_files import FilePosition
from dragoman.settings import DataSettings

__all__ = [
    "FilePosition",
    "InvalidRow",
    "Pair",
    "RowErrors",
    "Source",
    "check_files",
    "describe_columns",
    "list_source_columns",
    "read_pairs",
    "read_sources",
]

# What ends a source behind tags is text, as in "<es> <none>"; a tag alone is a source without text.
_LEADING_TAGS = re.compile(r"(?:<[^<>\s]+> )+|<[^<>\s]+>\Z")


class Pair(NamedTuple):
    """One pair of the data."""

    source: str
    target: str
    features: tuple[str, ...]
    """Symbols put before the source: "tense=PST" from a column, "<PST>" from a leading tag."""
    line: int
    """Line in `file`, from 1; in Parquet the row."""
    file: str


class Source(NamedTuple):
    """A row to predict."""

    source: str
    features: tuple[str, ...]
    line: int
    given: str = ""
    """What the output begins with, or, where it is forced, all of it."""
    columns: str = ""
    """The whole row, as a JSON object, where asked for."""


def read_pairs(
    paths: str | Path | Sequence[str | Path],
    settings: DataSettings | None = None,
    faults: RowErrors | None = None,
) -> Iterator[Pair]:
    """Give the pairs of one file, or of two of parallel text, in their order, in constant memory.

    A column's value v becomes the feature "name=v", or "3=v" where columns have positions only.
    All faulty rows are added to `faults`. Those that the settings do not skip are raised as one
    error, but only when the file is at its end: good pairs come first.

    Raises: DataError, on the first pair asked for when a file cannot serve, on the way when it is
    cut or corrupt, at the end for faulty rows and when there is no pair.
    """
    settings = settings or DataSettings()
    files = [paths] if isinstance(paths, str | Path) else paths
    with open_pairs_table([Path(path) for path in files], settings) as table:
        if not table.sample:
            raise DataError(f"{table.file}: the file is empty")
        tally = _Tally(table.file, settings, RowErrors() if faults is None else faults)
        yield from _make_pairs(table, choose_columns(table, settings), settings, tally)
        tally.check()


def check_files(paths: Sequence[str | Path], settings: DataSettings) -> None:
    """Check what can be told of files of pairs from their first lines: that columns are there.

    Raises: DataError, when a file cannot serve.
    """
    if paths:
        with open_pairs_table([Path(path) for path in paths], settings) as table:
            if not table.sample:
                raise DataError(f"{table.file}: the file is empty")
            choose_columns(table, settings)


def describe_columns(paths: Sequence[str | Path], settings: DataSettings) -> str:
    """Return which named columns are read, for people; "" where columns have no names.

    Raises: DataError, when a file cannot serve.
    """
    with open_pairs_table([Path(path) for path in paths], settings) as table:
        if not table.sample or table.names is None:
            return ""
        columns, names = choose_columns(table, settings), table.names
        assert columns.target is not None
        features = "".join(f", feature {names[i]!r}" for i in columns.features)
        return f"source {names[columns.source]!r}, target {names[columns.target]!r}{features}"


def read_sources(
    stream_or_path: BinaryIO | str | Path,
    settings: DataSettings,
    name: str = "standard input",
    *,
    has_target: bool = False,
    prefix: str = "",
    with_columns: bool = False,
    position: FilePosition | None = None,
) -> Iterator[Source | InvalidRow]:
    """Give the rows to predict in their order; a row that cannot be used comes as `InvalidRow`.

    A stream is TSV unless settings.format says otherwise. The columns are as in training; the
    target may be left out, and in a file of one column without header each line is a source.
    With the format parallel a line is a source with its tabs. An empty input gives nothing.

    Args:
        has_target: Rows are pairs; `given` is their target.
        prefix: Column of what the output begins with, for `given`.
        with_columns: Give the whole row as `columns`.
        position: Is told how far a file has been read.

    Raises: DataError, when the file or the stream cannot be read or lacks a column.
    """
    opened = Path(stream_or_path) if isinstance(stream_or_path, str) else stream_or_path
    with open_sources_table(opened, settings, name, position) as table:
        if not table.sample:
            return
        choose = choose_columns if has_target else choose_source_columns
        columns = choose(table, settings)
        extra = []
        if has_target or prefix:
            target = choose_prefix_column(table, prefix) if prefix else columns.target
            assert target is not None
            extra.append(target)
        num_values = 1 + len(columns.features)
        wanted = [columns.source, *columns.features, *extra, *[WHOLE_ROW] * with_columns]
        for row in table.read(wanted):
            if isinstance(row, RowError):
                yield InvalidRow(row.line, row.file, row.detail)
                continue
            line, (text, *values) = row
            labels, others = columns.labels, list(values[num_values - 1 :])
            source, features = take_features(text, values[: num_values - 1], labels, settings)
            whole = others.pop() if with_columns else ""
            fault = find_side_error(table.file, line, "source", source, settings.max_characters)
            if fault is None:
                yield Source(source, features, line, others[0] if others else "", whole)
            else:
                yield InvalidRow(line, fault.file, fault.detail, whole)


def list_source_columns(path: Path, settings: DataSettings) -> tuple[str, ...]:
    """Return the names of the columns of a file to predict, as in `Source.columns`.

    Raises: DataError, when the file cannot be read.
    """
    with open_sources_table(path, settings, str(path)) as table:
        return table.labels()


def take_features(
    source: str, values: Sequence[str], labels: Sequence[str], settings: DataSettings
) -> tuple[str, tuple[str, ...]]:
    """Return the source without its leading tags, and the features from columns and tags.

    `values` and `labels` are those of the feature columns. Tags are taken with data.leading_tags.
    """
    features = [f"{label}={value}" for label, value in zip(labels, values, strict=True)]
    if settings.leading_tags and (tags := _LEADING_TAGS.match(source)):
        features += tags[0].split()
        source = source[tags.end() :]
    return source, tuple(features)


class _Tally:
    """Counts good and faulty rows of one file, and raises those that the settings do not skip."""

    def __init__(self, file: str, settings: DataSettings, faults: RowErrors) -> None:
        self._file = file
        self._settings = settings
        self._all = faults
        self._here = RowErrors()
        self._kept = RowErrors()
        self.good = 0

    def add(self, fault: RowError) -> None:
        is_long = fault.kind == OVER_LONG
        policy = self._settings.long_rows if is_long else self._settings.broken_rows
        targets = [self._all, self._here] + [self._kept] * (policy == "error")
        for faults in targets:
            faults.add(fault.file, fault.line, fault.kind, fault.detail)

    def check(self) -> None:
        rows = self.good + self._here.total
        if self._kept.total:
            raise DataError(
                f"{self._file}: {self._kept.total} of {rows} rows cannot be used:\n"
                f"{_indent(self._kept.report())}\n{self._tell_remedy()}"
            )
        if self._here.total and not self.good:
            raise DataError(
                f"{self._file}: none of its {rows} rows can be used:\n"
                f"{_indent(self._here.report())}"
            )
        if not rows:
            raise DataError(f"{self._file}: there is no pair in the file")

    def _tell_remedy(self) -> str:
        kinds = set(self._kept.counts)
        remedies = []
        if kinds - {OVER_LONG}:
            remedies.append("set data.broken_rows=skip to leave broken rows out")
        if OVER_LONG in kinds:
            remedies.append("raise data.max_characters, or set data.long_rows=skip")
        return f"Mend the rows, or {'; '.join(remedies)}."


def _make_pairs(
    table: Table, columns: Columns, settings: DataSettings, tally: _Tally
) -> Iterator[Pair]:
    assert columns.target is not None
    file, longest = table.file, settings.max_characters
    has_features = bool(columns.features) or settings.leading_tags
    features: tuple[str, ...] = ()
    for row in table.read((columns.source, columns.target, *columns.features)):
        if isinstance(row, RowError):
            tally.add(row)
            continue
        line, fields = row
        source, target = fields[0], fields[1]
        if has_features:
            source, features = take_features(source, fields[2:], columns.labels, settings)
        # find_side_error's checks stand here too: this loop sees every row, and calls cost time.
        if (
            not (source and target)
            or source.isspace()
            or target.isspace()
            or len(source) > longest
            or len(target) > longest
        ):
            fault = find_side_error(file, line, "source", source, longest)
            fault = fault or find_side_error(file, line, "target", target, longest)
            assert fault is not None
            tally.add(fault)
            continue
        tally.good += 1
        yield Pair(source, target, features, line, file)


def _indent(report: str) -> str:
    return "\n".join(f"  {line}" for line in report.split("\n"))
