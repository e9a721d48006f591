"""Hugging Face's `MarianMTModel` of the same size, by `Seq2SeqTrainer`, rows of like lengths together."""

from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.utils.data import Dataset
from training_contender import Counts, Entry, Pacer
from training_ids import Ids, read_ids
from training_task import Sizes, Task
from transformers import (
    DataCollatorForSeq2Seq,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

_NO_LABEL = -100  # where a label is padding
_NEVER = 1_000_000_000


class Rows(Dataset[dict[str, list[int]]]):
    """Pairs of ids, named as their trainer wants them; labels are without begin."""

    def __init__(self, ids: Ids) -> None:
        self._rows = [
            {"input_ids": source.tolist(), "labels": target[1:].tolist()}
            for source, target in zip(ids.sources, ids.targets, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self._rows[index]


class CountingTrainer(Seq2SeqTrainer):
    """Their trainer; it tells `pacer` of each batch."""

    pacer: Pacer

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Count the batch, and train on it."""
        labels, source = inputs["labels"], inputs["attention_mask"]
        self.pacer.count(
            Counts(
                target=(labels != _NO_LABEL).sum(),
                target_places=labels.numel(),
                source=source.sum(),
                source_places=source.numel(),
            )
        )
        return super().training_step(model, inputs, num_items_in_batch)


class Pacing(TrainerCallback):
    """Tells `pacer` of each update."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer

    def on_step_end(self, *_: object, **__: object) -> None:
        """Wait here where the turn is over."""
        self._pacer.end_update()


def train(entry: Entry, task: Task, folder: Path, pacer: Pacer) -> None:
    """Train without end; no evaluation, nothing saved."""
    pacer.finish("imports")
    ids = read_ids(task.ids)
    rows, num_rows = Rows(ids), ids.count_rows(task.tokens)
    pacer.finish("data")
    transformers.set_seed(1)
    model = _make_model(ids, task.sizes)
    arguments = Seq2SeqTrainingArguments(
        str(folder),
        per_device_train_batch_size=num_rows,
        train_sampling_strategy="group_by_length",
        max_steps=_NEVER,
        learning_rate=5e-4,
        warmup_steps=1000,
        label_smoothing_factor=0.1,
        max_grad_norm=1.0,
        bf16=entry.precision == "bf16-mixed",
        use_cpu=entry.device == "cpu",
        dataloader_pin_memory=entry.device != "cpu",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
    )
    trainer = CountingTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(_make_padder(ids), model=model),
        callbacks=[Pacing(pacer)],
    )
    trainer.pacer = pacer
    pacer.introduce(
        num_parameters=sum(p.numel() for p in model.parameters()),
        vocab_size=ids.vocab_size,
        lengths=ids.lengths,
        precision=entry.precision,
        batch=f"{num_rows:,} rows",
    )
    pacer.finish("model and trainer")
    trainer.train()


def _make_model(ids: Ids, sizes: Sizes) -> MarianMTModel:
    """Return their translation model; its positions are fixed, its norms behind the blocks."""
    return MarianMTModel(
        MarianConfig(
            vocab_size=ids.vocab_size,
            d_model=sizes.d_model,
            encoder_layers=sizes.num_layers,
            decoder_layers=sizes.num_layers,
            encoder_attention_heads=sizes.nhead,
            decoder_attention_heads=sizes.nhead,
            encoder_ffn_dim=sizes.dim_feedforward,
            decoder_ffn_dim=sizes.dim_feedforward,
            activation_function="relu",
            dropout=sizes.dropout,
            attention_dropout=sizes.dropout,
            activation_dropout=sizes.dropout,
            scale_embedding=True,
            max_position_embeddings=max(1024, *(len(row) for row in ids.sources + ids.targets)),
            pad_token_id=ids.pad_id,
            bos_token_id=ids.bos_id,
            eos_token_id=ids.eos_id,
            forced_eos_token_id=ids.eos_id,
            decoder_start_token_id=ids.bos_id,
        )
    )


def _make_padder(ids: Ids) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows no more than how to pad, which is all the collator asks of it."""
    words = WordLevel({"<pad>": ids.pad_id, "<unk>": ids.vocab_size}, unk_token="<unk>")
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer(words), pad_token="<pad>"
    )
