"""`dragoman evaluate`: score a model on pairs, or outputs in files; and find stored evaluations."""

import hashlib
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from dragoman.commands.predict import ProgressDisplay
from dragoman.commands.report import report_model, report_outputs
from dragoman.configuration import (
    SettingsLike,
    as_settings,
    check_sections,
    flatten_settings,
    list_set_values,
)
from dragoman.engines.engine import QuantizationChoice
from dragoman.engines.load import EngineName, find_quantization
from dragoman.errors import DataError, ModelFolderError, SettingsError
from dragoman.evaluation.breakdown import count_rarest
from dragoman.evaluation.confidence import Calibration, calibrate, find_confidence, measure
from dragoman.evaluation.evaluation import (
    ROWS,
    SCORES,
    Evaluation,
    TargetTokenization,
    evaluate_rows,
    read_evaluation,
    score_seeds,
    write_evaluation,
)
from dragoman.evaluation.field_confidence import (
    JudgedValue,
    calibrate_fields,
    judge_values,
    measure_fields,
)
from dragoman.evaluation.output_rows import (
    Row,
    group_references,
    read_outputs,
    read_rows,
)
from dragoman.model_folder.calibration import StoredFields, write_calibration
from dragoman.model_folder.folder import EVALUATION, ModelFolder, is_model_folder, list_models
from dragoman.predictor import PRODUCED_NAN, Prediction, Predictor
from dragoman.reading.in_memory import Pairs, as_files
from dragoman.reading.pairs import SUFFIXES, InvalidRow, Pair, RowErrors, Source, read_pairs
from dragoman.reading.row_errors import name_file, name_row
from dragoman.reading.text_files import strip_packing
from dragoman.reading.url_files import find_file
from dragoman.storage import sha256
from dragoman.tokenizers.tokenizer import UNKNOWN_ID

Paths = str | Path | Sequence[str | Path]


def evaluate(
    path: "Paths | Predictor",
    pairs: Pairs,
    settings: SettingsLike = None,
    *,
    engine: EngineName = "auto",
    device: str = "auto",
    threads: int | None = None,
    quantization: QuantizationChoice = "auto",
    calibrate: bool = False,
    out: str | Path | None = None,
    into_model: bool = False,
    report: str | Path | None = None,
    row_errors: RowErrors | None = None,
) -> Evaluation:
    """Evaluate the model in the folder `path` (several: an ensemble), or a loaded one, on pairs.

    Pairs with the same source: see `evaluation.repeated_sources`. A truncated output is scored as it is. Of an
    ensemble folder, each model is evaluated, too; with `into_model`, this is stored in its own folder.

    Args:
        pairs: A file, two of parallel text, rows (source, target), or a table.
        settings: Its data, decoding and evaluation sections override those of the model.
        engine: This and the next three: as in `load`; a loaded model has its own.
        calibrate: Calibrate the model's confidence on these pairs (use validation pairs), and store
            that in its folder.
        out: Folder to write: rows.jsonl and scores.json; None: write neither.
        into_model: Without `out`, write into the model folder: see `find_place`.
        row_errors: Gets the rows that could not be read, where data.broken_rows skips them.

    Raises:
        DataError: There are no pairs, or one is too long for the model.
        ModelFolderError: The model was replaced meanwhile.
        SettingsError: `calibrate` is given for an ensemble.
    """
    if isinstance(path, Predictor):
        model = path
        if settings is not None:
            raise SettingsError("settings: this model is loaded with its own; give its folder")
    else:
        model = Predictor.load(
            path, settings, engine=engine, device=device, threads=threads, quantization=quantization
        )
    if not model.folders:
        raise ModelFolderError("the model is in memory only; evaluate the folder that `fit` wrote")
    if calibrate and len(model.folders) > 1:
        raise SettingsError("--calibrate: each model has its own calibration; leave out --ensemble")
    if calibrate and model.memory is not None:  # of its own outputs, not those from memory
        model = model.with_decoding(as_settings({"decoding.memory": "none"}, is_whole=False))
    folder = model.folders[0]
    model_folder = model.model_folders[0] if model.model_folders else ModelFolder.read(folder)
    counts, by_seed = model_folder.source_counts, dict[str, Sequence[Row]]()
    with as_files(pairs) as paths:
        name = name_evaluation(paths)
        found = list(read_pairs(paths, model.settings.data, row_errors, model.feature_labels))
        evaluation, confidence = evaluate_model(
            model, found, counts=counts, calibrates=calibrate, progress=ProgressDisplay()
        )
    if len(model.folders) == 1 and len(seeds := list_models(folder)) > 1:
        typed = settings
        if model is path:  # what it was loaded with
            own, used = map(flatten_settings, (model_folder.settings, model.settings))
            typed = {
                name: value
                for name, value in used.items()
                if value != own[name] and name.startswith(("data.", "decoding.", "evaluation."))
            }
        for seed in seeds:
            one = Predictor.load(seed, typed, **model.options)
            of_seed, _ = evaluate_model(one, found, counts=counts, progress=ProgressDisplay())
            by_seed[seed.name] = of_seed.rows
            if out is None and into_model:
                write_evaluation(find_place(seed, name, one, of_seed), of_seed)
        evaluation = score_seeds(evaluation, by_seed)
    if [sha256(one.path) for one in model.list_weights()] != model.weights_sha256():
        raise ModelFolderError(
            f"{folder}: the model was replaced while it was evaluated: try again"
        )
    if out is None and into_model:
        out = find_place(folder, name, model, evaluation)
    if out is not None:
        write_evaluation(Path(out), evaluation)
        evaluation = replace(evaluation, folder=Path(out))
    if calibrate:
        stored = confidence.to_stored(list(map(name_file, paths)), model.settings.decoding)
        write_calibration(folder, stored)
    if report is not None:
        from dragoman.training.logs import read_curves

        folder, typed = folder.resolve(), as_settings(settings, is_whole=False)  # "." has no name
        trained = ModelFolder.read(list_models(folder)[0])
        report_model(
            Path(report),
            model,
            folder.name,
            {name: evaluation},
            metrics=trained.metrics,
            user_settings=[setting for setting, _ in list_set_values(typed)],
            curves=read_curves(folder.with_name(f"{folder.name}.training")),
            training=_read_training(trained),
        )
    return evaluation


