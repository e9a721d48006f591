"""Rows to look at: typical ones, those that the model was sure or unsure of, those furthest off."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from dragoman.evaluation.rows import Row
from dragoman.reporting.differences import find_closest, show_differences

NUM_SAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A row as it is shown."""

    row: Row
    shown: Markup  # the output, its differences to the closest reference marked
    edits: int
    place: str  # name of the file and line, as far as known


@dataclass(frozen=True, kw_only=True)
class SampleList:
    """Rows chosen by one rule."""

    title: str
    told: str
    samples: list[Sample]


def choose_samples(rows: Sequence[Row], count: int = NUM_SAMPLES) -> list[SampleList]:
    """Return up to four lists of up to `count` rows each, those that would be empty left out.

    Ties go by the order of the rows.
    """
    wrong = [row for row in rows if not row.is_exact]
    sure = [row for row in wrong if row.confidence is not None]
    known = [row for row in rows if row.confidence is not None]
    spread = [rows[place * len(rows) // count] for place in range(count)]
    chosen = [
        (
            "Typical rows",
            "Spread evenly over the file, right or wrong: what to expect.",
            spread if len(rows) > count else rows,
        ),
        (
            "Sure, and wrong",
            "Of the outputs that are not exact, those with the highest confidence: faults that no "
            "threshold keeps out, or references worth a second look.",
            sorted(sure, key=lambda row: -(row.confidence or 0.0)),
        ),
        (
            "Least sure",
            "The lowest confidence, right or wrong: what a threshold sends to people first.",
            sorted(known, key=lambda row: row.confidence or 0.0),
        ),
        (
            "Furthest off",
            "The most edits to the closest reference, for its length.",
            sorted(wrong, key=lambda row: -_find_error(row)),
        ),
    ]
    return [
        SampleList(title=title, told=told, samples=[_show(row) for row in found[:count]])
        for title, told, found in chosen
        if found
    ]


def _find_error(row: Row) -> float:
    reference, edits = find_closest(row.hypothesis, row.references)
    return edits / max(1, len(reference))


def _show(row: Row) -> Sample:
    reference, edits = find_closest(row.hypothesis, row.references)
    name = Path(row.file).name
    place = f"{name}:{row.line}" if name and row.line else name
    return Sample(
        row=row, shown=show_differences(reference, row.hypothesis), edits=edits, place=place
    )
