"""A run, ready to train: its folders, settings, data, model and trainer."""

import glob
import shutil
import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import lightning
from filelock import Timeout

from dragoman.characters import find_surrogate
from dragoman.commands.fit_teacher import hold_out_as, teach
from dragoman.configuration import find_conflicts, list_set_values, merge_settings
from dragoman.data.run_data import RunData
from dragoman.errors import (
    CheckpointError,
    DataError,
    ModelFolderError,
    SettingsError,
    is_out_of_memory,
    shorten,
)
from dragoman.model.building import build_network, count_at_least, load_network, start_network
from dragoman.model.transformer import Transformer
from dragoman.model_folder.folder import (
    WEIGHTS,
    ModelFolder,
    find_constraint_errors,
    find_start,
    is_model_folder,
    list_models,
    read_models,
    sweep_model_folder,
)
from dragoman.presets import choose_settings, leave_room_for_outputs
from dragoman.reading.pairs import list_files, list_weights
from dragoman.reading.row_errors import name_file
from dragoman.settings import DataSettings, Settings
from dragoman.storage import explain_failed_write, hold_lock, link_or_copy, sha256
from dragoman.tokenizers.tokenizer import PairTokenizer, find_side_errors
from dragoman.training.callbacks import hush_lightning
from dragoman.training.checkpoints import Checkpoints
from dragoman.training.datamodule import PairDataModule
from dragoman.training.device import (
    choose_precision,
    fast_float32,
    find_device,
    find_memory_bytes,
    name_device,
    plan_micro_batches,
)
from dragoman.training.logs import find_logger_errors
from dragoman.training.module import TransformerTraining
from dragoman.training.ranks import Ranks
from dragoman.training.resume import (
    CHECKPOINTS,
    DATA,
    ResumePoint,
    RunRecord,
    describe_machine,
    find_resume_point,
    merge_for_resuming,
)
from dragoman.training.run_context import RunContext
from dragoman.training.trainer import Pace, make_trainer, measure_pace, plan_steps
from dragoman.training.validation_metrics import Texts, choose_text_scores, monitor_mode

Resume = Literal["no", "auto", "must"]
_IDS = ".ids-"  # in the names of temporary folders


@dataclass(frozen=True, kw_only=True)
class Run:
    """All parts of a run, once the pairs are read."""

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
    context: RunContext
    resume_point: ResumePoint | None  # None: it starts
    pace: Pace | None = None  # if it was measured


