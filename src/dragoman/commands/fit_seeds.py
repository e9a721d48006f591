"""`dragoman fit --seeds`: models that differ only by their seed, one after the other, as one folder.

The first reads and prepares the pairs; the others take its data and settings, open ones included.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from shlex import quote

from rich.console import Console

from dragoman.commands.fit_decoding import choose_ensemble_search
from dragoman.commands.fit_results import evaluate_run, gather_scores
from dragoman.commands.fit_setup import (
    Resume,
    check_folders,
    lock_folder,
    name_folders,
    sweep_folders,
)
from dragoman.commands.report import report_model
from dragoman.configuration import as_settings, list_set_values, merge_settings
from dragoman.data.run_data import RunData
from dragoman.engines.load import PARITY
from dragoman.errors import (
    CheckpointError,
    DragomanError,
    ModelFolderError,
    SettingsError,
    Stopped,
)
from dragoman.evaluation.evaluation import read_evaluation, score_seeds, write_evaluation
from dragoman.model_folder.calibration import write_calibration
from dragoman.model_folder.folder import (
    CARD,
    EVALUATION,
    METRICS,
    REPORT,
    ModelFolder,
    SeedIndex,
    staged_model_folder,
    write_model_card,
)
from dragoman.predictor import Predictor
from dragoman.reading.in_memory import Pairs, as_files
from dragoman.settings import Settings
from dragoman.storage import explain_failed_write, link_or_copy
from dragoman.training.device import find_device
from dragoman.training.ranks import find_variables
from dragoman.training.resume import DATA
from dragoman.training.run_context import StartTimer, TextConsole, print_plain


def fit_seeds(
    train: Callable[..., Predictor],
    pairs: Pairs,
    out: Path,
    settings: Settings,
    count: int | None,
    *,
    overwrite: bool,
    resume: Resume,
    console: Console | None,
    timer: StartTimer | None,
) -> Predictor:
    """Train a model for each seed, write the ensemble folder `out`, and return the ensemble.

    Args:
        train: Trains one model: pairs, model folder and settings, then options.
        count: Number of seeds; None: that of the run to resume.
    """
    if find_variables():
        raise SettingsError(
            "--seeds: several processes were started, by torchrun or srun; let each training start its "
            "own with training.devices, or train one seed a job, with training.seed"
        )
    console = console or TextConsole(stderr=True)
    out, folder = name_folders(out)
    with as_files(pairs) as files, lock_folder(out):
        sweep_folders(out)
        index = _find_index(out, folder, settings, count, overwrite=overwrite, resume=resume)
        models = index.list_models(folder)
        for number, (seed, model) in enumerate(zip(index.seeds, models, strict=True)):
            print_plain(console, f"seed {seed}, {number + 1} of {len(models)}: {model}")
            seeded = merge_settings(settings, {"training.seed": seed}, overrule=True)
            like = name_folders(models[0])[1] if number else None
            try:
                train(
                    () if like else files, model, seeded, like=like, overwrite=True, resume="auto",
                    console=console, timer=None if like else timer,
                )  # fmt: skip
            except (DragomanError, Stopped) as error:
                own, whole = (f"--out {quote(str(one))} --resume" for one in (model, out))
                error.args = (str(error).replace(own, whole),)
                raise
        written = [(out / one.name / METRICS, one / METRICS) for one in models]
        if all(its.is_file() and its.read_bytes() == own.read_bytes() for its, own in written):
            print_plain(console, f"already complete: {out}")
        else:
            _write_ensemble(out, index, models, console)
        return Predictor.load([out])


def _find_index(
    out: Path,
    folder: Path,
    settings: Settings,
    count: int | None,
    *,
    overwrite: bool,
    resume: Resume,
) -> SeedIndex:
    """Return the seeds of the run to resume; or start one, with an empty folder but for its index."""
    index = None if resume == "no" else SeedIndex.read(folder)
    seed = dict(list_set_values(settings)).get("training.seed")
    if index is not None:
        if count in (None, len(index.seeds)) and seed in (None, index.seeds[0]):
            return index
        raise SettingsError(
            f"{folder}: the run was started with {len(index.seeds)} seeds, from {index.seeds[0]} on; "
            "leave out --seeds and training.seed to resume, or start from scratch with --overwrite"
        )
    if resume == "must" or (resume == "auto" and folder.exists()):
        raise CheckpointError(
            f"{folder}: no run with seeds to resume; leave out --seeds, or start from scratch with "
            "--overwrite"
        )
    if count is None or count < 2:
        raise SettingsError(f"--seeds {count}: give 2 or more; leave it out for one model")
    check_folders(out, overwrite)
    first = settings.training.seed
    index = SeedIndex(seeds=tuple(range(first, first + count)))
    with explain_failed_write(folder, ModelFolderError):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        index.write(folder)
    return index


def _write_ensemble(out: Path, index: SeedIndex, models: list[Path], console: Console) -> None:
    """Choose the search of the ensemble, calibrate it, score it, and write its folder atomically."""
    print_plain(console, f"ensemble of {len(models)} models: choosing the decoding, scoring")
    found = [ModelFolder.read(model) for model in models]
    first, metrics = found[0], found[0].metrics
    data = RunData.reopen(
        metrics["data"]["files"], first.settings.data, name_folders(models[0])[1] / DATA, {}
    )
    model = Predictor.load(models, device=find_device(first.settings.training))
    model.memory = None  # the scores are those of the models alone
    decoding, reason = choose_ensemble_search(
        model, metrics["user_settings"], metrics["num_steps"], data
    )
    model = model.with_decoding(as_settings(decoding, is_whole=False))
    model.folders = (out.absolute(),)
    index = index.model_copy(
        update={"decoding": {name.removeprefix("decoding."): one for name, one in decoding.items()}}
    )
    evaluations = evaluate_run(data, model, first.source_counts)
    for split, evaluation in evaluations.items():
        runs = {one.name: read_evaluation(one / EVALUATION / split)[0] for one in models}
        evaluations[split] = score_seeds(evaluation, runs)
    reasons = [
        *([f"decoding: {reason}"] if reason else []),
        "engine: PyTorch averages the models; CTranslate2 cannot, it predicts with one of them, such "
        f"as {out / models[0].name}",
    ]
    for message in reasons:
        print_plain(console, message)
    metrics = {
        **{name: one for name, one in metrics.items() if name not in (PARITY, "memory")},
        **gather_scores(evaluations, model.settings),
        "seeds": {name: one.seeds for name, one in evaluations.items()},
        "num_parameters": sum(one.metrics["num_parameters"] for one in found),
        "minutes": round(sum(one.metrics["minutes"] for one in found), 2),
        "decoding": {"reasons": reasons},
    }
    with staged_model_folder(out) as staged:
        for one in models:  # without a second copy of the weights, where links can be made
            shutil.copytree(
                one, staged / one.name, copy_function=lambda a, b: link_or_copy(Path(a), Path(b))
            )
        index.write(staged)
        write_calibration(staged, model.calibrations[0])
        text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
        (staged / METRICS).write_text(text + "\n", encoding="utf-8")
        card = write_model_card(out.name, model.settings, metrics)
        (staged / CARD).write_text(card, encoding="utf-8")
        for name, evaluation in evaluations.items():
            write_evaluation(staged / EVALUATION / name, evaluation)
        if first.settings.evaluation.report == "html":
            try:
                report_model(
                    staged / REPORT, model, out.name, evaluations,
                    metrics=metrics, training=data.read_split("train"),
                )  # fmt: skip
                print_plain(console, f"report: {out / REPORT}")
            except DragomanError as error:  # the models are complete without it
                print_plain(console, f"no report: {error}")
