"""What a benchmark ran on, and how much memory a process took."""

import os
import platform
import resource
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def describe_machine(packages: Sequence[str]) -> dict[str, str]:
    """Return the processor, and the versions of `packages`."""
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} missing")
    return {
        "processor": f"{_find_processor()}, {os.cpu_count()} cores",
        "versions": ", ".join(versions),
    }


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
