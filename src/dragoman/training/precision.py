"""Where a run computes, in which number format and in what parts, and why."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dragoman.data.sampler import choose_micro_batch_tokens
from dragoman.errors import SettingsError
from dragoman.settings import TrainingSettings


def find_device(training: TrainingSettings) -> str:
    """Return the device type to train on.

    Raises:
        SettingsError: The one that was set is not there.
    """
    is_there = {
        "auto": True,
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not is_there[training.accelerator]:
        raise SettingsError(
            f"training.accelerator: {training.accelerator} was not found on this machine; "
            "set auto, or cpu"
        )
    if training.accelerator != "auto":
        return training.accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def name_device(device_type: str) -> str:
    """Return the device type, for a GPU of CUDA with the GPU's name, for people."""
    if device_type != "cuda":
        return device_type
    return f"cuda ({torch.cuda.get_device_name()})"


def plan_micro_batches(training: TrainingSettings) -> int | None:
    """Return the tokens of the parts that a batch is made of; None: it is one.

    On the CPU the quick path computes a part on each core; what has no parts has more even rows.
    """
    if training.implementation == "fused" and find_device(training) == "cpu":
        return choose_micro_batch_tokens(training.batch_tokens, torch.get_num_threads())
    return None


def choose_precision(training: TrainingSettings, device_type: str) -> tuple[str, str]:
    """Return Lightning's name of the number format, and the reason, for the device type at hand.

    bf16 keeps the weights and the sums in float32 and halves the work of the products; it is taken
    where the hardware has it. Elsewhere the products are float32.
    """
    if training.precision != "auto":
        return training.precision, "as set"
    if device_type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "the GPU has bf16"
        return "16-mixed", "the GPU has no bf16"
    if device_type == "cpu" and (found := _bf16_instructions()):
        return "bf16-mixed", f"the processor has {found}"
    return "32-true", f"no bf16 found on {device_type}"


@contextmanager
def quick_float32() -> Iterator[None]:
    """Let float32 products on the CPU go through oneDNN, where that is as exact, and quicker.

    torch takes MKL for them, unless it may compute them in less: then oneDNN, which does so only
    where the processor multiplies matrices by instructions of their own (AMX), or is no x86.
    """
    before = torch.get_float32_matmul_precision()
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if is_x86 and not torch.cpu.get_capabilities().get("amx_bf16"):
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _bf16_instructions() -> str:
    capabilities = torch.cpu.get_capabilities()
    for name in ("amx_bf16", "avx512_bf16"):
        if capabilities.get(name):
            return name
    return ""