@contextmanager
def start_run(
    pairs: Sequence[str | Path],
    out: Path,
    settings: Settings,
    overwrite: bool,
    context: RunContext,
    *,
    is_dry: bool = False,
) -> Iterator[Run]:
    """Read the pairs, choose the open settings, and give a run that is ready to train.

    Nothing of it is left on the disk, except what the caller writes, and the outputs of a teacher;
    `is_dry`: it predicts none.
    """
    _check_settings(settings)
    settings, start = find_start(settings)
    started = start if settings.training.start_from else None  # `start` may be the teacher
    others = {settings.training.start_from: started.settings} if started else {}
    if teacher := settings.training.teacher:
        others[teacher] = read_models(Path(teacher))[0].settings
        settings = hold_out_as(others[teacher], settings)
    files = pairs or settings.data.train
    weights = list_weights(files, settings.data)
    names = [str(path) for path in (*list_files(files), out.absolute())]  # in the model folder
    if wrong := [name for name in names if find_surrogate(name) is not None]:
        raise DataError.gather([f"{one!r}: the name is not UTF-8; rename it" for one in wrong])
    out, folder = check_folders(out, overwrite)
    with _temporary_folder(out) as ids, fast_float32():
        hush_lightning()
        with context.working("reading pairs"):
            data = RunData.read(files, settings, ids, start)
        context.timer.mark("pairs")
        choice = choose_settings(settings, data.statistics, is_parallel=data.is_parallel)
        labelled = data.label_columns(choice.settings)
        if teacher and is_dry:
            context.report(f"dry run: without the outputs of the teacher {teacher}")
        if teacher and not is_dry:
            data.encode(choice.settings, partial(teach, data, labelled, out, context))
        else:
            with context.working("making tokens"):
                data.encode(choice.settings)
        context.timer.mark("tokenizer and ids")
        train = data.ids("train")
        resolved, room = leave_room_for_outputs(
            labelled, train.source_lengths, train.target_lengths
        )
        resolved = _forget_cache(resolved).model_copy(update={"version": version("dragoman")})
        device_type = find_device(resolved.training)
        precision, why = choose_precision(resolved.training, device_type)
        record = RunRecord(
            version=resolved.version,
            settings=resolved,
            typed=dict(list_set_values(settings)),
            precision=precision,
            pairs=tuple(map(str, data.paths)),
            weights=weights,
            sha256=data.sha256,
            data_sha256=data.digests,
            machine=describe_machine(name_device(device_type), context.ranks.num_ranks),
        )
        _check_settings(resolved, () if _measures_pace(record) else record.typed)
        run = _assemble(record, data, out, folder, context, None)
        _share(context.ranks, data, run.checkpoints.record)
        messages = [*choice.reasons, *data.notes, *room, *filter(None, [data.cache_note])]
        if resolved.training.max_minutes:
            run, message = _fill_time(run, record)
            messages.append(message)
        if started:
            start_network(run.module.network, data.tokenizer, started)
            messages += _describe_start(run, started)
        for name, known in others.items():
            messages += _warn_of_known(run, name, known.data)
        _report(run, messages, f"{precision} on {name_device(device_type)}: {why}")
        yield run


def _measures_pace(record: RunRecord) -> bool:
    """Return whether a run that starts measures its speed, to plan its steps."""
    return bool(record.settings.training.max_minutes) and "training.max_steps" not in record.typed


def _fill_time(run: Run, record: RunRecord) -> tuple[Run, str]:
    """Return the run with as many steps as training.max_minutes allows, unless they are set; a message."""
    if not _measures_pace(record):
        return run, (
            "time limit: training.max_steps is set, so the training may stop before the learning rate "
            "ends; leave it out, and fit plans the steps that fill the time"
        )
    limit_s, timer = 60 * record.settings.training.max_minutes, run.context.timer
    run.context.report("measuring the speed")
    pace = _measure(run)
    timer.mark("speed")
    settings = plan_steps(run.settings, record.typed, pace, limit_s - timer.total_s)
    _check_settings(settings, record.typed)
    planned = record.model_copy(update={"settings": settings})
    run = _assemble(planned, run.data, run.out, run.folder, run.context, None)
    message = (
        f"time limit: {settings.training.max_steps:,} steps, at {pace.step_s:.3f} s a step and "
        f"{pace.validation_s:.1f} s a validation; the schedule of the learning rate ends there"
    )
    return replace(run, pace=pace), message


def _measure(run: Run) -> Pace:
    """Return the pace of a run with a time limit; all ranks measure it together."""
    ranks, training = run.context.ranks, run.settings.training
    with ranks.computing():
        return measure_pace(
            *(run.module, run.data_module, run.settings, run.precision),
            ranks=ranks,
            longest_s=0.02 * 60 * training.max_minutes,
        )


