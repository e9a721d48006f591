"""Reads pairs to train on, and sources to predict, from files of any format."""

import glob
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from textwrap import indent
from typing import BinaryIO, Literal, NamedTuple, get_args

from dragoman.errors import DataError, SettingsError, shorten
from dragoman.reading.delimited import open_delimited, open_parallel
from dragoman.reading.jsonl import open_jsonl, write_record
from dragoman.reading.row_errors import (
    EMPTY_SIDE,
    IN_MEMORY,
    INVALID_UTF8,
    NO_RECORD,
    OVER_LONG,
    RowError,
    find_side_error,
    name_file,
)
from dragoman.reading.row_errors import InvalidRow as InvalidRow
from dragoman.reading.row_errors import RowErrors as RowErrors
from dragoman.reading.tables import (
    WHOLE_ROW,
    Columns,
    Table,
    choose_columns,
    find_columns,
    follow_columns,
    label_columns,
)
from dragoman.reading.text_files import FilePosition as FilePosition
from dragoman.reading.text_files import (
    Utf8Stream,
    cut_lines,
    open_text_file,
    read_blocks,
    read_head,
    spool,
    strip_packing,
)
from dragoman.reading.url_files import copy_files, find_file, is_url
from dragoman.settings import DataSettings

Format = Literal["tsv", "csv", "jsonl", "parquet", "arrow", "parallel"]
SUFFIXES: dict[str, Format] = {f".{layout}": layout for layout in get_args(Format)[:-1]}
SUFFIXES |= {".json": "jsonl", ".ndjson": "jsonl"}
# A tag must be followed by a space, so "<es> <none>" is a tag and a text; a tag alone has no text.
_LEADING_TAGS = re.compile(r"(?:<[^<>\s]+> )+|<[^<>\s]+>\Z")


class Pair(NamedTuple):
    """One pair of the data."""

    source: str
    target: str
    features: tuple[str, ...]
    """Symbols put before the source: "tense=PST" from a column, "<PST>" from a leading tag."""
    line: int  # line in `file`, from 1; in Parquet the row
    file: str


class Source(NamedTuple):
    """A row to predict."""

    source: str
    features: tuple[str, ...]
    line: int
    given: str = ""  # the prefix of the output, or the whole target where it is scored
    columns: str = ""  # the whole row, as a JSON object, on request


class Part(NamedTuple):
    """Some lines of a table of pairs, whose files are read from their begin to see how to read them."""

    files: Sequence[Path]  # one, or two of parallel text
    spans: Sequence[tuple[int, int]] = ()  # of each file, in bytes; (): all of it
    num_skipped: int = 0  # lines at the begin, which belong to the first part
    line_shift: int = 0  # from the lines that are read to those of the file
    is_end: bool = True


def read_pairs(
    paths: str | Path | Sequence[str | Path],
    settings: DataSettings | None = None,
    row_errors: RowErrors | None = None,
    labels: Sequence[str] | None = None,
    before: Sequence[Sequence[str | Path]] = (),
) -> Iterator[Pair]:
    """Yield the pairs of files (see `list_tables`), in order; but for a JSON array, in constant memory.

    A column's value v becomes the feature "name=v", or "3=v" if columns have no names; `labels` are
    other names, those of a trained model, to which the columns are matched. Empty lines
    at the end of a file are ignored; all other invalid rows are added to `row_errors`. Those that
    the settings do not skip are raised as one error at the end of the file, after all valid pairs.
    `before`: groups of files of the same run, see `settle_columns`.

    Raises: DataError, before the first pair if a file cannot be used, later if it is truncated or
    corrupt, at the end for invalid rows or if there is no pair.
    """
    settings = settings or DataSettings()
    for files, own in settle_columns([*filter(None, before), paths], settings)[-1]:
        found, num_pairs = RowErrors(), 0
        collected = [found] if row_errors is None else [found, row_errors]
        for pair in read_part(Part(files), own, collected, labels):
            num_pairs += 1
            yield pair
        check_rows(files, num_pairs, found, settings)


