"""Errors of single rows: their kinds, counts, and the checks of text."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dragoman.characters import find_surrogate
from dragoman.reading.url_files import find_url, is_url

EMPTY_LINE = "empty line"
WRONG_COLUMNS = "wrong number of columns"
INVALID_UTF8 = "invalid UTF-8"
NUL = "NUL character"
LONE_SURROGATE = "lone surrogate"
EMPTY_SIDE = "empty side"
OVER_LONG = "over-long side"
BAD_CSV = "bad CSV"
BAD_JSON = "bad JSON"
NO_RECORD = "target that is not a record"
MISSING_FIELD = "missing field"
NOT_TEXT = "value that is not text"


IN_MEMORY = "pairs in memory"
"""Names the pairs that a Python caller gives; for reading, they are in a file of this name."""


def name_file(path: str | Path) -> str:
    """Return the name of a file of pairs, for messages and records."""
    if is_url(path):
        return str(path)
    path = Path(path)
    return IN_MEMORY if path.name == f"{IN_MEMORY}.parquet" else find_url(path) or str(path)


def name_row(file: str, line: int) -> str:
    """Return where a row is, for messages; `line` is from 1."""
    return f"pairs[{line - 1}]" if file == IN_MEMORY else f"{file}:{line}"


class RowError(NamedTuple):
    """What is wrong with a row, and where it is."""

    file: str
    line: int
    kind: str
    detail: str


class InvalidRow(NamedTuple):
    """A row to predict that cannot be used, in the place of its `Source`."""

    line: int
    file: str
    reason: str
    columns: str = ""  # the whole row, as a JSON object, on request and if it could be read


@dataclass
class RowErrors:
    """Counts row errors by kind, and keeps the first few of each, in bounded memory."""

    shown: int = 10
    counts: Counter[str] = field(default_factory=Counter)
    """Number of rows by kind, in order of first occurrence."""
    examples: list[RowError] = field(default_factory=list)
    """The first errors of each kind, in their order."""
    _files: dict[str, list[str]] = field(default_factory=dict)  # by how they were read

    def add(self, file: str | Path, line: int, kind: str, detail: str) -> None:
        """Count one row; `detail` says what was found in it."""
        self.counts[kind] += 1
        if self.counts[kind] <= self.shown:
            self.examples.append(RowError(str(file), line, kind, detail))

    def add_layout(self, file: str, layout: str) -> None:
        """Note how a file was read: its encoding, separator, header, columns; "": nothing to say."""
        if layout:
            self._files.setdefault(layout, []).append(file)

    def merge(self, others: "Iterable[RowErrors]") -> "RowErrors":
        """Add the errors of each of `others`, whose rows follow; return all."""
        for other in others:
            room = {kind: self.shown - self.counts[kind] for kind in other.counts}
            for error in other.examples:
                room[error.kind] -= 1
                if room[error.kind] >= 0:
                    self.examples.append(error)
            self.counts.update(other.counts)
        return self

    @property
    def layouts(self) -> list[str]:
        """How the files were read, in a line for all that were read alike."""
        return [
            f"{first}{f' and {len(more)} more' if more else ''}: {layout}"
            for layout, (first, *more) in self._files.items()
        ]

    @property
    def total(self) -> int:
        """Number of rows added."""
        return self.counts.total()

    def report(self) -> str:
        """Return the counts by kind, then the first rows by file and line; "" without errors."""
        lines = [f"{count} x {kind}" for kind, count in self.counts.most_common()]
        first = self.examples[: self.shown]
        lines += [f"{name_row(error.file, error.line)}: {error.detail}" for error in first]
        if self.total > len(first):
            lines.append(f"... and {self.total - len(first)} more")
        return "\n".join(lines)


def find_line_error(file: str, line: int, text: str) -> RowError | None:
    """Return what is wrong with a line decoded with surrogateescape, if anything."""
    if "\0" in text:
        return RowError(file, line, NUL, f"NUL character at character {text.index(chr(0)) + 1}")
    at = find_surrogate(text)
    if at is None:
        return None
    byte = ord(text[at]) - 0xDC00
    found = f"byte 0x{byte:02x} at character {at + 1} is not UTF-8"
    with suppress(UnicodeDecodeError):
        found += f" ({bytes([byte]).decode('cp1252')!r} in Windows-1252)"
    return RowError(file, line, INVALID_UTF8, found)


def find_value_error(file: str, line: int, name: str, value: str) -> RowError | None:
    """Return what is wrong with the unescaped text of a field, if anything."""
    if "\0" in value:
        return RowError(file, line, NUL, f"NUL character in {name}")
    at = find_surrogate(value)
    if at is None:
        return None
    return RowError(
        file, line, LONE_SURROGATE, f"lone surrogate \\u{ord(value[at]):04x} in {name} is not text"
    )


def find_side_error(file: str, line: int, side: str, text: str, longest: int) -> RowError | None:
    """Return whether a side is empty or has over `longest` characters."""
    if not text or text.isspace():
        return RowError(file, line, EMPTY_SIDE, f"the {side} is empty")
    if len(text) > longest:
        found = f"the {side} has {len(text)} characters, more than data.max_characters={longest}"
        return RowError(file, line, OVER_LONG, found)
    return None
