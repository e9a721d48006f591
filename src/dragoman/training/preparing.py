"""What a run is made of: its folders, settings, data, network and trainer, ready to train."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import lightning
from rich.console import Console

from dragoman.configuration import find_conflicts
from dragoman.errors import SettingsError
from dragoman.model.building import build_network
from dragoman.settings import DataSettings, Settings
from dragoman.text.tokenizer import find_side_faults
from dragoman.training.callbacks import hush_lightning
from dragoman.training.datamodule import PairDataModule
from dragoman.training.folders import claim_folders, temporary_folder
from dragoman.training.loggers import find_logger_faults
from dragoman.training.metrics import choose_text_scores
from dragoman.training.module import TransformerTraining
from dragoman.training.precision import (
    choose_precision,
    find_device,
    name_device,
    plan_parts,
    quick_float32,
)
from dragoman.training.startup import StartClock
from dragoman.training.texts import Texts
from dragoman.training.trainer import make_trainer


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run is made of, once the data are read."""

    settings: Settings
    data: PairDataModule
    module: TransformerTraining
    trainer: lightning.Trainer
    out: Path  # the model folder
    folder: Path  # checkpoints and logs
    precision: str

    @property
    def monitor(self) -> str:
        """The name of the score that chooses the best checkpoint."""
        return f"valid_{self.settings.training.monitor}"


@contextmanager
def open_run(
    pairs: str | Path | Sequence[str | Path],
    out: Path,
    settings: Settings,
    overwrite: bool,
    console: Console,
    clock: StartClock,
) -> Iterator[Run]:
    """Give a run that is ready to train; nothing is left of it but what the caller writes."""
    _check_settings(settings)
    out, folder = claim_folders(out, overwrite)
    with temporary_folder(out) as ids, quick_float32():
        yield _prepare(PairDataModule(pairs, settings, ids, clock), out, folder, console, clock)


def _check_settings(settings: Settings) -> None:
    faults = find_conflicts(settings) + find_logger_faults(settings.training.loggers)
    faults += find_side_faults(settings.tokenizer.source, "tokenizer.source.")
    faults += find_side_faults(settings.tokenizer.target, "tokenizer.target.")
    if faults:
        raise SettingsError.gather(faults)


def _prepare(
    data: PairDataModule, out: Path, folder: Path, console: Console, clock: StartClock
) -> Run:
    """Read the data, build the model and the trainer, and say what was chosen."""
    hush_lightning()
    console.print("reading pairs")
    data.prepare_data()
    settings = data.settings.model_copy(
        update={
            "version": version("dragoman"),
            "data": data.settings.data.model_copy(update={"cache": DataSettings().cache}),
        }
    )  # the cache is this machine's, the model folder goes to others
    _check_settings(settings)
    data.setup("fit")

    lightning.seed_everything(settings.training.seed, verbose=False)
    texts = Texts(data.tokenizer)
    module = TransformerTraining(
        build_network(settings.model, data.tokenizer),
        settings.optimization,
        decoding=settings.decoding,
        max_steps=settings.training.max_steps,
        decoded_fraction=min(1.0, settings.training.valid_rows / data.num_rows["valid"]),
        path=settings.training.path,
        part_tokens=plan_parts(settings.training),
        scoring=choose_text_scores(settings, texts),
    )
    clock.mark("network")
    device_type = find_device(settings.training)
    precision, why = choose_precision(settings.training, device_type)
    run = Run(
        settings=settings,
        data=data,
        module=module,
        trainer=make_trainer(settings, precision, folder, console, texts),
        out=out,
        folder=folder,
        precision=precision,
    )
    clock.mark("trainer")
    how = f"{precision} on {name_device(device_type)}: {why}; path {settings.training.path}"
    _report(run, how, console)
    return run


def _report(run: Run, precision: str, console: Console) -> None:
    rows, tokenizer, model = run.data.num_rows, run.data.tokenizer, run.settings.model
    num_parameters = sum(p.numel() for p in run.module.network.parameters())
    for line in (
        f"pairs: {rows['train']:,} for training, {rows['valid']:,} for validation, "
        f"{rows['test']:,} for the test",
        *run.data.notes,
        *filter(None, [run.data.told_of_cache]),
        f"vocabulary: {tokenizer.source_vocab_size:,} source, {tokenizer.target_vocab_size:,} target",
        f"model: {num_parameters:,} parameters (d_model {model.d_model}, {model.nhead} heads, "
        f"{model.num_encoder_layers} + {model.num_decoder_layers} layers)",
        f"precision: {precision}",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
