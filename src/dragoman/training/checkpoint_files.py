"""Checkpoints as files: each is there whole, or not at all; read without pickle, and checked.

    checkpoints/step-1200.ckpt   all that it takes to go on after 1,200 updates; the newest are kept
    checkpoints/best.ckpt        the same, where the validation score was best

Lightning's own writing leaves a torn file where $TMPDIR is another disk, and torch.load takes a
file whose bits have changed.
"""

import os
import re
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from dragoman.errors import CheckpointError
from dragoman.storage import is_staged, staged_file

BEST = "best.ckpt"
_STEP = re.compile(r"step-(\d+)\.ckpt")
_PROBE_BYTES = 1 << 20


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, brings it to the disk, and renames it; reads no pickle.

    A file that is there is replaced at one stroke: after any death there is the old or the new one.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: object | None = None,
    ) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            OSError: It cannot be written; what was at `path` is as it was.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(path) as partial, partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch tells that it could not write, but not why
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                raise OSError(f"torch could not write it: {error}") from error

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Return the checkpoint at `path`, whatever `weights_only`: no pickle is ever run.

        Raises:
            CheckpointError: It is missing, cut short, changed, or holds more than plain values.
        """
        return read_checkpoint(Path(path))


def name_checkpoint(step: int) -> str:
    """Return the name of the file of the checkpoint after `step` updates."""
    return f"step-{step}.ckpt"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of `folder` from which a run can go on, the newest first.

    The best one, whose number of updates its name does not tell, stands last.
    """
    found = [(int(name[1]), path) for path in _list(folder) if (name := _STEP.fullmatch(path.name))]
    paths = [path for _, path in sorted(found, reverse=True)]
    best = folder / BEST
    return [*paths, best] if best.is_file() else paths


def read_checkpoint(path: Path, *, is_mapped: bool = False) -> dict[str, Any]:
    """Return a checkpoint, with its tensors on the CPU.

    Args:
        is_mapped: Leave the tensors in the file: for who looks at the rest, and soon.

    Raises:
        CheckpointError: It is missing, cut short, changed, or holds more than plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (changed := archive.testzip()) is not None:
                raise CheckpointError(f"{path}: damaged: {changed} is not as it was written")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except CheckpointError:
        raise
    except Exception as error:  # torch and zipfile raise of everything, by the place of the damage
        told = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: not a whole checkpoint: {told}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a checkpoint, but a {type(state).__name__}")
    return state


def remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, as far as the folder can be written; the best stays."""
    for path in [path for path in list_checkpoints(folder) if path.name != BEST][keep:]:
        with suppress(OSError):
            path.unlink()


def sweep_partial(folder: Path) -> None:
    """Remove what a run that was killed had begun to write."""
    for path in _list(folder):
        if is_staged(path):
            with suppress(OSError):
                path.unlink()


def copy_file(path: Path, to: Path) -> None:
    """Give `path` a second name, or copy it where the disk has no such names, at one stroke.

    Raises:
        OSError: It cannot be written; what was at `to` is as it was.
    """
    with staged_file(to) as partial:
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)


def _list(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
