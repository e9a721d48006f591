"""Puts files and folders into their places at one stroke; what a killed process leaves is swept up.

A file or a folder is written under a temporary name beside its place, is brought to the disk, and
then takes the place of what stands there. For a folder that is, on Linux, one step of the kernel
(renameat2 with RENAME_EXCHANGE), so that at any moment a whole folder is at the place. Elsewhere,
and on file systems without it, these are two renames; who is killed between them leaves a
copy, that `sweep_folder` puts back.
"""

import contextlib
import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dragoman.locking import hold_folder

_READERS_S = 1.0  # how long readers may hold it up; they read again where it was not enough
_AT_CWD, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
_UNABLE = {errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOTSUP}  # the system, or the disk
_OLD_FILE_S = 60.0
_STAGED = re.compile(r"\..+\.tmp-\d+-[0-9a-f]{8}")


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Give a path beside `path`; the file that is written there takes the place of `path` in the end.

    Then it is on the disk, whatever happens to the machine. Where the body or the writing fails,
    `path` is as it was, and nothing is left beside it.

    Raises:
        OSError: It cannot be written.
    """
    partial = _name_beside(path, "tmp")
    try:
        yield partial
        _sync_file(partial)
        partial.replace(path)
        _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def is_staged(path: Path) -> bool:
    """Return whether the name of `path` is one that `staged_file` and `staged_folder` give."""
    return _STAGED.fullmatch(path.name) is not None


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`; what is in it at the end takes the place of `path`.

    `path` may be missing, or a folder, which is then removed. Where the body or the writing fails,
    `path` is as it was, and nothing is left beside it.

    Raises:
        OSError: It cannot be written.
    """
    place = _find_place(path)
    partial = _name_beside(place, "tmp")
    try:
        partial.mkdir(parents=True)
        with hold_folder(partial, alone=False, timeout_s=0.0):  # so that no sweep takes it
            yield partial
            replace_folder(place, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(path: Path, partial: Path) -> None:
    """Put the folder `partial`, beside it, in the place of `path`; a folder there is removed.

    Once it returns, the new content is on the disk, whatever happens to the machine.

    Raises:
        OSError: It cannot be done; `path` is as it was.
    """
    path = _find_place(path)
    _bring_to_disk(partial)
    for tries_left in (2, 1, 0):
        try:
            _put(path, partial)
            break
        except OSError as error:  # another process has put one there, or taken it away
            if error.errno not in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY) or not tries_left:
                raise


def sweep_folder(path: Path, is_whole: Callable[[Path], bool]) -> None:
    """Remove the temporary folders that killed processes left beside `path`.

    Only names that `staged_folder` gives are touched, and none that a living process of this machine
    holds. Where `path` is missing because its writer was killed between two renames, the last whole
    copy of it is put back.

    Raises:
        OSError: One cannot be put back.
    """
    place = _find_place(path)
    if not place.parent.is_dir():
        return
    names = re.compile(rf"\.{re.escape(place.name)}\.(tmp|old)-\d{{1,10}}(-[0-9a-f]{{8}})?")
    found = [one for one in place.parent.iterdir() if names.fullmatch(one.name)]
    copies = [one for one in found if f".{place.name}.old-" in one.name and one.is_dir()]
    for copy in sorted(copies, key=lambda one: one.stat().st_mtime_ns, reverse=True):
        if not os.path.lexists(place) and is_whole(copy):
            copy.rename(place)
            _sync(place.parent)
    for one in found:
        if one.is_symlink() or not one.exists():
            continue
        if one.is_dir():
            with hold_folder(one, alone=True, timeout_s=0.0) as is_held:
                if is_held:
                    shutil.rmtree(one, ignore_errors=True)
        elif time.time() - one.stat().st_mtime > _OLD_FILE_S:
            with contextlib.suppress(OSError):
                one.unlink()


def _find_place(path: Path) -> Path:
    """Return `path` with a name, and where a link leads: the folder is replaced, the link stays."""
    return path.resolve() if path.is_symlink() or path.name in ("", "..") else path


def _name_beside(path: Path, kind: str) -> Path:
    # The number of a process is not enough: other machines may write to the same disk.
    return path.with_name(f".{path.name}.{kind}-{os.getpid()}-{os.urandom(4).hex()}")


def _put(path: Path, partial: Path) -> None:
    if not os.path.lexists(path):
        partial.rename(path)
        _sync(path.parent)
        return
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file stands there", str(path))
    with hold_folder(path, alone=True, timeout_s=_READERS_S):
        if not _exchange(path, partial):
            _rename_twice(path, partial)
        _sync(path.parent)
        shutil.rmtree(partial, ignore_errors=True)  # what stood at `path` until now


def _exchange(path: Path, partial: Path) -> bool:
    """Let the two change places at one stroke; return whether the system can.

    Raises:
        OSError: It can, but not these.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes  # here: who only reads has no need of it

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    both = os.fsencode(partial), os.fsencode(path)
    if rename(_AT_CWD, both[0], _AT_CWD, both[1], ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNABLE:
        return False
    raise OSError(number, os.strerror(number), str(path))


def _rename_twice(path: Path, partial: Path) -> None:
    """Let the two change places; for a moment there is nothing at `path`."""
    old = _name_beside(path, "old")
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    old.rename(partial)


def _bring_to_disk(folder: Path) -> None:
    for inner, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync_file(Path(inner, name))
        _sync(Path(inner))


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    """Bring the names in `folder` to the disk, where the system can: that of Windows cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
