"""The usual loop: the stock `nn.Transformer` in a LightningModule, as a good tutorial writes it."""

import math
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from training_contender import Counts, Entry, Pacer
from training_ids import Ids, read_ids
from training_pacing import Pacing
from training_task import Sizes, Task

_LABEL_SMOOTHING = 0.1
_LONGEST = 5000  # positions


class Seq2SeqTransformer(nn.Module):
    """Embeddings, sinusoidal positions, `nn.Transformer`, and a projection tied to the embedding."""

    def __init__(self, vocab_size: int, sizes: Sizes, pad_id: int) -> None:
        super().__init__()
        self.d_model, self.pad_id = sizes.d_model, pad_id
        self.embedding = nn.Embedding(vocab_size, sizes.d_model, padding_idx=pad_id)
        nn.init.normal_(self.embedding.weight, std=sizes.d_model**-0.5)
        self.transformer = nn.Transformer(
            sizes.d_model,
            sizes.nhead,
            sizes.num_layers,
            sizes.num_layers,
            sizes.dim_feedforward,
            sizes.dropout,
            batch_first=True,
            norm_first=True,
        )
        self.generator = nn.Linear(sizes.d_model, vocab_size, bias=False)
        self.generator.weight = self.embedding.weight
        self.dropout = nn.Dropout(sizes.dropout)
        self.register_buffer("positions", _make_positions(sizes.d_model))
        self.positions: Tensor

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the logits of the token after each of `target`."""
        source_is_padding, target_is_padding = source == self.pad_id, target == self.pad_id
        length = target.shape[1]
        ahead = torch.ones(length, length, dtype=torch.bool, device=target.device).triu(1)
        states = self.transformer(
            self.embed(source),
            self.embed(target),
            tgt_mask=ahead,
            src_key_padding_mask=source_is_padding,
            tgt_key_padding_mask=target_is_padding,
            memory_key_padding_mask=source_is_padding,
            tgt_is_causal=True,
        )
        logits: Tensor = self.generator(states)
        return logits

    def embed(self, ids: Tensor) -> Tensor:
        """Return the scaled embeddings, with positions."""
        embedded = self.embedding(ids) * math.sqrt(self.d_model)
        dropped: Tensor = self.dropout(embedded + self.positions[: ids.shape[1]])
        return dropped


class LightningSeq2Seq(lightning.LightningModule):
    """Cross-entropy over the target shifted by one, AdamW."""

    def __init__(self, network: nn.Module, pad_id: int) -> None:
        super().__init__()
        self.network, self.pad_id = network, pad_id

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of the tokens that are not padding."""
        source, target = batch
        logits = self.network(source, target[:, :-1])
        loss = F.cross_entropy(
            logits.flatten(0, 1),
            target[:, 1:].flatten(),
            ignore_index=self.pad_id,
            label_smoothing=_LABEL_SMOOTHING,
        )
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW with torch's defaults."""
        return torch.optim.AdamW(self.parameters(), lr=5e-4)


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of ids as tensors, in memory."""

    def __init__(self, ids: Ids) -> None:
        self._sources = [torch.from_numpy(row) for row in ids.sources]
        self._targets = [torch.from_numpy(row) for row in ids.targets]

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._sources[index], self._targets[index]


def train(entry: Entry, task: Task, folder: Path, pacer: Pacer) -> None:
    """Train without end: shuffled batches of a fixed number of rows, padded to the longest."""
    pacer.finish("imports")
    ids = read_ids(task.ids)
    num_rows = ids.count_rows(task.tokens)

    def collate(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        source, target = zip(*rows, strict=True)
        return (
            pad_sequence(list(source), batch_first=True, padding_value=ids.pad_id),
            pad_sequence(list(target), batch_first=True, padding_value=ids.pad_id),
        )

    def count(batch: tuple[Tensor, Tensor]) -> Counts:
        source, labels = batch[0], batch[1][:, 1:]
        return Counts(
            target=(labels != ids.pad_id).sum(),
            target_places=labels.numel(),
            source=(source != ids.pad_id).sum(),
            source_places=source.numel(),
        )

    loader = DataLoader(Pairs(ids), num_rows, shuffle=True, collate_fn=collate)
    pacer.finish("data")
    lightning.seed_everything(1, verbose=False)
    network = Seq2SeqTransformer(ids.vocab_size, task.sizes, ids.pad_id)
    num_parameters = sum(p.numel() for p in network.parameters())
    module = LightningSeq2Seq(
        torch.compile(network, dynamic=True) if entry.is_compiled else network,  # type: ignore[arg-type]
        ids.pad_id,
    )
    trainer = lightning.Trainer(
        accelerator=entry.device,
        devices=1,
        precision=entry.precision,  # type: ignore[arg-type]
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=CSVLogger(folder),
        callbacks=[Pacing(pacer, count)],
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    pacer.introduce(
        num_parameters=num_parameters,
        vocab_size=ids.vocab_size,
        lengths=ids.lengths,
        precision=f"{entry.precision}{', compiled' if entry.is_compiled else ''}",
        batch=f"{num_rows:,} rows",
    )
    pacer.finish("model and trainer")
    trainer.fit(module, loader)


def _make_positions(d_model: int) -> Tensor:
    """Return sines and cosines. Source: Vaswani et al. 2017, section 3.5."""
    places = torch.arange(_LONGEST)[:, None]
    rates = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10_000.0) / d_model))
    table = torch.zeros(_LONGEST, d_model)
    table[:, 0::2], table[:, 1::2] = torch.sin(places * rates), torch.cos(places * rates)
    return table
