"""Prints an inspection: sizes, preset, then the findings, the most severe first."""

import sys

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dragoman.inspection.findings import Finding, Inspection

_SHOWN = 5  # examples of a finding
_STYLES = {"fault": "bold red", "warning": "bold yellow", "note": "bold cyan"}
_MEASURES = {
    "source_characters": "source characters",
    "target_characters": "target characters",
    "source_tokens": "source tokens",
    "target_tokens": "target tokens",
}
_WIDE = 1000  # characters per line in a file or a pipe


def print_inspection(inspection: Inspection) -> None:
    """Print an inspection on standard output; markup in the user's text has no effect."""
    width = None if sys.stdout.isatty() else _WIDE
    console = Console(width=width, highlight=False)
    console.print(_list_lengths(inspection))
    for note in inspection.notes:
        console.print(Text(note))
    console.print()
    for reason in inspection.reasons:
        console.print(Text(reason))
    for finding in inspection.findings:
        console.print()
        _show_finding(finding, console)
    console.print()
    console.print(Text(_count_by_severity(inspection)))


def _list_lengths(inspection: Inspection) -> Table:
    data = inspection.settings.data
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("split", "rows", "sources", "lengths"):
        table.add_column(heading, justify="left" if heading in ("split", "lengths") else "right")
    for heading in ("median", "95%", "99%", "max", "limit"):
        table.add_column(heading, justify="right")
    for name, figures in inspection.splits.items():
        first = [name, f"{figures.rows:,}", f"{figures.sources:,}"]
        for measure, label in _MEASURES.items():
            values = figures.lengths[measure]
            limit = data.max_tokens if measure.endswith("tokens") else data.max_characters
            shown = [f"{values[key]:,.0f}" for key in ("median", "p95", "p99", "max")]
            table.add_row(*first, label, *shown, f"{limit:,}")
            first = ["", "", ""]
    return table


def _show_finding(finding: Finding, console: Console) -> None:
    head = Text(f"{finding.severity}: ", style=_STYLES[finding.severity])
    console.print(head.append(finding.title, style="bold"))
    console.print(Padding(Text(finding.message), (0, 0, 0, 2), expand=False))
    for example in finding.examples[:_SHOWN]:
        place = Text(f"{example.file}:{example.line}: ", style="dim")
        console.print(Padding(place.append(example.text, style="none"), (0, 0, 0, 4), expand=False))
    if finding.count > _SHOWN < len(finding.examples):
        console.print(Padding(Text("..."), (0, 0, 0, 4), expand=False))
    console.print(
        Padding(Text(f"to do: {finding.remedy}", style="italic"), (0, 0, 0, 2), expand=False)
    )


def _count_by_severity(inspection: Inspection) -> str:
    severities: list[str] = [finding.severity for finding in inspection.findings]
    if not severities:
        return "nothing found"
    counts = [(severity, severities.count(severity)) for severity in _STYLES]
    return "found: " + ", ".join(
        f"{count} {severity}{'s' * (count > 1)}" for severity, count in counts if count
    )
