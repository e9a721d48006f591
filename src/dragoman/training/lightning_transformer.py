"""A Transformer by its sizes, with its training, for your own script with Lightning's Trainer."""

from typing import Literal

from dragoman.model.transformer import Transformer
from dragoman.settings import DecodingSettings, OptimizationSettings
from dragoman.training.module import TransformerTraining


class LightningTransformer(TransformerTraining):
    """A Transformer of the given sizes that trains under Lightning's Trainer.

    Batches are `(source_ids, target_ids)` tensors, padded on the right; a target is `bos_id`,
    tokens, `eos_id`. The arguments are those of `Transformer`. The default optimization suits a
    small task: AdamW at a constant rate after a short warm-up.

    Raises:
        SettingsError: The sizes contradict each other.
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
        optimization: OptimizationSettings | None = None,
    ) -> None:
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
            ),
            optimization
            or OptimizationSettings(schedule="constant", warmup_steps=100, label_smoothing=0.0),
            decoding=DecodingSettings(max_length_ratio=0.0, max_length_extra=max_seq_len),
        )
        self.save_hyperparameters(ignore=["optimization"])  # plain numbers, for checkpoints
