"""Rows of a log from which the curves of a training are drawn."""

from typing import Any

import lightning
from lightning.pytorch.loggers import CSVLogger

from dragoman.configuration import flatten_settings
from dragoman.settings import Settings
from dragoman.training.meter import Metered, as_training


class UpdateLog(Metered):
    """Logs `update_loss`, `learning_rate` and `tokens_per_s` every so many updates, and at the end.

    The loss (smoothed labels and dropout in) is a mean over the tokens since the last such row; the
    speed, in target tokens of all ranks, is that of this rank times their number. Only then is the
    device waited for: no update costs more. Loggers other than the CSV file get the settings too.

    Args:
        every: Updates from one row to the next.
    """

    def __init__(self, every: int, settings: Settings) -> None:
        super().__init__()
        self._every, self._settings = every, settings
        self._logged_step = 0

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Give the settings to the loggers, before they write what they know at the start."""
        for logger in trainer.loggers:
            if stage == "fit" and not isinstance(logger, CSVLogger):
                logger.log_hyperparams(flatten_settings(self._settings))

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Begin to measure."""
        super().on_train_start(trainer, pl_module)
        self._logged_step = min(self._logged_step, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the meter, and when it was logged last."""
        return {**super().state_dict(), "logged_step": self._logged_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._logged_step = state_dict["logged_step"]

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Log, if so many updates have been made since."""
        if trainer.global_step - self._logged_step >= self._every:
            self._log(trainer, pl_module)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Log what is left."""
        self._log(trainer, pl_module)

    def _log(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        step = self._logged_step = trainer.global_step
        if (found := self.meter.read(as_training(pl_module))) is None:
            return
        values = {
            "update_loss": found[0],
            "tokens_per_s": found[1] * trainer.world_size,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        }
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step - 1)  # Lightning counts updates from 0
