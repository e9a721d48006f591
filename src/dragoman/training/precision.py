"""Where a run computes, in which number format, and why."""

import torch

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


def _bf16_instructions() -> str:
    capabilities = torch.cpu.get_capabilities()
    for name in ("amx_bf16", "avx512_bf16"):
        if capabilities.get(name):
            return name
    return ""
