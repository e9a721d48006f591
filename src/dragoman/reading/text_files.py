"""Opens text files, plain, .gz or .zst, and reads them as blocks of whole lines."""

import codecs
import difflib
import gzip
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from dragoman.errors import DataError
from dragoman.reading.row_errors import name_file

_CHUNK_BYTES = 1 << 16
_LONGEST_LINE_BYTES = 1 << 26
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PACKERS = {".gz": ("gzip", _GZIP), ".zst": ("zstd", _ZSTD)}
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_spooled: dict[tuple[int, int], "tempfile._TemporaryFileWrapper[bytes]"] = {}
_FEWEST_FOREIGN = 3  # lines that are not UTF-8; fewer are errors of their rows
_LATIN_SIGNS = "‘’“”„«»–—…€°§ß¿¡´ª"
_FOREIGN = {
    _GZIP: "is compressed with gzip: give it a name that ends in .gz",
    _ZSTD: "is compressed with zstd: give it a name that ends in .zst",
    b"PAR1": "is a Parquet file: give it a name that ends in .parquet, or set data.format=parquet",
    b"PK\x03\x04": "is a zip archive or a spreadsheet: save it as TSV, CSV or JSONL",
}


class Block(NamedTuple):
    """Some whole lines of a text file, decoded with surrogateescape."""

    first: int  # number of the first line, from 1
    lines: list[str]  # without their line ends
    is_clean: bool  # no line has a NUL or a byte that is not UTF-8


class FilePosition:
    """How much of a file has been read, to show progress."""

    raw: BinaryIO | None = None  # the open file
    num_rows: int | None = None
    """Rows of the file, if the format knows it."""

    def fraction(self, num_rows: int) -> float | None:
        """Return the fraction that has been read, after `num_rows` rows; None: unknown."""
        if self.num_rows:
            return num_rows / self.num_rows
        if self.raw is None:
            return None
        if self.raw.closed:
            return 1.0
        size = os.fstat(self.raw.fileno()).st_size
        return min(1.0, self.raw.tell() / size) if size else None


def strip_packing(path: Path) -> Path:
    """Return `path` without .gz or .zst at its end."""
    return path.with_suffix("") if path.suffix.lower() in _PACKERS else path


@contextmanager
def open_text_file(path: Path, position: FilePosition | None = None) -> Iterator[BinaryIO]:
    """Open `path` as a stream of bytes, decompressed if its name ends in .gz or .zst.

    Raises: DataError, when it cannot be opened or is not what its name says.
    """
    check_file(path)
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
            head = raw.peek(4)[:4]
        except OSError as error:
            raise DataError(f"{name_file(path)}: cannot be read: {error.strerror}") from error
        if position is not None:
            position.raw = raw
        packer, magic = _PACKERS.get(path.suffix.lower(), ("", b""))
        if not head.startswith(magic[: len(head)]):
            raise DataError(
                f"{name_file(path)}: it is not compressed with {packer}, as its name says"
            )
        if packer == "gzip" and head:
            yield cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=raw)))
        elif packer == "zstd" and head:
            import pyarrow  # on demand: a light installation has none

            yield stack.enter_context(pyarrow.CompressedInputStream(raw, "zstd"))
        else:
            for magic, remedy in _FOREIGN.items():
                if head.startswith(magic):
                    raise DataError(f"{name_file(path)}: it {remedy}")
            yield raw


def spool(path: Path) -> Path:
    """Return a file that can be read more than once: `path`, or a copy of a pipe ("-": stdin).

    The copy has no name of its own, is made once, and goes with the process.

    Raises: DataError, when the pipe cannot be read.
    """
    is_stdin = str(path) == "-" and not path.exists()
    if not is_stdin and (path.is_file() or path.is_dir() or not path.exists()):
        return path
    try:
        status = os.fstat(sys.stdin.fileno()) if is_stdin else path.stat()
        key = (status.st_dev, status.st_ino)
        if key not in _spooled:
            _spooled[key] = copy = tempfile.NamedTemporaryFile(prefix="dragoman-")  # noqa: SIM115
            with open(os.dup(sys.stdin.fileno()) if is_stdin else path, "rb") as pipe:  # noqa: PTH123
                shutil.copyfileobj(pipe, copy)
            copy.flush()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return Path(_spooled[key].name)


