"""A report as one HTML file, which opens offline and has no scripts.

A typical file, with two evaluations, takes about 0.5 MB, however many rows there are.
"""

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from dragoman.errors import DragomanError
from dragoman.reading.row_errors import name_row
from dragoman.reporting import sections
from dragoman.reporting.content import ReportContent, list_scores, show_number
from dragoman.reporting.text import show_text, write_plain
from dragoman.storage import staged_file

_MOST_TILES = 4
_SECTIONS = (
    ("scores", "Scores", sections.show_scores),
    ("training", "Training", sections.show_training),
    ("data", "Data", sections.show_inspection),
    ("breakdowns", "Breakdowns", sections.show_breakdowns),
    ("confusions", "Confusions", sections.show_confusions),
    ("confidence", "Confidence", sections.show_confidence),
    ("samples", "Samples", sections.show_samples),
    ("attention", "Attention", sections.show_attention),
    ("settings", "Settings", sections.show_settings),
)


def write_report(path: Path, content: ReportContent) -> None:
    """Write `content` as one HTML file, atomically.

    The same content gives the same bytes with the same versions of the libraries.

    Raises:
        DragomanError: The file cannot be written.
    """
    page = render_page(content)
    try:
        with staged_file(path) as partial:
            partial.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DragomanError(
            f"{path}: cannot write the report: {error.strerror}; choose another file"
        ) from error


def render_page(content: ReportContent) -> str:
    """Return the page as HTML."""
    folder = files("dragoman.reporting")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(text=show_text, number=show_number, plain=write_plain)
    environment.globals.update(name_row=name_row)
    template = environment.from_string(folder.joinpath("page.html.jinja").read_text("utf-8"))
    shown = [(key, title, show(content)) for key, title, show in _SECTIONS]
    about = {name: getattr(content, name) for name in ("facts", "versions", "hashes")}
    if any(about.values()):
        shown.append(("about", "Run", about))
    main = content.main_evaluation
    scores = list_scores(content.evaluations[main]) if main else []
    return template.render(
        content=content,
        style=Markup(folder.joinpath("style.css").read_text("utf-8")),
        level=f"{100 * _find_level(content):g}%",
        tiles=([score for score in scores if score.is_tile] or scores)[:_MOST_TILES],
        sections=[one for one in shown if one[2] is not None],
    )


def _find_level(content: ReportContent) -> float:
    """Return the confidence level of the intervals: that of the evaluation, else of the settings."""
    main = content.evaluations.get(content.main_evaluation, {})
    own = main.get("settings", {}).get("confidence_level")
    return float(own or content.settings.get("evaluation.confidence_level", 0.95))
