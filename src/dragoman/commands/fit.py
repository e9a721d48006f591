"""One training run, read from top to bottom: read the pairs, choose settings, train, score, write."""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote

from lightning.pytorch.loggers import Logger
from rich.console import Console

from dragoman.commands.fit_decoding import choose_decoding, choose_memory
from dragoman.commands.fit_results import (
    check_parity,
    evaluate_run,
    gather_metrics,
    list_samples,
    report_run,
    score_with_memory,
)
from dragoman.commands.fit_seeds import fit_seeds
from dragoman.commands.fit_setup import (
    Resume,
    Run,
    follow_run,
    lock_folder,
    name_folders,
    read_record_of_seed,
    reopen_run,
    start_run,
    sweep_folders,
)
from dragoman.commands.fit_teacher import compare_with_teacher
from dragoman.configuration import SettingsLike, as_settings, flatten_settings, merge_settings
from dragoman.engines.load import PARITY
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import CheckpointError, ModelFolderError, Stopped, is_out_of_memory
from dragoman.evaluation.evaluation import write_evaluation
from dragoman.evaluation.output_rows import group_references
from dragoman.model.building import copy_weights
from dragoman.model_folder.folder import (
    EVALUATION,
    ModelFolder,
    SeedIndex,
    is_model_folder,
    staged_model_folder,
    write_model_card,
)
from dragoman.predictor import Predictor
from dragoman.reading.in_memory import Pairs, as_files
from dragoman.settings import Settings
from dragoman.storage import explain_failed_write
from dragoman.training.callbacks import SAMPLES_FILE, truncate_samples
from dragoman.training.checkpoints import BEST, list_checkpoints, read_checkpoint, sweep_partial
from dragoman.training.device import explain_out_of_memory, find_device
from dragoman.training.graceful_stop import SignalHandler, StopTraining, handle_signals
from dragoman.training.logs import make_loggers
from dragoman.training.ranks import RESUME_OPTIONS, Ranks, join_ranks, requeue_job
from dragoman.training.resume import (
    CHECKPOINTS,
    DATA,
    ResumePoint,
    find_resume_point,
    merge_for_resuming,
)
from dragoman.training.run_context import RunContext, StartTimer, TextConsole
from dragoman.training.trainer import measure_pace


