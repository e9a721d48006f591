"""Writes the report of a model, or of outputs from files: one HTML page, which opens offline.

A typical file, with two evaluations, takes about 0.5 MB, however many rows there are.
"""

import math
import platform
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from rapidfuzz import process
from rapidfuzz.fuzz import ratio

from dragoman.configuration import as_settings, flatten_settings
from dragoman.engines.engine import UnsupportedError
from dragoman.errors import DragomanError
from dragoman.evaluation.evaluation import Evaluation
from dragoman.evaluation.output_rows import Row, as_outputs
from dragoman.inspection.findings import HeldRows
from dragoman.predictor import Predictor
from dragoman.reading.pairs import Pair, Source
from dragoman.reading.row_errors import name_row
from dragoman.reporting import sections
from dragoman.reporting.sections import ReportContent, list_scores, show_estimate, show_number
from dragoman.reporting.text import show_differences, show_text, write_plain
from dragoman.storage import explain_failed_write, staged_file

_NUM_ATTENTION = 3  # outputs with a heat map
_ATTENTION_CHARACTERS = 24  # sources of about this length are chosen
_NUM_WRONG = 10  # outputs with their nearest training pairs
_NUM_NEAREST = 5
_MOST_TRAINING = 3_000_000  # pairs; of more, none are read
_LEAST_SIMILAR = 50.0  # percent of the characters are common
_MOST_COMPARED = 2e10  # products of the lengths of two sources: half a second
_LIBRARIES = ("dragoman", "torch", "lightning", "tokenizers", "ctranslate2", "sacrebleu")
_MOST_TILES = 4
_SECTIONS = (
    ("scores", "Scores", sections.show_scores),
    ("training", "Training", sections.show_training),
    ("data", "Data", sections.show_inspection),
    ("breakdowns", "Breakdowns", sections.show_breakdowns),
    ("confusions", "Confusions", sections.show_confusions),
    ("confidence", "Confidence", sections.show_confidence),
    ("samples", "Samples", sections.show_samples),
    ("neighbours", "Nearest training pairs", sections.show_neighbours),
    ("attention", "Attention", sections.show_attention),
    ("settings", "Settings", sections.show_settings),
)


def report_model(
    path: Path,
    model: Predictor,
    name: str,
    evaluations: Mapping[str, Evaluation],
    *,
    metrics: Mapping[str, Any] | None = None,
    user_settings: Collection[str] = (),
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    inspection: Mapping[str, Any] | None = None,
    training: Iterable[Pair] = (),
) -> None:
    """Write the report of a model.

    Args:
        evaluations: By name; heat maps of attention and nearest pairs are of rows of the last one.
        metrics: The content of metrics.json: time, memory and data of the training.
        user_settings: Names of the settings of this command, besides those of the training.
        training: The training pairs, which are read once; (): not at hand.
    """
    rows = {split: one.rows for split, one in evaluations.items()}
    metrics = metrics or {}
    given = metrics.get("user_settings")  # missing in older model folders
    if metrics.get("data", {}).get("pairs", {}).get("train", 0) > _MOST_TRAINING:
        training = ()
    training = as_outputs(training, model.settings.tokenizer.target.unicode_form)
    content = ReportContent(
        name=name,
        summary=_summarize(model, next(iter(evaluations.values())), metrics),
        created=_write_time(),
        curves=curves or {},
        inspection=inspection,
        evaluations={split: one.to_dict() for split, one in evaluations.items()},
        rows=rows,
        attention=find_attention(model, next(reversed(rows.values()), ())),
        neighbours=find_neighbours(next(reversed(rows.values()), ()), training),
        settings=flatten_settings(model.settings),
        user_settings=None if given is None else {*given, *user_settings},
        versions=list_versions(),
        facts=_list_facts(metrics),
        hashes=metrics.get("data", {}).get("sha256", {}),
    )
    write_report(path, content)


def report_outputs(path: Path, name: str, evaluation: Evaluation) -> None:
    """Write the report of outputs that were read from files."""
    content = ReportContent(
        name=name,
        created=_write_time(),
        summary=f"Task: {evaluation.task}. Outputs read from a file.",
        evaluations={name: evaluation.to_dict()},
        rows={name: evaluation.rows},
        versions=list_versions(("dragoman", "sacrebleu")),
    )
    write_report(path, content)


def write_report(path: Path, content: ReportContent) -> None:
    """Write `content` as one HTML file, atomically.

    The same content gives the same bytes with the same versions of the libraries.
    """
    write_page(path, render_page(content))


def write_page(path: Path, page: str) -> None:
    """Write a page atomically."""
    remedy = "; choose another file"
    with explain_failed_write(path, DragomanError, remedy), staged_file(path) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")


def render_page(content: ReportContent) -> str:
    """Return the page as HTML."""
    shown = [(key, title, show(content)) for key, title, show in _SECTIONS]
    about = {name: getattr(content, name) for name in ("facts", "versions", "hashes")}
    if any(about.values()):
        shown.append(("about", "Run", about))
    main = content.evaluations.get(content.main_evaluation, {})
    scores = list_scores(main)
    own_level = main.get("settings", {}).get("confidence_level")
    level = own_level or content.settings.get("evaluation.confidence_level", 0.95)
    return render_template(
        "page.html.jinja",
        content=content,
        level=f"{100 * level:g}%",
        tiles=([score for score in scores if score.is_tile] or scores)[:_MOST_TILES],
        sections=[one for one in shown if one[2] is not None],
    )


