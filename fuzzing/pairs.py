"""Fuzzes the readers of pairs, guided by coverage: any bytes, in every format and packing.

    python fuzzing/pairs.py fuzzing/corpus/pairs -max_total_time=3600

The first six bytes of an input choose the format, the packing and the settings; the rest is the
file. What must hold: an error is a DataError; each line is a pair or a counted error; what is
skipped under one policy is raised under the other; sources come line by line.
"""

import csv
import gzip
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import atheris
import pyarrow
import pyarrow.parquet
from findings import Findings

with atheris.instrument_imports(include=["dragoman"]):
    from dragoman.errors import DataError
    from dragoman.reading import delimited, parquet
    from dragoman.reading import text_files as files
    from dragoman.reading.pairs import (
        InvalidRow,
        Pair,
        RowErrors,
        describe_layout,
        read_pairs,
        read_sources,
    )
    from dragoman.reading.row_errors import OVER_LONG
    from dragoman.reading.statistics import collect_statistics
    from dragoman.settings import DataSettings

# Small limits, so that short inputs meet them.
files._CHUNK_BYTES = 32
files._LONGEST_LINE_BYTES = 1 << 11
parquet._BATCH_ROWS = 3
parquet._BATCH_BYTES = 1 << 6
delimited._MOST_RECORD_LINES = 12
csv.field_size_limit(64)

LAYOUTS = ("tsv", "csv", "jsonl", "parquet", "parallel")
COLUMNS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("auto", "auto", ()),
    ("1", "2", ()),
    ("source", "target", ()),
    ("2", "1", ("3",)),
    ("target", "source", ("tag", "1")),
    ("auto", "auto", ("3",)),
    ("0", "99", ("x", "x")),
    ("", "999999999999", ("",)),
)
HEAD_BYTES = 6


class Case(NamedTuple):
    """One input, decoded."""

    layout: str
    suffix: str
    settings: DataSettings
    contents: tuple[bytes, ...]
    """Of each file, before it is packed."""
    packed: tuple[bytes, ...]
    """Of each file, as it lies on the disk."""
    is_whole: bool
    """The packing is ours, so the content is known."""


class Lines(RowErrors):
    """Errors, with the line of each."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[int] = []
        self.kinds: list[str] = []

    def add(self, file: str | Path, line: int, reason: str, detail: str) -> None:
        """Count one row, and keep its line."""
        super().add(file, line, reason, detail)
        self.lines.append(line)
        self.kinds.append(reason)


def decode_case(data: bytes) -> Case:
    """Return the files and the settings that `data` stands for."""
    layout, packing, policies, columns, options, part = data[:HEAD_BYTES]
    name = LAYOUTS[layout % len(LAYOUTS)]
    suffix = ("", ".gz", ".zst")[packing % 3] if name != "parquet" else ""
    treatment = packing // 3 % 4 if suffix else 0
    source, target, features = COLUMNS[columns % len(COLUMNS)]
    settings = DataSettings(
        # What is found by itself is set here, so that the rows are known without dragoman.
        format=name if options & 1 or name in ("parallel", "tsv") else "auto",
        header=("no", "yes", "no")[options // 2 % 3],
        separator="," if name == "csv" else "tab",
        encoding="utf-8",
        broken_rows=("error", "skip")[policies & 1],
        long_rows=("error", "skip")[policies // 2 & 1],
        leading_tags=bool(policies & 4),
        max_characters=8 if policies & 8 else 5000,
        source=source,
        target=target,
        features=features,
    )
    rest = data[HEAD_BYTES:]
    cut = len(rest) * part // 256
    contents = (rest[:cut], rest[cut:]) if name == "parallel" else (rest,)
    packed = contents
    if treatment < 3:
        packed = tuple(pack(content, suffix) for content in contents)
    if treatment == 2:
        packed = tuple(damage(content, rest[-3:]) for content in packed)
    return Case(name, suffix, settings, contents, packed, treatment < 2)


def damage(content: bytes, how: bytes) -> bytes:
    """Return `content` with a byte changed, and cut behind it, as three bytes say."""
    place, change, cut = how.rjust(3, b"\0")
    at = len(content) * place // 256
    changed = bytes([content[at] ^ change]) if at < len(content) else b""
    return content[:at] + changed + (b"" if cut & 1 else content[at + 1 :])


def pack(content: bytes, suffix: str) -> bytes:
    """Return `content`, packed as a file whose name ends in `suffix`."""
    if suffix == ".gz":
        return gzip.compress(content, 1, mtime=0)
    if suffix == ".zst":
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        return bytes(sink.getvalue())
    return content


def list_lines(
    case: Case, *, drops_blank_end: bool, has_header: bool
) -> list[tuple[int, int]] | None:
    """Return the first and the last line of each row, found without dragoman; None: not known."""
    if not case.is_whole or any(b"\r" in one and b"\n" not in one for one in case.contents):
        return None
    if case.layout == "parallel":
        return count_up(1, max(len(split_lines(text)) for text in case.contents))
    lines = split_lines(case.contents[0])
    while drops_blank_end and lines and lines[-1] in (b"", b"\r"):
        lines.pop()
    if case.layout == "jsonl":
        return count_up(1, len(lines))
    if case.layout == "tsv":
        return count_up(1 + has_header, len(lines))
    rows = list(find_records([line.decode(errors="surrogateescape") for line in lines]))
    header = next((row for row in rows if row[2]), None) if has_header else None
    return [row[:2] for row in rows if row != header]


def count_up(first: int, last: int) -> list[tuple[int, int]]:
    """Return the lines from `first` to `last`, each a row."""
    return [(number, number) for number in range(first, last + 1)]


def split_lines(content: bytes) -> list[bytes]:
    """Return the lines of a text file."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return lines if lines[-1] else lines[:-1]