def fit(
    pairs: Pairs,
    out: str | Path,
    settings: SettingsLike = None,
    *,
    seeds: int | None = None,
    teacher: str | Path | None = None,
    like: Path | None = None,
    overwrite: bool = False,
    resume: Resume = "no",
    loggers: Sequence[Logger] = (),
    console: Console | None = None,
    timer: StartTimer | None = None,
) -> Predictor:
    """Train a model on `pairs`, write it to the model folder `out`, and return it.

    The folder `{out}.training` holds checkpoints, logs and the data of the run. With them an
    interrupted run can be resumed; on CPU, with the same number of threads, bit for bit.

    With `training.devices`, this process starts others that train along; under torchrun or srun, all
    of them call this function. The first writes and returns the model.

    Args:
        pairs: A file of pairs (TSV, CSV, JSONL, Parquet), two parallel text files, rows (source,
            target), or a table such as a DataFrame; (): those of data.train, or of the run to resume.
        settings: Those that are not set are chosen by the number and the lengths of the pairs. To
            resume: those to change, among the ones that may (`resume.MAY_CHANGE`).
        seeds: Train so many models, with the seeds from training.seed on, one after the other; `out`
            becomes an ensemble folder. To resume: None, or as many as the run was started with.
        teacher: A model folder whose outputs are trained on, too: short for training.teacher.
        like: For one of these seeds: folder of the run whose data and settings it takes, not `pairs`.
        overwrite: Replace a model folder at `out`.
        resume: must: resume the interrupted run; auto: resume if there is one, else start.
        loggers: Lightning loggers, used together with those of `training.loggers`.
        console: Where progress is shown; None: standard error.
        timer: Measures the time to the first step; None: it starts now.

    Raises:
        SettingsError: Settings contradict each other, or may not change when a run is resumed.
        DataError: Files or rows of the data are invalid; names them.
        ModelFolderError: `out` exists, or cannot be written, or another process trains there.
        CheckpointError: There is nothing to resume, or `pairs` have changed.
        TrainingError: The loss is not finite, or the memory is too small; checkpoints stay.
        Stopped: By SIGINT, SIGTERM or SIGHUP, with a checkpoint.
        SystemExit: On all ranks but the first, when the training has ended: the first continues alone.
    """
    if teacher is not None:
        settings = merge_settings(
            as_settings(settings), {"training.teacher": str(teacher)}, overrule=True
        )
    if seeds is not None or (resume != "no" and SeedIndex.read(name_folders(Path(out))[1])):
        return fit_seeds(
            partial(fit, loggers=loggers), pairs, Path(out), as_settings(settings), seeds,
            overwrite=overwrite, resume=resume, console=console, timer=timer,
        )  # fmt: skip
    started_s = time.monotonic()
    console, settings = console or TextConsole(stderr=True), as_settings(settings)
    out, folder = name_folders(Path(out))
    with (
        as_files(pairs) as files,
        join_ranks(settings, console) as ranks,
        lock_folder(out) if ranks.rank == 0 else nullcontext(),
        handle_signals(ranks.console) as signals,
        _explain_resume(out, folder, ranks),
    ):
        context = RunContext(
            console=ranks.console, timer=timer or StartTimer(), signals=signals, ranks=ranks
        )
        if ranks.rank > 0:
            with follow_run(files, out, settings, context) as along:
                if along is not None:
                    train_run(along)
                    validate_last(along)
            raise SystemExit(0)
        sweep_folders(out)
        point = _find_resume_point(folder, resume, context)
        record = point.record if point else None
        if point is None and like is not None:
            record = read_record_of_seed(like, settings.training.seed)
        started = merge_for_resuming(record, settings) if record else settings
        ranks.start(started.training, out)
        ranks.meet(point.path.absolute() if point else None)
        if record is not None:
            prepared = reopen_run(record, files, out, settings, context, point=point, like=like)
        elif files or settings.data.train:
            # The folder of a run that was stopped before its first checkpoint.
            restarts = resume == "auto" and not out.exists() and (folder / DATA).is_dir()
            prepared = start_run(files, out, settings, overwrite or restarts, context)
        else:
            raise CheckpointError(f"{folder}: no run to resume; give PAIRS to start one")
        with prepared as run:
            if (
                point is not None
                and point.is_complete(run.settings)
                and run.settings == point.record.settings
                and is_model_folder(out)
                and ModelFolder.read(out).metrics.get("num_steps") == point.step
            ):
                ranks.exchange(None)
                context.report(f"already complete: {out}")
                return Predictor.load([out])
            with explain_memory(run):
                train_run(run, loggers)
                _load_best_weights(run)
                ranks.leave()
                return _score_and_write(run, started_s)


def dry_run(
    pairs: Pairs,
    out: str | Path,
    settings: SettingsLike = None,
    *,
    seeds: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    timer: StartTimer | None = None,
) -> Settings:
    """Do what `fit` does up to its first steps; print sizes and the estimated time.

    Returns the settings that `fit` would use. Writes nothing, except prepared data into the cache.
    """
    console, timer = console or TextConsole(stderr=True), timer or StartTimer()
    context = RunContext(
        console=console, timer=timer, signals=SignalHandler(console), ranks=Ranks(console)
    )
    chosen = as_settings(settings)
    with (
        as_files(pairs) as files,
        start_run(files, Path(out), chosen, overwrite, context, is_dry=True) as run,
    ):
        context.report(f"would write: {run.out}/ (the model), {run.folder}/ (checkpoints, logs)")
        estimate = _estimate_time(run) + (f"; {seeds} times as long for all seeds" if seeds else "")
        context.report(f"{timer.report()}\n{estimate}")
        return run.settings


def _find_resume_point(folder: Path, resume: Resume, context: RunContext) -> ResumePoint | None:
    """Return where to resume the run in `folder`; None: it is to start."""
    if resume == "no":
        return None
    damaged: list[str] = []
    found = find_resume_point(folder, damaged)
    for message in damaged:
        context.report(f"warning: {message}")
    if found is None and (resume == "must" or damaged):
        if folder.exists():
            reason = "no usable checkpoint; start from scratch with --overwrite"
        else:
            reason = "there is no run to resume; leave out --resume, or correct --out"
        raise CheckpointError(f"{folder}: {reason}")
    return found


