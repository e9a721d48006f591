"""One training run, read from top to bottom: pairs in, model folder out."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from dragoman.configuration import find_conflicts
from dragoman.errors import ModelFolderError, SettingsError
from dragoman.model.building import build_network, copy_weights
from dragoman.predictor import Predictor
from dragoman.settings import Settings, TrainingSettings
from dragoman.text.bundle import Bundle, dump_settings, write_bundle
from dragoman.text.model_card import write_model_card
from dragoman.text.pairs import Source
from dragoman.text.tokenizer import find_side_faults
from dragoman.training.averaging import average_weights
from dragoman.training.callbacks import ProgressBar, hush_lightning
from dragoman.training.datamodule import PairDataModule
from dragoman.training.module import TransformerTraining
from dragoman.training.precision import choose_precision

_NUM_SAMPLES = 5
_REHEARSED_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What a run is made of, once the data are read."""

    settings: Settings
    data: PairDataModule
    module: TransformerTraining
    trainer: lightning.Trainer
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
) -> Predictor:
    """Train a model on `pairs`, write it to the model folder `out`, and return it.

    Beside `out`, the folder `{out}.training` holds checkpoints and logs.

    Args:
        pairs: A file of pairs (TSV, CSV, JSONL, Parquet), or two parallel text files.
        settings: What is not set is chosen by the number and the shape of the pairs.
        overwrite: Replace a model folder that stands at `out`.
        console: Where progress is shown; None: standard error.

    Raises:
        SettingsError: Settings do not go together.
        DataError: Files or rows of the data are broken; names them.
        ModelFolderError: `out` is in the way, or cannot be written.
    """
    started_at = time.monotonic()
    console = console or Console(stderr=True)
    settings = settings or Settings()
    _check_settings(settings)
    out = Path(out)
    folder = _claim_folders(out, overwrite)
    try:
        run = _prepare(pairs, settings, folder, console)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # nothing has been trained yet
        raise
    run.trainer.fit(run.module, datamodule=run.data)
    _take_best_weights(run)
    predictor = Predictor(run.module.network, run.data.tokenizer, run.settings)
    console.print("scoring")
    metrics = _score(run, predictor, minutes=(time.monotonic() - started_at) / 60)
    write_bundle(
        out,
        Bundle(
            settings=run.settings,
            tokenizer=run.data.tokenizer,
            weights=copy_weights(run.module.network),
            metrics=metrics,
            card=write_model_card(out.name, run.settings, metrics),
        ),
    )
    shutil.rmtree(folder / "ids")
    return predictor


