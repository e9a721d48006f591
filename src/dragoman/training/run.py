"""One training run, read from top to bottom: pairs in, model folder out."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from dragoman.engines.pytorch import TorchEngine
from dragoman.errors import DragomanError
from dragoman.evaluation.evaluation import write_evaluation
from dragoman.exporting.ctranslate2 import export_ctranslate2
from dragoman.model.building import copy_weights
from dragoman.predictor import Predictor
from dragoman.settings import Settings
from dragoman.text.bundle import EVALUATION, Bundle, dump_settings, write_bundle
from dragoman.text.model_card import write_model_card
from dragoman.training.callbacks import FirstUpdate
from dragoman.training.folders import lock_folder, make_empty
from dragoman.training.loggers import make_loggers
from dragoman.training.outcome import evaluate_run, gather_metrics, report_run
from dragoman.training.preparing import Run, open_run
from dragoman.training.rehearsal import estimate_time
from dragoman.training.startup import StartClock


def fit(
    pairs: str | Path | Sequence[str | Path],
    out: str | Path,
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
    console: Console | None = None,
    clock: StartClock | None = None,
) -> Predictor:
    """Train a model on `pairs`, write it to the model folder `out`, and return it.

    Beside `out`, the folder `{out}.training` holds checkpoints and logs.

    Args:
        pairs: A file of pairs (TSV, CSV, JSONL, Parquet), or two parallel text files.
        settings: What is not set is chosen by the number and the shape of the pairs.
        overwrite: Replace a model folder that stands at `out`.
        console: Where progress is shown; None: standard error.
        clock: Takes the time to the first update; None: it starts now.

    Raises:
        SettingsError: Settings do not go together.
        DataError: Files or rows of the data are broken; names them.
        ModelFolderError: `out` is in the way, or cannot be written, or another process trains there.
        KeyboardInterrupt: It was stopped; the checkpoints stay.
    """
    started_at = time.monotonic()
    console, clock = console or Console(stderr=True), clock or StartClock()
    with lock_folder(Path(out)):
        with open_run(pairs, Path(out), settings or Settings(), overwrite, console, clock) as run:
            make_empty(run.folder)
            run.trainer.loggers = make_loggers(run.settings.training.loggers, run.folder)
            run.trainer.callbacks.append(FirstUpdate(clock, console))  # type: ignore[attr-defined]
            _train(run)
            engine = TorchEngine([run.module.network])
            predictor = Predictor(engine, run.data.tokenizer, run.settings)
            console.print("scoring")
            counts = run.data.count_source_tokens()
            evaluations = evaluate_run(run, predictor, counts)
            minutes = (time.monotonic() - started_at) / 60
            metrics = gather_metrics(run, evaluations, minutes)
        bundle = Bundle(
            settings=run.settings,
            tokenizer=run.data.tokenizer,
            weights=copy_weights(run.module.network),
            metrics=metrics,
            card=write_model_card(run.out.name, run.settings, metrics),
            calibration=predictor.calibrations[0],
            source_counts=counts,
        )
        write_bundle(run.out, bundle)
        for name, evaluation in evaluations.items():
            write_evaluation(run.out / EVALUATION / name, evaluation)
        if run.settings.training.export == "ctranslate2":
            _export(run.out, bundle, console)
        if run.settings.evaluation.report == "html":
            console.print(
                report_run(run, predictor, evaluations, metrics, settings),
                highlight=False,
                markup=False,
            )
    return predictor


def rehearse(
    pairs: str | Path | Sequence[str | Path],
    out: str | Path,
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
    console: Console | None = None,
    clock: StartClock | None = None,
) -> None:
    """Do all of `fit` up to its first updates; show sizes, the time of each phase, the estimated time.

    Leaves nothing but what the cache keeps of the prepared data.
    """
    console, clock = console or Console(stderr=True), clock or StartClock()
    with open_run(pairs, Path(out), settings or Settings(), overwrite, console, clock) as run:
        console.print(
            f"would be written: {run.out}/ (the model), {run.folder}/ (checkpoints, logs)"
        )
        loader = run.data.train_dataloader()
        estimate = estimate_time(run.module, loader, run.settings.training, run.precision, clock)
        console.print(clock.report(), estimate, sep="\n", highlight=False)
        console.print(dump_settings(run.settings), highlight=False)


def _train(run: Run) -> None:
    """Train, and leave the best weights in the network.

    Raises:
        KeyboardInterrupt: The user stopped it; the checkpoints stay.
    """
    try:
        run.trainer.fit(run.module, datamodule=run.data)
    except SystemExit as stop:  # how Lightning ends on an interrupt
        raise KeyboardInterrupt(f"stopped; the checkpoints are in {run.folder}") from stop
    _take_best_weights(run)


def _take_best_weights(run: Run) -> None:
    """Leave in the network the best weights: the best checkpoint's, or the last, if better.

    The last ones are validated first where the run ended between two validations.
    """
    best = next(
        callback
        for callback in run.trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint) and callback.monitor
    )
    if run.module.validated_step != run.trainer.global_step:
        score = run.trainer.validate(run.module, run.data, verbose=False)[0][run.monitor]
        known = best.best_model_score
        if known is None or (score < known if best.mode == "min" else score > known):
            return
    if best.best_model_path:
        state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
        run.module.load_state_dict(state["state_dict"])


def _export(out: Path, bundle: Bundle, console: Console) -> None:
    """Write the model for CTranslate2 too; the model folder is whole without it."""
    try:
        told = f"exported for CTranslate2: {export_ctranslate2(out, bundle=bundle)}"
    except DragomanError as error:
        told = f"not exported for CTranslate2, PyTorch will predict: {error}"
    console.print(told, highlight=False, soft_wrap=True, markup=False)
