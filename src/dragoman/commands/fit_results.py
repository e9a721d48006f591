"""Results of a run: scores on held-out pairs, metrics.json, the parity check, the report."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dragoman.commands.evaluate import evaluate_model
from dragoman.commands.fit_setup import Run
from dragoman.commands.inspect import inspect_pairs
from dragoman.commands.report import list_versions, report_model
from dragoman.configuration import as_settings, list_set_values
from dragoman.data.run_data import RunData
from dragoman.engines.ctranslate2_engine import CTranslate2Engine
from dragoman.engines.engine import Engine, UnsupportedError
from dragoman.engines.load import load_torch_engine
from dragoman.engines.parity import compare
from dragoman.errors import DragomanError
from dragoman.evaluation.evaluation import Evaluation
from dragoman.evaluation.output_rows import Row
from dragoman.model_folder.folder import REPORT, ModelFolder
from dragoman.predictor import Predictor
from dragoman.presets import choose_settings
from dragoman.reading.pairs import join_features
from dragoman.reading.statistics import Split
from dragoman.settings import Settings
from dragoman.training.device import find_device, find_peak_memory_mib, name_machine
from dragoman.training.logs import read_curves

_MOST_INSPECTED = 3_000_000  # pairs; the inspection holds them in memory
NUM_SAMPLES = 64  # held-out rows kept with the model: exports are checked on them


def evaluate_run(
    data: RunData, predictor: Predictor, counts: Sequence[int]
) -> dict[str, Evaluation]:
    """Score the model on the held-out pairs; calibrate its confidence on the validation pairs.

    The scores are those of the model alone: it has no memory yet.
    """
    alone = predictor.with_decoding(as_settings({"decoding.memory": "none"}, is_whole=False))
    valid, confidence = evaluate_model(
        alone, data.read_split("valid"), counts=counts, calibrates=True
    )
    files = predictor.settings.data.valid or tuple(f"{path}, held out" for path in data.paths)
    stored = confidence.to_stored(files, predictor.settings.decoding)
    predictor.calibrations = alone.calibrations = (stored,)
    found: dict[str, Evaluation] = {"valid": valid}
    if data.num_rows["test"]:
        found["test"], _ = evaluate_model(alone, data.read_split("test"), counts=counts)
    return found


def score_with_memory(
    data: RunData, predictor: Predictor, counts: Sequence[int], alone: Mapping[str, Evaluation]
) -> dict[str, Evaluation]:
    """Score the model with its memory on the splits with sources that the memory has.

    `alone`: the evaluations without it, by split.
    """
    memory = predictor.memory
    if memory is None:
        return {}
    splits: tuple[Split, ...] = ("valid", "test")
    return {
        name: evaluate_model(predictor, data.read_split(name), counts=counts)[0]
        for name in splits
        if name in alone and any(memory.find(row.source, row.features) for row in alone[name].rows)
    }


def gather_metrics(
    run: Run, evaluations: Mapping[str, Evaluation], minutes: float
) -> dict[str, Any]:
    """Return the content of metrics.json: scores, sizes, data, samples."""
    data = run.data
    return {
        **gather_scores(evaluations, run.settings),
        "data": {
            "files": [str(path) for path in data.paths],
            "pairs": dict(data.num_rows),
            "sha256": data.sha256,
        },
        "num_parameters": sum(p.numel() for p in run.module.network.parameters()),
        "source_vocab_size": data.tokenizer.source_vocab_size,
        "target_vocab_size": data.tokenizer.target_vocab_size,
        "num_steps": run.trainer.global_step,
        "minutes": round(minutes, 2),
        "peak_memory_mib": find_peak_memory_mib(),
        "precision": run.precision,
        "user_settings": [
            name for name, value in list_set_values(run.typed) if value not in ("auto", None)
        ],
        "command": shlex.join(sys.orig_argv),
        "machine": name_machine(find_device(run.settings.training)),
        "versions": ", ".join(f"{name} {found}" for name, found in list_versions().items()),
    }


def gather_scores(evaluations: Mapping[str, Evaluation], settings: Settings) -> dict[str, Any]:
    """Return the part of metrics.json that depends on the outputs."""
    return {
        **{name: evaluation.scores.to_dict() for name, evaluation in evaluations.items()},
        "num_truncated": {
            name: sum(not row.is_complete for row in evaluation.rows)
            for name, evaluation in evaluations.items()
        },
        "confidence_level": settings.evaluation.confidence_level,
        "fields": {
            name: evaluation.confidence.fields
            for name, evaluation in evaluations.items()
            if evaluation.confidence is not None
        },
        "samples": list_samples(evaluations["valid"].rows, settings),
    }


def list_samples(rows: Sequence[Row], settings: Settings) -> list[dict[str, Any]]:
    """Return the first validation rows, as users type them, with the outputs, for metrics.json."""
    samples = []
    for row in rows[:NUM_SAMPLES]:
        values, tags = join_features(row.features, settings.data)
        mark = "" if row.is_complete else settings.decoding.truncation_mark
        samples.append(
            {
                "features": values,
                "source": " ".join((*tags, row.source)),
                "reference": row.references[0],
                "prediction": row.hypothesis + mark,
            }
        )
    return samples


def check_parity(
    model_folder: ModelFolder, fallback: Engine
) -> tuple[CTranslate2Engine | None, dict[str, Any], str]:
    """Return how CTranslate2 compares with PyTorch on held-out rows, and a message about it.

    The engine is returned if it is equal; `fallback` computes what it does not support.

    `predict --engine auto` uses CTranslate2 unless `is_equal` is False.
    """
    model, tokenizer = model_folder.settings.model, model_folder.tokenizer
    try:
        engine = CTranslate2Engine(
            model, tokenizer, model_folder.weights, device="cpu", load_fallback=lambda: fallback
        )
        # With a number of threads there is no race for it: a run says the same each time.
        reference = load_torch_engine([model_folder], "cpu", torch.get_num_threads())
        check = compare(reference, engine, model_folder)
    except UnsupportedError as error:
        reason = f"CTranslate2 cannot compute this model, PyTorch will predict: {error.reason}"
        return None, {"is_equal": False, "reason": error.reason}, reason
    if check.is_equal:
        return engine, check.to_dict(), f"CTranslate2 agrees with PyTorch: {check}"
    message = f"warning: CTranslate2 differs from PyTorch, which will predict: {check}"
    return None, check.to_dict(), message


def report_run(
    run: Run,
    folder: Path,
    predictor: Predictor,
    evaluations: Mapping[str, Evaluation],
    metrics: Mapping[str, Any],
) -> str:
    """Write the report into `folder`, which becomes the model folder; return a message."""
    inspection, note, num_rows = None, "", sum(run.data.num_rows.values())
    if num_rows > _MOST_INSPECTED:
        note = f" (without an inspection: {num_rows:,} pairs do not fit into memory)"
    else:
        statistics, is_parallel = run.data.statistics, run.data.is_parallel
        inspection = inspect_pairs(
            run.data.read_splits(),
            run.data.paths,
            run.settings,
            tokenizer=run.data.tokenizer,
            row_errors=run.data.invalid_rows,
            reasons=choose_settings(run.typed, statistics, is_parallel=is_parallel).reasons,
        ).to_dict()
    try:
        report_model(
            folder / REPORT,
            predictor,
            run.out.name,
            evaluations,
            metrics=metrics,
            curves=read_curves(run.folder),
            inspection=inspection,
            training=run.data.read_split("train"),
        )
    except DragomanError as error:  # the model is complete without it
        return f"no report: {error}"
    return f"report: {run.out / REPORT}{note}"
