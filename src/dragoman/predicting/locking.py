"""One writer a file; the lock of a dead process holds nobody up."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dragoman.errors import DragomanError


@contextmanager
def lock_files(files: Mapping[str, Path]) -> Iterator[None]:
    """Keep others from writing the same files, each given by its option.

    Raises:
        DragomanError: Another process is writing one, or it has no place to be.
    """
    with ExitStack() as stack:
        for option, path in files.items():
            stack.enter_context(_lock(option, path))
        yield


@contextmanager
def _lock(option: str, path: Path) -> Iterator[None]:
    place = path.with_name(f".{path.name}.lock")
    lock = FileLock(place, timeout=0)
    try:
        path.parent.stat()  # the lock would make it
        lock.acquire()
    except Timeout as error:
        raise DragomanError(
            f"{option} {path}: another process is writing this file; wait for it, or choose "
            f"another {option}"
        ) from error
    except OSError as error:
        raise DragomanError(f"{option} {path}: cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
        place.unlink(missing_ok=True)