def check_file(path: Path) -> None:
    """Check that `path` exists, is not a folder, and is readable.

    Raises: DataError, with the most similar name in the folder if the file is missing.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            raise DataError(
                f"{path}: there is no such file, and no folder {path.parent}"
            ) from error
        try:
            names = [entry.name for entry in path.parent.iterdir()]
        except OSError:  # the folder may be entered, but not listed
            names = []
        near = difflib.get_close_matches(path.name, names, n=1)
        guess = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise DataError(f"{path}: there is no such file{guess}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{name_file(path)}: cannot be read: {error}") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{name_file(path)}: it is a folder; give a file in it")
    if not os.access(path, os.R_OK):
        raise DataError(f"{name_file(path)}: no permission to read it")


def read_head(path: Path) -> bytes:
    """Return the first 64 KiB of a file."""
    with path.open("rb") as file:
        return file.read(_CHUNK_BYTES)


def cut_lines(path: Path, every: int) -> list[tuple[int, int]]:
    """Return places in a text file, in bytes, and the number of lines before each.

    They are the begin, the ends of each `every` lines, and the end.
    """
    places, num_lines, start = [(0, 0)], 0, 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            for place in ends[every - 1 - num_lines % every :: every].tolist():
                places.append((start + place + 1, len(places) * every))
            num_lines, start = num_lines + len(ends), start + len(chunk)
    return [*places, (start, num_lines)] if places[-1][0] < start else places


class Utf8Stream:
    """A stream of text as UTF-8, with line ends that have a \\n, from any encoding.

    Args:
        encoding: Of `stream`; auto: by its byte order mark, else UTF-8.
        waits: Look at the first 64 KiB; else only at what is there, for a live stream.
        span: Read the first 64 KiB, then only these bytes of the stream, from and to.
        skips_head: Give only the span; else before it the whole lines of the first 64 KiB.

    Raises: DataError, when the text looks like UTF-16 without a byte order mark, or like another
    encoding throughout.
    """

    def __init__(
        self,
        stream: BinaryIO,
        name: str,
        encoding: str,
        *,
        waits: bool,
        span: tuple[int, int] | None = None,
        skips_head: bool = False,
    ) -> None:
        # read1 returns what is available: nothing before a truncation is lost.
        self._read = getattr(stream, "read1", stream.read)
        self._error: Exception | None = None
        self._is_at_end, head = False, b""
        try:
            while not self._is_at_end and len(head) < _CHUNK_BYTES and (waits or not head):
                head += (chunk := self._read(_CHUNK_BYTES))
                self._is_at_end = not chunk
        except (EOFError, zlib.error, OSError) as error:  # raised after what could be read
            self._error = error
        if span is not None:
            # As of `read_head`: this one may be longer.
            head = head[: head.rfind(b"\n", 0, _CHUNK_BYTES) + 1]
            start, end = span
            stream.seek(start)
            self._read = lambda size: stream.read(min(size, end - stream.tell()))
            self._is_at_end = start == end
        if encoding == "auto":
            marked = (found for mark, found in _MARKS.items() if head.startswith(mark))
            encoding = next(marked, "utf-8")
            if encoding == "utf-8":
                _check_utf8(head, name, waits=waits)
        self.notes: list[str] = []
        """What was found, for messages: the encoding, and the line ends, where unusual."""
        self._decoder: codecs.IncrementalDecoder | None = None
        self._errors = "surrogatepass" if encoding.lower().startswith("utf") else "surrogateescape"
        if codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig"):
            self._decoder = codecs.getincrementaldecoder(encoding)(self._errors)
            self.notes.append(f"encoding {encoding.upper()}")
        self._head = b""
        try:
            self._head = b"" if skips_head else self._recode(head)
        except UnicodeDecodeError as error:  # raised when it is read
            self._error = error
        self._has_returns = waits and b"\r" in self._head[:-1] and b"\n" not in self._head
        if self._has_returns:
            self.notes.append("lines end with a carriage return")
            self._head = self._head.replace(b"\r", b"\n")

    def read1(self, size: int) -> bytes:
        """Return the next bytes, about `size`; b"" at the end."""
        if self._head:
            head, self._head = self._head, b""
            return head
        if self._error is not None:
            raise self._error
        data = b""
        while not data and not self._is_at_end:  # a chunk may end within its first character
            data = self._read(size)
            self._is_at_end = not data
            data = self._recode(data)
        return data.replace(b"\r", b"\n") if self._has_returns else data

    read = read1

    def _recode(self, data: bytes) -> bytes:
        if self._decoder is None:
            return data
        text = self._decoder.decode(data, final=self._is_at_end)
        return text.encode("utf-8", self._errors)


def _check_utf8(head: bytes, name: str, *, waits: bool) -> None:
    """Raise a DataError, with a guess, for text that is plainly UTF-16, or in another encoding.

    The latter has several lines outside ASCII, none of which is UTF-8.
    """
    ends = head.count(b"\n")
    zeros = [head[i::2].count(0) for i in (0, 1)]  # in Latin text, all in the high bytes
    for guess, end, high in (("utf-16-le", b"\n\0", 1), ("utf-16-be", b"\0\n", 0)):
        has_ends = ends and head.count(end) >= 0.9 * ends
        if has_ends and zeros[high] > max(2, 10 * zeros[1 - high]):
            raise DataError(
                f"{name}: the text looks like UTF-16 without a byte order mark; set "
                f"data.encoding={guess}, or save it as UTF-8"
            )
    whole = head[: head.rfind(b"\n") + 1] if len(head) >= _CHUNK_BYTES else head
    foreign = [line for line in whole.splitlines() if not line.isascii()]
    has_utf8 = any(line.decode(errors="ignore").encode() == line for line in foreign)
    if not waits or len(foreign) < _FEWEST_FOREIGN or b"\0" in head or has_utf8:
        return
    text = b"\n".join(foreign).decode("cp1252", errors="replace")
    others = [character for character in text if not character.isascii()]
    is_latin = len(others) < sum(map(str.isalpha, text)) / 2 and all(
        other.isalpha() or other in _LATIN_SIGNS for other in others
    )
    shown = f", but with {others[0]!r} in Windows-1252: {text.splitlines()[0][:40]!r}" * is_latin
    example = "cp1252" if is_latin else "cp1250, cp1251, shift_jis or gb18030"
    raise DataError(
        f"{name}: the text is not UTF-8{shown}; set data.encoding to the file's, such as {example}, or "
        "save it as UTF-8 (with data.encoding=utf-8 each row is judged by itself)"
    )


def read_blocks(
    stream: BinaryIO | Utf8Stream,
    name: str,
    *,
    keeps_returns: bool = False,
    drops_blank_end: bool = False,
) -> Iterator[Block]:
    r"""Yield the lines of `stream`, some kilobytes at a time; they end at \n, \r\n or the file's end.

    A byte order mark is dropped. `keeps_returns` leaves the \r of \r\n in its line;
    `drops_blank_end` ignores empty lines at the end of the file.

    Raises: DataError, when the stream is truncated, corrupt, UTF-16, or without line ends.
    """
    number = 1
    held: list[str] = []  # empty lines, perhaps the last ones
    blanks = ("", "\r") if keeps_returns else ("",)
    for data in _read_whole_lines(stream, name):
        if number == 1 and not held:
            if data.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise DataError(f"{name}: the text is UTF-16; save it as UTF-8")
            data = data.removeprefix(b"\xef\xbb\xbf")
        try:
            text = data.decode()
            is_clean = "\0" not in text
        except UnicodeDecodeError:
            text = data.decode(errors="surrogateescape")
            is_clean = False
        if not keeps_returns and "\r" in text:
            # The last line of a block has lost its \n already.
            text = text.replace("\r\n", "\n").removesuffix("\r")
        lines = text.split("\n")
        if drops_blank_end:
            lines = held + lines
            end = len(lines)
            while end and lines[end - 1] in blanks:
                end -= 1
            lines, held = lines[:end], lines[end:]
        if lines:
            yield Block(number, lines, is_clean)
            number += len(lines)


def _read_whole_lines(stream: BinaryIO | Utf8Stream, name: str) -> Iterator[bytes]:
    """Yield some complete lines at a time, without the line end of the last one."""
    # read1 returns what is available: nothing before a truncation is lost, and a pipe does not wait.
    read = getattr(stream, "read1", stream.read)
    number = 1
    waiting = bytearray()
    while True:
        try:
            chunk = read(_CHUNK_BYTES)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}: near line {number} the text is not {error.encoding}: {error.reason}; set "
                "data.encoding to the file's, or copy the file again"
            ) from error
        except (EOFError, zlib.error, OSError) as error:
            is_cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
            raise DataError(
                f"{name}: the file is {'truncated' if is_cut else 'corrupt'}: reading ended near "
                f"line {number} ({error}); copy or compress it again"
            ) from error
        if not chunk:
            break
        cut = chunk.rfind(b"\n")
        if cut >= 0:
            waiting += memoryview(chunk)[:cut]
            data = bytes(waiting)
            waiting = bytearray(memoryview(chunk)[cut + 1 :])
            yield data
            number += data.count(b"\n") + 1
        else:
            waiting += chunk
            if len(waiting) > _LONGEST_LINE_BYTES:
                raise DataError(
                    f"{name}:{number}: a line of over {_LONGEST_LINE_BYTES >> 20} MiB; "
                    "is this a text file with one pair per line?"
                )
    if waiting:
        yield bytes(waiting)