def _read_training(model_folder: ModelFolder) -> Iterator[Pair]:
    """Yield the training pairs; none if they are not at hand, or have changed."""
    from dragoman.commands.explain import find_files, read_training  # torch, on demand

    notes, data = list[str](), model_folder.settings.data
    with suppress(DataError, OSError):
        files = find_files(model_folder.metrics, notes)
        if not notes:
            yield from read_training(files, data, data.features, notes)


def evaluate_outputs(
    hypotheses: str | Path,
    references: Paths,
    sources: str | Path | None = None,
    settings: SettingsLike = None,
    *,
    out: str | Path | None = None,
    report: str | Path | None = None,
) -> Evaluation:
    """Evaluate outputs of any system, in a file.

    Args:
        hypotheses: A file of lines, or of JSON objects (.jsonl).
        references: One or more files with the same lines; each is right.
        settings: Only its evaluation section is used.
        out: Folder to write: rows.jsonl and scores.json; None: write neither.

    Raises: DataError, when a file cannot be read, or the files differ in their number of lines.
    """
    typed = as_settings(settings)
    check_sections(typed, "an evaluation of outputs", ("evaluation",))
    if "repeated_sources" in typed.evaluation.model_fields_set:
        raise SettingsError(
            "evaluation.repeated_sources: each line of a file of outputs is a row; leave it out"
        )
    given = [references] if isinstance(references, str | Path) else references
    rows = read_outputs(
        find_file(hypotheses),
        [*map(find_file, given)],
        None if sources is None else find_file(sources),
    )
    evaluation = evaluate_rows(rows, typed.evaluation)
    if out is not None:
        write_evaluation(Path(out), evaluation)
        evaluation = replace(evaluation, folder=Path(out))
    if report is not None:
        report_outputs(Path(report), name_evaluation([hypotheses]), evaluation)
    return evaluation


