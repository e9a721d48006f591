"""One training run, read from top to bottom: pairs in, model folder out."""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from shlex import quote
from typing import Literal

from rich.console import Console

from dragoman.commands.dry_run import estimate_time
from dragoman.commands.fit_results import check_parity, evaluate_run, gather_metrics, report_run
from dragoman.commands.fit_setup import PairFiles, Run, list_files, open_run, reopen_run
from dragoman.commands.run_folders import lock_folder, make_empty, name_folders, sweep_temporary
from dragoman.configuration import flatten_settings
from dragoman.engines.load import PARITY
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import CheckpointError, ModelFolderError, Stopped
from dragoman.evaluation.evaluation import Evaluation, write_evaluation
from dragoman.model.building import copy_weights
from dragoman.model_folder.folder import (
    EVALUATION,
    ModelFolder,
    dump_settings,
    is_model_folder,
    staged_model_folder,
    sweep_model_folder,
)
from dragoman.model_folder.model_card import write_model_card
from dragoman.predictor import Predictor
from dragoman.settings import Settings
from dragoman.training.callbacks import SAMPLES_FILE, truncate_samples
from dragoman.training.checkpoints import (
    BEST,
    list_checkpoints,
    read_checkpoint,
    sweep_partial,
)
from dragoman.training.graceful_stop import SignalHandler, StopTraining, handle_signals
from dragoman.training.logs import make_loggers
from dragoman.training.memory import explain_out_of_memory, is_out_of_memory
from dragoman.training.resume import CHECKPOINTS, DATA, ResumePoint, find_resume_point
from dragoman.training.run_context import Surroundings
from dragoman.training.startup import StartClock

Resume = Literal["no", "auto", "must"]


def fit(
    pairs: PairFiles,
    out: str | Path,
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
    resume: Resume = "no",
    console: Console | None = None,
    clock: StartClock | None = None,
) -> Predictor:
    """Train a model on `pairs`, write it to the model folder `out`, and return it.

    Beside `out`, the folder `{out}.training` holds checkpoints, logs, and the data of the run, with
    which it can go on as if it had not been interrupted: on a CPU with as many threads, bit by bit.

    Args:
        pairs: A file of pairs (TSV, CSV, JSONL, Parquet), or two parallel text files. Where a run
            goes on, they may be left out, as ().
        settings: What is not set is chosen by the number and the shape of the pairs. Where a run
            goes on: what is to be changed about it, of what may be (`resumption.MAY_CHANGE`).
        overwrite: Replace a model folder that stands at `out`.
        resume: must: go on with the run that was interrupted; auto: if there is one, else begin.
        console: Where progress is shown; None: standard error.
        clock: Takes the time to the first step; None: it starts now.

    Raises:
        SettingsError: Settings do not go together, or may not change where a run goes on.
        DataError: Files or rows of the data are broken; names them.
        ModelFolderError: `out` is in the way, or cannot be written, or another process trains there.
        CheckpointError: There is nothing to go on with, or `pairs` are others.
        TrainingError: Its numbers are broken, or the memory is too small; checkpoints stay.
        Stopped: By SIGINT, SIGTERM or SIGHUP, with a checkpoint.
    """
    started_at = time.monotonic()
    console, settings = console or Console(stderr=True), settings or Settings()
    out, folder = name_folders(Path(out))
    with lock_folder(out), handle_signals(console) as watch, _telling_how_to_go_on(out, folder):
        around = Surroundings(console=console, clock=clock or StartClock(), watch=watch)
        sweep_temporary(out)
        sweep_model_folder(out)
        resumption = _find_resume_point(folder, resume, around)
        opened: AbstractContextManager[Run]
        if resumption is not None:
            opened = reopen_run(pairs, out, settings, resumption, around)
        elif list_files(pairs):
            if resume == "auto" and not out.exists() and (folder / DATA).is_dir():
                overwrite = True  # of a run that was stopped before its first checkpoint
            opened = open_run(pairs, out, settings, overwrite, around)
        else:
            raise CheckpointError(f"{folder}: no run to go on with; give PAIRS to begin one")
        with opened as run:
            if _is_written(run):
                around.tell(f"nothing to do: {out} is the model of this run")
                return Predictor.load([out])
            num_steps = _train(run)
            return _finish(run, num_steps, started_at)


def rehearse(
    pairs: PairFiles,
    out: str | Path,
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
    console: Console | None = None,
    clock: StartClock | None = None,
) -> None:
    """Do all of `fit` up to its first steps; show sizes, the time of each phase, the estimated time.

    Leaves nothing but what the cache keeps of the prepared data.
    """
    console, clock = console or Console(stderr=True), clock or StartClock()
    around = Surroundings(console=console, clock=clock, watch=SignalHandler(console))
    with open_run(pairs, Path(out), settings or Settings(), overwrite, around) as run:
        console.print(
            f"would be written: {run.out}/ (the model), {run.folder}/ (checkpoints, logs)"
        )
        loader = run.data_module.train_dataloader()
        estimate = estimate_time(run.module, loader, run.settings.training, run.precision, clock)
        console.print(clock.report(), estimate, sep="\n", highlight=False)
        console.print(dump_settings(run.settings), highlight=False)


def _find_resume_point(folder: Path, resume: Resume, around: Surroundings) -> ResumePoint | None:
    """Return where the run in `folder` goes on; None where it is to begin.

    Raises:
        CheckpointError: It must go on, and there is nothing to go on from.
    """
    if resume == "no":
        return None
    faults: list[str] = []
    found = find_resume_point(folder, faults)
    for fault in faults:
        around.tell(f"warning: {fault}")
    if found is None and (resume == "must" or faults):
        raise CheckpointError(
            f"{folder}: no whole checkpoint to go on from; begin anew with --overwrite"
        )
    return found