@contextmanager
def reopen_run(
    record: RunRecord,
    pairs: Sequence[str | Path],
    out: Path,
    settings: Settings,
    context: RunContext,
    *,
    point: ResumePoint | None = None,
    like: Path | None = None,
) -> Iterator[Run]:
    """Give a run with the data and the settings of `record`, ready to train.

    Args:
        pairs: Empty, or the files with which the run to resume started.
        settings: Those that change.
        point: Where the run continues.
        like: Without `point`: the folder of another run, from whose data this one starts.

    Raises:
        SettingsError: Some of them may not change.
        CheckpointError: `pairs` are not those with which it started.
        DataError: Its data are incomplete, or have changed.
    """
    before = record
    merged = _forget_cache(merge_for_resuming(before, settings))
    _check_settings(merged)
    device = name_device(find_device(merged.training))
    typed = {**before.typed, **dict(list_set_values(settings))}
    machine = describe_machine(device, context.ranks.num_ranks)
    record = before.model_copy(update={"settings": merged, "typed": typed, "machine": machine})
    messages, why = list[str](), "as for the first seed"
    if point is not None:
        if merged.training.max_steps < point.step:
            raise SettingsError(
                f"--training.max_steps: {merged.training.max_steps:,}, but the run has done "
                f"{point.step:,} steps; give at least those, or start from scratch with --overwrite"
            )
        paths, started = list_files(pairs), [before.sha256.get(name) for name in before.pairs]
        found = [sha256(one) if one.is_file() else "" for one in paths] if all(started) else started
        if paths and found != started:
            raise CheckpointError(
                f"{', '.join(map(name_file, paths))}: not the pairs with which the run started "
                f"({', '.join(before.pairs)}, as they were then); leave them out to resume with "
                "those, or start from scratch with --overwrite"
            )
        messages, why = (
            [f"resumed after step {point.step:,}, from {point.path}"],
            "as the run started",
        )
        if changes := [
            f"{name} {value}, now {machine[name]}"
            for name, value in before.machine.items()
            if machine.get(name, value) != value
        ]:
            messages.append(
                f"warning: the checkpoint is from another machine, or other ranks ({'; '.join(changes)}): "
                "the weights will not be bit-identical to those of an uninterrupted run"
            )
    out, folder = check_folders(out, overwrite=True)
    with ExitStack() as stack:
        ids = folder / DATA
        if like is not None and point is None:
            ids = stack.enter_context(_temporary_folder(out))
            for name in record.data_sha256:
                link_or_copy(like / DATA / name, ids / name)
        stack.enter_context(fast_float32())
        hush_lightning()
        data = RunData.reopen(record.pairs, merged.data, ids, record.data_sha256)
        data.sha256 = dict(record.sha256)
        context.timer.mark("data of the run")
        run = _assemble(record, data, out, folder, context, point)
        _share(context.ranks, data, run.checkpoints.record)
        if point is None and merged.training.start_from:
            start = ModelFolder.read(Path(merged.training.start_from))
            start_network(run.module.network, data.tokenizer, start)
        _report(run, messages, f"{record.precision} on {device}: {why}")
        yield run


def read_record_of_seed(folder: Path, seed: int) -> RunRecord:
    """Return the record of the complete run in `folder`, with another seed.

    Raises: CheckpointError, when that run has no usable checkpoint.
    """
    point = find_resume_point(folder, [])
    if point is None:
        raise CheckpointError(
            f"{folder}: no usable checkpoint; start from scratch with --overwrite"
        )
    record, values = point.record, {"training.seed": seed}
    settings = merge_settings(record.settings, values, overrule=True)
    typed = {**record.typed, **values}
    if settings.training.max_minutes:  # the steps are not planned again
        typed["training.max_steps"] = settings.training.max_steps
    return record.model_copy(update={"settings": settings, "typed": typed})


