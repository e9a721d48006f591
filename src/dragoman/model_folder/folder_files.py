"""Files of a model folder, which may come from a stranger: plain ones, of a bounded size, no links.

A link could lead out of the folder, a pipe or a device never ends: both are refused before they are
opened, whatever their names.
"""

import hashlib
import io
import json
import math
import os
import stat
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dragoman.errors import ModelFolderError

_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_LARGEST_STEP_BYTES = 1 << 30  # Linux gives no more at once than 2 GiB
_MOST_LISTS = 1_000_000  # of a JSON file, objects too: each takes a hundred bytes


class FolderFile:
    """A plain file, kept open: what is read is one content, even if another takes its place.

    Args:
        largest_bytes: A larger one is refused.

    Raises:
        FileNotFoundError: There is none.
        ModelFolderError: It is no plain file, too large, or cannot be opened.
    """

    def __init__(self, path: Path, largest_bytes: int) -> None:
        self.path = path
        descriptor = _open(path)
        weakref.finalize(self, os.close, descriptor)
        status = os.fstat(descriptor)
        _check_kind(path, status.st_mode)  # another may have come between
        self.size = status.st_size
        if self.size > largest_bytes:
            raise ModelFolderError(
                f"{path}: of {self.size:,} bytes, more than the {largest_bytes:,} that such a file "
                "may have"
            )
        self._file = io.FileIO(descriptor, closefd=False)
        self._lock = threading.Lock()

    def read(self) -> bytes:
        """Return all of it.

        Raises:
            ModelFolderError: It cannot be read, or has changed its size.
        """
        return self.read_part(0, self.size)

    def read_part(self, start: int, count: int) -> bytes:
        """Return `count` bytes from `start` on.

        Raises:
            ModelFolderError: It cannot be read, or ends before.
        """
        parts: list[bytes] = []
        with self._reading(start):
            while count and (part := self._file.read(min(count, _LARGEST_STEP_BYTES))):
                parts.append(part)
                count -= len(part)
        self._refuse_end(count)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_floats(self, start: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the float32 numbers that begin at `start`, in the order of C.

        Raises:
            ModelFolderError: It cannot be read, or ends before.
        """
        content = bytearray(4 * math.prod(shape))
        room = memoryview(content)
        with self._reading(start):
            while room and (count := self._file.readinto(room)):
                room = room[count:]
        self._refuse_end(len(room))
        return np.frombuffer(content, "<f4").reshape(shape)  # writable, as a bytearray is

    @cached_property
    def fingerprint(self) -> str:
        """What tells its content from others: its SHA-256."""
        with self._reading(0):
            return hashlib.file_digest(self._file, "sha256").hexdigest()

    def is_in_place(self) -> bool:
        """Return whether it is still this file that stands at its path."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except OSError:
            return False

    @contextmanager
    def _reading(self, start: int) -> Iterator[None]:
        try:
            with self._lock:
                self._file.seek(start)
                yield
        except OSError as error:
            raise ModelFolderError(f"{self.path}: cannot be read: {error.strerror}") from error

    def _refuse_end(self, missing: int) -> None:
        if missing:
            raise ModelFolderError(f"{self.path}: it is cut short: copy it again")


def read_file(path: Path, largest_bytes: int) -> bytes:
    """Return the content of a plain file.

    Raises:
        ModelFolderError: It is missing, no plain file, too large, or cannot be read.
    """
    content = read_optional_file(path, largest_bytes)
    if content is None:
        raise ModelFolderError(f"{path}: cannot be read: there is no such file")
    return content


def read_optional_file(path: Path, largest_bytes: int) -> bytes | None:
    """Return the content of a plain file; None, where there is none.

    Raises:
        ModelFolderError: It is no plain file, too large, or cannot be read.
    """
    try:
        return FolderFile(path, largest_bytes).read()
    except FileNotFoundError:
        return None


def check_folder(path: Path) -> None:
    """Refuse a folder in a model folder that is a link: it could lead out of it.

    Raises:
        ModelFolderError: It is a link.
    """
    if path.is_symlink():
        _refuse_link(path)


def parse_json(content: bytes | str, most_lists: int = _MOST_LISTS) -> Any:  # noqa: ANN401
    """Return JSON as plain values, of finite numbers.

    Takes at most some thirty times the memory of `content` itself.

    Args:
        most_lists: Of lists and objects.

    Raises:
        ValueError: It is no JSON, nested without end, or holds too much, or no finite number.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    # A bracket in a text counts too: there are far fewer of them.
    if (found := text.count("[") + text.count("{")) > most_lists:
        raise ValueError(f"{found:,} lists and objects; there may be {most_lists:,}")
    try:
        return json.loads(text, parse_float=_parse_float, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("lists and objects are nested too deep") from error


def _parse_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _open(path: Path) -> int:
    try:
        # First without opening it: what a device does when it is opened is its own affair.
        _check_kind(path, path.lstat().st_mode)
        return os.open(path, os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path}: cannot be read: {error}") from error


def _check_kind(path: Path, mode: int) -> None:
    if stat.S_ISLNK(mode):
        _refuse_link(path)
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        found = kinds.get(stat.S_IFMT(mode), "a device")
        raise ModelFolderError(f"{path}: cannot be read: expected a plain file, found {found}")


def _refuse_link(path: Path) -> NoReturn:
    raise ModelFolderError(
        f"{path}: it is a link, which could lead anywhere; put what it leads to in its place, as "
        "`cp -rL` does"
    )