def read_part(
    part: Part,
    settings: DataSettings,
    row_errors: Sequence[RowErrors],
    labels: Sequence[str] | None = None,
) -> Iterator[Pair]:
    """Yield the pairs of a part; add its invalid rows to each of `row_errors`: see `check_rows`."""
    keeps_empty, has_records = settings.broken_rows == "keep_empty", settings.records == "json"
    num_skipped, shift = part.num_skipped, part.line_shift

    def add(error: RowError) -> None:
        if error.line > num_skipped:
            for errors in row_errors:
                errors.add(error.file, error.line + shift, error.kind, error.detail)

    with _open_pairs(part, settings) as table:
        columns = choose_columns(table, settings, labels)
        assert columns.target is not None
        file, longest = table.file, settings.max_characters
        for errors in row_errors:
            errors.add_layout(file, _describe(table, columns))
        has_features = bool(columns.features) or settings.leading_tags
        features: tuple[str, ...] = ()
        for row in table.read((columns.source, columns.target, *columns.features)):
            if isinstance(row, RowError):
                add(row)
                continue
            line, fields = row
            if line <= num_skipped:
                continue
            source, target = fields[0], fields[1]
            if has_features:
                source, features = take_features(source, fields[2:], columns.labels, settings)
            if has_records:
                written = write_target(file, line, target, settings)
                if isinstance(written, RowError):
                    add(written)
                    continue
                target = written
            # The conditions of find_side_error, repeated: calls for every row are slow.
            if (
                not source
                or source.isspace()
                or ((not target or target.isspace()) and not keeps_empty)
                or len(source) > longest
                or len(target) > longest
            ):
                error = find_side_error(file, line, "source", source, longest)
                error = error or find_side_error(file, line, "target", target, longest)
                assert error is not None
                add(error)
                continue
            yield Pair(source, target, features, line + shift, file)


def cut_table(files: Sequence[Path], settings: DataSettings, every: int) -> list[Part]:
    """Return the parts of a table, of about `every` lines; one part if it cannot be cut.

    Cut are files of UTF-8 text, not compressed, in which each line is a row.

    Raises: DataError, when the files cannot be read.
    """
    with _open_pairs(Part(files), settings) as table:
        is_by_line, is_parallel = table.is_by_line, len(files) == 2
    heads = []
    for file in files if is_by_line and settings.encoding in ("auto", "utf-8") else ():
        if strip_packing(file) == file and file.is_file():
            head = read_head(file)
            heads += [] if b"\0" in head else [head]
    if len(heads) != len(files):
        return [Part(files)]
    end, num_head = (0, 0) if is_parallel else (heads[0].rfind(b"\n") + 1, heads[0].count(b"\n"))
    cuts = [
        [(end, num_head), *((at, line) for at, line in cut_lines(file, every) if at > end)]
        for file in files
    ]
    lines = [line for _, line in cuts[0]]
    if len(lines) < 3 or any([line for _, line in cut] != lines for cut in cuts):
        return [Part(files)]
    return [
        Part(
            files,
            tuple((cut[i][0], cut[i + 1][0]) for cut in cuts),
            num_skipped=num_head if i else 0,
            line_shift=lines[i] - num_head,
            is_end=i == len(lines) - 2,
        )
        for i in range(len(lines) - 1)
    ]


def write_target(file: str, line: int, target: str, settings: DataSettings) -> str | RowError:
    """Return a target in the form of data.records json; an empty one, where it is meant, is {}."""
    if target and not target.isspace():
        return write_record(file, line, target, settings.record_fields)
    return "{}" if settings.broken_rows == "keep_empty" else target


