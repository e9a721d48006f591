"""One writer a file; the lock of a dead process holds nobody up."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import Timeout

from dragoman.errors import DragomanError
from dragoman.storage import hold_lock


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
    with ExitStack() as stack:
        try:
            path.parent.stat()  # the lock would make it
            stack.enter_context(hold_lock(path.with_name(f".{path.name}.lock")))
        except Timeout as error:
            raise DragomanError(
                f"{option} {path}: another process is writing this file; wait for it, or choose "
                f"another {option}"
            ) from error
        except OSError as error:
            raise DragomanError(f"{option} {path}: cannot be written: {error.strerror}") from error
        yield
