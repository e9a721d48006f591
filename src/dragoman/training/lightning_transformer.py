"""A Transformer by its sizes, with its training, for your own script with Lightning's Trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Int
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from torch import Tensor

from dragoman.configuration import as_settings
from dragoman.data.dataset import Batch
from dragoman.errors import DataError, SettingsError
from dragoman.model.transformer import Transformer
from dragoman.settings import DecodingSettings, OptimizationSettings
from dragoman.training.module import TransformerTraining
from dragoman.training.trainer import NonFiniteSteps

_PADDING_LABEL = -100  # of labels, in other libraries
_OF_FIT = (
    "clip_norm", "average_decay", "subword_dropout", "hallucination", "guided_attention",
)  # fmt: skip
_OPTIMIZATION = {"schedule": "constant", "warmup_steps": 100, "label_smoothing": 0.0}


class LightningTransformer(TransformerTraining):
    """A Transformer of the given sizes that trains under Lightning's Trainer.

    Batches are `(source_ids, target_ids)` tensors, (rows, length), padded on the right; a target is
    `bos_id`, tokens, `eos_id`. Mappings with `input_ids` and `labels` (and `attention_mask`) are
    taken too; padding of targets may be -100. Each batch is checked: wrong ids are an error; the
    first rows that do not look as above are warned of.

    The arguments are those of `Transformer`. The default optimization suits a small task: AdamW at
    a constant rate after a short warm-up. Steps with a non-finite loss are reported, and end the
    training after a few in a row.

    Raises: SettingsError, when the sizes contradict each other, or `optimization` has what is not used.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 256,
        nhead: int = 4,
        num_layers: int = 3,
        dim_feedforward: int = 1024,
        max_seq_len: int = 1024,
        dropout: float = 0.1,
        *,
        target_vocab_size: int | None = None,
        activation: Literal["relu", "gelu"] = "relu",
        norm_first: bool = True,
        pad_id: int = 0,
        bos_id: int = 1,
        eos_id: int = 2,
        never_emitted: Sequence[int] = (),
        optimization: OptimizationSettings | Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(optimization, OptimizationSettings):
            given = {"optimization": dict(optimization or _OPTIMIZATION)}
            optimization = as_settings(given, is_whole=False).optimization
        super().__init__(
            Transformer(
                vocab_size,
                d_model,
                nhead,
                num_layers,
                dim_feedforward,
                max_seq_len,
                dropout,
                target_vocab_size=target_vocab_size,
                activation=activation,
                norm_first=norm_first,
                pad_id=pad_id,
                bos_id=bos_id,
                eos_id=eos_id,
                never_emitted=never_emitted,
            ),
            optimization,
            decoding=DecodingSettings(max_length_ratio=0.0, max_length_extra=max_seq_len),
        )
        if ignored := [
            name
            for name in _OF_FIT
            if getattr(self.optimization, name) != OptimizationSettings.model_fields[name].default
        ]:
            raise SettingsError(
                f"optimization: {', '.join(ignored)}: only `dragoman fit` uses this; here the Trainer "
                "clips (gradient_clip_val), and a callback averages (EMAWeightAveraging)"
            )
        self._has_warned = False
        self.save_hyperparameters(ignore=["optimization"])
        # As plain values, for checkpoints.
        self.save_hyperparameters({"optimization": self.optimization.model_dump()})

    def configure_callbacks(self) -> list[Callback]:
        """Return the callback that reports non-finite losses, and ends the training after a few."""
        return [NonFiniteSteps(Console(stderr=True))]

    def on_before_batch_transfer(self, batch: object, dataloader_idx: int) -> Batch | Tensor:
        """Return a batch of the user, checked, as a `Batch`; sources to predict, as ids.

        Raises: DataError, when it is of another form, or has ids that are not in the vocabulary.
        """
        sides = self._find_sides(batch)
        source_ids = self.network.check_ids(sides[0], "source")
        if len(sides) == 1 and not self.trainer.predicting:
            raise DataError("the batch has source_ids alone: targets are needed, except to predict")
        if len(sides) == 1:
            return source_ids
        pad_id = self.network.pad_id
        target_ids = sides[1].masked_fill(sides[1] == _PADDING_LABEL, pad_id)
        target_ids = self.network.check_ids(target_ids, "target")
        if len(source_ids) != len(target_ids):
            raise DataError(
                f"the batch has {len(source_ids)} rows of source_ids and {len(target_ids)} of "
                "target_ids: both are (rows, length); transpose batches of (length, rows)"
            )
        # The shift needs a begin and a label.
        target_ids = F.pad(target_ids, (0, max(0, 2 - target_ids.shape[1])), value=pad_id)
        if not self._has_warned and (fault := self._find_fault(source_ids, target_ids)):
            self._has_warned = True
            rank_zero_warn(fault)
        if isinstance(batch, Batch):
            return replace(batch, source_ids=source_ids, target_ids=target_ids)
        return Batch(source_ids=source_ids, target_ids=target_ids)

    def _find_sides(self, batch: object) -> list[Tensor]:
        """Return the sources and the targets of a batch, or its sources alone."""
        if isinstance(batch, Batch):
            return [batch.source_ids, batch.target_ids]
        sides: list[object] = [batch]
        if isinstance(batch, Mapping):
            names = ("source_ids", "input_ids", "target_ids", "labels")
            sides = [batch[name] for name in names if name in batch]
            if isinstance(mask := batch.get("attention_mask"), Tensor) and "input_ids" in batch:
                sides[0] = batch["input_ids"].masked_fill(mask == 0, self.network.pad_id)
        elif isinstance(batch, list | tuple):
            sides = list(batch)
        tensors = [side for side in sides if isinstance(side, Tensor)]
        if not 1 <= len(tensors) == len(sides) <= 2:
            named = f"{len(sides)} parts: {', '.join(type(side).__name__ for side in sides)}"
            if isinstance(batch, Mapping):
                named = f"names {', '.join(map(str, batch))}"
            raise DataError(
                "a batch is two tensors, (source_ids, target_ids), or a mapping with input_ids and "
                f"labels; found a {type(batch).__name__} with {named}"
            )
        return tensors

    def _find_fault(self, source_ids: Int[Tensor, "B S"], target_ids: Int[Tensor, "B T"]) -> str:
        """Return what is wrong with rows from which the model would learn something else, or ""."""
        begin, end = f"bos_id {self.network.bos_id}", f"eos_id {self.network.eos_id}"
        is_source, is_target = (ids != self.network.pad_id for ids in (source_ids, target_ids))
        if (target_ids[0] == self.network.bos_id).all():
            return (
                f"the first target has nothing but {begin}: batches are (rows, length), and these "
                "look like (length, rows); transpose them"
            )
        if any((one[:, 1:] & ~one[:, :-1]).any() for one in (is_source, is_target)):
            return (
                "padding stands before tokens: pad on the right, or outputs depend on the padding"
            )
        last = is_target.sum(dim=1, keepdim=True).clamp(min=1) - 1
        begins = target_ids[:, 0] == self.network.bos_id
        ends = target_ids.gather(1, last)[:, 0] == self.network.eos_id
        is_row = is_target.any(dim=1)
        if wrong := int((is_row & ~(begins & ends)).sum()):
            return (
                f"{wrong} of {int(is_row.sum())} targets are not {begin}, tokens, {end}: generate() "
                f"starts from {begin}, and a model learns to end an output from {end}; put both "
                "around each target"
            )
        return ""
