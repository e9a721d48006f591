"""What each process of a training has of its own, kept in the checkpoint: random states, sums."""

import random
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from dragoman.training.module import TransformerTraining

State = dict[str, Any]


class RankStates(Callback):
    """Keeps, in every checkpoint, the random generators of each rank and its sums of the metrics.

    They are put back when the first batch begins: what comes before it may draw from the generators.
    """

    def __init__(self) -> None:
        self._restored: list[State] = []
        self._module: TransformerTraining | None = None

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Take note of the module."""
        assert isinstance(pl_module, TransformerTraining)
        self._module = pl_module

    def state_dict(self) -> State:
        """Return the states of all ranks; to be called on all of them."""
        assert self._module is not None
        own = {"random": capture_random_state(), "sums": self._module.train_metrics.capture_sums()}
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"ranks": [own]}
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, own)
        return {"ranks": gathered}

    def load_state_dict(self, state_dict: State) -> None:
        """Keep the states until the training begins."""
        self._restored = state_dict["ranks"]

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Put back the sums; with another number of ranks, none."""
        assert self._module is not None
        if len(self._restored) == trainer.world_size:
            self._module.train_metrics.restore_sums(self._restored[trainer.global_rank]["sums"])

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Put back the generators, once."""
        if len(self._restored) == trainer.world_size:
            restore_random_state(self._restored[trainer.global_rank]["random"])
        self._restored = []


def capture_random_state() -> State:
    """Return the states of all generators that a training may draw from, as plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: State = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.array(keys, np.int64)), position, has_gauss, cached),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: State) -> None:
    """Put all generators into the `state` that `capture_random_state` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