def rehearse(
    pairs: str | Path | Sequence[str | Path],
    out: str | Path,
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
    console: Console | None = None,
) -> None:
    """Do all of `fit` up to its first update, show sizes and the estimated time; leave nothing."""
    console = console or Console(stderr=True)
    settings = settings or Settings()
    _check_settings(settings)
    out = Path(out)
    folder = _claim_folders(out, overwrite)
    try:
        run = _prepare(pairs, settings, folder, console)
        console.print(f"would be written: {out}/ (the model), {folder}/ (checkpoints, logs)")
        console.print(_estimate(run))
        console.print(dump_settings(run.settings), highlight=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_settings(settings: Settings) -> None:
    faults = find_conflicts(settings)
    faults += find_side_faults(settings.tokenizer.source, "tokenizer.source.")
    faults += find_side_faults(settings.tokenizer.target, "tokenizer.target.")
    if faults:
        raise SettingsError.gather(faults)


def _claim_folders(out: Path, overwrite: bool) -> Path:
    """Return the new, empty folder for checkpoints and logs, beside `out`."""
    folder = out.with_name(f"{out.name}.training")
    in_the_way = [path for path in (out, folder) if path.exists()]
    if in_the_way and not overwrite:
        named = " and ".join(str(path) for path in in_the_way)
        raise ModelFolderError(
            f"{named}: already there; choose another --out, or replace it with --overwrite"
        )
    try:
        if folder.exists():
            shutil.rmtree(folder)
        (folder / "ids").mkdir(parents=True)
    except OSError as error:
        raise ModelFolderError(f"{folder}: cannot be written: {error.strerror}") from error
    return folder


def _prepare(
    pairs: str | Path | Sequence[str | Path], settings: Settings, folder: Path, console: Console
) -> _Run:
    """Read the data, build the model and the trainer, and say what was chosen."""
    hush_lightning()
    console.print("reading pairs")
    data = PairDataModule(pairs, settings, folder / "ids")
    data.prepare_data()
    settings = data.settings.model_copy(update={"version": version("dragoman")})
    _check_settings(settings)
    data.setup("fit")

    lightning.seed_everything(settings.training.seed, verbose=False)
    module = TransformerTraining(
        build_network(settings.model, data.tokenizer),
        settings.optimization,
        decoding=settings.decoding,
        max_steps=settings.training.max_steps,
        decoded_rows=settings.training.valid_rows,
        path=settings.training.path,
    )
    device_type = _device_type(settings.training)
    precision, why = choose_precision(settings.training, device_type)
    if device_type == "cpu":
        # float32 products through oneDNN rather than MKL: twice as quick, as exact.
        torch.set_float32_matmul_precision("medium")
    run = _Run(
        settings=settings,
        data=data,
        module=module,
        trainer=_make_trainer(settings, precision, folder, console),
        folder=folder,
        precision=precision,
    )
    _report(run, f"{precision} on {device_type}: {why}", console)
    return run


def _device_type(training: TrainingSettings) -> str:
    if training.accelerator != "auto":
        return training.accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _make_trainer(
    settings: Settings, precision: str, folder: Path, console: Console
) -> lightning.Trainer:
    training, optimization = settings.training, settings.optimization
    monitor = f"valid_{training.monitor}"
    mode = "max" if training.monitor == "exact_match" else "min"
    checkpoints = folder / "checkpoints"
    callbacks: list[Callback] = [
        ModelCheckpoint(checkpoints, "best", monitor, mode=mode, enable_version_counter=False),
        ModelCheckpoint(
            checkpoints,
            "last",
            every_n_train_steps=training.valid_every,
            enable_version_counter=False,
        ),
        LearningRateMonitor("step"),
        ProgressBar(console, monitor),
    ]
    if optimization.average_decay:
        callbacks.insert(0, average_weights(optimization.average_decay))
    if training.patience:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=training.patience))
    return lightning.Trainer(
        accelerator=_device_type(training),
        devices=training.devices,
        # Spawned, not started anew from the command line: the run has claimed its folder already.
        strategy="ddp_spawn" if training.devices > 1 else "auto",
        use_distributed_sampler=False,  # the loaders share out the batches themselves
        precision=precision,  # type: ignore[arg-type]
        max_steps=training.max_steps,
        max_epochs=-1,
        max_time={"minutes": training.max_minutes} if training.max_minutes else None,  # type: ignore[dict-item]
        accumulate_grad_batches=training.accumulate,
        gradient_clip_val=optimization.clip_norm or None,
        val_check_interval=training.valid_every * training.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=min(50, training.valid_every),
        logger=CSVLogger(folder, name="", version="logs"),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _report(run: _Run, precision: str, console: Console) -> None:
    rows, tokenizer, model = run.data.num_rows, run.data.tokenizer, run.settings.model
    num_parameters = sum(p.numel() for p in run.module.network.parameters())
    for line in (
        f"pairs: {rows['train']:,} for training, {rows['valid']:,} for validation, "
        f"{rows['test']:,} for the test",
        *run.data.notes,
        f"vocabulary: {tokenizer.source_vocab_size:,} source, {tokenizer.target_vocab_size:,} target",
        f"model: {num_parameters:,} parameters (d_model {model.d_model}, {model.nhead} heads, "
        f"{model.num_encoder_layers} + {model.num_decoder_layers} layers)",
        f"precision: {precision}",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _take_best_weights(run: _Run) -> None:
    """Leave in the network the best weights: the best checkpoint's, or the last, if better.

    The last ones are validated first where the run ended between two validations.
    """
    best = next(c for c in run.trainer.callbacks if isinstance(c, ModelCheckpoint) and c.monitor)  # type: ignore[attr-defined]
    if run.trainer.global_step % run.settings.training.valid_every:
        score = run.trainer.validate(run.module, run.data, verbose=False)[0][run.monitor]
        known = best.best_model_score
        if known is None or (score < known if best.mode == "min" else score > known):
            return
    if best.best_model_path:
        state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
        run.module.load_state_dict(state["state_dict"])


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


def _sample(run: _Run, predictor: Predictor) -> list[dict[str, str]]:
    """Return the first validation pairs with what the model makes of them."""
    pairs = list(islice(run.data.read_split("valid"), _NUM_SAMPLES))
    rows = [Source(source=p.source, features=p.features, line=p.line) for p in pairs]
    return [
        {
            "source": " ".join((*pair.features, pair.source)),
            "reference": pair.target,
            "prediction": prediction.marked(run.settings.decoding.cut_mark),
        }
        for pair, (_, prediction) in zip(pairs, predictor.predict_rows(rows), strict=True)
        if prediction is not None
    ]


class _StepTimer(Callback):
    """Takes the time of each update."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.times_s.append(time.monotonic())


def _estimate(run: _Run) -> str:
    """Make a few updates, the first of which does not count, and return what all would take."""
    training, timer = run.settings.training, _StepTimer()
    trainer = lightning.Trainer(
        accelerator=_device_type(training),
        devices=1,
        precision=run.precision,  # type: ignore[arg-type]
        max_steps=1 + _REHEARSED_STEPS,
        max_epochs=-1,
        accumulate_grad_batches=training.accumulate,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[timer],
        default_root_dir=run.folder,
    )
    trainer.fit(run.module, train_dataloaders=run.data.train_dataloader())
    times_s = timer.times_s
    batch_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1)
    batches_an_epoch = len(run.data.train_dataloader())
    num_batches = training.max_steps * training.accumulate
    return (
        f"{batches_an_epoch:,} batches an epoch of at most {training.batch_tokens:,} tokens; "
        f"{training.max_steps:,} updates are {num_batches / batches_an_epoch:,.1f} epochs\n"
        f"estimated time: {batch_s * num_batches / 60:,.1f} minutes at {batch_s:.2f} s a batch, "
        "without validation"
        + (f"; stops after {training.max_minutes:g} minutes" if training.max_minutes else "")
    )
