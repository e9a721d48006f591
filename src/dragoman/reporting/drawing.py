"""A drawing by matplotlib that becomes part of a page: its colours and fonts are those of the page.

Matplotlib is given colours that stand for names; in the SVG the names come out as CSS variables.
Texts of users never reach it, for it would look for their glyphs, and read "$" as a formula: it
draws a stand-in of about the same width, and the SVG gets the text.
"""

import io
import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from dragoman.reporting.visible import measure_width, write_plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.text import Text

INK, FAINT, GRID = "#b00001", "#b00002", "#b00003"
SERIES = ("#a10001", "#a10002", "#a10003", "#a10004")
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS = ("o", "s", "^", "D")
_NAMES = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    GRID: "var(--grid)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)},
}
_RULES: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dragoman",  # the same ids each time
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": GRID,
    "axes.labelsize": 10.5,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "xtick.labelcolor": FAINT,
    "xtick.labelsize": 10.5,
    "ytick.color": GRID,
    "ytick.labelcolor": FAINT,
    "ytick.labelsize": 10.5,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "path.simplify": True,
}
_HANDLE, _LETTER_WIDTH = 40.0, 6.3  # of a legend: beside a name, and of a letter of it
_LETTER = 0.85  # width of a mean letter of a page, in parts of an "n" of DejaVu Sans
_LONGEST_LABEL = 1500  # characters of what a drawing tells in words


@contextmanager
def drawing_rules() -> Iterator[None]:
    """Draw by our rules inside, whatever the user's own say; they are back afterwards.

    The first time on a machine matplotlib lists the fonts, which takes seconds, and keeps the list
    in its own cache folder. Where that cannot be written it works from a folder for a while, and
    says so each time: nobody who reads a report can use that, so it is kept quiet.
    """
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_RULES)
            yield
    finally:
        log.setLevel(level)


class Drawing:
    """One set of axes of a width and height in units of about a pixel; use inside `drawing_rules`."""

    def __init__(self, width: float = 340, height: float = 210) -> None:
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        self._texts: dict[str, str] = {}
        self.axes: Axes = self._figure.add_subplot()
        self.axes.tick_params(length=0)

    def write(self, place: "Text", text: str, longest: int = 26) -> None:
        """Let `place` show `text`, whatever it holds, cut after `longest` characters."""
        place.set_text(self._stand_in(text, longest))
        place.set_gid(f"text{len(self._texts)}")
        self._texts[f"text{len(self._texts)}"] = write_plain(text, longest)

    def write_ticks(self, axis: "Axis", texts: Sequence[str], longest: int) -> None:
        """Let the places 0, 1, ... of `axis` be named by `texts`."""
        axis.set_ticks(range(len(texts)), [self._stand_in(text, longest) for text in texts])
        for place, text in zip(axis.get_ticklabels(), texts, strict=True):
            self.write(place, text, longest)

    def show_legend(self, names: Sequence[str]) -> None:
        """Name the lines in their order, above the axes."""
        wide = sum(_HANDLE + _LETTER_WIDTH * measure_width(name) for name in names)
        fits = wide < 0.9 * self._figure.get_figwidth() * 72
        legend = self.axes.legend(
            labels=["n"] * len(names), ncols=len(names) if fits else 2, loc="lower left",
            bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2, handlelength=2.0, columnspacing=1.2,
            handletextpad=0.5,
        )  # fmt: skip
        for place, name in zip(legend.get_texts(), names, strict=True):
            self.write(place, name)

    def finish(self, key: str, label: str) -> Markup:
        """Return the SVG element; `key` is its own on the page, `label` says it to who cannot see."""
        file = io.StringIO()
        self._figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        root = ElementTree.fromstring(file.getvalue())
        _simplify(root, key, self._texts)
        width, height = root.get("width", ""), root.get("height", "")
        root.attrib.clear()
        root.attrib.update(
            {
                "viewBox": f"0 0 {width.removesuffix('pt')} {height.removesuffix('pt')}",
                "role": "img",
                "aria-label": write_plain(label, _LONGEST_LABEL),
            }
        )
        return Markup(ElementTree.tostring(root, encoding="unicode"))

    def _stand_in(self, text: str, longest: int) -> str:
        return "n" * max(1, math.ceil(measure_width(write_plain(text, longest)) * _LETTER))


def _simplify(root: ElementTree.Element, key: str, texts: dict[str, str]) -> None:
    """Leave out what a page has no use for, keep ids unique on it, and put the texts in."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        if (name := element.get("id", "")) in texts:
            for place in element.iterfind("{*}text"):
                place.text = texts[name]
        element.tail = None
        element.text = element.text if element.tag.endswith(("}text", "}tspan")) else None
        element.tag = element.tag.rpartition("}")[2]
        written = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if element.tag in ("g", "text"):
            written.pop("id", None)
        element.attrib.clear()
        for attribute, value in written.items():
            element.set(attribute, _simplify_value(attribute, value, key))


def _simplify_value(attribute: str, value: str, key: str) -> str:
    if attribute == "id":
        return f"{key}-{value}"
    if attribute == "href":
        return f"#{key}-{value[1:]}"
    if attribute == "clip-path":
        return value.replace("url(#", f"url(#{key}-")
    if attribute == "style":
        named = re.sub("|".join(_NAMES), lambda found: _NAMES[found.group()], value)
        return re.sub("font-family: [^;]*;? ?", "", named).replace(": ", ":").replace("; ", ";")
    short = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found.group()):.4g}", value)
    return " ".join(short.split())