@contextmanager
def follow_run(
    pairs: Sequence[str | Path], out: Path, settings: Settings, context: RunContext
) -> Iterator[Run | None]:
    """Give the run of rank 0 to another rank, ready to train along; None: it is complete.

    The first rank of each other machine prepares the data there, from its own `pairs`.
    """
    ranks = context.ranks
    checkpoint = ranks.meet(None)
    with tempfile.TemporaryDirectory(prefix="dragoman-") as name, fast_float32():
        hush_lightning()
        data = None
        if checkpoint is None and ranks.local_rank == 0:
            settings, start = find_start(settings)
            data = RunData.read(pairs or settings.data.train, settings, Path(name), start)
            choice = choose_settings(settings, data.statistics, is_parallel=data.is_parallel)
            data.encode(choice.settings)
        shared = _share(ranks, data, {})
        record, point = RunRecord.read(shared[0][0]), None
        if checkpoint is not None:
            if not checkpoint.is_file():
                raise CheckpointError(
                    f"{checkpoint}: not there; to resume on several machines, --out has to be on a "
                    "disk that all of them see"
                )
            # Lightning loads it by its path; the rest is for rank 0.
            point = ResumePoint(
                path=checkpoint, record=record, step=0, validated_step=0, checkpoint={}
            )
        if data is None:
            # Those of the first rank of this machine; those of a run to resume are on a common disk.
            first = ranks.rank - ranks.local_rank if point is None else 0
            checked = record.data_sha256 if ranks.local_rank == 0 else {}
            place = shared[first][1]
            data = RunData.reopen(record.pairs, record.settings.data, place, checked)
        folders = name_folders(out)
        run = _assemble(record, data, *folders, context, point)
        is_planned = point is None and _measures_pace(record)
        if is_planned:
            _measure(run)
        content = ranks.exchange(None)[0]
        if content is not None and is_planned:
            run = _assemble(RunRecord.read(content), data, *folders, context, point)
        yield run if content is not None else None


def _share(
    ranks: Ranks, data: RunData | None, record: Mapping[str, Any]
) -> list[tuple[Mapping[str, Any], Path, dict[str, str]]]:
    """Return record (of rank 0), folder and digests of each rank, once all have the same data.

    Raises: DataError, when they differ; names each rank.
    """
    own = (record, Path(), dict[str, str]())
    if data is not None:
        own = (record, data.folder.absolute(), {**data.sha256, **data.digests})
    shared = ranks.exchange(own)
    expected = shared[0][2]
    if faults := [
        f"{ranks.name(rank)}: other data than rank 0, from {different[0]} on; give all machines the "
        "same PAIRS, settings and versions"
        for rank, (_, _, found) in enumerate(shared)
        if found and (different := [one for one in expected if found.get(one) != expected[one]])
    ]:
        raise DataError.gather(faults)
    return shared


def name_folders(out: Path) -> tuple[Path, Path]:
    """Return the model folder, by a path with a name, and the folder for checkpoints and logs."""
    if out.name in ("", ".."):
        out = out.resolve()
    return out, out.with_name(f"{out.name}.training") if out.name else out


@contextmanager
def lock_folder(out: Path, timeout_s: float = 0.0) -> Iterator[None]:
    """Keep other processes from training into `out`; the lock of a dead process holds nobody up.

    Raises: ModelFolderError, when another process trains there, for longer than `timeout_s`, or
        nothing can be written there.
    """
    nearest = _find_nearest(out)
    lock = nearest / f".{'+'.join(out.absolute().relative_to(nearest).parts)}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(lock, timeout_s))
        except Timeout as error:
            raise ModelFolderError(
                f"{out}: another process is training a model into this folder; wait for it, or "
                "choose another --out"
            ) from error
        except OSError as error:
            raise ModelFolderError(f"{out}: cannot be written: {error.strerror}") from error
        yield


def sweep_folders(out: Path) -> None:
    """Remove the temporary folders of a killed run; call it while `lock_folder` holds."""
    for path in _find_nearest(out).glob(f".{glob.escape(out.name)}{_IDS}*"):
        shutil.rmtree(path, ignore_errors=True)
    sweep_model_folder(out)


@contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """Give a folder on the disk of `out`, removed at the end."""
    with explain_failed_write(out, ModelFolderError):
        folder = tempfile.TemporaryDirectory(prefix=f".{out.name}{_IDS}", dir=_find_nearest(out))
    with folder as name:
        try:
            yield Path(name)
        except OSError as error:
            error.filename = error.filename or str(out)  # pyarrow names no file
            raise


def _find_nearest(out: Path) -> Path:
    """Return the nearest folder above `out` that exists."""
    return next(path for path in out.absolute().parents if path.exists())


