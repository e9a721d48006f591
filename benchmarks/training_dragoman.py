"""dragoman, as its `fit` trains: from the file of pairs, with all that its Trainer carries."""

import os
from functools import partial
from pathlib import Path

import lightning
import torch
from rich.console import Console
from training_contender import Counts, Entry, Pacer
from training_ids import sum_lengths
from training_pacing import Pacing
from training_task import Task

from dragoman.data.dataset import Batch
from dragoman.data.sampler import cut_batch
from dragoman.model.building import build_network
from dragoman.settings import Settings
from dragoman.tokenizers.tokenizer import PAD_ID
from dragoman.training.callbacks import hush_lightning
from dragoman.training.checkpoints import Checkpoints
from dragoman.training.datamodule import PairDataModule
from dragoman.training.device import choose_precision, find_device, plan_micro_batches
from dragoman.training.graceful_stop import SignalHandler
from dragoman.training.logs import make_loggers
from dragoman.training.module import TransformerTraining
from dragoman.training.ranks import Ranks
from dragoman.training.run_context import RunContext, StartTimer
from dragoman.training.trainer import make_trainer
from dragoman.training.validation_metrics import Texts, monitor_mode


def train(entry: Entry, task: Task, folder: Path, pacer: Pacer) -> None:
    """Train without end; validations are left out, as the others have none."""
    pacer.finish("imports")
    hush_lightning()
    wanted = task.make_settings(entry.device, entry.precision, entry.implementation)
    data = PairDataModule(task.data, Settings.model_validate(wanted))
    data.prepare_data()
    data.setup("fit")
    pacer.finish("data")
    settings = data.settings
    lightning.seed_everything(settings.training.seed, verbose=False)
    module = TransformerTraining(
        build_network(settings.model, data.tokenizer),
        settings.optimization,
        decoding=settings.decoding,
        max_steps=settings.training.max_steps,
        implementation=settings.training.implementation,
        micro_batch_tokens=plan_micro_batches(settings.training),
    )
    precision, _ = choose_precision(settings.training, find_device(settings.training))
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(file=nowhere, force_terminal=True, width=100)
        context = RunContext(
            console=console,
            timer=StartTimer(),
            signals=SignalHandler(console),
            ranks=Ranks(console),
        )
        training = settings.training
        checkpoints = Checkpoints(
            folder / "checkpoints",
            training.valid_every,
            f"valid_{training.monitor}",
            monitor_mode(training.monitor),
            console=console,
        )
        texts = Texts(data.tokenizer)
        trainer = make_trainer(settings, precision, folder, texts, checkpoints, context)
        trainer.loggers = make_loggers(settings.training.loggers, folder)
        trainer.callbacks.append(
            Pacing(pacer, partial(count, plan_micro_batches(settings.training)))
        )  # type: ignore[attr-defined]
        pairs = data.train_dataloader().pairs
        pacer.introduce(
            num_parameters=sum(p.numel() for p in module.network.parameters()),
            vocab_size=data.tokenizer.source_vocab_size,
            lengths=sum_lengths(pairs.source_lengths, pairs.target_lengths),
            precision=f"{precision}, {settings.training.implementation}",
            batch=f"{settings.training.batch_tokens:,} tokens",
        )
        pacer.finish("model and trainer")
        trainer.fit(module, datamodule=data)


def count(micro_batch_tokens: int | None, batch: Batch) -> Counts:
    """Return the tokens of a batch, and the places that are computed for them."""
    parts = [batch]
    if micro_batch_tokens is not None:
        parts = cut_batch(
            batch, micro_batch_tokens, num_threads=torch.get_num_threads(), pad_id=PAD_ID
        )
    return Counts(
        target=(batch.target_ids[:, 1:] != PAD_ID).sum(),
        target_places=sum(part.target_ids[:, 1:].numel() for part in parts),
        source=(batch.source_ids != PAD_ID).sum(),
        source_places=sum(part.source_ids.numel() for part in parts),
    )
