"""Confusions: what outputs have in place of what the references have, the most frequent first."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rapidfuzz.distance import Levenshtein

from dragoman.evaluation.output_rows import Row

_LONGEST = 3  # units of one difference; longer ones are split into single units
_NUM_EXAMPLES = 3
_WORDS = 4.0  # mean words of a reference from which on words are compared, not characters


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row with the difference."""

    source: str
    reference: str
    hypothesis: str


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A difference between references and outputs."""

    expected: str  # "": an insertion
    found: str  # "": a deletion
    count: int
    examples: tuple[Example, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as scores.json stores them."""
        return {
            "from": self.expected,
            "to": self.found,
            "count": self.count,
            "examples": [asdict(one) for one in self.examples],
        }


def find_confusions(
    rows: Sequence[Row], *, separator: str | None = None, most: int = 30
) -> list[Confusion]:
    """Return the most frequent differences between outputs and their closest references.

    "cat" for "kat" is ("k", "c"). Neighbouring differences of up to three units are one. Ties keep
    the order of references and rows. Truncated outputs are left out: their end is not the model's.

    Args:
        separator: Between two units; "": compare characters; None: see `find_unit`.
    """
    separator = find_unit(rows) if separator is None else separator
    counts: dict[tuple[str, str], int] = {}
    examples: dict[tuple[str, str], list[Example]] = {}
    for row in rows:
        if row.is_exact or not row.is_complete:
            continue
        output = split_units(row.hypothesis, separator)
        reference = min(
            row.references,
            key=lambda one: Levenshtein.distance(output, split_units(one, separator)),
        )
        for pair in _list_differences(split_units(reference, separator), output, separator):
            counts[pair] = counts.get(pair, 0) + 1
            kept = examples.setdefault(pair, [])
            example = Example(source=row.source, reference=reference, hypothesis=row.hypothesis)
            if len(kept) < _NUM_EXAMPLES and example not in kept:
                kept.append(example)
    frequent = sorted(counts, key=lambda pair: -counts[pair])[:most]
    return [
        Confusion(
            expected=pair[0], found=pair[1], count=counts[pair], examples=tuple(examples[pair])
        )
        for pair in frequent
    ]


def find_unit(rows: Sequence[Row]) -> str:
    """Return what stands between two units: " " in running text (words), else "" (characters)."""
    num_words = sum(len(row.references[0].split()) for row in rows)
    return " " if num_words >= _WORDS * len(rows) else ""


def split_units(text: str, separator: str) -> Sequence[str]:
    """Return the units of a text: "" separates characters, " " words by any white space."""
    return text.split(separator if separator != " " else None) if separator else text


def _list_differences(
    reference: Sequence[str], output: Sequence[str], separator: str
) -> Iterator[tuple[str, str]]:
    """Yield (expected, found) for each run of neighbouring differences."""
    edits = Levenshtein.opcodes(reference, output)
    for is_same, group in itertools.groupby(edits, key=lambda edit: edit.tag == "equal"):
        if is_same:
            continue
        run = list(group)
        expected = reference[run[0].src_start : run[-1].src_end]
        found = output[run[0].dest_start : run[-1].dest_end]
        if max(len(expected), len(found)) <= _LONGEST:
            yield separator.join(expected), separator.join(found)
            continue
        for edit in run:  # single units, side by side
            yield from itertools.zip_longest(
                reference[edit.src_start : edit.src_end],
                output[edit.dest_start : edit.dest_end],
                fillvalue="",
            )
