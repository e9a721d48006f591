"""The folders of a run: claimed before it starts, touched only once it is sure to train."""

import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import Timeout

from dragoman.errors import ModelFolderError
from dragoman.model_folder.folder import is_model_folder
from dragoman.storage import hold_lock

_IDS = ".ids-"  # in the names of temporary folders


def claim_folders(out: Path, overwrite: bool) -> tuple[Path, Path]:
    """Return the model folder and, beside it, the folder for checkpoints and logs; touch neither.

    Raises:
        ModelFolderError: One is there and may not be replaced, or is no model folder at all.
    """
    out, folder = name_folders(out)
    in_the_way = [path for path in (out, folder) if path.exists()]
    if in_the_way and not overwrite:
        named = " and ".join(str(path) for path in in_the_way)
        begun = ", go on with --resume" if folder in in_the_way else ""
        raise ModelFolderError(
            f"{named}: already there; choose another --out{begun}, or replace it with --overwrite"
        )
    if out.exists() and not is_model_folder(out):
        raise ModelFolderError(
            f"{out}: not a model folder, so --overwrite leaves it alone; choose another --out"
        )
    return out, folder


def name_folders(out: Path) -> tuple[Path, Path]:
    """Return the model folder, by a path with a name, and that for checkpoints and logs."""
    if out.name in ("", ".."):
        out = out.resolve()
    return out, out.with_name(f"{out.name}.training") if out.name else out


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Keep other processes from training into `out`; the lock of a dead one holds nobody up.

    Raises:
        ModelFolderError: Another process is, or nothing can be written there.
    """
    nearest = _find_nearest(out)
    place = nearest / f".{'+'.join(out.absolute().relative_to(nearest).parts)}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(place))
        except Timeout as error:
            raise ModelFolderError(
                f"{out}: another process is training a model into this folder; wait for it, or "
                "choose another --out"
            ) from error
        except OSError as error:
            raise ModelFolderError(f"{out}: cannot be written: {error.strerror}") from error
        yield


@contextmanager
def temporary_folder(out: Path) -> Iterator[Path]:
    """Give a folder on the disk of `out` for what is gone with the run.

    Raises:
        ModelFolderError: None can be made there.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{out.name}{_IDS}", dir=_find_nearest(out))
    except OSError as error:
        raise ModelFolderError(f"{out}: cannot be written: {error.strerror}") from error
    with folder as name:
        yield Path(name)


def sweep_temporary(out: Path) -> None:
    """Remove the temporary folders that a killed run has left; to be called under its lock."""
    for path in _find_nearest(out).glob(f".{glob.escape(out.name)}{_IDS}*"):
        shutil.rmtree(path, ignore_errors=True)


def make_empty(folder: Path) -> None:
    """Make `folder`, empty: what was in it is gone.

    Raises:
        ModelFolderError: It cannot be written.
    """
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise ModelFolderError(f"{folder}: cannot be written: {error.strerror}") from error


def _find_nearest(out: Path) -> Path:
    """Return the folder that is there already, and in which `out` will be."""
    return next(path for path in out.absolute().parents if path.exists())