def check_folders(out: Path, overwrite: bool, *, trains: bool = True) -> tuple[Path, Path]:
    """Return the model folder, and the folder for checkpoints and logs; touch neither."""
    out, folder = name_folders(out)
    if out.exists() and not is_model_folder(out):
        raise ModelFolderError(
            f"{out}: already there, and not a model folder, which --overwrite would replace; choose "
            "another --out"
        )
    existing = [path for path in (out, folder) if path.exists()]
    if existing and not overwrite:
        resume = ", resume with --resume auto" if trains and folder in existing else ""
        raise ModelFolderError(
            f"{' and '.join(map(str, existing))}: already there; choose another --out{resume}, or "
            "replace it with --overwrite"
        )
    return out, folder


def _forget_cache(settings: Settings) -> Settings:
    """Return the settings without what belongs to this machine, not to the model folder."""
    usual = DataSettings().model_dump(include={"cache", "processes"})
    data = settings.data.model_copy(update=usual)
    return settings.model_copy(update={"data": data})


def _describe_start(run: Run, start: ModelFolder) -> Iterator[str]:
    """Yield what a run takes from the model that it starts from, and what it adds."""
    new, old = run.data.tokenizer, start.tokenizer
    added = []
    for side, now, before in (
        ("source", new.source, old.source),
        ("target", new.target, old.target),
    ):
        if names := now.tokens(range(before.vocab_size, now.vocab_size)):
            added.append(f"{len(names):,} {side} ({shorten(' '.join(names), 60)})")
    features = [symbol for symbol in new.features if symbol not in old.features]
    yield (
        f"from {run.settings.training.start_from}: all weights, {old.source_vocab_size:,} source and "
        f"{old.target_vocab_size:,} target symbols; new symbols: {', '.join(added) or 'none'}; "
        f"new features: {shorten(' '.join(features), 60) or 'none'}"
    )


def _warn_of_known(run: Run, other: str, trained: DataSettings) -> Iterator[str]:
    """Yield a warning if held-out pairs may be among those that another model was trained on."""
    data = run.settings.data
    for split in ("valid", "test"):
        files, name = getattr(trained, split), f"{split}_fraction"
        held_out = 0.0 if files else getattr(trained, name)
        if not getattr(data, split) and getattr(data, name) > held_out:
            remedy = f"--{split} {' '.join(files)}" if files else f"--data.{name} {held_out:g}"
            yield (
                f"warning: pairs that {other} was trained on may now be {split} pairs, and scores on "
                f"them measure memory; give {remedy}, as it had"
            )


def _check_settings(settings: Settings, typed: Container[str] = ()) -> None:
    """Raise all errors of settings; with chosen ones among them, `typed` are the names of the others."""
    places = {name: f"--{name}" for name in ("optimization.warmup_steps",) if name in typed}
    faults = find_conflicts(settings, places) + find_logger_errors(settings.training.loggers)
    faults += find_constraint_errors(settings)
    faults += find_side_errors(settings.tokenizer.source, "tokenizer.source.")
    faults += find_side_errors(settings.tokenizer.target, "tokenizer.target.")
    if settings.data.unlabelled and not settings.training.teacher:
        faults.append("--unlabelled: these sources need --teacher, which gives them targets")
    if settings.training.teacher and settings.training.num_nodes > 1:
        faults.append("--teacher: with several machines, write its outputs by predict first")
    if settings.optimization.distillation and not settings.training.teacher:
        faults.append(
            "--optimization.distillation: it needs --teacher, whose probabilities it takes"
        )
    if faults:
        raise SettingsError.gather(faults)


