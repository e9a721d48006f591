"""How much memory a run took at the most."""

import resource
import sys

import torch


def find_peak_memory_mib() -> int:
    """Return the most that this process has held so far: on its GPU if it used one, else resident."""
    if torch.cuda.is_available() and (on_gpu := torch.cuda.max_memory_allocated()):
        return on_gpu >> 20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> 20 if sys.platform == "darwin" else peak >> 10  # bytes on macOS, KiB on Linux
