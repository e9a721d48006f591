"""The charts of a report: SVG by matplotlib, with named axes, readable on light and dark pages.

Lines have mid-tone colours; the page's style sheet gives the texts its ink. Texts from data become
SVG text, never formulas.
"""

import io
import itertools
import logging
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from dragoman.reporting.text import write_plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
Estimate = tuple[float, float, float]  # value, and the ends of its interval (the value: unknown)

MOST_TOKENS = 32  # of each side of a heat map
_MOST_POINTS = 240  # of a line
_MOST_MARKED = 25  # points of a line with markers
_LONGEST_LABEL = 60  # characters
_LINE_WIDTH = 22  # characters of a line of a label
_ROW_HEIGHT = 22.0
# A contrast of at least 3.4 with the page, light and dark.
_SERIES = ("#3b82d6", "#d2691e", "#1f9d78", "#b05fc4", "#a08000")
_GRAY = "#7f8b98"
_LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 3)))
_MARKERS = ("o", "s", "^", "D", "v")
_STYLE = Path(__file__).with_name("charts.mplstyle")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing with its title, and how to read it."""

    title: str
    drawing: Markup
    note: str = ""


def draw_curves(
    key: str,
    title: str,
    curves: Mapping[str, Sequence[Point]],
    *,
    unit: str,
    over: str = "steps",
    best: tuple[str, Point] | None = None,
    begins_at_zero: bool = False,
    is_percent: bool = False,
) -> Chart:
    """Return up to five lines over the steps of a training.

    Of more than 240 points the means of neighbours are drawn. Positive values that spread over more
    than a factor of 8 have a logarithmic axis, percents a linear one.

    Args:
        over: What the horizontal axis counts.
        best: The name of a curve and a point of it, which is ringed.
        begins_at_zero: Linear axis of values from 0.
        is_percent: Linear axis inside 0 to 100, unless a value is higher.
    """
    notes = []
    with _drawing(key) as axes:
        _plot_lines(axes, {name: _thin(points) for name, points in curves.items()})
        if best is not None:
            name, (step, value) = best
            axes.plot([step], [value], "o", markersize=10, markerfacecolor="none", color=_GRAY)
            notes.append(f"Ringed: best {name}: {value:.4g} after {step:,.0f} {over}.")
        if any(len(points) > _MOST_POINTS for points in curves.values()):
            notes.append(f"Drawn: means of {_MOST_POINTS} stretches.")
        values = [value for points in curves.values() for _, value in points]
        _scale(axes, values, begins_at_zero, is_percent)
        axes.set(xlabel=over, ylabel=unit)
        return _finish(axes, title, f"{title}, {unit}, by {over}", " ".join(notes))


def draw_intervals(
    key: str, title: str, estimates: Mapping[str, Estimate | None], *, unit: str
) -> Chart:
    """Return percents with their intervals, one line for each group from the top."""
    labels = [_fold(name) for name in estimates]
    num_lines = sum(label.count("\n") + 1 for label in labels)
    known = [(row, one) for row, one in enumerate(estimates.values()) if one is not None]
    with _drawing(key, 48 + _ROW_HEIGHT * max(2, num_lines)) as axes:
        from matplotlib.ticker import MaxNLocator

        below = [max(0.0, value - low) for _, (value, low, _) in known]
        above = [max(0.0, high - value) for _, (value, _, high) in known]
        axes.errorbar([one[0] for _, one in known], [row for row, _ in known], xerr=[below, above],
                      fmt="o", color=_SERIES[0], elinewidth=1.6, capsize=3, markersize=5.5,
                      clip_on=False)  # fmt: skip
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(_limit_percents([end for _, (_, *ends) in known for end in ends]))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(unit)
        return _finish(axes, title, f"{title}, {unit}, with intervals")


def draw_calibration(key: str, series: Mapping[str, Sequence[Point]]) -> Chart:
    """Return how often outputs are exactly right over the mean confidence, both in percent."""
    with _drawing(key, 290) as axes:
        ends = [0, 100]
        axes.plot(ends, ends, color=_GRAY, linewidth=1, linestyle=(0, (2, 2)), label="ideal")
        _plot_lines(axes, series)
        axes.set(xlim=(0, 100), ylim=(0, 100))
        axes.set(xlabel="mean confidence, percent", ylabel="exactly right, percent")
        return _finish(
            axes,
            "Calibration",
            "Exactly right by mean confidence, in percent",
            "On the dotted line confidence is as it should be; below it the model is too sure.",
        )


def draw_risk(key: str, curve: Sequence[Point], marks: Mapping[str, Point]) -> Chart:
    """Return the wrong outputs among those kept over the kept ones, both in percent.

    `curve`: (kept, wrong) points.
    """
    kept, wrong = zip(*sorted(curve), strict=True)
    with _drawing(key, 290) as axes:
        axes.plot(kept, wrong, color=_SERIES[0])
        axes.fill_between(kept, wrong, color=_SERIES[0], alpha=0.15, linewidth=0)
        for name, (x, y) in marks.items():
            axes.plot([x], [y], "D", color=_SERIES[1], markersize=6)
            label = write_plain(name, _LINE_WIDTH)
            axes.annotate(label, (x, y), (-6, 7), textcoords="offset points", ha="right")
        axes.set(xlabel="kept, percent of the rows", ylabel="wrong among the kept, percent")
        axes.set(xlim=(0, 100), ylim=(0, min(100.0, max(1.0, *wrong) * 1.12)))
        return _finish(
            axes,
            "Risk and coverage",
            "Wrong outputs among the kept by kept outputs, in percent",
            "The most confident outputs are kept first. The lower the line, the better.",
        )


def draw_attention(
    key: str,
    title: str,
    columns: Sequence[str],
    rows: Sequence[str],
    weights: Sequence[Sequence[float]],
) -> Chart:
    """Return a heat map: the attention of each output token (a row) over the source tokens.

    Up to 32 tokens of each side are drawn.
    """
    columns, rows = columns[:MOST_TOKENS], rows[:MOST_TOKENS]
    labels = [[write_plain(token, _LINE_WIDTH) for token in side] for side in (columns, rows)]
    left = 44 + 6.6 * max(map(len, labels[1]))  # of the cells
    side = min(22.0, (340 - left) / max(1, len(columns)))
    size = min(11.0, side * 0.95)
    longest = max(map(len, labels[0]))
    height = 56 + side * len(rows) + size * max(1.5, 0.6 * longest)
    with _drawing(key, height) as axes:
        from matplotlib.colors import LinearSegmentedColormap, to_rgba

        shades = [to_rgba(_SERIES[0], alpha) for alpha in (0.0, 1.0)]
        colors = LinearSegmentedColormap.from_list("attention", shades, N=16)
        shown = [line[: len(columns)] for line in weights[: len(rows)]]
        axes.pcolormesh(shown, cmap=colors, vmin=0.0, vmax=1.0, linewidth=0)
        axes.set_xticks([place + 0.5 for place in range(len(columns))], labels[0])
        axes.set_yticks([place + 0.5 for place in range(len(rows))], labels[1])
        axes.tick_params(labelsize=size)
        axes.tick_params(axis="x", rotation=90 if longest > 2 else 0)
        axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
        axes.set(xlabel="source tokens", ylabel="output tokens")
        axes.set_aspect("equal")
        axes.grid(visible=False)
        label = f"Attention of output tokens over source tokens: {title}"
        return _finish(axes, title, label)


def draw_search(points: Sequence[Point], monitor: str) -> Chart:
    """Return the scores of trials by the minutes of all trials until their ends."""
    with _drawing("search") as axes:
        minutes, scores = zip(*points, strict=True)
        axes.plot(minutes, scores, "o", color=_SERIES[0], clip_on=False)
        axes.set(xlabel="minutes of training", ylabel=write_plain(monitor, _LONGEST_LABEL))
        return _finish(axes, "Trials", f"{monitor} of each trial, by minutes of training")


def draw_importance(importance: Mapping[str, float]) -> Chart:
    """Return how much of the differences between trials each setting explains, in percent."""
    names = sorted(importance, key=lambda name: importance[name])
    with _drawing("importance", 48 + 1.5 * _ROW_HEIGHT * len(names)) as axes:
        axes.barh([_fold(name) for name in names], [100 * importance[name] for name in names],
                  color=_SERIES[0])  # fmt: skip
        axes.set(xlabel="percent")
        return _finish(axes, "What matters", "Share of the differences that each setting explains")


def draw_learning_curve(
    points: Sequence[tuple[int, Estimate]], doubled: tuple[int, Estimate], unit: str
) -> Chart:
    """Return scores with intervals by the number of pairs, and the one expected of twice as many."""
    with _drawing("curve") as axes:
        from matplotlib.ticker import EngFormatter, NullLocator

        for place, (name, shown) in enumerate((("measured", points), ("expected", [doubled]))):
            values, lows, highs = np.array([estimate for _, estimate in shown]).T
            axes.errorbar([n for n, _ in shown], values, yerr=[values - lows, highs - values],
                          color=_SERIES[place], marker=_MARKERS[place], capsize=3, label=name)  # fmt: skip
        ticks = [n for n, _ in (*points, doubled)]
        axes.set_xscale("log")
        axes.set_xticks(ticks)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(xlabel="training pairs", ylabel=write_plain(unit, _LONGEST_LABEL))
        return _finish(axes, "Learning curve", f"{unit} by the number of training pairs")


@contextmanager
def _drawing(key: str, height: float = 210) -> Iterator["Axes"]:
    """Give axes of 340 by `height` pixels, drawn in our style whatever the user's own is.

    Matplotlib lists the fonts on its first use on a machine, and logs it where its cache folder
    cannot be written; it warns of characters that its own font lacks, which the browser draws.
    """
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        from matplotlib import style
        from matplotlib.figure import Figure

        # The salt makes the ids of clip paths and markers the same each time, and unique.
        ours = style.context(["default", _STYLE, {"svg.hashsalt": key}])
        with ours, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield Figure(figsize=(340 / 72, height / 72), layout="constrained").add_subplot()
    finally:
        log.setLevel(level)


def _plot_lines(axes: "Axes", lines: Mapping[str, Sequence[Point]]) -> None:
    """Draw up to five lines by name, the short ones with markers."""
    for place, (name, points) in enumerate(lines.items()):
        marker = _MARKERS[place] if len(points) <= _MOST_MARKED else None
        axes.plot(*zip(*points, strict=True), color=_SERIES[place], linestyle=_LINES[place],
                  marker=marker, clip_on=False, label=_fold(name))  # fmt: skip


def _finish(axes: "Axes", title: str, label: str, note: str = "") -> Chart:
    """Return the chart, with a legend for two series or more; `label` is for screen readers.

    Call inside `_drawing`.
    """
    handles, names = axes.get_legend_handles_labels()
    if len(names) > 1:
        num_columns = len(names) if sum(map(len, names)) < 34 else 2
        axes.legend(handles, names, ncols=num_columns, loc="lower left",
                    bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2, columnspacing=1.2)  # fmt: skip
    file = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    axes.get_figure(root=True).savefig(file, format="svg", metadata=metadata)  # type: ignore[union-attr]
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML declaration
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # numbered from 1 in each drawing: not unique
    drawing = Markup('<div class="chart" role="img" aria-label="{}">{}</div>').format(
        write_plain(label, 200), Markup(svg)
    )
    return Chart(title=title, drawing=drawing, note=note)


def _fold(text: str) -> str:
    """Return a label in lines of at most 22 characters."""
    return textwrap.fill(write_plain(text, _LONGEST_LABEL), _LINE_WIDTH)


def _limit_percents(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis: a little beyond the values, but not beyond 0 and 100."""
    low, high = min(values, default=0.0), max(values, default=100.0)
    beyond = max(1.0, 0.08 * (high - low))
    return max(0.0, low - beyond), high if high > 100 else min(100.0, high + beyond)


def _scale(axes: "Axes", values: Sequence[float], begins_at_zero: bool, is_percent: bool) -> None:
    """Choose the scales of curves with these values."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if is_percent:
        axes.set_ylim(_limit_percents(values))
    elif begins_at_zero:
        axes.set_ylim(0, max(values) * 1.1 or 1.0)
    elif 0 < 8 * min(values) < max(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
    if max(values) >= 10_000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _thin(points: Sequence[Point]) -> list[Point]:
    """Return the points, or the means of 240 stretches of about equally many neighbours."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    bounds = [place * len(points) // _MOST_POINTS for place in range(_MOST_POINTS + 1)]
    stretches = [points[start:end] for start, end in itertools.pairwise(bounds)]
    return [
        (math.fsum(x for x, _ in one) / len(one), math.fsum(y for _, y in one) / len(one))
        for one in stretches
    ]
