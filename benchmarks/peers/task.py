"""What the scripts of the peers share. They run in environments without dragoman: only Python's library here.

A script is called with `train` or `decode`, the folder of the task and its own, which is new:

    TASK/{train,valid,test}.{source,target}   a row per line, tokens separated by spaces
    OWN/outputs/TIME.txt                      outputs for valid, then test; TIME is that of the checkpoint's file

Training may go on for ever: `run.py` ends it.
"""

import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

_MOST = 5  # checkpoints that are decoded


def call(train: Callable[[Path, Path], None], decode: Callable[[Path, Path], None]) -> None:
    """Do what the command line asks for."""
    (train if sys.argv[1] == "train" else decode)(Path(sys.argv[2]), Path(sys.argv[3]))


def read_rows(task: Path, name: str) -> list[str]:
    """Return the lines of a file of the task, such as valid.source."""
    return (task / name).read_text(encoding="utf-8").splitlines()


def find_longest(task: Path) -> int:
    """Return a limit for outputs: hardly trained models do not end them."""
    return 5 + max(
        len(row.split()) for part in ("train", "valid") for row in read_rows(task, f"{part}.target")
    )


def write_held_out(task: Path, path: Path) -> Path:
    """Write the sources to decode, those of valid and test, and return the path."""
    rows = [*read_rows(task, "valid.source"), *read_rows(task, "test.source")]
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def choose(files: Iterable[Path]) -> list[Path]:
    """Return up to five complete files of weights, spread over the time, the last always."""
    whole = sorted(filter(_is_whole, files), key=lambda path: path.stat().st_mtime)
    num_chosen = min(_MOST, len(whole))
    return [whole[round(len(whole) * (n + 1) / num_chosen) - 1] for n in range(num_chosen)]


def _is_whole(path: Path) -> bool:
    """Return whether a file of weights is complete: the training may be ended while it is written."""
    if path.suffix != ".safetensors":
        return zipfile.is_zipfile(path)  # its directory is at its end
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size)
    if len(header) < size or not size:
        return False
    ends = [one["data_offsets"][1] for one in json.loads(header).values() if "data_offsets" in one]
    return path.stat().st_size == 8 + size + max(ends)


def place_outputs(own: Path, weights: Path) -> Path:
    """Return where the outputs of the file of weights belong."""
    (own / "outputs").mkdir(exist_ok=True)
    return own / "outputs" / f"{weights.stat().st_mtime:.2f}.txt"


def write_outputs(own: Path, weights: Path, rows: Sequence[str]) -> None:
    """Write the outputs of the file of weights."""
    place_outputs(own, weights).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