def evaluate_model(
    model: Predictor,
    pairs: Iterable[Pair],
    *,
    counts: Sequence[int] = (),
    calibrates: bool = False,
    progress: ProgressDisplay | None = None,
) -> tuple[Evaluation, Calibration]:
    """Return the evaluation of `model` on `pairs`, and of its confidence.

    Args:
        counts: How often each source id occurs in the training pairs; empty: unknown.
        calibrates: Fit the temperature of the confidence to these pairs; else the model's own is
            measured.

    Raises: DataError, when there are no pairs, or one is too long for the model.
    """
    settings, references = model.settings, group_references(pairs, model.settings)
    if not references:
        raise DataError("there are no pairs to evaluate on")
    start_s = time.perf_counter()
    try:
        predicted = predict_references(model, references, progress)
    finally:
        if progress is not None:
            progress.stop()
    seconds = time.perf_counter() - start_s
    rows = [row for row, _ in predicted]
    scores = [float("nan") if row.score is None else row.score for row in rows]
    is_exact, is_complete = [row.is_exact for row in rows], [row.is_complete for row in rows]
    # Those of an ensemble of folders are of its models, not of the whole.
    stored = model.calibrations[0] if model.calibrations and len(model.folders) < 2 else None
    if calibrates:
        level = settings.evaluation.confidence_level
        confidence = calibrate(scores, is_exact, is_complete, level=level)
        rows = [
            replace(
                row,
                confidence=find_confidence(
                    score, confidence.temperature, is_complete=row.is_complete
                ),
            )
            for row, score in zip(rows, scores, strict=True)
        ]
    else:
        thresholds = None if stored is None else stored.thresholds
        confidence = measure(
            scores, is_exact, is_complete, temperature=model.temperature, thresholds=thresholds
        )
    records = None if stored is None else stored.records
    confidence = _with_fields(model, predicted, confidence, records, calibrates=calibrates)
    target = settings.tokenizer.target
    evaluation = evaluate_rows(
        rows,
        settings.evaluation,
        TargetTokenization(
            separator=target.separator, has_symbols=bool(model.tokenizer.target.separator)
        ),
        rarest=count_rarest(rows, model.tokenizer, counts) if counts else (),
        confidence=confidence,
        speed={
            "rows_per_s": round(len(rows) / seconds, 2),
            "seconds": round(seconds, 3),
            "engine": model.engine.name,
            "quantization": model.engine.quantization,
        },
        model={
            "models": [
                {"folder": str(one.path.parent), "weights_sha256": one.sha256}
                for one in model.list_weights()
            ],
            "settings": flatten_settings(settings),
            "unknown_features": dict(
                Counter(
                    one for row in rows for one in model.find_unknown(row.features)
                ).most_common(100)
            ),
            "out_of_reach": _find_out_of_reach(model, rows),
        },
    )
    return evaluation, confidence


def _with_fields(
    model: Predictor,
    predicted: Sequence[tuple[Row, Prediction]],
    confidence: Calibration,
    records: StoredFields | None,
    *,
    calibrates: bool,
) -> Calibration:
    """Return `confidence` with that of the fields by `records`, if the outputs are records."""
    form, level = model.record_format, model.settings.evaluation.confidence_level
    if form is None or not (calibrates or records):
        return confidence
    values = [
        JudgedValue(value.field, value.score, is_right, row.is_complete)
        for row, output in predicted
        for value, is_right in judge_values(output.text, output.fields, row.references, form)
    ]
    if calibrates or records is None:
        records = calibrate_fields(values, level=level)
    fields = measure_fields(values, records, level=level)
    return replace(confidence, records=records, fields=tuple(fields))


def _find_out_of_reach(model: Predictor, rows: Sequence[Row]) -> dict[str, Any]:
    """Count the rows whose references all have tokens outside of the vocabulary; name the first."""
    tokenizer, found = model.tokenizer, []
    for row in rows:
        names = [tokenizer.target.name_unknown(text) for text in row.references]
        if all(names):  # unless words of the source have them, to which the model points
            encoded = tokenizer.encode_targets(row.references, [row.source] * len(names))
            found += [(row, names[0])] if all(UNKNOWN_ID in ids for ids in encoded) else []
    return {
        "rows": len(found),
        "first": [f"{name_row(row.file, row.line)}: {names}" for row, names in found[:3]],
    }


