"""One process at a time: a lock that is a file, and that of a dead process holds nobody up."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock


@contextmanager
def hold_lock_file(place: Path) -> Iterator[None]:
    """Hold the file `place`, which is there as long as it is held.

    Raises:
        filelock.Timeout: Another process holds it.
        OSError: It cannot be made.
    """
    lock = FileLock(place, timeout=0)
    lock.acquire()
    try:
        yield
    finally:
        # While it is held: who has opened it meanwhile sees that the name is gone, and holds nothing.
        with suppress(OSError):  # Windows removes no open file
            place.unlink()
        lock.release()
