"""Where a run computes: the device, the precision, the size of micro-batches, the memory."""

import math
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from dragoman.data.sampler import choose_micro_batch_tokens
from dragoman.errors import SettingsError, TrainingError
from dragoman.settings import Settings, TrainingSettings

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def find_device(training: TrainingSettings) -> str:
    """Return the device type to train on.

    Raises: SettingsError, when the one that was set is not available.
    """
    is_available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if training.accelerator == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if is_available[name])
    if not is_available[training.accelerator]:
        raise SettingsError(
            f"training.accelerator: {training.accelerator} was not found on this machine; "
            "set auto, or cpu"
        )
    return training.accelerator


def name_device(device_type: str) -> str:
    """Return the device type, with the name of a CUDA GPU, for messages."""
    if device_type != "cuda":
        return device_type
    return f"cuda ({torch.cuda.get_device_name()})"


def name_machine(device_type: str) -> str:
    """Return the system, the processor, the threads and the GPU in a line."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux has no name for it in Python
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        processor = found[1] if found else processor
    parts = [platform.platform(), processor, f"threads: {torch.get_num_threads()}"]
    return ", ".join(parts + ([] if device_type == "cpu" else [name_device(device_type)]))


def plan_micro_batches(training: TrainingSettings, num_threads: int | None = None) -> int | None:
    """Return the tokens of a micro-batch for these threads (None: torch's); None: batches are not cut.

    On the CPU the fused implementation computes one micro-batch on each core. Batches that are not
    cut have rows of more similar lengths.
    """
    if training.implementation == "fused" and find_device(training) == "cpu":
        return choose_micro_batch_tokens(
            training.batch_tokens, num_threads or torch.get_num_threads()
        )
    return None


def choose_precision(training: TrainingSettings, device_type: str) -> tuple[str, str]:
    """Return Lightning's name of the precision for this device type, and the reason.

    bf16 keeps weights and sums in float32 and halves the work of matrix products; it is chosen
    where the hardware supports it.
    """
    if training.precision != "auto":
        return training.precision, "as set"
    if device_type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "the GPU supports bf16"
        return "16-mixed", "the GPU has no bf16"
    if device_type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        for name in ("amx_bf16", "avx512_bf16"):
            if capabilities.get(name):
                return "bf16-mixed", f"the processor has {name}"
    return "32-true", f"no bf16 found on {device_type}"


@contextmanager
def fast_float32() -> Iterator[None]:
    """Let float32 products on the CPU go through oneDNN, where it is as exact, and faster.

    torch uses MKL for them unless lower precision is allowed; it then uses oneDNN, which lowers the
    precision only on processors with matrix instructions (AMX), or other than x86.
    """
    before = torch.get_float32_matmul_precision()
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if is_x86 and not torch.cpu.get_capabilities().get("amx_bf16"):
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def find_peak_memory_mib() -> int:
    """Return the peak memory of this process so far: on its GPU if it used one, else resident."""
    if torch.cuda.is_available() and (on_gpu := torch.cuda.max_memory_allocated()):
        return on_gpu >> 20
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> 20 if sys.platform == "darwin" else peak >> 10  # bytes on macOS, KiB on Linux


def find_memory_bytes() -> float:
    """Return the memory of this machine; infinite, if the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows
        return math.inf


def explain_out_of_memory(error: BaseException, batch: str, settings: Settings) -> TrainingError:
    """Return an error that names the `batch` that did not fit, and the setting to lower."""
    training, decoding = settings.training, settings.decoding
    if batch.startswith("a training"):
        remedy = (
            f"lower training.batch_tokens (now {training.batch_tokens:,}; try "
            f"{training.batch_tokens // 2}; training.accumulate {2 * training.accumulate} keeps the "
            "steps as large), or data.max_tokens for a new run"
        )
    else:
        remedy = (
            f"lower decoding.batch_tokens (now {decoding.batch_tokens:,}; try "
            f"{decoding.batch_tokens // 2})"
        )
    cause = str(error).partition("\n")[0]
    return TrainingError(f"out of memory on {batch}: {remedy} ({cause})")
