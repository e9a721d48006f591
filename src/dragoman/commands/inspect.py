"""The data doctor: what is in the pairs, and what is wrong with them, before training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dragoman.inspection.alignment import find_odd_lengths, find_shifted
from dragoman.inspection.broken import find_broken_rows, find_empty_splits, find_long_rows
from dragoman.inspection.finding import SEVERITIES, Finding
from dragoman.inspection.hidden import find_hidden
from dragoman.inspection.lengths import (
    count_lengths,
    describe_lengths,
    measure_tokens,
    train_tokenizer,
)
from dragoman.inspection.mojibake import find_mojibake, find_replacements
from dragoman.inspection.profile import HIDDEN, make_profile
from dragoman.inspection.repeats import (
    find_copies,
    find_dominant_target,
    find_duplicates,
    find_leaks,
    find_several_targets,
)
from dragoman.inspection.rows import SplitRows, read_rows
from dragoman.inspection.scripts import find_mixed_words, find_rare_scripts
from dragoman.inspection.swapped import find_swapped
from dragoman.inspection.unicode_forms import find_mixed_forms
from dragoman.inspection.unseen import find_unseen_characters
from dragoman.settings import Settings
from dragoman.tokenizers.pair_tokenizer import PairTokenizer

SIDES = ("source", "target")


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
    """What was found, the gravest first, and what fit would choose for these pairs."""

    splits: Mapping[str, SplitFigures]
    findings: tuple[Finding, ...]
    settings: Settings  # as fit would resolve them
    reasons: tuple[str, ...]
    notes: tuple[str, ...]  # on how it was measured

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


def inspect(
    pairs: str | Path | Sequence[str | Path],
    settings: Settings | None = None,
    tokenizer: PairTokenizer | None = None,
) -> Inspection:
    """Inspect a file of pairs (two of parallel text), and those of data.valid and data.test.

    Reads all rows into memory and stops at no faulty one. Of many rows, the tokenizer is trained on
    a part, and a part is encoded; `notes` tell.

    Args:
        tokenizer: That of a model that was trained on them; None: it is made here.

    Raises:
        DataError: A file cannot be read, or has no usable row at all.
        SettingsError: The settings of the tokenizer do not go together.
    """
    paths = [pairs] if isinstance(pairs, str | Path) else list(pairs)
    reading = read_rows(paths, settings or Settings())
    chosen = reading.choice.settings
    findings = [*find_broken_rows(reading, chosen.data), *find_empty_splits(reading)]
    files, splits = (
        {name: rows for name, rows in group.items() if len(rows)}
        for group in (reading.files, reading.splits)
    )
    figures, notes = dict[str, SplitFigures](), list[str]()
    if "train" in splits:
        is_whole = True
        if tokenizer is None:
            tokenizer, is_whole = train_tokenizer(splits["train"], chosen)
        figures = {name: _measure(rows, tokenizer, notes) for name, rows in splits.items()}
        if not is_whole:
            notes.append("tokens are of a tokenizer trained on a part of the rows, evenly spread")
        for rows in files.values():
            findings += find_long_rows(rows, tokenizer, chosen.data)
        findings += _find_all(files, chosen)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Inspection(
        splits=figures,
        findings=tuple(findings),
        settings=chosen,
        reasons=reading.choice.reasons,
        notes=tuple(notes),
    )


def _measure(rows: SplitRows, tokenizer: PairTokenizer, notes: list[str]) -> SplitFigures:
    source, target = measure_tokens(rows, tokenizer)
    lengths = {f"{side}_characters": count_lengths(rows.side(side)) for side in SIDES}
    lengths |= {"source_tokens": source, "target_tokens": target}
    if len(source) < len(rows):
        notes.append(f"lengths in tokens of {rows.name} are of {len(source):,} rows, evenly spread")
    return SplitFigures(
        files=rows.files,
        rows=len(rows),
        sources=len(np.unique(rows.source_keys)),
        lengths={measure: describe_lengths(values) for measure, values in lengths.items()},
    )


def _find_all(files: Mapping[str, SplitRows], settings: Settings) -> Iterator[Finding]:
    profiles = {side: make_profile(files, side) for side in SIDES}
    kinds = {side: getattr(settings.tokenizer, side).kind for side in SIDES}
    yield from find_leaks(files)
    yield from find_swapped(files)
    yield from find_shifted(files)
    yield from find_mojibake(files)
    yield from find_replacements(files, profiles)
    yield from find_hidden(files, profiles, HIDDEN)
    yield from find_mixed_words(files, profiles)
    yield from find_mixed_forms(files, profiles)
    yield from find_duplicates(files)
    yield from find_several_targets(files)
    yield from find_dominant_target(files["train"])
    yield from find_copies(files)
    yield from find_unseen_characters(files, profiles, kinds)
    yield from find_rare_scripts(files, profiles)
    yield from find_odd_lengths(files)
