"""Choose the engine for model folders: CTranslate2 where it can do what is asked, else PyTorch."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.ctranslate2_engine import CTranslate2Engine, unsupported_reason
from dragoman.engines.engine import Engine, Quantization, UnsupportedError
from dragoman.errors import SettingsError
from dragoman.model_folder.folder import ModelFolder

EngineName = Literal["auto", "torch", "ctranslate2"]
PARITY = "ctranslate2"  # in metrics.json: how its outputs compared with PyTorch's after training


def load_engine(
    model_folders: Sequence[ModelFolder],
    config: SearchConfig,
    name: EngineName = "auto",
    device: str = "auto",
    threads: int | None = None,
    quantization: Quantization = "float32",
) -> Engine:
    """Return the engine for the models `model_folders` (several: an ensemble), to search by `config`.

    "auto" is CTranslate2, if it supports what `config` asks and gave the same outputs as PyTorch after
    the training; PyTorch computes single requests that it does not support, such as a prefix.

    Raises:
        SettingsError: The engine or the quantization is not possible here.
        ModelFolderError: The weights do not fit the settings.
    """

    def load_torch() -> Engine:
        return load_torch_engine(model_folders, device, threads)

    reason = "PyTorch computes in float32"
    if name != "torch":
        try:
            engine = _load_ctranslate2(model_folders, config, device, threads, quantization)
        except UnsupportedError as error:
            if name == "ctranslate2":
                raise
            reason = error.reason
        else:
            if name == "ctranslate2":
                return engine
            parity = model_folders[0].metrics.get(PARITY)
            has_failed = isinstance(parity, dict) and parity.get("is_equal") is False
            if not has_failed or quantization != "float32":
                return _FallbackEngine(engine, load_torch)
    if quantization != "float32":
        raise SettingsError(f"--quantization {quantization}: needs CTranslate2: {reason}")
    return load_torch()


def _load_ctranslate2(
    model_folders: Sequence[ModelFolder],
    config: SearchConfig,
    device: str,
    threads: int | None,
    quantization: Quantization,
) -> CTranslate2Engine:
    if len(model_folders) > 1:
        raise UnsupportedError("an ensemble is not supported")
    if reason := unsupported_reason(config.decoding):
        raise UnsupportedError(reason)
    import ctranslate2

    has_gpu = device != "cpu" and ctranslate2.get_cuda_device_count() > 0
    known = ctranslate2.get_supported_compute_types("cuda" if has_gpu else "cpu")
    if quantization not in known:
        raise SettingsError(
            f"--quantization {quantization}: not supported on this device; it supports "
            f"{', '.join(sorted(known))}"
        )
    [model_folder] = model_folders
    return CTranslate2Engine(
        model_folder.settings.model,
        model_folder.tokenizer,
        model_folder.weights,
        device=device,
        threads=threads,
        quantization=quantization,
    )


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
    return TorchEngine(networks, device)


class _FallbackEngine:
    """`engine`, and for what it does not support the one that `load` returns, loaded when needed."""

    def __init__(self, engine: Engine, load: Callable[[], Engine]) -> None:
        self.name, self.quantization = engine.name, engine.quantization
        self._engine = engine
        self._load = load

    def search(
        self,
        sources: Sequence[Sequence[int]],
        config: SearchConfig,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Hypothesis]]:
        try:
            return self._engine.search(sources, config, prefixes)
        except UnsupportedError:
            return self._fallback.search(sources, config, prefixes)

    def score(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        config: SearchConfig,
    ) -> list[Hypothesis]:
        try:
            return self._engine.score(sources, targets, config)
        except UnsupportedError:
            return self._fallback.score(sources, targets, config)

    @cached_property
    def _fallback(self) -> Engine:
        return self._load()
