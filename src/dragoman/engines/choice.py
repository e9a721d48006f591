"""Which engine computes a model folder: CTranslate2 where it can, PyTorch else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dragoman.decoding.plan import SearchPlan
from dragoman.engines.engine import Engine, Task
from dragoman.engines.fallback import FallbackEngine
from dragoman.errors import SettingsError
from dragoman.text.bundle import CTRANSLATE2, ONNX

EngineName = Literal["auto", "torch", "ctranslate2", "onnx"]


def load_engine(
    paths: Sequence[Path],
    plan: SearchPlan,
    name: EngineName = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> Engine:
    """Return the engine for the model folders `paths` (several: an ensemble), to search by `plan`.

    "auto": CTranslate2, if the folder has it and it can do what `plan` says, with PyTorch behind it
    for what it then cannot do all the same, such as a prefix.

    Raises:
        SettingsError: An engine was asked for by name, but cannot do what `plan` says.
        ModelFolderError: It was asked for by name, but the folder has no export.
    """
    if name == "torch":
        return load_torch_engine(paths, device, threads)
    if name == "auto":
        if len(paths) == 1 and (paths[0] / CTRANSLATE2).is_dir():
            engine = _load_exported(paths[0], "ctranslate2", device, threads)
            if not engine.find_obstacle(Task(plan=plan)):
                return FallbackEngine(engine, lambda: load_torch_engine(paths, device, threads))
        return load_torch_engine(paths, device, threads)
    if len(paths) > 1:
        raise SettingsError(f"--engine {name}: it runs no ensemble; take --engine torch")
    engine = _load_exported(paths[0], name, device, threads)
    if obstacle := engine.find_obstacle(Task(plan=plan)):
        raise SettingsError(f"--engine {name}: {obstacle}; take --engine torch")
    return engine


def _load_exported(
    path: Path, name: Literal["ctranslate2", "onnx"], device: str, threads: int | None
) -> Engine:
    if name == "onnx":
        from dragoman.engines.onnx import OnnxEngine

        return OnnxEngine(path / ONNX, device, threads)
    from dragoman.engines.ctranslate2 import CTranslate2Engine

    return CTranslate2Engine(path / CTRANSLATE2, device, threads)


def load_torch_engine(
    paths: Sequence[Path], device: str = "auto", threads: int | None = None
) -> Engine:
    """Return the PyTorch engine for the model folders `paths`; several are an ensemble."""
    import torch

    from dragoman.engines.pytorch import TorchEngine
    from dragoman.model.building import build_network, load_weights
    from dragoman.text.bundle import read_bundle

    if threads is not None:
        torch.set_num_threads(threads)
    networks = []
    for path in paths:
        bundle = read_bundle(path)
        network = build_network(bundle.settings.model, bundle.tokenizer)
        load_weights(network, bundle.weights)
        networks.append(network)
    return TorchEngine(networks, device)
