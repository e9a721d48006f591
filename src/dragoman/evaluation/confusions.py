"""Confusions: what outputs have in place of what the references have, the most frequent first."""

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
    """Yield (expected, found) for each run of differences."""
    run: list[tuple[int, int, int, int]] = []  # indices of neighbouring differences
    for one in Levenshtein.opcodes(reference, output):
        if one.tag == "equal":
            yield from _close(run, reference, output, separator)
            run = []
        else:
            run.append((one.src_start, one.src_end, one.dest_start, one.dest_end))
    yield from _close(run, reference, output, separator)


def _close(
    run: list[tuple[int, int, int, int]],
    reference: Sequence[str],
    output: Sequence[str],
    separator: str,
) -> Iterator[tuple[str, str]]:
    if not run:
        return
    (i1, _, j1, _), (_, i2, _, j2) = run[0], run[-1]
    if max(i2 - i1, j2 - j1) <= _LONGEST:
        yield separator.join(reference[i1:i2]), separator.join(output[j1:j2])
        return
    for start, end, begin, stop in run:  # one unit each, side by side as far as both go
        for k in range(max(end - start, stop - begin)):
            yield (
                reference[start + k] if start + k < end else "",
                output[begin + k] if begin + k < stop else "",
            )
