"""The charts of a report: each with axes named with their units, and told in words for who cannot see it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from dragoman.reporting.drawing import (
    FAINT,
    INK,
    LINES,
    MARKERS,
    SERIES,
    Drawing,
    drawing_rules,
)
from dragoman.reporting.visible import measure_width, write_plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
Estimate = tuple[float, float, float]  # value, and the two ends of its interval

MOST_TOKENS = 32  # of each side of a heat map
_MOST_POINTS = 240  # of a line
_MOST_MARKED = 25  # points that a line marks
_LEAST_WEIGHT = 0.03  # a cell of a heat map that is drawn
_ROW_HEIGHT = 22.0


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing with its title, and what to know to read it."""

    title: str
    drawing: Markup
    note: str = ""


def draw_curves(
    key: str,
    title: str,
    curves: Mapping[str, Sequence[Point]],
    *,
    unit: str,
    best: tuple[str, Point] | None = None,
    begins_at_zero: bool = False,
) -> Chart:
    """Return lines over the updates of a training; up to four.

    Of more than 240 points the means of neighbours are drawn. Values that are all positive and
    spread over more than a factor of 8 stand on a logarithmic axis.

    Args:
        key: The chart's own name on the page, letters and digits.
        unit: What the values are, with their unit.
        best: The name of a curve and a point of it, to be marked.
    """
    is_thinned = any(len(points) > _MOST_POINTS for points in curves.values())
    told = []
    with drawing_rules():
        drawing = Drawing()
        axes = drawing.axes
        for place, (name, points) in enumerate(curves.items()):
            steps, heights = zip(*_thin(points), strict=True)
            is_sparse = len(points) <= _MOST_MARKED
            axes.plot(
                steps, heights, color=SERIES[place], linestyle=LINES[place],
                marker=MARKERS[place] if is_sparse else None,
                linewidth=1.2 if place == 2 else 1.8, zorder=2 - place * 0.1,
            )  # fmt: skip
            told.append(f"{name}: {_tell_curve(points)}")
        _scale(axes, [value for points in curves.values() for _, value in points], begins_at_zero)
        axes.set(xlabel="updates", ylabel=unit)
        if best is not None:
            name, (step, value) = best
            axes.plot(
                [step], [value], "o", markersize=10, markerfacecolor="none", color=INK,
                markeredgewidth=1.4,
            )  # fmt: skip
            told.append(f"best {name}: {value:.4g} after {step:,.0f} updates")
        if len(curves) > 1:
            drawing.show_legend(list(curves))
        drawn = drawing.finish(key, f"{title}, {unit}, by updates. {'; '.join(told)}.")
    notes = [f"Ringed: {told[-1]}."] if best else []
    notes += [f"Drawn: means of {_MOST_POINTS} stretches."] if is_thinned else []
    return Chart(title=title, drawing=drawn, note=" ".join(notes))


def draw_intervals(
    key: str,
    title: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[Estimate | None]],
    *,
    unit: str,
) -> Chart:
    """Return values with their intervals, a group a line from the top; up to four series.

    Args:
        series: By name, an estimate for each of `groups`; None: there is none.
    """
    told = []
    with drawing_rules():
        from matplotlib.ticker import MaxNLocator

        drawing = Drawing(height=48 + _ROW_HEIGHT * max(2, len(groups)) + 16 * (len(series) > 1))
        axes = drawing.axes
        for place, (name, estimates) in enumerate(series.items()):
            shift = 0.0 if len(series) == 1 else 0.32 * (place / (len(series) - 1) - 0.5)
            known = [(row, one) for row, one in enumerate(estimates) if one is not None]
            axes.errorbar(
                [one[0] for _, one in known],
                [row + shift for row, _ in known],
                xerr=[
                    [max(0.0, value - low) for _, (value, low, _) in known],
                    [max(0.0, high - value) for _, (value, _, high) in known],
                ],
                fmt=MARKERS[place], color=SERIES[place], elinewidth=1.6, capsize=3, markersize=5.5,
            )  # fmt: skip
            begin = f"{name}: " if len(series) > 1 else ""
            told += [f"{begin}{groups[row]} {_tell_estimate(one)}" for row, one in known]
        drawing.write_ticks(axes.yaxis, groups, longest=18)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(unit)
        if len(series) > 1:
            drawing.show_legend(list(series))
        drawn = drawing.finish(key, f"{title}, {unit}, with intervals. {'; '.join(told)}.")
    return Chart(title=title, drawing=drawn)


