"""Runs benchmarks, each in a process with a time limit; one that fails does not stop the others."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import say

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Part:
    """A benchmark with its arguments; unless it is a module, it writes `--json`."""

    name: str
    command: tuple[str, ...]  # after `python`; the first is a script of this folder, or "-m"
    limit_s: float
    options: tuple[str, ...] = ()  # after `--json`


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a part gave: its JSON; or why there is none."""

    seconds: float
    content: dict[str, Any] | None = None
    reason: str = ""
    last_line: str = ""  # of what it printed


def run_all(parts: Iterable[Part], folder: Path, at_once: int = 1) -> dict[str, Outcome]:
    """Return the outcome of each part, by name; what it prints goes to a file in `folder`."""

    def run_and_tell(part: Part) -> tuple[str, Outcome]:
        say(f"{part.name}: at most {part.limit_s:.0f} s")
        one = run(part, folder)
        say(f"{part.name}: {one.reason or 'done'} after {one.seconds:.0f} s")
        return part.name, one

    with ThreadPoolExecutor(at_once) as pool:
        return dict(pool.map(run_and_tell, parts))


def run(part: Part, folder: Path) -> Outcome:
    """Run a part; end it with all its processes when its time is over."""
    found, printed = folder / f"{part.name}.json", folder / f"{part.name}.txt"
    command, is_module = list(part.command), part.command[0] == "-m"
    if not is_module:
        command = [str(FOLDER / command[0]), *command[1:], "--json", str(found), *part.options]
    started_at = time.monotonic()
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=FOLDER.parent,
        )
        try:
            code = process.wait(part.limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = time.monotonic() - started_at
    lines = [line for line in printed.read_text("utf-8", "replace").splitlines() if line.strip()]
    last_line = lines[-1] if lines else ""
    if code is None:
        return Outcome(seconds=seconds, reason=f"not done within {part.limit_s:.0f} s")
    if code:
        return Outcome(seconds=seconds, reason=f"failed with exit code {code}: {last_line}")
    content = None if is_module else json.loads(found.read_text("utf-8"))
    return Outcome(seconds=seconds, content=content, last_line=last_line)
