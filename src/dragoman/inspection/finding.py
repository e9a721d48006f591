"""What was found in the data: the kind, how grave, how many rows, where, and what to do."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dragoman.characters import JOINERS, is_hidden
from dragoman.inspection.rows import SplitRows

Severity = Literal["fault", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("fault", "warning", "note")
MOST_EXAMPLES = 10
_MOST_CHARACTERS = 48  # of each side of an example
_NAMED = {"\n": "↵", "\t": "⇥"}


@dataclass(frozen=True, kw_only=True)
class Example:
    """One of the rows, with a short excerpt in which hidden characters are visible."""

    file: str
    line: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of fault, or of what is good to know.

    `severity`: fault, fit would stop; warning, training or scores suffer; note, good to know.
    `count` is in rows; `examples` are the first of them.
    """

    kind: str
    title: str
    severity: Severity
    count: int
    told: str
    remedy: str
    examples: tuple[Example, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self) | {"examples": [asdict(example) for example in self.examples]}


def show_rows(rows: SplitRows, indices: Iterable[int], note: str = "") -> tuple[Example, ...]:
    """Return rows as examples, `note` behind each."""
    return tuple(
        show_row(rows, int(i), note=note) for i, _ in zip(indices, range(MOST_EXAMPLES), strict=False)
    )  # fmt: skip


def show_row(rows: SplitRows, i: int, at: str = "", note: str = "") -> Example:
    """Return row `i` as an example: an excerpt of both sides, near `at` where that stands in one."""
    source = show_text(rows.sources[i], at)
    if rows.features[i]:
        source = f"{' '.join(rows.features[i])} {source}"
    text = f"{source} → {show_text(rows.targets[i], at)}{note and f'   ({note})'}"
    return Example(file=rows.file, line=int(rows.lines[i]), text=text)


def show_text(text: str, at: str = "", longest: int = _MOST_CHARACTERS) -> str:
    """Return an excerpt of `text`, near `at` where that stands in it, hidden characters as <U+200B>.

    Joiners are hidden characters only where `at` is one.
    """
    start = 0
    if at and len(text) > longest:
        start = max(0, text.find(at) - longest // 3)
    shown = "".join(
        _NAMED.get(character, f"<U+{ord(character):04X}>")
        if is_hidden(character) and (character not in JOINERS or character in at)
        else character
        for character in text[start : start + longest]
    )
    return f"{'…' * (start > 0)}{shown}{'…' * (start + longest < len(text))}"


def count_share(count: int, total: int) -> str:
    """Return "1,234 of 5,678 rows (21.7%)"."""
    share = 100 * count / total
    shown = f"{share:.1f}%" if share >= 0.1 else f"{share:.2f}%" if share >= 0.01 else "under 0.01%"
    return f"{count:,} of {total:,} rows ({shown})"