@contextmanager
def _explain_resume(out: Path, folder: Path, ranks: Ranks) -> Iterator[None]:
    """Add to the message of a stopped run how to resume it; put its job back into SLURM's queue."""
    try:
        yield
    except (Stopped, RuntimeError) as error:
        stop = error if isinstance(error, Stopped) else ranks.explain_loss(error)
        if stop is None:
            raise
        if list_checkpoints(folder / CHECKPOINTS):
            stop.args = (f"{stop}; to resume: {_name_command(out)}",)
        if isinstance(stop, Stopped) and stop.is_requeued and ranks.rank == 0:
            stop.args = (f"{stop}; {requeue_job()}",)
        raise stop from error


def _name_command(out: Path) -> str:
    """Return the command that resumes; if `--on ray` has started this process, by it again."""
    return f"dragoman fit --out {quote(str(out))} --resume auto{os.environ.get(RESUME_OPTIONS, '')}"


def train_run(run: Run, loggers: Sequence[Logger] = ()) -> None:
    """Train to the end."""
    point, trainer, settings = run.resume_point, run.trainer, run.settings
    ranks = run.context.ranks
    if ranks.rank == 0:
        ranks.exchange(run.checkpoints.record)  # the last thing that the others wait for
        if point is None:
            with explain_failed_write(run.folder, ModelFolderError):
                if run.folder.exists():
                    shutil.rmtree(run.folder)
                run.data.move(run.folder / DATA)
        else:
            sweep_partial(run.folder)
            truncate_samples(run.folder / SAMPLES_FILE, point.validated_step)
        done = (point.step, point.checkpoint.get("unlogged")) if point else ()
        made = make_loggers(settings.training.loggers, run.folder, *done)
        trainer.loggers = [*made, *loggers]
        for logger in trainer.loggers[1:]:  # the first writes the CSV file
            logger.log_hyperparams(flatten_settings(settings))
    ranks.errors = "own"
    try:
        trainer.fit(
            run.module,
            datamodule=run.data_module,
            ckpt_path=point.path if point else None,
            weights_only=True,
        )
    except StopTraining as stop:
        received = run.context.signals.received
        assert received is not None
        message = f"{received.name}: stopped after step {trainer.global_step:,}"
        raise Stopped(message, received) from stop
    except SystemExit as end:  # Lightning makes it of an interrupt, which the signal handler raised
        if isinstance(end.__context__, Stopped):
            raise end.__context__ from None
        raise
    early, step = trainer.early_stopping_callback, trainer.global_step
    max_steps = settings.training.max_steps
    if early is not None and step < max_steps and ranks.rank == 0:
        why = "the time limit (training.max_minutes)"
        if early.wait_count >= early.patience:
            why = f"no better score (training.patience {early.patience})"
        run.context.report(f"training ends after step {step:,} of {max_steps:,}: {why}")


