"""What a benchmark ran on, what else ran there, and how much memory a process took."""

import contextlib
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_BUSY = 0.2  # of a core


def describe_machine(packages: Sequence[str]) -> dict[str, str]:
    """Return the processor, the date, the commit, and the versions of `packages`."""
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} missing")
    return {
        "processor": f"{_find_processor()}, {os.cpu_count()} cores",
        "date, commit": f"{date.today()}, {_find_commit()}",
        "versions": ", ".join(versions),
    }


class OtherProcesses:
    """Watches the processes that are not children of this one: they disturb what is measured."""

    def __init__(self) -> None:
        self._before, self._start_s = _read_processes(), time.monotonic()

    def describe(self) -> str:
        """Return those that took over 20% of a core since the start; call it before the end of ours."""
        elapsed_s, now = time.monotonic() - self._start_s, _read_processes()
        busy = []
        for pid, (name, seconds, _) in now.items():
            share = (seconds - self._before.get(pid, ("", 0.0, 0))[1]) / elapsed_s
            if share > _BUSY and os.getpid() not in _list_ancestors(pid, now):
                busy.append(f"{name} ({share:.0%} of a core)")
        return "WARNING: " + ", ".join(busy) if busy else f"none took over {_BUSY:.0%} of a core"


def find_peak_mib() -> float:
    """Return the most memory that this process has held, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _find_processor() -> str:
    told = Path("/proc/cpuinfo")
    if told.is_file():
        for line in told.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _find_commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _read_processes() -> dict[int, tuple[str, float, int]]:
    """Return name, processor seconds and parent of each process; on Linux only."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            name, _, rest = path.read_text(encoding="utf-8", errors="replace").rpartition(")")
            fields = rest.split()
            seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            found[int(path.parent.name)] = name.partition("(")[2], seconds, int(fields[1])
    return found


def _list_ancestors(pid: int, processes: dict[int, tuple[str, float, int]]) -> list[int]:
    """Return `pid`, its parent, and so on."""
    found = []
    while pid in processes:
        found.append(pid)
        pid = processes[pid][2]
    return found
