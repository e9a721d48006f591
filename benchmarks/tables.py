"""How benchmarks tell what they found: tables, ratios with their spread, bars."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What the project wants of itself: that a ratio, measured in each round, is `least` or more."""

    claim: str
    least: float
    ratios: list[float]

    @property
    def is_met(self) -> bool:
        """Whether the median is there."""
        return bool(self.ratios) and median(self.ratios) >= self.least

    def __str__(self) -> str:
        if not self.ratios:
            return f"bar: {self.claim}: not measured"
        return (
            f"bar: {self.claim}: measured {spread(self.ratios)}: {'yes' if self.is_met else 'NO'}"
        )


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
