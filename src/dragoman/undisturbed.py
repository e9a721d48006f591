"""Reads folders whole while another process replaces them: the old one or the new one, no mixture."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from dragoman.errors import DragomanError, ModelFolderError
from dragoman.locking import lock_together, open_folder

_TRIES = 50
_WRITER_S = 1.0  # how long to wait for who replaces it just now
_PAUSE_S = 0.02

T = TypeVar("T")


def read_undisturbed(paths: Sequence[Path], read: Callable[[], T]) -> T:
    """Return what `read` makes of the folders at `paths`, while each was one and the same folder.

    `read` is called again where one was replaced meanwhile; what it raised then is forgotten.

    Raises:
        ModelFolderError: They are replaced faster than they can be read.
    """
    last: Exception | None = None
    for _ in range(_TRIES):
        with ExitStack() as stack:
            held = [stack.enter_context(open_folder(path)) for path in paths]
            for descriptor in held:
                if descriptor is not None:
                    lock_together(descriptor, _WRITER_S)
            before = [_identify(path, fd) for path, fd in zip(paths, held, strict=True)]
            if before != [_identify(path) for path in paths]:
                continue  # it was replaced before it was held
            try:
                found = read()
            except (DragomanError, OSError) as error:
                last = error
                if before == [_identify(path) for path in paths] and not _is_between(paths):
                    raise
            else:
                last = None
                if before == [_identify(path) for path in paths]:
                    return found
        time.sleep(_PAUSE_S)
    if last is not None:
        raise last
    raise ModelFolderError(
        f"{paths[0]}: it is replaced again and again while it is read; try it once it is at rest"
    )


def _identify(path: Path, descriptor: int | None = None) -> tuple[int, ...] | None:
    """Return what tells the folder at `path`, or the open one, from others; None: there is none.

    An open folder keeps its number, so that no later one has it.
    """
    try:
        status = path.stat() if descriptor is None else os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_between(paths: Sequence[Path]) -> bool:
    """Return whether one is missing because it is being replaced by two renames."""
    return any(
        not os.path.lexists(path)
        and path.parent.is_dir()
        and any(one.name.startswith(f".{path.name}.old-") for one in path.parent.iterdir())
        for path in paths
    )
