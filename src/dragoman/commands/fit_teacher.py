"""`fit --teacher`: the outputs of a trained model, as more pairs to train on (distillation).

The teacher predicts the training sources, and those of data.unlabelled, into `{out}.teacher/`. That
is done once, and resumed if it was interrupted. Then the run is like any other; its loss may learn
the teacher's probabilities, too (`Distillation` in model/loss.py).

Source: Kim and Rush 2016 (sequence-level knowledge distillation).
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256 as make_digest
from pathlib import Path
from typing import Any

from dragoman.commands.evaluate import evaluate_model
from dragoman.commands.predict import Job, run_job
from dragoman.configuration import merge_settings
from dragoman.data.run_data import TAUGHT, RunData
from dragoman.errors import ModelFolderError, SettingsError
from dragoman.evaluation.evaluation import Evaluation
from dragoman.model_folder.folder import read_models
from dragoman.predictor import Predictor
from dragoman.reading.pairs import (
    Pair,
    Source,
    join_features,
    read_sources,
    take_features,
    write_target,
)
from dragoman.reading.row_errors import RowError
from dragoman.settings import DataSettings, Settings
from dragoman.storage import explain_failed_write, sha256, staged_file
from dragoman.training.run_context import RunContext


def hold_out_as(teacher: Settings, settings: Settings) -> Settings:
    """Return typed settings with the teacher's held-out fractions, unless they have their own.

    So no pair of the teacher's training becomes one to validate on.
    """
    names = ("valid_fraction", "test_fraction")
    return merge_settings(settings, {f"data.{name}": getattr(teacher.data, name) for name in names})


@dataclass(frozen=True)
class TaughtPairs:
    """The pairs of `sources` and the teacher's outputs for them, in a file of `predict`."""

    sources: Path
    path: Path
    data: DataSettings

    def __iter__(self) -> Iterator[Pair]:
        """Yield those with a complete output; `line` is that of `path`."""
        with (
            self.sources.open(encoding="utf-8") as sources,
            self.path.open(encoding="utf-8") as file,
        ):
            rows = zip(map(json.loads, sources), map(json.loads, file), strict=True)
            for line, (row, content) in enumerate(rows, start=1):
                text = content["text"]
                if not content.get("is_complete") or "error" in content or not text.strip():
                    continue
                if self.data.records == "json":
                    written = write_target(TAUGHT, line, text, self.data)
                    if isinstance(written, RowError):
                        continue
                    text = written
                yield Pair(row["text"], text, tuple(row["symbols"]), line, TAUGHT)


def teach(data: RunData, settings: Settings, out: Path, context: RunContext) -> TaughtPairs:
    """Return the teacher's outputs for the training sources and those of data.unlabelled.

    Sources of held-out pairs are left out.

    Raises: SettingsError, when the features of the teacher are others.
    """
    name, features = settings.training.teacher, settings.data.features
    if (labels := read_models(Path(name))[0].settings.data.features) != features:
        raise SettingsError(
            f"--teacher {name}: it has the features {', '.join(labels) or 'none'}, these pairs "
            f"{', '.join(features) or 'none'}; name the same columns in data.features"
        )
    columns = [f"feature {place}" for place in range(len(features))]
    as_written = {"data.format": "jsonl", "data.encoding": "utf-8", "data.source": "source",
                  "data.target": "auto", "data.features": columns, "decoding.memory": "none"}  # fmt: skip
    model = Predictor.load(name, as_written, device=settings.training.accelerator)
    folder = out.with_name(f"{out.name}.teacher")
    sources = folder / "sources.jsonl"
    with explain_failed_write(folder, ModelFolderError):
        folder.mkdir(parents=True, exist_ok=True)
        with staged_file(sources) as partial:
            counts = _write_sources(partial, data, settings.data)
    made_from = json.dumps([sha256(sources), model.weights_sha256(),
                            model.settings.decoding.model_dump(mode="json")])  # fmt: skip
    outputs = folder / f"outputs-{make_digest(made_from.encode()).hexdigest()[:16]}.jsonl"
    lines = []
    if not outputs.exists():
        context.report(f"teacher: predicting {sum(counts[:2]):,} sources into {outputs}")
        lines = run_job(model, Job(input=sources, output=outputs))
    taught = TaughtPairs(sources, outputs, settings.data)
    context.report(
        f"teacher: {sum(1 for _ in taught):,} outputs for {counts[0]:,} training and {counts[1]:,} "
        f"unlabelled sources; left out: {counts[2]:,} unlabelled ones that are held out, {counts[3]:,} "
        "that cannot be used"
    )
    for line in lines:
        context.report(f"teacher: {line}")
    return taught


def _write_sources(path: Path, data: RunData, settings: DataSettings) -> list[int]:
    """Write each source once; return the numbers of training, unlabelled, held-out and invalid ones."""
    held = {pair.source for split in ("valid", "test") for pair in data.read_split(split)}
    counts, seen = [0, 0, 0, 0], set[tuple[str, tuple[str, ...]]]()
    with path.open("w", encoding="utf-8") as file:

        def write(source: str, features: tuple[str, ...], kind: int) -> None:
            if (source, features) in seen:
                return
            seen.add((source, features))
            counts[kind] += 1
            values, tags = join_features(features, settings)
            row: dict[str, Any] = {"source": " ".join((*tags, source)), "text": source,
                                   "symbols": features}  # fmt: skip
            row |= {f"feature {place}": value for place, value in enumerate(values)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

        for pair in data.read_split("train"):
            write(pair.source, pair.features, 0)
        for name in settings.unlabelled:
            for row in read_sources(name, settings):
                if not isinstance(row, Source):
                    counts[3] += 1
                elif row.source in held:
                    counts[2] += 1
                else:
                    write(row.source, row.features, 1)
    return counts


def split_as(
    teacher: DataSettings, pairs: Iterable[Pair], settings: DataSettings
) -> Iterator[Pair]:
    """Yield the pairs, read with `settings`, as they are read with those of the teacher."""
    for pair in pairs:
        values, tags = join_features(pair.features, settings)
        source = " ".join((*tags, pair.source))
        source, features = take_features(source, values, teacher.features, teacher)
        target: str | RowError = pair.target
        if teacher.records == "json":
            target = write_target(pair.file, pair.line, pair.target, teacher)
        if not isinstance(target, RowError):
            yield pair._replace(source=source, target=target, features=features)


def compare_with_teacher(
    settings: Settings, data: RunData, student: Evaluation
) -> tuple[dict[str, Any], list[str]]:
    """Return score and speed on the validation pairs of the model and its teacher; a table."""
    name = settings.training.teacher
    try:
        model = Predictor.load(
            name, {"decoding.memory": "none"}, device=settings.training.accelerator
        )
    except ModelFolderError as error:
        return {}, [f"teacher: not compared: {error}"]
    pairs = split_as(model.settings.data, data.read_split("valid"), settings.data)
    teacher, _ = evaluate_model(model, pairs)
    metric, title = next(iter(student.scores.titles.items()))
    found = {
        who: {metric: one.scores[metric], "rows_per_s": one.speed["rows_per_s"],
              "engine": one.speed["engine"]}
        for who, one in (("teacher", teacher), ("student", student))
    }  # fmt: skip
    return found, [
        f"{who}: {title} {one[metric]:.2f} on validation, {one['rows_per_s']:,.0f} rows/s ({one['engine']})"
        for who, one in found.items()
    ]
