"""Resuming an interrupted run: which run it is, what may change, and the state of each process."""

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from dragoman.configuration import flatten_settings, list_set_values, merge_settings, update_stored
from dragoman.errors import CheckpointError, SettingsError
from dragoman.settings import Settings
from dragoman.training.checkpoints import (
    BEST,
    RECORD,
    find_state,
    list_checkpoints,
    read_checkpoint,
)
from dragoman.training.module import TransformerTraining

EARLY_STOPPING = "Patience"  # name of the state of early stopping, in every checkpoint
CHECKPOINTS, DATA = "checkpoints", "data"  # folders in `{out}.training`

# The settings that may change on resume; all others are part of what is being trained.
MAY_CHANGE = (
    "training.max_steps",  # longer, or shorter
    "training.max_minutes",
    "training.patience",
    "training.devices",
    "training.num_nodes",
    "training.strategy",
    "training.batch_tokens",  # if the memory is too small; takes effect with the next epoch
    "training.accumulate",
    "training.checkpoint_every",
    "training.loggers",
    "decoding.batch_tokens",
    "evaluation.",  # all of it follows the training
    "data.cache",
    "data.processes",
)


def _update(stored: object) -> object:
    """Return stored settings under their names of today."""
    return update_stored(stored) if isinstance(stored, Mapping) else stored


class RunRecord(BaseModel):
    """The run that a checkpoint belongs to, as stored in every checkpoint."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    version: str
    settings: Annotated[Settings, BeforeValidator(_update)]  # resolved
    typed: Annotated[dict[str, Any], BeforeValidator(_update)]  # by the user, by dotted name
    precision: str
    pairs: tuple[str, ...]
    weights: tuple[float, ...] = ()  # of the tables in them; (): each pair once
    sha256: dict[str, str]  # by file
    data_sha256: dict[str, str] = {}  # by file in the folder of the data
    machine: dict[str, str] = {}  # see `describe_machine`

    @classmethod
    def read(cls, content: object) -> "RunRecord":
        """Return the record that `model_dump` wrote.

        Raises: CheckpointError, when `content` is no record, or of another format.
        """
        if not isinstance(content, dict) or content.get("format") != 1:
            raise CheckpointError("it does not belong to a run of this version of dragoman")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise CheckpointError(f"its record of the run cannot be read: {error}") from error


def describe_machine(device: str, num_ranks: int) -> dict[str, str]:
    """Return what the last bits of the weights depend on, besides settings and data."""
    limits = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
    features = [name for name, has in torch.cpu.get_capabilities().items() if has is True]
    return {
        "ranks": str(num_ranks),
        "threads": str(torch.get_num_threads()),
        "device": device,
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "processor features": " ".join(sorted(features)),
        **{name: os.environ.get(name, "none") for name in limits},
        "torch": str(torch.__version__),
    }


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """The checkpoint from which a run resumes."""

    path: Path
    record: RunRecord
    step: int
    validated_step: int  # of the last validation
    checkpoint: Mapping[str, Any] = field(repr=False)

    def is_complete(self, settings: Settings) -> bool:
        """Whether no step is left to train, by the limits of `settings`."""
        training = settings.training
        if self.step >= training.max_steps:
            return True
        if find_state(self.checkpoint)["awaits_validation"]:
            return False
        wait_count: int = self.checkpoint["callbacks"][EARLY_STOPPING]["wait_count"]
        return 0 < training.patience <= wait_count


def find_resume_point(folder: Path, errors: list[str]) -> ResumePoint | None:
    """Return the newest usable checkpoint in the folder of a run, if any.

    Damaged ones are skipped, and messages about them appended to `errors`.
    """
    found: list[ResumePoint] = []
    for path in list_checkpoints(folder / CHECKPOINTS):
        try:
            checkpoint = read_checkpoint(path, is_mapped=True)
            point = ResumePoint(
                path=path,
                record=RunRecord.read(checkpoint.get(RECORD)),
                step=int(checkpoint["global_step"]),
                validated_step=int(checkpoint["validated_step"]),
                checkpoint=checkpoint,
            )
            is_whole = bool(find_state(checkpoint)["is_whole"])
        except CheckpointError as error:
            errors.append(str(error))
        except (KeyError, TypeError, ValueError) as error:
            errors.append(f"{path}: not a checkpoint of a run: {error!r}")
        else:
            if is_whole:
                found.append(point)
                if path.name != BEST:
                    break  # the others are older
    return max(found, key=lambda one: one.step, default=None)


def merge_for_resuming(record: RunRecord, typed: Settings) -> Settings:
    """Return the settings of a run, changed by those typed now.

    Raises: SettingsError, when settings were typed that may not change; names each.
    """
    started = flatten_settings(record.settings)
    values = dict(list_set_values(typed))
    # As typed when the run started; it has the names of the model that it started from.
    features = values.get("data.features")
    if features is not None and [*features] == [*record.typed.get("data.features", ())]:
        del values["data.features"]
    errors = []
    for name, typed_value in values.items():
        value = list(typed_value) if isinstance(typed_value, tuple) else typed_value
        may_change = any(
            name == one or (one[-1] == "." and name.startswith(one)) for one in MAY_CHANGE
        )
        # auto was typed: it was resolved when the run started.
        if not may_change and value not in (started[name], "auto"):
            changeable = ", ".join(f"{one}*" if one[-1] == "." else one for one in MAY_CHANGE)
            errors.append(
                f"--{name}: {value!r}, but the run was started with {started[name]!r}; leave it "
                f"out to resume, or start from scratch with --overwrite. May change: {changeable}"
            )
    if errors:
        raise SettingsError.gather(errors)
    return merge_settings(record.settings, values, overrule=True)


class RngAndMetricState(Callback):
    """Stores the random generators and the sums of the training metrics of each process.

    The generators are restored when the first batch starts: the code before may draw from them.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] = []
        self._module: TransformerTraining | None = None

    @property
    def state_key(self) -> str:
        """The key of this callback's state in every checkpoint."""
        return "RankStates"

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Keep the module, which `state_dict` does not get."""
        assert isinstance(pl_module, TransformerTraining)
        self._module = pl_module

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all processes; call it on all of them."""
        assert self._module is not None
        own = {"random": _capture_random_state(), "sums": self._module.train_metrics.capture_sums()}
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"ranks": [own]}
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, own)
        return {"ranks": gathered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the training starts."""
        self._restored = state_dict["ranks"]

    def on_train_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Restore the sums, once, unless the number of processes has changed."""
        assert self._module is not None
        if len(self._restored) == trainer.world_size:
            sums = self._restored[trainer.global_rank].pop("sums", None)
            if sums:
                self._module.train_metrics.restore_sums(sums)

    def on_validation_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Restore the sums where only the last validation is left."""
        self.on_train_start(trainer)

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Restore the generators, once."""
        if len(self._restored) == trainer.world_size:
            state = self._restored[trainer.global_rank]["random"]
            torch.set_rng_state(state["torch"])
            random.setstate(state["python"])
            kind, keys, *rest = state["numpy"]
            np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
            if "cuda" in state and torch.cuda.is_available():
                torch.cuda.set_rng_state(state["cuda"])
            if "mps" in state and torch.backends.mps.is_available():
                torch.mps.set_rng_state(state["mps"])
        self._restored = []


def _capture_random_state() -> dict[str, Any]:
    """Return the states of torch's, Python's and NumPy's generators, as plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.array(keys, np.int64)), position, has_gauss, cached),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state
