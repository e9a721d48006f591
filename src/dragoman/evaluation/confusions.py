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
    the order of references and rows.

    Args:
        rows: Rows with outputs.
        separator: Between two units; "": compare characters; None: words (by white space) in
            running text, else characters.
        most: Number of differences to return.
    """
    if separator is None:
        num_words = sum(len(row.references[0].split()) for row in rows)
        separator = " " if num_words >= _WORDS * len(rows) else ""
    counts: dict[tuple[str, str], int] = {}
    examples: dict[tuple[str, str], list[Example]] = {}
    for row in rows:
        if row.is_exact:
            continue
        output = _split(row.hypothesis, separator)
        reference = min(
            row.references, key=lambda one: Levenshtein.distance(output, _split(one, separator))
        )
        for pair in _list_differences(_split(reference, separator), output, separator):
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


def _split(text: str, separator: str) -> Sequence[str]:
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
