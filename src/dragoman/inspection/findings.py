"""The result of an inspection: findings with example rows, and the sizes of each split."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dragoman.characters import JOINERS, is_hidden
from dragoman.inspection.rows import SplitRows
from dragoman.settings import Settings

Severity = Literal["fault", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("fault", "warning", "note")
MOST_EXAMPLES = 10
_MOST_CHARACTERS = 48  # of each side of an example
_VISIBLE = {"\n": "↵", "\t": "⇥"}


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row, as a short excerpt with visible codes for hidden characters."""

    file: str
    line: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of problem, or of what is good to know, in one file.

    `severity`: fault, fit would stop; warning, training or scores suffer; note, good to know.
    `count` is in rows; `examples` are the first of them.
    """

    kind: str
    title: str
    severity: Severity
    count: int
    message: str
    remedy: str
    examples: tuple[Example, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values; the message is called "told"."""
        return {
            "kind": self.kind,
            "title": self.title,
            "severity": self.severity,
            "count": self.count,
            "told": self.message,
            "remedy": self.remedy,
            "examples": [asdict(example) for example in self.examples],
        }


@dataclass(frozen=True, kw_only=True)
class SplitFigures:
    """The sizes of a split; lengths as min, p5, median, p95, p99, max and mean."""

    files: tuple[str, ...]
    rows: int
    sources: int  # different ones, features included
    lengths: Mapping[str, Mapping[str, float]]  # source_characters, ..., target_tokens

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        lengths = {name: dict(values) for name, values in self.lengths.items()}
        return {"files": list(self.files), "rows": self.rows, "sources": self.sources, **lengths}


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The findings, the most severe first, and the settings that fit would choose."""

    splits: Mapping[str, SplitFigures]
    findings: tuple[Finding, ...]
    settings: Settings  # resolved as in fit
    reasons: tuple[str, ...]  # for what was chosen
    notes: tuple[str, ...]  # on how lengths were measured

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        data = self.settings.data
        return {
            "splits": {name: figures.to_dict() for name, figures in self.splits.items()},
            "limits": {"characters": data.max_characters, "tokens": data.max_tokens},
            "findings": [finding.to_dict() for finding in self.findings],
            "preset": {"name": self.settings.preset, "reasons": list(self.reasons)},
            "notes": list(self.notes),
        }


def show_rows(rows: SplitRows, indices: Iterable[int], note: str = "") -> tuple[Example, ...]:
    """Return the first of the rows at `indices` as examples, each followed by `note`."""
    first = (int(i) for i, _ in zip(indices, range(MOST_EXAMPLES), strict=False))
    return tuple(show_row(rows, i, note=note) for i in first)


def show_row(rows: SplitRows, i: int, at: str = "", note: str = "") -> Example:
    """Return row `i` as an example: an excerpt of both sides, around `at` where it occurs."""
    pair = rows.pairs[i]
    source = " ".join([*pair.features, show_text(pair.source, at)])
    text = f"{source} → {show_text(pair.target, at)}{note and f'   ({note})'}"
    return Example(file=pair.file, line=pair.line, text=text)


def show_text(text: str, at: str = "", longest: int = _MOST_CHARACTERS) -> str:
    """Return an excerpt of `text`, around `at` where it occurs; hidden characters as <U+200B>.

    Joiners count as hidden only where `at` is one.
    """
    start = max(0, text.find(at) - longest // 3) if at and len(text) > longest else 0
    shown = "".join(
        _VISIBLE.get(character, f"<U+{ord(character):04X}>")
        if is_hidden(character) and (character not in JOINERS or character in at)
        else character
        for character in text[start : start + longest]
    )
    return f"{'…' * (start > 0)}{shown}{'…' * (start + longest < len(text))}"


def describe_share(count: int, rows: SplitRows) -> str:
    """Return "1,234 of 5,678 rows (21.7%) of train", and from how many a sample was drawn."""
    share = 100 * count / len(rows)
    shown = f"{share:.1f}%" if share >= 0.1 else f"{share:.2f}%" if share >= 0.01 else "under 0.01%"
    sample = f" (a sample of its {rows.sampled_from:,} rows)" if rows.sampled_from else ""
    return f"{count:,} of {len(rows):,} rows ({shown}) of {rows.shown}{sample}"
