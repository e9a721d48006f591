"""What a run is made of: its folders, settings, data, network and trainer, ready to train."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import lightning

from dragoman.commands.run_folders import claim_folders, temporary_folder
from dragoman.configuration import find_conflicts, list_set_values, merge_settings
from dragoman.data.run_data import RunData
from dragoman.errors import CheckpointError, SettingsError
from dragoman.model.building import build_network
from dragoman.model_folder.constraint_files import find_constraint_faults
from dragoman.presets import choose_settings, leave_room_for_outputs
from dragoman.settings import DataSettings, Settings
from dragoman.storage import sha256
from dragoman.tokenizers.tokenizer import find_side_faults
from dragoman.training.callbacks import hush_lightning
from dragoman.training.checkpoints import Checkpoints
from dragoman.training.datamodule import PairDataModule
from dragoman.training.logs import find_logger_errors
from dragoman.training.module import TransformerTraining
from dragoman.training.precision import (
    choose_precision,
    find_device,
    name_device,
    plan_micro_batches,
    quick_float32,
)
from dragoman.training.resume import (
    CHECKPOINTS,
    DATA,
    ResumePoint,
    RunRecord,
    merge_for_resuming,
)
from dragoman.training.run_context import Surroundings
from dragoman.training.trainer import make_trainer
from dragoman.training.validation_metrics import Texts, choose_text_scores, monitor_mode

PairFiles = str | Path | Sequence[str | Path]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run is made of, once the data are read."""

    settings: Settings
    typed: Settings  # before any was chosen
    data: RunData
    data_module: PairDataModule
    module: TransformerTraining
    trainer: lightning.Trainer
    checkpoints: Checkpoints
    out: Path  # the model folder
    folder: Path  # checkpoints, data and logs
    precision: str
    around: Surroundings
    resumption: ResumePoint | None  # where it goes on; None: it begins

    @property
    def monitor(self) -> str:
        """The name of the score that chooses the best checkpoint."""
        return f"valid_{self.settings.training.monitor}"


@contextmanager
def open_run(
    pairs: PairFiles,
    out: Path,
    settings: Settings,
    overwrite: bool,
    around: Surroundings,
) -> Iterator[Run]:
    """Give a run that is ready to train; nothing is left of it but what the caller writes."""
    _check_settings(settings)
    out, folder = claim_folders(out, overwrite)
    with temporary_folder(out) as ids, quick_float32():
        hush_lightning()
        around.tell("reading pairs")
        data = RunData.read(list_files(pairs), settings, ids)
        around.clock.mark("pairs")
        choice = choose_settings(settings, data.statistics, is_parallel=data.is_parallel)
        data.encode(choice.settings)
        around.clock.mark("tokenizer and ids")
        train = data.ids("train")
        resolved, room = leave_room_for_outputs(
            choice.settings, train.source_lengths, train.target_lengths
        )
        resolved = _forget_cache(resolved).model_copy(update={"version": version("dragoman")})
        _check_settings(resolved)
        device_type = find_device(resolved.training)
        precision, why = choose_precision(resolved.training, device_type)
        record = RunRecord(
            version=resolved.version,
            settings=resolved,
            typed=dict(list_set_values(settings)),
            precision=precision,
            pairs=tuple(map(str, data.paths)),
            sha256=data.sha256,
        )
        run = _assemble(record, data, out, folder, around, None)
        messages = [*choice.reasons, *data.notes, *room, *filter(None, [data.cache_note])]
        _report(run, messages, f"{precision} on {name_device(device_type)}: {why}")
        yield run


@contextmanager
def reopen_run(
    pairs: PairFiles,
    out: Path,
    settings: Settings,
    resumption: ResumePoint,
    around: Surroundings,
) -> Iterator[Run]:
    """Give a run that goes on where `resumption` tells, with the data and settings it began with.

    Args:
        pairs: Empty, or the files with which it began.
        settings: What is to be changed about it.

    Raises:
        SettingsError: More is to be changed than may be.
        CheckpointError: `pairs` are not those with which it began.
        DataError: Its data are not whole.
    """
    began = resumption.record
    merged = _forget_cache(merge_for_resuming(began, settings))
    _check_settings(merged)
    _check_pairs(list_files(pairs), began)
    out, folder = claim_folders(out, overwrite=True)
    with quick_float32():
        hush_lightning()
        data = RunData.reopen(began.pairs, merged.data, folder / DATA)
        data.sha256 = dict(began.sha256)
        around.clock.mark("data of the run")
        record = replace(began, settings=merged)
        run = _assemble(record, data, out, folder, around, resumption)
        device = name_device(find_device(merged.training))
        told = [f"goes on after update {resumption.step:,}, from {resumption.path}"]
        _report(run, told, f"{began.precision} on {device}: as the run began")
        yield run