def draw_calibration(key: str, series: Mapping[str, Sequence[Point]]) -> Chart:
    """Return how often outputs are right by how sure the model was, both in percent."""
    told = []
    with drawing_rules():
        drawing = Drawing(height=290)
        axes = drawing.axes
        axes.plot([0, 100], [0, 100], color=FAINT, linewidth=1, linestyle=(0, (2, 2)))
        for place, (name, points) in enumerate(series.items()):
            sure, right = zip(*points, strict=True)
            axes.plot(
                sure, right, color=SERIES[place], linestyle=LINES[place], marker=MARKERS[place],
                markersize=5.5,
            )  # fmt: skip
            told.append(f"{name}: " + ", ".join(f"{x:.0f} sure {y:.0f} right" for x, y in points))
        axes.set(
            xlim=(-2, 102), ylim=(-2, 102), xlabel="mean confidence, percent",
            ylabel="exactly right, percent",
        )  # fmt: skip
        drawing.show_legend(["ideal", *series])
        drawn = drawing.finish(key, f"Calibration, in percent. {'; '.join(told)}.")
    return Chart(
        title="Sure and right",
        drawing=drawn,
        note="On the dotted line, confidence is what it says; below it the model is too sure.",
    )


def draw_risk(key: str, curve: Sequence[Point], marks: Mapping[str, Point]) -> Chart:
    """Return how many of the kept outputs are wrong by how many are kept, both in percent.

    Args:
        marks: Points to be named.
    """
    points = sorted(curve)
    with drawing_rules():
        drawing = Drawing(height=290)
        axes = drawing.axes
        kept, wrong = zip(*points, strict=True)
        axes.plot(kept, wrong, color=SERIES[0])
        axes.fill_between(kept, wrong, color=SERIES[0], alpha=0.12, linewidth=0)
        for name, (x, y) in marks.items():
            axes.plot([x], [y], "D", color=SERIES[1], markersize=6)
            text = axes.annotate("", (x, y), (-6, 7), textcoords="offset points", ha="right")
            drawing.write(text, name)
        axes.set(xlabel="kept, percent of the rows", ylabel="wrong among the kept, percent")
        axes.set_xlim(0, 102)
        axes.set_ylim(0, max(1.0, *wrong) * 1.12)
        told = [f"{x:.0f} kept {y:.1f} wrong" for x, y in _thin(points, 10)]
        told += [f"for {name}: {x:.0f} kept" for name, (x, _) in marks.items()]
        drawn = drawing.finish(key, f"Risk by coverage, in percent. {', '.join(told)}.")
    return Chart(
        title="Risk against coverage",
        drawing=drawn,
        note="The surest outputs are kept first. The lower the line, the better confidence sorts.",
    )


def draw_attention(
    key: str,
    title: str,
    columns: Sequence[str],
    rows: Sequence[str],
    weights: Sequence[Sequence[float]],
) -> Chart:
    """Return a heat map: how much of its attention each output token (a row) paid to the source's.

    Up to 32 tokens of each side are drawn; a weight under 0.03 is left blank.
    """
    columns, rows = columns[:MOST_TOKENS], rows[:MOST_TOKENS]
    told = []
    side = min(22.0, 300 / max(1, len(columns)))
    size = min(11.0, side * 0.95)
    longest = max(measure_width(write_plain(token, 10)) for token in columns)
    with drawing_rules():
        from matplotlib.patches import Rectangle

        drawing = Drawing(height=56 + side * len(rows) + size * max(1.5, 0.6 * longest))
        axes = drawing.axes
        for y, (token, line) in enumerate(zip(rows, weights, strict=False)):
            shares = [min(1.0, max(0.0, value)) for value in line[: len(columns)]]
            for x, share in enumerate(shares):
                if share >= _LEAST_WEIGHT:
                    alpha = round(share, 2)
                    axes.add_patch(
                        Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=SERIES[0], alpha=alpha, linewidth=0)
                    )  # fmt: skip
            if shares:
                most = max(range(len(shares)), key=shares.__getitem__)
                told.append(f"{token} mostly to {columns[most]}")
        drawing.write_ticks(axes.xaxis, columns, longest=10)
        drawing.write_ticks(axes.yaxis, rows, longest=10)
        axes.tick_params(labelsize=size, labelcolor=INK)
        axes.tick_params(axis="x", rotation=90 if longest > 2 else 0)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.set(xlabel="tokens of the source", ylabel="tokens of the output")
        axes.set_aspect("equal")
        axes.grid(visible=False)
        drawn = drawing.finish(key, f"Attention, from 0 to 1. {'; '.join(told)}.")
    return Chart(title=title, drawing=drawn)


def _scale(axes: "Axes", values: Sequence[float], begins_at_zero: bool) -> None:
    """Choose the scales of curves that have these values."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if begins_at_zero:
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


def _thin(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """Return the points, or the means of `most` stretches of about as many neighbours each."""
    if len(points) <= most:
        return list(points)
    bounds = [place * len(points) // most for place in range(most + 1)]
    parts = [points[start:end] for start, end in itertools.pairwise(bounds)]
    return [
        (math.fsum(x for x, _ in part) / len(part), math.fsum(y for _, y in part) / len(part))
        for part in parts
    ]


def _tell_curve(points: Sequence[Point]) -> str:
    (first, begin), (last, end) = points[0], points[-1]
    return f"from {begin:.4g} after {first:,.0f} to {end:.4g} after {last:,.0f}"


def _tell_estimate(estimate: Estimate) -> str:
    value, low, high = estimate
    return f"{value:.4g} ({low:.4g} to {high:.4g})"
