"""Model folders as a stranger might craft them, and a process with little memory that reads them."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

READ = """
import json, resource, sys, time
limit = int(sys.argv[1]) << 20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from pathlib import Path
{imports}
from dragoman.errors import DragomanError
for name in sys.argv[2:]:
    path, start_s = Path(name), time.monotonic()
    try:
        {call}
        told = ["read", "read"]
    except DragomanError as error:
        told = [type(error).__name__, str(error)]
    except BaseException as error:
        told = [type(error).__name__, repr(error)[:500]]
    print(json.dumps([*told, time.monotonic() - start_s]), flush=True)
"""


class Answer(NamedTuple):
    """What came of reading a folder."""

    kind: str
    """Name of the error, or "read"."""
    told: str
    seconds: float


def read_all(
    paths: list[Path], imports: str, call: str, *, memory_mib: int = 2048, timeout_s: float = 250.0
) -> list[Answer]:
    """Call `call` for each `path`, in one process that has no more than `memory_mib`."""
    code = READ.format(imports=imports, call=call)
    run = subprocess.run(
        [sys.executable, "-c", code, str(memory_mib), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = run.stdout.splitlines()
    assert len(lines) == len(paths), (paths[len(lines)], run.returncode, run.stderr[-2000:])
    return [Answer(*json.loads(line)) for line in lines]


def change_json(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Return what changes the content of a JSON file of a folder."""

    def craft(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return craft


def replace_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Return what replaces a part of a file of a folder."""

    def craft(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return craft


def put(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Return what writes a file of a folder."""

    def craft(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return craft


def put_link(name: str, target: str) -> Callable[[Path], None]:
    """Return what puts a link in the place of a file."""

    def craft(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return craft


def put_pipe(name: str) -> Callable[[Path], None]:
    """Return what puts a pipe that nobody writes to in the place of a file."""

    def craft(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return craft


def put_folder(name: str) -> Callable[[Path], None]:
    """Return what puts a folder in the place of a file."""

    def craft(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return craft


def put_sparse(name: str, size: int) -> Callable[[Path], None]:
    """Return what makes a file claim a size that it does not take on the disk."""

    def craft(folder: Path) -> None:
        with (folder / name).open("r+b" if (folder / name).exists() else "wb") as file:
            file.truncate(size)

    return craft


def change_header(change: Callable[[dict], object], pad: bytes = b"") -> Callable[[Path], None]:
    """Return what changes the header of the weights, and leaves their bytes as they are."""

    def craft(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(
            struct.pack("<Q", len(text)) + text + content[8 + length :] + pad
        )

    return craft