def list_files(pairs: PairFiles) -> list[Path]:
    """Return the files of pairs, whether one or several were given."""
    return [Path(pairs)] if isinstance(pairs, str | Path) else [Path(path) for path in pairs]


def _forget_cache(settings: Settings) -> Settings:
    """Return the settings without the cache: it is this machine's, the model folder goes to others."""
    data = settings.data.model_copy(update={"cache": DataSettings().cache})
    return settings.model_copy(update={"data": data})


def _check_settings(settings: Settings) -> None:
    faults = find_conflicts(settings) + find_logger_errors(settings.training.loggers)
    faults += find_constraint_faults(settings)
    faults += find_side_faults(settings.tokenizer.source, "tokenizer.source.")
    faults += find_side_faults(settings.tokenizer.target, "tokenizer.target.")
    if faults:
        raise SettingsError.gather(faults)


def _check_pairs(paths: Sequence[Path], record: RunRecord) -> None:
    """Check that files that are given when a run goes on are those with which it began."""
    began = [record.sha256.get(name) for name in record.pairs]
    if not paths or not all(began):
        return
    if [sha256(path) if path.is_file() else "" for path in paths] != began:
        raise CheckpointError(
            f"{', '.join(map(str, paths))}: not the pairs with which the run began "
            f"({', '.join(record.pairs)}, as they were then); leave them out to go on with those, "
            "or begin anew with --overwrite"
        )


def _assemble(
    record: RunRecord,
    data: RunData,
    out: Path,
    folder: Path,
    around: Surroundings,
    resumption: ResumePoint | None,
) -> Run:
    """Build the model and the trainer."""
    settings = record.settings
    lightning.seed_everything(settings.training.seed, verbose=False)
    texts = Texts(data.tokenizer)
    module = TransformerTraining(
        build_network(settings.model, data.tokenizer),
        settings.optimization,
        decoding=settings.decoding,
        max_steps=settings.training.max_steps,
        decoded_fraction=min(1.0, settings.training.valid_rows / data.num_rows["valid"]),
        implementation=settings.training.implementation,
        micro_batch_tokens=plan_micro_batches(settings.training),
        scoring=choose_text_scores(settings, texts),
    )
    around.clock.mark("network")
    training = settings.training
    checkpoints = Checkpoints(
        folder / CHECKPOINTS,
        training.checkpoint_every or training.valid_every,
        f"valid_{training.monitor}",
        monitor_mode(training.monitor),
        record=record.to_dict(),
        console=around.console,
    )
    trainer = make_trainer(settings, record.precision, folder, texts, checkpoints, around)
    around.clock.mark("trainer")
    return Run(
        settings=settings,
        typed=merge_settings(Settings(), record.typed),
        data=data,
        data_module=PairDataModule(data.paths, settings, data=data),
        module=module,
        trainer=trainer,
        checkpoints=checkpoints,
        out=out,
        folder=folder,
        precision=record.precision,
        around=around,
        resumption=resumption,
    )


def _report(run: Run, told: Sequence[str], precision: str) -> None:
    rows, tokenizer, model = run.data.num_rows, run.data.tokenizer, run.settings.model
    num_parameters = sum(p.numel() for p in run.module.network.parameters())
    for line in (
        f"pairs: {rows['train']:,} for training, {rows['valid']:,} for validation, "
        f"{rows['test']:,} for the test",
        *told,
        f"vocabulary: {tokenizer.source_vocab_size:,} source, {tokenizer.target_vocab_size:,} target",
        f"model: {num_parameters:,} parameters (d_model {model.d_model}, {model.nhead} heads, "
        f"{model.num_encoder_layers} + {model.num_decoder_layers} layers)",
        f"precision: {precision}; {run.settings.training.implementation} implementation",
    ):
        run.around.tell(line)