def predict_references(
    model: Predictor, rows: Sequence[Row], progress: ProgressDisplay | None = None
) -> list[tuple[Row, Prediction]]:
    """Return each of `rows`, which have references, with the best output as its hypothesis.

    Raises:
        DataError: A source is too long for the model.
        DragomanError: The model produced NaN.
    """
    sources = [Source(row.source, row.features, row.line) for row in rows]
    found: list[tuple[Row, Prediction]] = []
    for row, (source, best_first) in zip(rows, model.predict_rows(sources), strict=True):
        if isinstance(source, InvalidRow) and source.reason == PRODUCED_NAN:
            raise model.nan_error()
        if isinstance(source, InvalidRow):
            raise DataError(
                f"{name_row(row.file, row.line)}: the source cannot be predicted: {source.reason}; "
                "remove it from the pairs"
            )
        best = best_first[0]
        if progress is not None:
            progress.update(len(found), len(found) / len(rows))
        filled = replace(
            row,
            hypothesis=best.text,
            is_complete=best.is_complete,
            score=best.score,
            confidence=best.confidence,
            emitted=best.emitted if best.num_left_out else "",
            memory_row=best.memory_row,
            spans=tuple(best.spans) if model.tokenizer.pointers else (),
        )
        found.append((filled, best))
    return found


def name_evaluation(paths: Sequence[str | Path]) -> str:
    """Return the name of an evaluation on these files: "test.v1" for "test.v1.tsv.gz"."""
    bare = strip_packing(Path(paths[0]))
    is_format = len(paths) > 1 or bare.suffix.lower() in (*SUFFIXES, ".txt")
    return (bare.stem if is_format else bare.name).lstrip(".") or "pairs"


def find_place(folder: Path, name: str, model: Predictor, evaluation: Evaluation) -> Path:
    """Return where in the model folder `folder` an evaluation on the pairs `name` belongs.

    That of the model with its own settings has this name. Others name the settings that differ, as
    in "test,beam_size=5". An evaluation on other pairs is not replaced: "test-2".
    """
    own, used = map(flatten_settings, (model.model_folders[0].settings, model.settings))
    differing = [
        f"{setting.rpartition('.')[2]}={used[setting]}"
        for setting in used
        if setting.startswith(_CHANGE_SCORES) and used[setting] != own[setting]
    ]
    is_one = len(model.model_folders) == 1
    if is_one and model.engine.quantization != find_quantization(model.model_folders[0]):
        differing.append(model.engine.quantization)
    differing += [
        f"ensemble={other.path.absolute().parent.name}-{other.sha256[:6]}"
        for other in model.list_weights()[1:]
        if not other.path.absolute().is_relative_to(folder)  # those of seeds
    ]
    label = "".join(f",{one}" for one in differing)
    if not re.fullmatch(r"[\w.,=+-]{,100}", label):  # not for a file name
        label = f",settings-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
    content = evaluation.to_dict()
    for number in count(1):
        place = folder / EVALUATION / f"{name}{label}{f'-{number}' if number > 1 else ''}"
        if not (place / SCORES).is_file():
            break
        with suppress(DataError):  # a damaged one is replaced
            _, found = read_evaluation(place)
            if all(found.get(key) != content[key] for key in ("test_rows_digest", "data")):
                continue
        break
    return place


_CHANGE_SCORES = (
    "decoding.", "evaluation.", "data.max_characters", "data.broken_rows", "data.long_rows"
)  # fmt: skip


def find_run(path: Path, name: str = "") -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of a run, and the content of its scores.json if it has one.

    Args:
        path: A model folder, a folder that `evaluate` wrote, or a file of rows.
        name: Which evaluation of a model folder; "": test, or the only one.

    Raises: DataError, when there is no such evaluation.
    """
    if path.is_file():
        is_whole = path.name == ROWS and path.with_name(SCORES).is_file()
        return read_evaluation(path.parent) if is_whole else (read_rows(path), {})
    if (path / SCORES).is_file():
        return read_evaluation(path)
    if not is_model_folder(path):
        raise DataError(
            f"{path}: expected a model folder, a folder that evaluate wrote, or a file of rows"
        )
    found = sorted(one.parent.name for one in (path / EVALUATION).glob(f"*/{SCORES}"))
    chosen = name or ("test" if "test" in found or len(found) != 1 else found[0])
    if chosen not in found:
        known = ", ".join(found) or "none"
        raise DataError(
            f"{path}: it has no evaluation {chosen!r} (it has: {known}); make one with `dragoman "
            f"evaluate {path} PAIRS`, or name another with --on"
        )
    return read_evaluation(path / EVALUATION / chosen)
