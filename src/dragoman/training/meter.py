"""The loss and the speed of a training, from one reading to the next."""

import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from dragoman.training.module import TransformerTraining


class Meter:
    """Measures the loss and the speed of the training, from one reading to the next.

    The sums that it reads are set back at each validation and at the end of each epoch, of which it
    has to be told; the time of validations is left out. Reading waits for the device.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin anew, with sums of nothing."""
        self._loss = self._num_tokens = self._time_s = 0.0
        self.go_on()

    def state_dict(self, module: TransformerTraining) -> dict[str, float]:
        """Return what has come since the last reading."""
        self.hold(module)
        return {"loss": self._loss, "num_tokens": self._num_tokens, "time_s": self._time_s}

    def load_state_dict(self, state: dict[str, float], module: TransformerTraining) -> None:
        """Begin with what `state_dict` returned, and the sums as they are."""
        self.start()
        self.hold(module)
        self._loss, self._num_tokens, self._time_s = (
            state[name] for name in ("loss", "num_tokens", "time_s")
        )

    def go_on(self) -> None:
        """Take note that the sums have been set back, and that time counts from now on."""
        self._seen_loss = self._seen_tokens = 0.0
        self._since_s = time.monotonic()

    def hold(self, module: TransformerTraining) -> None:
        """Take in what has come since; call it before the sums are set back."""
        mean_loss, now_s = module.train_metrics.mean_loss, time.monotonic()
        loss, num_tokens = torch.stack((mean_loss.total, mean_loss.num_tokens.float())).tolist()
        self._loss += loss - self._seen_loss
        self._num_tokens += num_tokens - self._seen_tokens
        self._time_s += now_s - self._since_s
        self._seen_loss, self._seen_tokens, self._since_s = loss, num_tokens, now_s

    def read(self, module: TransformerTraining) -> tuple[float, float] | None:
        """Return the loss a token and the target tokens a second; None where no token has come."""
        self.hold(module)
        loss, num_tokens, time_s = self._loss, self._num_tokens, self._time_s
        self._loss = self._num_tokens = self._time_s = 0.0
        if num_tokens <= 0:
            return None
        return loss / num_tokens, num_tokens / max(1e-6, time_s)


class Metered(Callback):
    """A callback with a meter, which it tells of validations and of the ends of epochs.

    Where a training goes on, the meter does so too.
    """

    def __init__(self) -> None:
        self.meter = Meter()
        self._module: TransformerTraining | None = None
        self._restored: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the meter; nothing before the training."""
        return {"meter": self.meter.state_dict(self._module)} if self._module else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of the meter until the training begins."""
        self._restored = state_dict.get("meter", {})

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Begin to measure."""
        self._module = as_training(pl_module)
        if self._restored:
            self.meter.load_state_dict(self._restored, self._module)
        else:
            self.meter.start()

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Take in what the epoch has left, before its sums are set back."""
        module = as_training(pl_module)
        if module.logs_at_epoch_end:
            self.meter.hold(module)
            self.meter.go_on()

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Stop the time."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.meter.hold(as_training(pl_module))

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Let the time go on."""
        self.meter.go_on()


def as_training(module: lightning.LightningModule) -> TransformerTraining:
    """Return `module`, which is one of ours."""
    assert isinstance(module, TransformerTraining)
    return module
