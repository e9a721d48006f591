"""What is to be predicted, and where it is written: a job, and what tells it from others."""

import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from dragoman.commands.output_formats import Layout, find_layout
from dragoman.configuration import flatten_settings
from dragoman.errors import DragomanError
from dragoman.evaluation.confidence import round_confidence
from dragoman.predictor import Prediction, Predictor
from dragoman.settings import DecodingSettings
from dragoman.storage import sha256


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Where the rows go that no sure output was found for: in their order, as the others.

    These are the rows whose confidence, as it is written, is less than `min_confidence`, those
    whose output was cut, and those that could not be read.
    """

    path: Path
    layout: Layout
    min_confidence: float

    def takes(self, best: Prediction | None) -> bool:
        """Return whether a row with this output goes there."""
        if best is None or not best.is_complete:
            return True
        return round_confidence(best.confidence) < self.min_confidence


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be predicted, and where it is written.

    Args:
        input: A file of sources; None: standard input.
        output: The file to write; None: standard output.
        rest: A second file, for the rows that are not sure enough; None: all go to the first.
        is_forced: Rows are pairs, whose targets are scored.
        prefix: Column of what the output begins with; "": none.
        restarts: What was interrupted is begun anew.
    """

    input: Path | None = None
    output: Path | None = None
    layout: Layout = "text"
    rest: Rest | None = None
    is_forced: bool = False
    prefix: str = ""
    restarts: bool = False

    @property
    def layouts(self) -> list[Layout]:
        """Those of its files, the main one first."""
        return [self.layout, *([self.rest.layout] if self.rest else [])]

    @property
    def files(self) -> dict[str, Path]:
        """The files that it writes, by option, the main one first; not standard output."""
        named = {
            "--output": self.output,
            "--low-confidence-output": self.rest.path if self.rest else None,
        }
        return {option: path for option, path in named.items() if path is not None}


def choose_layout(output: Path | None, *, is_jsonl: bool) -> Layout:
    """Return the layout of an output, by its name unless JSON is asked for."""
    if is_jsonl:
        return "jsonl"
    return "text" if output is None else find_layout(output)


def check_rest(job: Job) -> None:
    """Refuse a second file by which rows could be lost.

    Raises:
        DragomanError: Says why.
    """
    if job.rest is None:
        return
    path = job.rest.path
    if path.exists() and not path.is_file():
        raise DragomanError(f"--low-confidence-output {path}: it is no file; give another name")
    if job.output is not None and job.output.resolve() == path.resolve():
        raise DragomanError(
            f"--low-confidence-output {path}: this is the --output too; give it another name"
        )
    if "text" in job.layouts:
        option, file = [("--output", job.output), ("--low-confidence-output", path)][
            job.layouts.index("text")
        ]
        raise DragomanError(
            f"{option} {file or '(standard output)'}: lines of text do not say which rows they are "
            "of, when some are in another file; name it .jsonl, .csv or .tsv, or give --jsonl"
        )


def describe_job(model: Predictor, job: Job) -> dict[str, object]:
    """Return all that the outputs depend on, but the input."""
    settings, rest = flatten_settings(model.settings), job.rest
    assert job.output is not None
    return {
        "dragoman": version("dragoman"),
        "model": model.fingerprints(),
        "--engine": model.engine.name,
        "--quantization": model.engine.quantization,
        "--score": job.is_forced,
        "--prefix": job.prefix,
        "layout": job.layouts,
        "--low-confidence-output": os.path.relpath(rest.path, job.output.parent) if rest else None,
        "--min-confidence": rest.min_confidence if rest else None,
        "temperature of the calibration": model.temperature,
        "files of the constraint": _list_constraint_files(model.settings.decoding),
        **{name: settings[name] for name in settings if name.startswith(("data.", "decoding."))},
    }


def _list_constraint_files(decoding: DecodingSettings) -> list[str]:
    """Return what tells the files that constrain the outputs from others."""
    schema = "" if decoding.json_schema.lstrip().startswith("{") else decoding.json_schema
    names = (decoding.choices, schema, decoding.grammar)
    return [sha256(Path(name)) for name in names if name and Path(name).is_file()]