@contextmanager
def explain_memory(run: Run) -> Iterator[None]:
    """Say which batch did not fit into the memory, and what to lower."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        explained = explain_out_of_memory(error, run.module.current_batch, run.settings)
        if list_checkpoints(run.folder / CHECKPOINTS):
            explained.args = (f"{explained}; --resume auto continues from the last checkpoint",)
        raise explained from error


def _load_best_weights(run: Run) -> None:
    """Load the weights of the best checkpoint, unless the last ones are better.

    If the run ended between two validations, the last ones are validated first.
    """
    point, best = run.resume_point, run.folder / CHECKPOINTS / BEST
    if point is not None and point.is_complete(run.settings):
        # No step was left to train, so Lightning has not swapped the average in.
        run.module.load_state_dict(point.checkpoint["state_dict"])
    scores = validate_last(run)
    is_last_best = scores and run.checkpoints.is_better(scores[run.checkpoints.monitor])
    if is_last_best or not best.is_file():
        return
    try:
        run.module.load_state_dict(read_checkpoint(best)["state_dict"])
    except CheckpointError as error:
        run.context.report(f"warning: the last weights are kept, not the best: {error}")


def validate_last(run: Run) -> Mapping[str, float]:
    """Return the scores of the last weights, on all ranks; empty: they have been validated."""
    if run.module.validated_step == run.trainer.global_step:
        return {}
    return run.trainer.validate(run.module, run.data_module, verbose=False)[0]


def _score_and_write(run: Run, started_s: float) -> Predictor:
    """Score the trained model on held-out pairs, and write the model folder atomically."""
    run.module.current_batch = "the scoring of held-out pairs"
    engine = TorchEngine([run.module.network], find_device(run.settings.training))
    counts = run.data.count_source_tokens()
    rows = group_references(run.data.read_split("valid"), run.settings)
    model_folder = ModelFolder(
        settings=run.settings,
        tokenizer=run.data.tokenizer,
        weights=copy_weights(run.module.network),
        metrics={"samples": list_samples(rows, run.settings)},
        card="",
        source_counts=counts,
    )
    with run.context.working("comparing CTranslate2 with PyTorch"):
        fast, parity, message = check_parity(model_folder, engine)
    run.context.report(message)
    with run.context.working("choosing the decoding"):
        choice = choose_decoding(run, engine, fast, model_folder, rows)
    reasons, predictor = [*choice.reasons], choice.predictor
    for message in reasons:
        run.context.report(message)
    predictor.folders = (run.out.absolute(),)
    predictor.options = {"engine": "torch"} if predictor.engine is engine else {"device": "cpu"}
    with run.context.working("scoring"):
        evaluations = evaluate_run(run.data, predictor, counts)
    with run.context.working("comparing memory with the model"):
        # After the scores, which are those of the model alone.
        predictor.memory, reason, memory_trial = choose_memory(run, predictor, rows)
    if reason:
        reasons.append(reason)
        run.context.report(reason)
    with_memory = score_with_memory(run.data, predictor, counts, evaluations)
    for name, one in with_memory.items():
        run.context.report(
            f"with memory, {name}: exact match {one.scores.exact_match:.2f} (the model alone: "
            f"{evaluations[name].scores.exact_match:.2f})"
        )
    spent_s = run.module.earlier_s + time.monotonic() - started_s
    metrics = gather_metrics(run, evaluations, spent_s / 60)
    if run.settings.training.teacher:
        with run.context.working("scoring the teacher"):
            found, lines = compare_with_teacher(run.settings, run.data, evaluations["valid"])
        metrics |= {"teacher": found} if found else {}
        for message in lines:
            run.context.report(message)
    metrics["decoding"] = {"reasons": reasons, **choice.trial}
    if memory_trial:
        scores = {name: one.scores.to_dict() for name, one in with_memory.items()}
        metrics["memory"] = {**memory_trial, "scores": scores}
    metrics[PARITY] = {**parity, "quantization": choice.quantization}
    model_folder = replace(
        model_folder,
        settings=predictor.settings,
        metrics=metrics,
        card=write_model_card(run.out.name, predictor.settings, metrics),
        calibration=predictor.calibrations[0],
        memory=predictor.memory,
    )
    try:
        with (
            run.context.working("writing the model folder"),
            staged_model_folder(run.out) as folder,
        ):
            model_folder.fill(folder)
            for name, evaluation in evaluations.items():
                write_evaluation(folder / EVALUATION / name, evaluation)
            report = ""
            if run.settings.evaluation.report == "html":
                report = report_run(run, folder, predictor, evaluations, model_folder.metrics)
    except ModelFolderError as error:
        raise ModelFolderError(
            f"{error}; the training is kept: make room, then resume: {_name_command(run.out)}"
        ) from error
    if report:
        run.context.report(report)
    return predictor


def _estimate_time(run: Run) -> str:
    """Train for a few steps, and return how long all would take."""
    training, num_batches = run.settings.training, len(run.data_module.train_dataloader())
    pace = run.pace or measure_pace(
        *(run.module, run.data_module, run.settings, run.precision),
        ranks=run.context.ranks,
        timer=run.context.timer,
    )
    training_s = training.max_steps * (pace.step_s + pace.validation_s / training.valid_every)
    limit = f"; stops after {training.max_minutes:g} minutes" if training.max_minutes else ""
    where = "" if training.devices == 1 else " on one device"
    return (
        f"{num_batches:,} batches an epoch of at most {training.batch_tokens:,} tokens; "
        f"{training.max_steps:,} steps are {training.max_steps * training.accumulate / num_batches:,.1f} epochs\n"
        f"estimated time{where}: {(training_s + pace.scoring_s) / 60:,.1f} minutes, at {pace.step_s:.3f} s a "
        f"step, {pace.validation_s:.1f} s a validation and {pace.scoring_s:.1f} s for the scores{limit}"
    )