def check_rows(
    files: Sequence[Path], num_pairs: int, found: RowErrors, settings: DataSettings
) -> None:
    """Check the rows of a table that was read to its end.

    Raises: DataError, for invalid rows that are not to be skipped, or if there is no pair.
    """
    file = name_file(files[0])
    is_skipped = {OVER_LONG: settings.long_rows == "skip"}
    skips = settings.broken_rows == "skip"
    counts = {
        kind: count for kind, count in found.counts.items() if not is_skipped.get(kind, skips)
    }
    stopping = RowErrors(
        counts=Counter(counts), examples=[one for one in found.examples if one.kind in counts]
    )
    num_rows = num_pairs + found.total
    if stopping.total:
        remedies = []
        if INVALID_UTF8 in stopping.counts:
            remedies.append("set data.encoding to the encoding of the file, such as cp1252")
        if EMPTY_SIDE in stopping.counts:
            remedies.append("set data.broken_rows=keep_empty if empty targets are meant")
        if NO_RECORD in stopping.counts:
            remedies.append("set data.records=text to learn all targets as they are written")
        if stopping.counts.keys() - {OVER_LONG}:
            remedies.append("set data.broken_rows=skip to leave invalid rows out")
        if OVER_LONG in stopping.counts:
            remedies.append("raise data.max_characters, or set data.long_rows=skip")
        raise DataError(
            f"{file}: {stopping.total} of {num_rows} rows cannot be used:\n"
            f"{indent(stopping.report(), '  ')}\nCorrect the rows, or {'; '.join(remedies)}."
        )
    if found.total and not num_pairs:
        shown = indent(found.report(), "  ")
        raise DataError(f"{file}: none of its {num_rows} rows can be used:\n{shown}")
    if not num_pairs:
        raise DataError(f"{file}: there is no pair in the file")


def describe_layout(
    paths: Sequence[str | Path],
    settings: DataSettings,
    labels: Sequence[str] | None = None,
    before: Sequence[Sequence[str | Path]] = (),
) -> str:
    """Return how files of pairs are read, what was found and the columns, in a line for all alike.

    `labels` and `before`: as in `read_pairs`.

    Raises: DataError, when a file cannot be used.
    """
    found = RowErrors()
    for files, own in settle_columns([*filter(None, before), paths], settings)[-1]:
        with _open_pairs(Part(files), own) as table:
            found.add_layout(table.file, _describe(table, choose_columns(table, own, labels)))
    return "\n".join(found.layouts)


def _describe(table: Table, columns: Columns, extra: Sequence[int] = ()) -> str:
    """Return how a table is read, in one line; "" if nothing was found and no column is named.

    The columns `extra` are used, too.
    """
    notes, names = list(table.notes), table.names
    sides = [("source", columns.source), ("target", columns.target)]
    features = list(zip(columns.labels, columns.features, strict=True))
    if names is not None:
        used = [f"{side} {names[i]!r}" for side, i in sides if i is not None]
        for label, i in features:
            is_same = label.isdigit() or label.casefold() == names[i].casefold()
            used.append(f"feature {names[i]!r}" + ("" if is_same else f" as {label!r}"))
        notes.append(f"columns: {', '.join(used)}")
        indices = {columns.source, columns.target, *columns.features, *extra}
        known = {*table.nested, *(path.partition(".")[0] for path in table.nested)}
        others = [name for i, name in enumerate(names) if i not in indices]
        if unused := [repr(name) for name in others if name not in known]:
            notes.append(f"not used: {shorten(', '.join(unused))}")
    elif columns.by_position or not all(label.isdigit() for label in columns.labels):
        roles = [*sides, *((f"feature {label!r}", i) for label, i in features)]
        used = [f"{i + 1} {role}" for role, i in roles if i is not None]
        notes.append(f"no header; columns by position: {', '.join(used)}")
    return "; ".join(notes)


