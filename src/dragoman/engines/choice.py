"""Which engine computes a model folder: CTranslate2 where it can, PyTorch else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dragoman.decoding.plan import SearchPlan
from dragoman.engines.engine import Engine
from dragoman.errors import SettingsError
from dragoman.text.bundle import CTRANSLATE2

EngineName = Literal["auto", "torch", "ctranslate2"]


def load_engine(
    paths: Sequence[Path],
    plan: SearchPlan,
    name: EngineName = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> Engine:
    """Return the engine for the model folders `paths` (several: an ensemble), to search by `plan`.

    Raises:
        SettingsError: CTranslate2 was asked for by name, but cannot do what `plan` says.
        ModelFolderError: It was asked for by name, but the folder has no export.
    """
    folder = paths[0] / CTRANSLATE2
    if name != "torch" and len(paths) == 1 and (name == "ctranslate2" or folder.is_dir()):
        from dragoman.engines.ctranslate2 import CTranslate2Engine

        engine = CTranslate2Engine(folder, device=device, threads=threads)
        obstacle = engine.find_obstacle(plan)
        if not obstacle:
            return engine
        if name == "ctranslate2":
            raise SettingsError(f"--engine ctranslate2: {obstacle}; take --engine torch")
    elif name == "ctranslate2":
        raise SettingsError("--engine ctranslate2: it runs no ensemble; take --engine torch")
    return load_torch_engine(paths, device, threads)


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
