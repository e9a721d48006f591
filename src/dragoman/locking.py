"""Locks on folders: readers hold one together, who replaces it alone; a dead one's lock is free.

They only spare readers the work of reading again: nothing relies on them. The system may have none.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_POLL_S = 0.002


@contextmanager
def hold_folder(path: Path, *, alone: bool, timeout_s: float) -> Iterator[bool]:
    """Hold the folder at `path`; gives whether it is held, after waiting for at most `timeout_s`.

    The lock is on the folder itself, whatever its name becomes.
    """
    with open_folder(path) as descriptor:
        yield descriptor is not None and _lock(descriptor, alone, timeout_s)


@contextmanager
def open_folder(path: Path) -> Iterator[int | None]:
    """Keep the folder at `path` open, so that no other gets its number; None: that cannot be done."""
    descriptor = None
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def lock_together(descriptor: int, timeout_s: float) -> None:
    """Take a reader's lock on an open folder, or go without after `timeout_s`."""
    _lock(descriptor, False, timeout_s)


def _lock(descriptor: int, alone: bool, timeout_s: float) -> bool:
    if fcntl is None:
        return False
    kind = (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, kind)
            return True
        except BlockingIOError:
            if time.monotonic() >= until_s:
                return False
            time.sleep(_POLL_S)
        except OSError:  # no locks on this file system
            return False
