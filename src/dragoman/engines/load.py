"""Choose the engine for model folders: CTranslate2 where it can do what is asked, else PyTorch."""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Literal, get_args

from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.ctranslate2_engine import CTranslate2Engine, unsupported_reason
from dragoman.engines.engine import Engine, Quantization, QuantizationChoice, UnsupportedError
from dragoman.errors import SettingsError, name_extra
from dragoman.model_folder.folder import ModelFolder

EngineName = Literal["auto", "torch", "ctranslate2"]
# In metrics.json: how its outputs compared with PyTorch's after training, and the chosen quantization.
PARITY = "ctranslate2"


def load_engine(
    model_folders: Sequence[ModelFolder],
    config: SearchConfig,
    name: EngineName = "auto",
    device: str = "auto",
    threads: int | None = None,
    quantization: QuantizationChoice = "auto",
) -> Engine:
    """Return the engine for the models `model_folders` (several: an ensemble), to search by `config`.

    "auto" is CTranslate2, if it supports what `config` asks and gave the same outputs as PyTorch after
    the training; PyTorch computes single requests that it does not support, such as a prefix. The
    quantization "auto" is that of `find_quantization`.

    Raises:
        SettingsError: The engine, the device or the quantization is not possible here.
        ModelFolderError: The weights do not fit the settings.
    """
    for option, value, known in (
        ("--engine", name, get_args(EngineName)),
        ("--quantization", quantization, ("auto", *get_args(Quantization))),
    ):
        if value not in known:
            raise SettingsError(f"{option} {value}: it does not exist; give {', '.join(known)}")
    if threads is not None and threads < 1:
        raise SettingsError(f"--threads {threads}: give a number from 1")

    @cache
    def load_torch() -> Engine:
        return load_torch_engine(model_folders, device, threads)

    if name == "torch":
        reason = "PyTorch computes in float32"
    elif len(model_folders) > 1:
        reason = "an ensemble is not supported"
    elif device not in ("auto", "cpu", "cuda"):
        reason = f"--device {device} is not supported (cpu and cuda are)"
    else:
        reason = unsupported_reason(config, model_folders[0].tokenizer)
    refused = ""
    if not reason:
        [model] = model_folders
        used = find_quantization(model, device) if quantization == "auto" else quantization
        if used not in (supported := _list_supported(device)[1]):
            raise SettingsError(
                f"--quantization {used}: not supported on this device; it supports "
                f"{', '.join(sorted(supported))}"
            )
        try:
            engine: Engine = CTranslate2Engine(
                model.settings.model,
                model.tokenizer,
                model.weights,
                device=device,
                threads=threads,
                quantization=used,
                load_fallback=load_torch if name == "auto" else None,
            )
        except UnsupportedError as error:
            reason = refused = error.reason
        else:
            parity = model.metrics.get(PARITY)
            has_failed = isinstance(parity, dict) and parity.get("is_equal") is False
            if name == "ctranslate2" or not has_failed or used != "float32":
                return engine
    if name == "ctranslate2":
        raise UnsupportedError(reason)
    if quantization not in ("auto", "float32"):
        raise SettingsError(f"--quantization {quantization}: needs CTranslate2: {reason}")
    with name_extra("--engine torch" if name == "torch" else f"CTranslate2: {reason}; PyTorch"):
        engine = load_torch()
    if refused:
        logging.getLogger(__name__).warning(f"dragoman: {refused}; using PyTorch")
    return engine


def find_quantization(model_folder: ModelFolder, device: str = "auto") -> Quantization:
    """Return the quantization that `fit` chose, for a CPU that supports it; else float32."""
    parity = model_folder.metrics.get(PARITY)
    chosen = parity.get("quantization") if isinstance(parity, dict) else None
    has_gpu, known = _list_supported(device)
    return "float32" if has_gpu or chosen not in list(known) else chosen


def _list_supported(device: str) -> tuple[bool, set[str]]:
    """Return whether CTranslate2 takes a GPU, and the quantizations it supports there."""
    import ctranslate2

    has_gpu = device != "cpu" and ctranslate2.get_cuda_device_count() > 0
    return has_gpu, ctranslate2.get_supported_compute_types("cuda" if has_gpu else "cpu")


def load_torch_engine(
    model_folders: Sequence[ModelFolder], device: str = "auto", threads: int | None = None
) -> Engine:
    """Return the PyTorch engine for the models `model_folders`; several are an ensemble."""
    import torch

    from dragoman.engines.torch_engine import TorchEngine
    from dragoman.model.building import load_network

    if threads is not None:
        torch.set_num_threads(threads)
    networks = [
        load_network(model_folder.settings.model, model_folder.tokenizer, model_folder.weights)
        for model_folder in model_folders
    ]
    return TorchEngine(networks, device, races_threads=threads is None)
