"""One training run, read from top to bottom: pairs in, model folder out."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from dragoman.configuration import find_conflicts
from dragoman.engines.pytorch import TorchEngine
from dragoman.errors import DragomanError, SettingsError
from dragoman.exporting.ctranslate2 import export_ctranslate2
from dragoman.model.building import build_network, copy_weights
from dragoman.predictor import Predictor
from dragoman.settings import DataSettings, Settings
from dragoman.text.bundle import Bundle, dump_settings, write_bundle
from dragoman.text.model_card import write_model_card
from dragoman.text.tokenizer import find_side_faults
from dragoman.training.callbacks import FirstUpdate, hush_lightning
from dragoman.training.datamodule import PairDataModule
from dragoman.training.folders import claim_folders, make_empty, temporary_folder
from dragoman.training.module import TransformerTraining
from dragoman.training.precision import (
    choose_precision,
    find_device,
    name_device,
    plan_parts,
    quick_float32,
)
from dragoman.training.rehearsal import estimate_time
from dragoman.training.startup import StartClock
from dragoman.training.trainer import make_trainer

_NUM_SAMPLES = 64  # held-out rows kept with the model: exports are checked on them


@dataclass(frozen=True, kw_only=True)
class _Run:
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
        return f"valid_{self.settings.training.monitor}"


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
        ModelFolderError: `out` is in the way, or cannot be written.
        KeyboardInterrupt: It was stopped; the checkpoints stay.
    """
    started_at = time.monotonic()
    console, clock = console or Console(stderr=True), clock or StartClock()
    with _open_run(pairs, Path(out), settings or Settings(), overwrite, console, clock) as run:
        make_empty(run.folder)
        run.trainer.callbacks.append(FirstUpdate(clock, console))  # type: ignore[attr-defined]
        _train(run)
        engine = TorchEngine([run.module.network])
        predictor = Predictor(engine, run.data.tokenizer, run.settings)
        console.print("scoring")
        metrics = _score(run, predictor, minutes=(time.monotonic() - started_at) / 60)
    bundle = Bundle(
        settings=run.settings,
        tokenizer=run.data.tokenizer,
        weights=copy_weights(run.module.network),
        metrics=metrics,
        card=write_model_card(run.out.name, run.settings, metrics),
    )
    write_bundle(run.out, bundle)
    if run.settings.training.export == "ctranslate2":
        _export(run.out, bundle, console)
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
    with _open_run(pairs, Path(out), settings or Settings(), overwrite, console, clock) as run:
        console.print(
            f"would be written: {run.out}/ (the model), {run.folder}/ (checkpoints, logs)"
        )
        loader = run.data.train_dataloader()
        estimate = estimate_time(run.module, loader, run.settings.training, run.precision, clock)
        console.print(clock.report(), estimate, sep="\n", highlight=False)
        console.print(dump_settings(run.settings), highlight=False)


@contextmanager
def _open_run(
    pairs: str | Path | Sequence[str | Path],
    out: Path,
    settings: Settings,
    overwrite: bool,
    console: Console,
    clock: StartClock,
) -> Iterator[_Run]:
    """Give a run that is ready to train; nothing is left of it but what the caller writes."""
    _check_settings(settings)
    out, folder = claim_folders(out, overwrite)
    with temporary_folder(out) as ids, quick_float32():
        yield _prepare(PairDataModule(pairs, settings, ids, clock), out, folder, console, clock)


def _check_settings(settings: Settings) -> None:
    faults = find_conflicts(settings)
    faults += find_side_faults(settings.tokenizer.source, "tokenizer.source.")
    faults += find_side_faults(settings.tokenizer.target, "tokenizer.target.")
    if faults:
        raise SettingsError.gather(faults)


def _prepare(
    data: PairDataModule, out: Path, folder: Path, console: Console, clock: StartClock
) -> _Run:
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
    module = TransformerTraining(
        build_network(settings.model, data.tokenizer),
        settings.optimization,
        decoding=settings.decoding,
        max_steps=settings.training.max_steps,
        decoded_fraction=min(1.0, settings.training.valid_rows / data.num_rows["valid"]),
        path=settings.training.path,
        part_tokens=plan_parts(settings.training),
    )
    clock.mark("network")
    device_type = find_device(settings.training)
    precision, why = choose_precision(settings.training, device_type)
    run = _Run(
        settings=settings,
        data=data,
        module=module,
        trainer=make_trainer(settings, precision, folder, console),
        out=out,
        folder=folder,
        precision=precision,
    )
    clock.mark("trainer")
    how = f"{precision} on {name_device(device_type)}: {why}; path {settings.training.path}"
    _report(run, how, console)
    return run


def _report(run: _Run, precision: str, console: Console) -> None:
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


def _train(run: _Run) -> None:
    """Train, and leave the best weights in the network.

    Raises:
        KeyboardInterrupt: The user stopped it; the checkpoints stay.
    """
    try:
        run.trainer.fit(run.module, datamodule=run.data)
    except SystemExit as stop:  # how Lightning ends on an interrupt
        raise KeyboardInterrupt(f"stopped; the checkpoints are in {run.folder}") from stop
    _take_best_weights(run)


def _take_best_weights(run: _Run) -> None:
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


def _score(run: _Run, predictor: Predictor, minutes: float) -> dict[str, Any]:
    """Return the content of metrics.json: scores of what the model writes, sizes, data, samples."""
    data, rows = run.data, run.data.num_rows
    metrics: dict[str, Any] = {
        "valid": predictor.evaluate(data.read_split("valid")).to_dict(),
        "data": {"files": [str(path) for path in data.paths], "pairs": dict(rows)},
        "num_parameters": sum(p.numel() for p in run.module.network.parameters()),
        "source_vocab_size": data.tokenizer.source_vocab_size,
        "target_vocab_size": data.tokenizer.target_vocab_size,
        "num_steps": run.trainer.global_step,
        "minutes": round(minutes, 2),
        "precision": run.precision,
        "samples": _sample(run, predictor),
    }
    if rows["test"]:
        metrics["test"] = predictor.evaluate(data.read_split("test")).to_dict()
    return metrics


def _sample(run: _Run, predictor: Predictor) -> list[dict[str, Any]]:
    """Return the first validation pairs with what the model makes of them."""
    num_columns = len(run.settings.data.features)
    pairs = list(islice(run.data.read_split("valid"), _NUM_SAMPLES))
    sources = [" ".join((*pair.features[num_columns:], pair.source)) for pair in pairs]
    features = [[f.partition("=")[2] for f in pair.features[:num_columns]] for pair in pairs]
    predictions = predictor.predict(sources, features if num_columns else None)
    return [
        {"features": values, "source": source, "reference": pair.target, "prediction": prediction}
        for values, source, pair, prediction in zip(
            features, sources, pairs, predictions, strict=True
        )
    ]
