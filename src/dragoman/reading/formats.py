"""Goes from the name of a file, and the settings, to the table in it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from dragoman.errors import DataError
from dragoman.reading.delimited import open_csv, open_tsv
from dragoman.reading.jsonl import open_jsonl
from dragoman.reading.parallel import open_parallel
from dragoman.reading.parquet import open_parquet
from dragoman.reading.tables import Table
from dragoman.reading.text_files import FilePosition, open_text_file
from dragoman.settings import DataSettings

Format = Literal["tsv", "csv", "jsonl", "parquet", "parallel"]
_BY_SUFFIX: dict[str, Format] = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_PACKED = (".gz", ".zst")


@contextmanager
def open_pairs_table(paths: Sequence[Path], settings: DataSettings) -> Iterator[Table]:
    """Open the table of pairs in one file, or in two of parallel text.

    Raises: DataError, also while rows are read, when a file cannot be opened or read.
    """
    if len(paths) not in (1, 2):
        raise DataError(
            f"{len(paths)} files of pairs are given; expected one, or two parallel texts"
        )
    layout = _find_layout(paths, settings)
    if layout == "parquet":
        yield _open_plain_parquet(paths[0])
        return
    with ExitStack() as stack:
        streams = [stack.enter_context(open_text_file(path)) for path in paths]
        if layout == "parallel":
            yield open_parallel(streams, [str(path) for path in paths])
        else:
            yield _open_table(streams[0], str(paths[0]), layout, settings, drops_blank_end=True)


@contextmanager
def open_sources_table(
    source: BinaryIO | Path,
    settings: DataSettings,
    name: str,
    position: FilePosition | None = None,
) -> Iterator[Table]:
    """Open the table of rows to predict; `name` is that of a stream in messages.

    `position` is told how far a file has been read.

    Raises: DataError, also while rows are read, when a file cannot be opened or read.
    """
    layout: Format = "tsv" if settings.format == "auto" else settings.format
    is_file = isinstance(source, Path)
    with ExitStack() as stack:
        if isinstance(source, Path):
            if settings.format == "auto":
                layout = _find_suffix(source) or "tsv"
            name = str(source)
            if layout == "parquet":
                yield _open_plain_parquet(source, position)
                return
            source = stack.enter_context(open_text_file(source, position))
        elif layout == "parquet":
            raise DataError(f"{name}: Parquet cannot be read from a stream; give the file's name")
        if layout == "parallel":
            yield open_parallel([source], [name])
        else:
            if not is_file and settings.header == "auto":  # a stream of lines: each is a source
                settings = settings.model_copy(update={"header": "no"})
            yield _open_table(source, name, layout, settings, drops_blank_end=False)


def _open_table(
    stream: BinaryIO,
    name: str,
    layout: Literal["tsv", "csv", "jsonl"],
    settings: DataSettings,
    *,
    drops_blank_end: bool,
) -> Table:
    if layout == "tsv":
        has_header = settings.header == "yes"
        return open_tsv(stream, name, has_header=has_header, drops_blank_end=drops_blank_end)
    if layout == "jsonl":
        return open_jsonl(stream, name, drops_blank_end=drops_blank_end)
    return open_csv(
        stream,
        name,
        has_header=settings.header != "no",
        drops_blank_end=drops_blank_end,
        longest=settings.max_characters,
    )


def _open_plain_parquet(path: Path, position: FilePosition | None = None) -> Table:
    if path.suffix.lower() in _PACKED:
        raise DataError(f"{path}: Parquet is packed within; unpack the file first")
    return open_parquet(path, position)


def _find_layout(paths: Sequence[Path], settings: DataSettings) -> Format:
    # A model trained on two parallel files may be scored on pairs in one file.
    if settings.format != "auto" and not (settings.format == "parallel" and len(paths) == 1):
        if (settings.format == "parallel") != (len(paths) == 2):
            raise DataError(
                f"data.format={settings.format} with {len(paths)} file{'s' * (len(paths) > 1)}: "
                "parallel text is two files, every other format one"
            )
        return settings.format
    suffixes = [_find_suffix(path) for path in paths]
    if len(paths) == 1:
        return suffixes[0] or "tsv"
    for path, suffix in zip(paths, suffixes, strict=True):
        if suffix is not None:
            raise DataError(
                f"{path}: two files are two parallel texts, but this is named as {suffix}, with "
                "whole pairs; join the files into one, or set data.format=parallel"
            )
    return "parallel"


def _find_suffix(path: Path) -> Format | None:
    if path.suffix.lower() in _PACKED:
        path = path.with_suffix("")
    return _BY_SUFFIX.get(path.suffix.lower())
