"""Which number format the products of a run take, and why."""

import torch

from dragoman.settings import TrainingSettings


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