def render_template(name: str, **values: object) -> str:
    """Return the page that a template of `dragoman.reporting` makes of `values`."""
    folder = files("dragoman.reporting")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        text=show_text, number=show_number, plain=write_plain, estimate=show_estimate
    )
    environment.globals.update(name_row=name_row, differences=show_differences)
    template = environment.from_string(folder.joinpath(name).read_text("utf-8"))
    style = Markup(folder.joinpath("style.css").read_text("utf-8"))
    return template.render(style=style, **values)


def list_versions(libraries: Sequence[str] = _LIBRARIES) -> dict[str, str]:
    """Return the versions of Python and of those of `libraries` that are installed."""
    found = {"Python": platform.python_version()}
    for name in libraries:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def find_attention(model: Predictor, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the attention of a few of the shorter outputs; none if the engine cannot give it."""
    short = sorted(rows, key=lambda row: abs(len(row.source) - _ATTENTION_CHARACTERS))
    short = short[:_NUM_ATTENTION]
    aligned = {"decoding.alignment": True, "decoding.memory": "none"}
    attending = model.with_decoding(as_settings(aligned, is_whole=False))
    sources = [Source(row.source, row.features, row.line) for row in short]
    try:
        found = list(attending.predict_rows(sources))
    except UnsupportedError:
        return []
    return [
        {
            "source": row.source,
            "source_tokens": best.source_tokens,
            "tokens": best.tokens,
            "weights": best.alignment,
        }
        for row, (_, (best, *_)) in zip(short, found, strict=True)
    ]


def find_neighbours(rows: Sequence[Row], training: Iterable[Pair]) -> dict[str, Any]:
    """Return training pairs that bear on wrong outputs of the highest confidence; {}: there are none.

    `otherwise` has all pairs of the same source, but for case and spaces, whose targets are not the
    output; `nearest`, (similarity in [0, 1], pair) by characters, of pairs that are spread evenly.
    """
    wrong = [row for row in rows if row.confidence and not row.is_exact]
    wrong = sorted(wrong, key=lambda row: -(row.confidence or 0.0))[:_NUM_WRONG]
    places: dict[tuple[str, tuple[str, ...]], dict[str, list[str]]]
    places = {(_fold(row.source), row.features): {} for row in wrong}
    held = HeldRows()
    for pair in held.hold(training) if wrong else ():
        if (found := places.get((_fold(pair.source), pair.features))) is not None:
            place = name_row(Path(pair.file).name, pair.line)
            found.setdefault(pair.target, []).append(place)
    if not held.pairs:
        return {}
    lengths = [sum(len(one.source) for one in side) for side in (wrong, held.pairs)]
    compared = held.pairs[:: math.ceil(math.prod(lengths) / _MOST_COMPARED)]
    distinct = {(one.source, one.features, one.target): one for one in compared[::-1]}
    pairs = [one._replace(file=Path(one.file).name) for one in reversed(distinct.values())]
    sources, outputs = [one.source for one in pairs], []
    for row in wrong:
        same = places[_fold(row.source), row.features]
        output = row.emitted or row.hypothesis
        nearest = process.extract(
            row.source, sources, scorer=ratio, limit=_NUM_NEAREST, score_cutoff=_LEAST_SIMILAR
        )
        outputs.append(
            {
                "row": row,
                "otherwise": {target: rows for target, rows in same.items() if target != output},
                "nearest": [(score / 100, pairs[i]) for _, score, i in nearest],
            }
        )
    num_pairs = held.sampled_from or len(held.pairs)
    return {"outputs": outputs, "num_compared": len(compared), "num_pairs": num_pairs}


def _fold(text: str) -> str:
    """Return `text` without case and spaces."""
    return "".join(text.casefold().split())


def _summarize(model: Predictor, evaluation: Evaluation, metrics: Mapping[str, Any]) -> str:
    """Return a line on the task, the data and the size of a model."""
    tokenizer = model.settings.tokenizer
    tokens = f"{tokenizer.source.kind} to {tokenizer.target.kind}"
    parts = [f"Task: {evaluation.task} ({tokens})"]
    if pairs := metrics.get("data", {}).get("pairs"):
        parts.append(f"{pairs['train']:,} training pairs")
    if "num_parameters" in metrics:
        parts.append(f"{metrics['num_parameters']:,} parameters")
    return ", ".join(parts) + "."


def _list_facts(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts of a training by their labels."""
    labels = {"command": "command", "machine": "machine", "versions": "trained with"}
    facts = {label: str(metrics[name]) for name, label in labels.items() if name in metrics}
    if "minutes" in metrics:
        facts["time"] = f"{metrics['minutes']:.1f} minutes, {metrics['num_steps']:,} steps"
        facts["precision"] = f"{metrics['precision']}"
        facts["parameters"] = f"{metrics['num_parameters']:,}"
    for reason in metrics.get("decoding", {}).get("reasons", ()):  # missing in older model folders
        label, _, choice = reason.partition(": ")
        facts[label] = choice
    if "peak_memory_mib" in metrics:
        facts["peak memory"] = f"{metrics['peak_memory_mib']:,} MiB"
    return facts


def _write_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
