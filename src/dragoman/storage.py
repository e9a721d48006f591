"""Atomic writes of files and folders, locks, digests, and reading of small files.

A file or a folder is written under a temporary name beside its place, is flushed to the disk, and is
then renamed. A folder that is replaced is renamed out of the way first: for a moment nothing is at
its place, and a process that is killed then leaves a copy that `sweep` puts back.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from dragoman.errors import DragomanError, ModelFolderError

_OLD_FILE_S = 60.0
_MAX_BYTES = 1 << 28  # of what is read whole
_TEMPORARY = re.compile(r"\..+\.tmp-\d+-[0-9a-f]{8}")


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; at the end, the file written there replaces `path`.

    After an error, `path` is unchanged and the temporary file is gone.
    """
    temporary = _name_beside(path, "tmp")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def explain_failed_write(
    path: str | Path, kind: type[DragomanError], remedy: str = ""
) -> Iterator[None]:
    """Turn an OSError of the body into an error of this kind: `path` cannot be written, and why."""
    try:
        yield
    except OSError as error:
        raise kind(f"{path}: cannot be written: {error.strerror or error}{remedy}") from error


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; copy it if the disk is another one, or has no links.

    Raises: OSError, when `source` is missing, or `target` cannot be written.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def is_staged(path: Path) -> bool:
    """Return whether `path` has a temporary name, as `staged_file` and `staged_folder` give them."""
    return _TEMPORARY.fullmatch(path.name) is not None


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `path`; at the end, it replaces the folder at `path`.

    After an error, `path` is unchanged and the temporary folder is gone. A symbolic link at `path`
    stays, and the folder that it leads to is replaced.
    """
    place = _resolve(path)
    temporary = _name_beside(place, "tmp")
    place.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(_name_lock(temporary)):  # `sweep` leaves it alone meanwhile
        try:
            temporary.mkdir()
            yield temporary
            if os.path.lexists(place) and not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "it is a file", str(place))
            for one in (*temporary.rglob("*"), temporary):
                _flush(one)
            old = _name_beside(place, "old")
            with contextlib.suppress(FileNotFoundError):
                place.rename(old)
            try:
                temporary.rename(place)
            except OSError:
                if old.exists() and not place.exists():
                    old.rename(place)
                raise
            _flush(place.parent)
            with contextlib.suppress(FileNotFoundError):
                old.rename(temporary)  # a name that `sweep` never puts back
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sweep(path: Path) -> None:
    """Remove the temporary files and folders that killed processes left beside `path`.

    Temporary folders of running processes stay. If `path` is missing because its writer was killed
    between two renames, the copy of the old folder is put back.
    """
    place = _resolve(path)
    copies = place.parent.glob(f".{glob.escape(place.name)}.old-*")
    for copy in sorted(copies, key=lambda one: one.stat().st_mtime_ns, reverse=True):
        if os.path.lexists(place):
            shutil.rmtree(copy, ignore_errors=True)
        else:
            copy.rename(place)
            _flush(place.parent)
    for found in place.parent.glob(f".{glob.escape(place.name)}.tmp-*"):
        if not is_staged(found.with_name(found.name.removesuffix(".lock"))):
            continue
        with contextlib.suppress(OSError, Timeout):  # another process holds or removes it
            if found.is_dir() or found.suffix == ".lock":
                with hold_lock(_name_lock(found)):
                    shutil.rmtree(found, ignore_errors=True)
            elif time.time() - found.stat().st_mtime > _OLD_FILE_S:
                found.unlink()


@contextmanager
def consistent_read(path: Path) -> Iterator[None]:
    """Refuse what the body reads from the folder `path`, if another one is there at its end."""
    before = _identify(path)
    try:
        yield
    finally:
        if _identify(path) != before:
            raise ModelFolderError(f"{path}: it was replaced while being read: try again")


@contextmanager
def hold_lock(path: Path, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, which exists only while it is held; a dead process holds none.

    Raises:
        filelock.Timeout: Another process holds it, for longer than `timeout_s`.
        OSError: It cannot be created.
    """
    lock = FileLock(path, timeout=timeout_s)
    lock.acquire()
    try:
        yield
    finally:
        # Before the release: a process that has opened the file by then sees that its name is gone.
        with contextlib.suppress(OSError):  # Windows removes no open file
            path.unlink()
        lock.release()


def is_same_file(path: Path, other: Path | None) -> bool:
    """Return whether two names lead to one regular file, as links do; None: standard input."""
    with contextlib.suppress(OSError):  # one is not there
        status = os.fstat(sys.stdin.fileno()) if other is None else other.stat()
        return stat.S_ISREG(status.st_mode) and os.path.samestat(status, path.stat())
    return False


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: Path) -> bytes:
    """Return the content of a settings file of a model.

    Raises: ModelFolderError, when it is missing, unreadable, or larger than 256 MiB.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise ModelFolderError(f"{path}: larger than {_MAX_BYTES >> 20} MiB, the limit")
    return content


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Return the content of a JSON file.

    Raises: ModelFolderError, as of `read_bytes`, or when it is not JSON.
    """
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path}: not valid JSON: {error}") from error


def describe_first(error: Exception) -> str:
    """Return the first fault that pydantic found in a file: where, and what; in bounded length.

    Of any other error, its message.
    """
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(map(str, first["loc"]))[:100]
    return f"{where}: {first['msg'][:200]}" if where else first["msg"][:200]


def _resolve(path: Path) -> Path:
    """Return `path` with a name, and without a symbolic link at its end."""
    return path.resolve() if path.is_symlink() or path.name in ("", "..") else path


def _name_beside(path: Path, kind: str) -> Path:
    # The process id is not enough: other machines may write to the same disk.
    return path.with_name(f".{path.name}.{kind}-{os.getpid()}-{os.urandom(4).hex()}")


def _name_lock(temporary: Path) -> Path:
    return temporary.with_name(temporary.name.removesuffix(".lock") + ".lock")


def _identify(path: Path) -> int | None:
    """Return what differs between a folder and its replacement: both exist for a moment."""
    with contextlib.suppress(OSError):
        return path.stat().st_ino
    return None


def _flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk; not every system can flush folders."""
    is_folder = path.is_dir()
    with contextlib.suppress(*([OSError] if is_folder else [])):
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows needs it
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
