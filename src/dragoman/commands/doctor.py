"""`dragoman doctor`: what is installed and which devices are there, for bug reports."""

import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from dragoman.engines.ctranslate2_engine import count_cores
from dragoman.engines.html_export import find_browser
from dragoman.errors import map_extras

_OF_DEVELOPERS = ("bench", "dev", "docs", "fuzz", "supply")  # extras


def describe_installation() -> Iterator[str]:
    """Yield lines: versions, devices, and the packages of each extra that are missing."""
    yield f"dragoman {version('dragoman')}, Python {platform.python_version()} ({sys.executable})"
    yield f"system: {platform.platform()}, {platform.machine()}, cores: {count_cores()}"
    found: list[str] = []
    missing: dict[str, list[str]] = {}
    for name, extra in map_extras().items():
        if extra in _OF_DEVELOPERS:
            continue
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.setdefault(extra, []).append(name)
    yield f"packages: {', '.join(sorted(found))}"
    for extra, names in missing.items():
        remedy = f"[{extra}]" if extra else ""
        yield f'missing: {", ".join(names)}: pip install "dragoman{remedy}"'
    yield from _describe_devices()
    yield f"browser, to check HTML exports: {find_browser() or 'none'}"
    gib = shutil.disk_usage(".").free >> 30
    yield f"free disk space here: {gib:,} GiB"


def _describe_devices() -> Iterator[str]:
    with suppress(ModuleNotFoundError):
        import ctranslate2

        kinds = ", ".join(sorted(ctranslate2.get_supported_compute_types("cpu")))
        yield f"CTranslate2: {ctranslate2.get_cuda_device_count()} GPUs; number formats on the CPU: {kinds}"
    with suppress(ModuleNotFoundError):
        import torch

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        names += ["mps"] if torch.backends.mps.is_available() else []
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        yield f"PyTorch: built for {built}; devices: {', '.join([*names, 'cpu'])}"
