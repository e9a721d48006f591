"""What is left of a run to be read: scores of what the model writes, metrics.json, the report."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dragoman.data.encoding import Split
from dragoman.errors import DragomanError
from dragoman.evaluating import evaluate_model, make_report
from dragoman.evaluation.evaluation import Evaluation
from dragoman.inspection.inspection import inspect
from dragoman.predictor import Predictor
from dragoman.reporting.page import write_report
from dragoman.settings import Settings
from dragoman.text.bundle import REPORT, fingerprint
from dragoman.training.curves import read_curves
from dragoman.training.memory import find_peak_memory_mib
from dragoman.training.preparing import Run

_MOST_INSPECTED = 3_000_000  # pairs that the inspection holds in memory: 0.6 to 0.8 GiB a million
_NUM_SAMPLES = 64  # held-out rows kept with the model: exports are checked on them


def evaluate_run(run: Run, predictor: Predictor, counts: Sequence[int]) -> dict[Split, Evaluation]:
    """Score what the model writes for the held-out pairs; the validation's make it calibrated."""
    valid, confidence = evaluate_model(
        predictor, run.data.read_split("valid"), counts=counts, calibrates=True
    )
    files = run.settings.data.valid or tuple(f"{path}, held out" for path in run.data.paths)
    predictor.calibrations = (confidence.to_stored(files, run.settings.decoding),)
    found: dict[Split, Evaluation] = {"valid": valid}
    if run.data.num_rows["test"]:
        found["test"], _ = evaluate_model(predictor, run.data.read_split("test"), counts=counts)
    return found


def gather_metrics(
    run: Run,
    predictor: Predictor,
    evaluations: Mapping[Split, Evaluation],
    minutes: float,
) -> dict[str, Any]:
    """Return the content of metrics.json: scores, sizes, data, samples."""
    data = run.data
    files = [
        Path(path) for path in (*data.paths, *run.settings.data.valid, *run.settings.data.test)
    ]
    return {
        **{name: evaluation.scores.to_dict() for name, evaluation in evaluations.items()},
        "confidence_level": run.settings.evaluation.confidence_level,
        "data": {
            "files": [str(path) for path in data.paths],
            "pairs": dict(data.num_rows),
            "sha256": {str(path): fingerprint(path) for path in files if path.is_file()},
        },
        "num_parameters": sum(p.numel() for p in run.module.network.parameters()),
        "source_vocab_size": data.tokenizer.source_vocab_size,
        "target_vocab_size": data.tokenizer.target_vocab_size,
        "num_steps": run.trainer.global_step,
        "minutes": round(minutes, 2),
        "peak_memory_mib": find_peak_memory_mib(),
        "precision": run.precision,
        "samples": _sample(run, predictor),
    }


def report_run(
    run: Run,
    predictor: Predictor,
    evaluations: Mapping[Split, Evaluation],
    metrics: Mapping[str, Any],
    typed: Settings | None,
) -> str:
    """Write the page that shows the run; return what is to be told, as where that failed.

    `typed` are the settings before any was chosen, which the inspection of the data tells of.
    """
    is_inspected = sum(run.data.num_rows.values()) <= _MOST_INSPECTED
    try:
        report = make_report(
            predictor,
            run.out.name,
            {name: (one.rows, one.to_dict()) for name, one in evaluations.items()},
            metrics=metrics,
            curves=read_curves(run.folder),
            inspection=inspect(run.data.paths, typed).to_dict() if is_inspected else None,
        )
        write_report(run.out / REPORT, report)
    except DragomanError as error:  # the model is written: a page less is no reason to fail
        return f"no report: {error}"
    return f"report: {run.out / REPORT}"


def _sample(run: Run, predictor: Predictor) -> list[dict[str, Any]]:
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
