"""Which engine computes a model folder: CTranslate2 where it can, PyTorch else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.ctranslate2_engine import CTranslate2Engine
from dragoman.engines.engine import Engine, Task
from dragoman.engines.fallback import FallbackEngine
from dragoman.engines.onnx_engine import OnnxEngine
from dragoman.errors import ModelFolderError, SettingsError
from dragoman.model_folder.folder import CTRANSLATE2, ONNX, Bundle

EngineName = Literal["auto", "torch", "ctranslate2", "onnx"]


def load_engine(
    bundles: Sequence[Bundle],
    paths: Sequence[Path],
    config: SearchConfig,
    name: EngineName = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> Engine:
    """Return the engine for the model folders `paths` (several: an ensemble), to search by `config`.

    "auto": CTranslate2, if the folder has it and it can do what `config` says, with PyTorch behind it
    for what it then cannot do all the same, such as a prefix.

    Args:
        bundles: What is in `paths`; the weights are taken from them, now or once they are needed.

    Raises:
        SettingsError: An engine was asked for by name, but cannot do what `config` says.
        ModelFolderError: It was asked for by name, but the folder has no export; or one is broken.
    """
    if name == "torch":
        return load_torch_engine(bundles, device, threads)
    if name == "auto":
        if len(paths) == 1 and (paths[0] / CTRANSLATE2).is_dir():
            engine = _load_exported(bundles[0], paths[0], "ctranslate2", device, threads)
            if not engine.find_obstacle(Task(config=config)):
                return FallbackEngine(engine, lambda: load_torch_engine(bundles, device, threads))
        return load_torch_engine(bundles, device, threads)
    if len(paths) > 1:
        raise SettingsError(f"--engine {name}: it runs no ensemble; take --engine torch")
    engine = _load_exported(bundles[0], paths[0], name, device, threads)
    if obstacle := engine.find_obstacle(Task(config=config)):
        raise SettingsError(f"--engine {name}: {obstacle}; take --engine torch")
    return engine


def _load_exported(
    bundle: Bundle,
    path: Path,
    name: Literal["ctranslate2", "onnx"],
    device: str,
    threads: int | None,
) -> Engine:
    engine: OnnxEngine | CTranslate2Engine
    if name == "onnx":
        engine = OnnxEngine(path / ONNX, device, threads)
    else:
        engine = CTranslate2Engine(path / CTRANSLATE2, device, threads)
    tokenizer = bundle.tokenizer
    expected = tokenizer.source_vocab_size, tokenizer.target_vocab_size
    if engine.vocab_sizes != expected:
        raise ModelFolderError(
            f"{path / name}: it has {engine.vocab_sizes} tokens, and the tokenizer {expected}; write "
            f"it again with `dragoman export {path} --to {name}`"
        )
    return engine


def load_torch_engine(
    bundles: Sequence[Bundle], device: str = "auto", threads: int | None = None
) -> Engine:
    """Return the PyTorch engine for the models `bundles`; several are an ensemble."""
    import torch

    from dragoman.engines.torch_engine import TorchEngine
    from dragoman.model.building import load_network

    if threads is not None:
        torch.set_num_threads(threads)
    networks = [
        load_network(bundle.settings.model, bundle.tokenizer, bundle.read_weights())
        for bundle in bundles
    ]
    return TorchEngine(networks, device)