@contextmanager
def _telling_how_to_go_on(out: Path, folder: Path) -> Iterator[None]:
    """Add to what a stopped run says how it goes on."""
    try:
        yield
    except Stopped as stop:
        if list_checkpoints(folder / CHECKPOINTS):
            stop.args = (f"{stop}; to go on: dragoman fit --out {quote(str(out))} --resume auto",)
        raise


def _is_written(run: Run) -> bool:
    """Return whether the model folder is what this run has ended with."""
    resumption = run.resumption
    if resumption is None or not resumption.is_complete(run.settings):
        return False
    if run.settings != resumption.record.settings or not is_model_folder(run.out):
        return False
    return ModelFolder.read(run.out).metrics.get("num_steps") == resumption.step


def _claim(run: Run) -> None:
    """Make the folder of the run, empty but for its data.

    Raises:
        ModelFolderError: It cannot be written.
    """
    make_empty(run.folder)
    try:
        run.data.move(run.folder / DATA)
    except OSError as error:
        raise ModelFolderError(f"{run.folder}: cannot be written: {error.strerror}") from error


def _train(run: Run) -> int:
    """Train, leave the best weights in the network, and return the updates that were made.

    Raises:
        TrainingError: Its numbers are broken, or the memory is too small.
        Stopped: By a signal; a checkpoint is written, if there was an update.
    """
    resumption = run.resumption
    if resumption is None:
        _claim(run)
    step = resumption.step if resumption else 0
    if resumption is not None:
        sweep_partial(run.folder)
        truncate_samples(run.folder / SAMPLES_FILE, resumption.validated_step)
    run.trainer.loggers = make_loggers(run.settings.training.loggers, run.folder, step)
    for logger in run.trainer.loggers[1:]:  # the first writes the CSV file
        logger.log_hyperparams(flatten_settings(run.settings))
    try:
        run.trainer.fit(
            run.module,
            datamodule=run.data_module,
            ckpt_path=resumption.path if resumption else None,
            weights_only=True,
        )
    except StopTraining as stop:
        received = run.around.watch.received
        assert received is not None
        told = f"{received.name}: stopped after update {run.trainer.global_step:,}"
        raise Stopped(told, received) from stop
    except SystemExit as end:  # what Lightning makes of an interrupt, which is of the watch
        if isinstance(end.__context__, Stopped):
            raise end.__context__ from None
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise explain_out_of_memory(error, run.module.batch_at_hand, run.settings) from error
        raise
    if resumption is not None and resumption.is_complete(run.settings):
        # There was nothing to train: nobody has put the average in the place of the weights.
        run.module.load_state_dict(resumption.checkpoint["state_dict"])
    _take_best_weights(run)
    return run.trainer.global_step


def _take_best_weights(run: Run) -> None:
    """Leave in the network the best weights: the best checkpoint's, or the last, if better.

    The last ones are validated first where the run ended between two validations.
    """
    best = run.folder / CHECKPOINTS / BEST
    if run.module.validated_step != run.trainer.global_step:
        score = run.trainer.validate(run.module, run.data_module, verbose=False)[0][run.monitor]
        if run.checkpoints.is_better(score):
            return
    if not best.is_file():
        return
    try:
        run.module.load_state_dict(read_checkpoint(best)["state_dict"])
    except CheckpointError as error:
        run.around.tell(f"warning: the last weights are kept, not the best: {error}")


def _finish(run: Run, num_steps: int, started_at: float) -> Predictor:
    """Score the trained model, and write its folder."""
    predictor = Predictor(TorchEngine([run.module.network]), run.data.tokenizer, run.settings)
    run.around.tell("scoring")
    counts = run.data.count_source_tokens()
    evaluations = evaluate_run(run, predictor, counts)
    minutes = (time.monotonic() - started_at) / 60
    metrics = gather_metrics(run, evaluations, num_steps, minutes)
    model_folder = ModelFolder(
        settings=run.settings,
        tokenizer=run.data.tokenizer,
        weights=copy_weights(run.module.network),
        metrics=metrics,
        card=write_model_card(run.out.name, run.settings, metrics),
        calibration=predictor.calibrations[0],
        source_counts=counts,
    )
    model_folder.metrics[PARITY], message = check_parity(model_folder)
    run.around.tell(message)
    try:
        told = _write_all(run, model_folder, predictor, evaluations)
    except ModelFolderError as error:
        raise ModelFolderError(
            f"{error}; the training is kept: make room, then go on: dragoman fit --out "
            f"{quote(str(run.out))} --resume auto"
        ) from error
    for line in told:
        run.around.tell(line)
    return predictor


def _write_all(
    run: Run, model_folder: ModelFolder, predictor: Predictor, evaluations: Mapping[str, Evaluation]
) -> list[str]:
    """Write the model folder, all of which comes into its place at one stroke; return what is told.

    Raises:
        ModelFolderError: It cannot be written; what stood there is as it was.
    """
    told = []
    with staged_model_folder(run.out) as folder:
        model_folder.fill(folder)
        for name, evaluation in evaluations.items():
            write_evaluation(folder / EVALUATION / name, evaluation)
        if run.settings.evaluation.report == "html":
            told.append(report_run(run, folder, predictor, evaluations, model_folder.metrics))
    return told