def read_sources(
    stream_or_path: BinaryIO | str | Path,
    settings: DataSettings,
    *,
    labels: Sequence[str] | None = None,
    has_target: bool = False,
    prefix: str = "",
    with_columns: bool = False,
    position: FilePosition | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Iterator[Source | InvalidRow]:
    """Yield the rows to predict in order; a row that cannot be used is an `InvalidRow`.

    A stream is TSV unless settings.format says otherwise, and a single column in it has no header.
    The columns are those of training; the target may be missing, and in a file of one column
    without header each line is a source. With the format parallel a line is a source with its tabs.
    An empty input yields nothing.

    Args:
        labels: As in `read_pairs`.
        has_target: Rows are pairs; `given` is their target.
        prefix: Column with prefixes of the outputs, for `given`.
        with_columns: Give the whole row as `columns`.
        position: Updated with how much of a file has been read.
        report: Gets one line on how a file is read, if something was found or columns have names.

    Raises: DataError, when the file or the stream cannot be read or lacks a column.
    """
    opened = stream_or_path
    if isinstance(opened, str | Path):
        opened = find_file(opened)
    with _open_sources(opened, settings, position) as table:
        if not table.sample:
            return
        columns = choose_columns(table, settings, labels, has_target=has_target)
        extra = []
        if has_target or prefix:
            target = find_columns(table, [("--prefix", prefix)])[0] if prefix else columns.target
            assert target is not None
            extra.append(target)
        if layout := _describe(table, columns, extra):
            report(f"{table.file}: {layout}")
        num_features = len(columns.features)
        wanted = [columns.source, *columns.features, *extra, *[WHOLE_ROW] * with_columns]
        for row in table.read(wanted):
            if isinstance(row, RowError):
                yield InvalidRow(row.line, row.file, row.detail)
                continue
            line, (text, *values) = row
            source, features = take_features(text, values[:num_features], columns.labels, settings)
            given = values[num_features] if extra else ""
            whole = values[-1] if with_columns else ""
            error = find_side_error(table.file, line, "source", source, settings.max_characters)
            if error is None and has_target and settings.records == "json":
                written = write_target(table.file, line, given, settings)
                if isinstance(written, RowError):
                    error = written
                else:
                    given = written
            if error is None:
                yield Source(source, features, line, given, whole)
            else:
                yield InvalidRow(line, error.file, error.detail, whole)


def list_source_columns(path: str | Path, settings: DataSettings) -> tuple[str, ...]:
    """Return the names of the columns of a file to predict, as in `Source.columns`.

    Raises: DataError, when the file cannot be read.
    """
    with _open_sources(find_file(path), settings) as table:
        names = label_columns(table.names, len(table.sample))
        return names[: len(names) - len(table.nested)]


def take_features(
    source: str, values: Sequence[str], labels: Sequence[str], settings: DataSettings
) -> tuple[str, tuple[str, ...]]:
    """Return the source without its leading tags, and the features from columns and tags.

    `values` and `labels` are those of the feature columns; data.features_separator splits values.
    Tags are taken with data.leading_tags.
    """
    separator = settings.features_separator
    features = [
        f"{label}={part}"
        for label, value in zip(labels, values, strict=True)
        for part in (filter(None, map(str.strip, value.split(separator))) if separator else [value])
    ]
    if settings.leading_tags and (tags := _LEADING_TAGS.match(source)):
        features += tags[0].split()
        source = source[tags.end() :]
    return source, tuple(features)


def give_same_pairs(one: DataSettings, other: DataSettings) -> bool:
    """Return whether the same rows give the same features and targets with both."""
    names = ("leading_tags", "features_separator", "records", "record_fields")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def join_features(
    features: Sequence[str], settings: DataSettings
) -> tuple[list[str], Sequence[str]]:
    """Return the values of the feature columns, and the tags, that `take_features` took."""
    values, rest = list[str](), list(features)
    for label in settings.features:
        parts = list[str]()
        while (
            rest and rest[0].startswith(f"{label}=") and (settings.features_separator or not parts)
        ):
            parts.append(rest.pop(0).removeprefix(f"{label}="))
        values.append(settings.features_separator.join(parts))
    return values, rest


def list_tables(
    paths: str | Path | Sequence[str | Path], settings: DataSettings
) -> list[tuple[Path, ...]]:
    """Return the files of each table of pairs: one, or the two of parallel text.

    Several files of a format with whole pairs are read one after the other; a name may be a pattern
    ("shards/*.tsv"), or a folder of Parquet or Arrow files.

    Raises: DataError, when a pattern or a folder has no file.
    """
    files = list_files([paths] if isinstance(paths, str | Path) else paths)
    is_parallel = settings.format == "parallel" or (
        settings.format == "auto" and not any(map(_find_suffix, files))
    )
    if not is_parallel and (twice := [file for file in files if files.count(file) > 1]):
        raise DataError(
            f"{name_file(twice[0])}: it is given twice; give two parallel texts, or each file once"
        )
    return [tuple(files)] if is_parallel and len(files) != 1 else [(file,) for file in files]


def settle_columns(
    groups: Sequence[str | Path | Sequence[str | Path]], settings: DataSettings
) -> list[list[tuple[tuple[Path, ...], DataSettings]]]:
    """Return the tables of each group of files of a run, each with the settings to read it.

    With data.source and data.target auto, all tables with names are read by the columns of the first
    one: see `follow_columns`.

    Raises: DataError, when a file cannot be used.
    """
    tables = [list_tables(paths, settings) for paths in groups]
    is_open = settings.source == settings.target == "auto" and sum(map(len, tables)) > 1
    first: Table | None = None

    def settle(files: tuple[Path, ...]) -> DataSettings:
        nonlocal first
        with _open_pairs(Part(files), settings) as table:
            if table.names is None:
                return settings
            first = first or table
            return follow_columns(table, first, settings)

    return [[(files, settle(files) if is_open else settings) for files in one] for one in tables]


def name_columns(paths: Sequence[str | Path], settings: DataSettings) -> tuple[str, ...]:
    """Return the names of the columns that data.source and data.target auto find; (): no names."""
    if not settings.source == settings.target == "auto":
        return ()
    for files in list_tables(paths, settings):
        with _open_pairs(Part(files), settings) as table:
            if table.names is not None:
                source, target, *_ = choose_columns(table, settings)
                assert target is not None
                return table.names[source], table.names[target]
    return ()


def list_weights(paths: Sequence[str | Path], settings: DataSettings) -> tuple[float, ...]:
    """Return how often each table of training pairs is drawn: data.weights is by the names in `paths`.

    Raises: SettingsError, when these are not as many.
    """
    if not settings.weights:
        return ()
    is_parallel = len(paths) == 2 and len(list_tables(paths, settings)) == 1
    counts = [1] if is_parallel else [len(list_files([path])) for path in paths]
    if len(settings.weights) != len(counts):
        raise SettingsError(
            f"--data.weights: {len(settings.weights)} given, for {len(counts)} training inputs "
            f"({shorten(', '.join(map(str, paths)), 200)}); give one for each"
            + ("; two parallel texts are one" if is_parallel else "")
        )
    both = zip(settings.weights, counts, strict=True)
    return tuple(weight for weight, count in both for _ in range(count))


def are_parallel(groups: Iterable[Sequence[str | Path]], settings: DataSettings) -> bool:
    """Return whether all of these groups of files that are not empty are two parallel texts."""
    tables = [table for files in groups if files for table in list_tables(files, settings)]
    return all(len(table) == 2 for table in tables)


def list_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return `paths`, with the files that patterns and folders stand for, and copies of URLs.

    Raises: DataError, when a pattern or a folder has no file, or a URL cannot be read.
    """
    return [
        file
        for path in paths
        for file in (copy_files(str(path)) if is_url(path) else _list_shards(Path(path)))
    ]


def _list_shards(path: Path) -> list[Path]:
    if path.is_dir():
        found = [one for one in path.iterdir() if one.suffix in (".parquet", ".arrow")]
        found = [one for one in found if not one.name.startswith((".", "_", "cache-"))]
        if not found:
            inner = sorted(one.name for one in path.iterdir() if one.is_dir())
            raise DataError(
                f"{path}: it is a folder without .parquet or .arrow files; give a file in it, or "
                f"{path / inner[0] if inner else path / '*.tsv'}"
            )
    elif glob.has_magic(str(path)) and not path.exists():
        found = [Path(name) for name in glob.glob(str(path))]  # noqa: PTH207
        if not found:
            raise DataError(f"{path}: no file fits this pattern")
    else:
        return [path]
    return sorted(found)


@contextmanager
def _open_pairs(part: Part, settings: DataSettings) -> Iterator[Table]:
    """Open the table of pairs in one file, or in two of parallel text; it is not empty."""
    paths = part.files
    if len(paths) not in (1, 2):
        raise DataError(
            f"{len(paths)} files of pairs are given; expected one, two parallel texts, or several "
            "whose names say their format (.tsv, .csv, .jsonl, .parquet)"
        )
    names = [*map(name_file, paths)]
    layout: Format
    if len(paths) == 2:
        layout = "parallel"
    elif names[0] == IN_MEMORY:
        layout = "parquet"
    elif settings.format == "auto" or settings.format == "parallel":
        # A model trained on two parallel files may be evaluated on pairs in one file.
        layout = _find_suffix(paths[0]) or "tsv"
    else:
        layout = settings.format
    sources = [*map(spool, paths)]
    with _open(
        *(sources, names, layout, settings), drops_blank_end=part.is_end, spans=part.spans
    ) as table:
        if not table.sample:
            raise DataError(f"{table.file}: the file is empty")
        yield table


def _open_sources(
    source: BinaryIO | Path, settings: DataSettings, position: FilePosition | None = None
) -> AbstractContextManager[Table]:
    """Open the table of rows to predict."""
    name = "standard input"
    layout: Format = "tsv" if settings.format == "auto" else settings.format
    if isinstance(source, Path):
        name = name_file(source)
        if settings.format == "auto":
            layout = _find_suffix(source) or "tsv"
    elif layout in ("parquet", "arrow"):
        raise DataError(f"{name}: {layout} cannot be read from a stream; give the file's name")
    return _open([source], [name], layout, settings, drops_blank_end=False, position=position)


@contextmanager
def _open(
    sources: Sequence[BinaryIO | Path],
    names: Sequence[str],
    layout: Format,
    settings: DataSettings,
    *,
    drops_blank_end: bool,
    position: FilePosition | None = None,
    spans: Sequence[tuple[int, int]] = (),
) -> Iterator[Table]:
    """Open the table in one source, or in two of parallel text; `names` are for messages.

    `spans`: see `Part`.
    """
    first, wanted = sources[0], (settings.source, settings.target, *settings.features)
    if layout in ("parquet", "arrow"):
        assert isinstance(first, Path)
        if strip_packing(first) != first:
            raise DataError(
                f"{name_file(first)}: {layout.capitalize()} is compressed inside; unpack the file first"
            )
        # On demand: a light installation has no pyarrow.
        from dragoman.reading.parquet import open_arrow, open_parquet

        is_arrow = layout == "arrow"
        yield open_arrow(first, wanted) if is_arrow else open_parquet(first, position, wanted)
        return
    is_stream = not isinstance(first, Path)  # perhaps live: only its first line is looked at
    with ExitStack() as stack:
        texts = []
        cuts: Sequence[tuple[int, int] | None] = spans or [None] * len(names)
        for source, name, span in zip(sources, names, cuts, strict=True):
            if isinstance(source, Path):
                source = stack.enter_context(open_text_file(source, position))
            texts.append(
                Utf8Stream(
                    *(source, name, settings.encoding),
                    waits=not is_stream,
                    span=span,
                    skips_head=layout == "parallel" and span is not None,
                )
            )
        is_csv = layout == "csv"
        blocks = read_blocks(
            texts[0], names[0], keeps_returns=is_csv, drops_blank_end=drops_blank_end
        )
        if layout == "parallel":
            table = open_parallel(texts, names)
        elif layout == "jsonl":
            table = open_jsonl(blocks, names[0], wanted)
        else:
            table = open_delimited(blocks, names[0], settings, is_csv=is_csv, is_stream=is_stream)
        yield replace(table, notes=[*(note for one in texts for note in one.notes), *table.notes])


def _find_suffix(path: Path) -> Format | None:
    if strip_packing(path).suffix.lower() == ".tmx":
        raise DataError(
            f"{name_file(path)}: TMX is not read; write its segments as two columns of a TSV file"
        )
    return SUFFIXES.get(strip_packing(path).suffix.lower())