def find_records(lines: list[str]) -> Iterator[tuple[int, int, Sequence[str]]]:
    """Yield the first and last line of each CSV record, and its fields; an invalid one is one line."""
    place = 0
    while place < len(lines):
        reader = csv.reader((line + "\n" for line in lines[place:]), strict=True)
        try:
            fields: Sequence[str] = next(reader)
        except csv.Error:
            yield place + 1, place + 1, ("invalid",)
            place += 1
        else:
            yield place + 1, place + reader.line_num, fields
            place += reader.line_num


def agree(found: list[int], expected: list[tuple[int, int]] | None) -> bool:
    """Return whether there is one of `found` in each of the rows `expected`."""
    return expected is None or (
        len(found) == len(expected)
        and all(first <= line <= last for line, (first, last) in zip(found, expected, strict=True))
    )


def read_all(
    paths: list[Path], settings: DataSettings
) -> tuple[list[Pair], Lines, DataError | None]:
    """Return the pairs of a file, its errors, and what ended it, if anything."""
    pairs: list[Pair] = []
    errors = Lines()
    try:
        pairs.extend(read_pairs(paths, settings, errors))
    except DataError as error:
        return pairs, errors, error
    return pairs, errors, None


def check_pairs(case: Case, paths: list[Path]) -> None:
    """Read the pairs, and see that nothing is lost and nothing is let in."""
    settings = case.settings
    skipping = settings.model_copy(update={"broken_rows": "skip", "long_rows": "skip"})
    pairs: list[Pair] = []
    errors = Lines()
    reached_end = True
    try:
        for pair in read_pairs(paths, skipping, errors):
            check_pair(pair, settings)
            pairs.append(pair)
    except DataError as error:
        check_message(error, paths)
        reached_end = "none of its" in str(error)
    found = sorted([pair.line for pair in pairs] + errors.lines)
    assert len(found) == len(set(found)), f"a line came twice: {found}"
    assert errors.total == len(errors.lines)
    if reached_end:
        if case.layout == "parquet":
            count = pyarrow.parquet.ParquetFile(paths[0]).metadata.num_rows
            expected: list[tuple[int, int]] | None = count_up(1, count)
        else:
            has_header = settings.header == "yes"
            expected = list_lines(case, drops_blank_end=True, has_header=has_header)
        assert agree(found, expected), f"rows {found}, expected {expected}"
    again, others, error = read_all(paths, settings)
    assert again == pairs, "another policy gives other pairs"
    assert others.lines == errors.lines, "another policy gives other errors"
    stops = any(
        (settings.long_rows if kind == OVER_LONG else settings.broken_rows) == "error"
        for kind in errors.kinds
    )
    assert (error is not None) == (stops or not reached_end or not pairs), str(error)
    assert collect_statistics(pairs).num_pairs == len(pairs)


def check_pair(pair: Pair, settings: DataSettings) -> None:
    """See that a pair is one that may be trained on."""
    for side in (pair.source, pair.target):
        assert side.strip()
        assert "\0" not in side
        assert len(side) <= settings.max_characters
    "".join((pair.source, pair.target, *pair.features)).encode()


def check_message(error: DataError, paths: list[Path]) -> None:
    """See that a message says where, and is not endless."""
    message = str(error)
    assert any(str(path) in message for path in paths), message
    assert len(message) < 20_000, len(message)


def check_sources(case: Case, path: Path) -> None:
    """Read the first file as sources, and see that every line has its row."""
    layout = case.layout
    settings = case.settings
    try:
        rows = list(read_sources(path, settings, with_columns=True))
    except DataError as error:
        check_message(error, [path])
        return
    lines = [row.line for row in rows]
    assert lines == sorted(set(lines)), "lines are out of order"
    for row in rows:
        if not isinstance(row, InvalidRow):
            assert row.source.strip()
            row.source.encode()
    if layout in ("tsv", "jsonl", "csv"):
        has_header = settings.header == "yes"
        expected = list_lines(case, drops_blank_end=False, has_header=has_header)
        assert not lines or agree(lines, expected), f"{lines}, expected {expected}"


def run_case(data: bytes, folder: Path) -> None:
    """Write the files of `data` and read them in every way."""
    case = decode_case(data)
    ending = "txt" if case.layout == "parallel" else case.layout
    paths = []
    for number, content in enumerate(case.packed):
        paths.append(folder / f"{number}.{ending}{case.suffix}")
        paths[-1].write_bytes(content)
    check_pairs(case, paths)
    check_sources(case, paths[0])
    try:
        describe_layout(paths, case.settings)
    except DataError as error:
        check_message(error, paths)


def main() -> None:
    """Run libFuzzer with the arguments of the command line."""
    home = Path(os.environ.get("FINDINGS", "/tmp/findings-pairs"))
    findings = Findings(home)
    folder = Path(mkdtemp(prefix="fuzz-pairs-", dir="/dev/shm"))

    def try_input(data: bytes) -> None:
        if len(data) < HEAD_BYTES:
            return
        began = time.monotonic()
        try:
            run_case(data, folder)
        except Exception as error:
            findings.add(data, error)
        findings.watch(data, began)

    options = ["-max_len=2048", "-timeout=60", "-rss_limit_mb=3000", "-print_final_stats=1"]
    program = f"{sys.executable} {sys.argv[0]}"  # libFuzzer starts itself anew by it to merge
    atheris.Setup([program, *options, *sys.argv[1:]], try_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