def _assemble(
    record: RunRecord,
    data: RunData,
    out: Path,
    folder: Path,
    context: RunContext,
    point: ResumePoint | None,
) -> Run:
    """Build the model and the trainer."""
    settings, training = record.settings, record.settings.training
    lightning.seed_everything(training.seed, verbose=False)
    texts = Texts(data.tokenizer)
    ranks = context.ranks
    module = TransformerTraining(
        _build(settings, data.tokenizer),
        settings.optimization,
        decoding=settings.decoding,
        max_steps=training.max_steps,
        decoded_fraction=min(1.0, training.valid_rows / data.num_rows["valid"]),
        implementation=training.implementation,
        micro_batch_tokens=plan_micro_batches(training, ranks.num_threads),
        scoring=choose_text_scores(settings, texts),
        guided_ids=data.tokenizer.numbers,
        teachers=tuple(_load_teachers(record, data.tokenizer)),
    )
    context.timer.mark("network")
    if ranks.rank > 0:  # the same weights, but another dropout
        lightning.seed_everything((training.seed + ranks.rank) % 2**32, verbose=False)
    checkpoints = Checkpoints(
        folder / CHECKPOINTS,
        training.checkpoint_every or training.valid_every,
        f"valid_{training.monitor}",
        monitor_mode(training.monitor),
        record=record.model_dump(mode="json"),
        console=context.console,
    )
    trainer = make_trainer(settings, record.precision, folder, texts, checkpoints, context)
    context.timer.mark("trainer")
    return Run(
        settings=settings,
        typed=merge_settings(Settings(), record.typed),
        data=data,
        data_module=PairDataModule(
            data.paths, settings, data=data, weights=record.weights, num_threads=ranks.num_threads
        ),
        module=module,
        trainer=trainer,
        checkpoints=checkpoints,
        out=out,
        folder=folder,
        precision=record.precision,
        context=context,
        resume_point=point,
    )


def _build(settings: Settings, tokenizer: PairTokenizer) -> Transformer:
    """Return a new network."""
    # In float32: weights, gradients, and the two moments of AdamW.
    copies = 4 if find_device(settings.training) == "cpu" else 1
    num_bytes = 4 * copies * count_at_least(settings.model, tokenizer)
    too_large = SettingsError(
        f"model: these sizes need more than {num_bytes:,} bytes of memory, which this machine does not "
        "have; lower model.d_model, model.dim_feedforward or the numbers of layers"
    )
    if num_bytes > find_memory_bytes():
        raise too_large
    try:
        return build_network(settings.model, tokenizer)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise too_large from error
        raise


def _load_teachers(record: RunRecord, tokenizer: PairTokenizer) -> Iterator[Transformer]:
    """Yield the networks of the teacher whose probabilities are learned, if any.

    Raises:
        CheckpointError: They are not those with which the run started.
        SettingsError: They have other tokens than `tokenizer`.
    """
    if not (teacher := record.settings.token_teacher):
        return
    for path, model in zip(list_models(Path(teacher)), read_models(Path(teacher)), strict=True):
        if record.sha256.get(str(path / WEIGHTS)) != sha256(path / WEIGHTS):
            raise CheckpointError(
                f"{path}: not the teacher with which the run started; put that back, or start from "
                "scratch with --overwrite"
            )
        if model.tokenizer.to_dict() != tokenizer.to_dict():
            names, known = (
                {*one.source_names(), *one.target_names()} for one in (tokenizer, model.tokenizer)
            )
            raise SettingsError(
                f"--optimization.distillation: the teacher {path} has other tokens than these pairs; "
                f"it lacks {shorten(' '.join(sorted(names - known)), 60) or 'none'}: leave out rows "
                "that have these, or train a teacher with them, or set distillation 0"
            )
        yield load_network(model.settings.model, model.tokenizer, model.weights)


def _report(run: Run, messages: Sequence[str], precision: str) -> None:
    rows, tokenizer, model = run.data.num_rows, run.data.tokenizer, run.settings.model
    num_parameters = sum(p.numel() for p in run.module.network.parameters())
    for message in (
        f"pairs: {rows['train']:,} for training, {rows['valid']:,} for validation, "
        f"{rows['test']:,} for the test",
        *run.data_module.describe_weights(),
        *messages,
        f"vocabulary: {tokenizer.source_vocab_size:,} source, {tokenizer.target_vocab_size:,} target",
        f"model: {num_parameters:,} parameters (d_model {model.d_model}, {model.nhead} heads, "
        f"{model.num_encoder_layers} + {model.num_decoder_layers} layers)",
        f"precision: {precision}; {run.settings.training.implementation} implementation",
    ):
        run.context.report(message)
