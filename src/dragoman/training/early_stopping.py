"""When a training has gone without a better score for long enough."""

import sys
from collections.abc import Mapping
from typing import Any, Literal

import lightning
from lightning.pytorch.callbacks import EarlyStopping

_STATE = "Patience"


class Patience(EarlyStopping):
    """Lightning's early stopping, with the patience of the settings also where a run goes on.

    Args:
        patience: Validations without a better score before the training stops; 0: never.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"], patience: int) -> None:
        super().__init__(monitor, mode=mode, patience=patience or sys.maxsize)

    @property
    def state_key(self) -> str:
        """The name of this callback's state, in every checkpoint."""
        return _STATE

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state, but for the patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Stop at once, where it had run out before."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def is_out_of_patience(checkpoint: Mapping[str, Any], patience: int) -> bool:
    """Return whether the run of a checkpoint has ended for want of a better score."""
    return 0 < patience <= int(checkpoint["callbacks"][_STATE]["wait_count"])
