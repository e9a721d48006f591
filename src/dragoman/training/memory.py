"""How much memory a run took at the most, and what is said where there was too little."""

import resource
import sys

import torch

from dragoman.errors import TrainingError
from dragoman.settings import Settings

# How torch, which has an error of its own only for GPUs, and oneDNN below it say it of the memory of
# the machine.
_CPU_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a primitive",
    "could not create a memory",
    "could not execute a primitive",
)


def find_peak_memory_mib() -> int:
    """Return the most that this process has held so far: on its GPU if it used one, else resident."""
    if torch.cuda.is_available() and (on_gpu := torch.cuda.max_memory_allocated()):
        return on_gpu >> 20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> 20 if sys.platform == "darwin" else peak >> 10  # bytes on macOS, KiB on Linux


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` is about too little memory, of the machine or of a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _CPU_SIGNS)


def explain_out_of_memory(error: BaseException, batch: str, settings: Settings) -> TrainingError:
    """Return what tells of the `batch` that did not fit, and of the setting to lower."""
    training, decoding = settings.training, settings.decoding
    if batch.startswith("a training"):
        remedy = (
            f"lower training.batch_tokens (now {training.batch_tokens:,}; try "
            f"{training.batch_tokens // 2}, with training.accumulate {2 * training.accumulate} the "
            "updates stay as large), or data.max_tokens for a new run"
        )
    else:
        remedy = (
            f"lower decoding.batch_tokens (now {decoding.batch_tokens:,}; try "
            f"{decoding.batch_tokens // 2})"
        )
    cause = str(error).partition("\n")[0]
    return TrainingError(f"out of memory on {batch}: {remedy} ({cause})")
