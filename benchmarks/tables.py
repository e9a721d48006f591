"""How benchmarks tell what they found: tables, ratios with their spread, bars."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What the project wants of itself: that a ratio, measured in each round, is `least` or more."""

    claim: str
    least: float
    ratios: list[float]

    @property
    def verdict(self) -> str:
        """Whether all ratios are there, or none; between the two, this run cannot tell."""
        if not self.ratios:
            return "not measured"
        if min(self.ratios) >= self.least:
            return "met"
        return "missed" if max(self.ratios) < self.least else "cannot tell"

    def __str__(self) -> str:
        measured = f"measured {spread(self.ratios)}: " if self.ratios else ""
        return f"bar: {self.claim}: {measured}{self.verdict}"


def spread(ratios: Sequence[float]) -> str:
    """Return the median of `ratios`, and the smallest and the largest."""
    digits = 2 if median(ratios) < 10 else 1
    low, middle, high = (f"{x:.{digits}f}" for x in (min(ratios), median(ratios), max(ratios)))
    return f"{middle}x ({low}-{high})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (heads, *rows)
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def show(heads: Sequence[str], rows: Sequence[Sequence[str]], path: Path | None) -> None:
    """Print the table; write its rows as JSON to `path`, if there is one."""
    made = table(heads, rows)
    print(made)
    if path is not None:
        content = {"rows": [dict(zip(heads, row, strict=True)) for row in rows], "tables": [made]}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
