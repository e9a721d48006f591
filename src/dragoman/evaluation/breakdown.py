"""Where the errors are: scores of groups of rows, and confusions, the most frequent first.

Groups are by the length of the source, by feature, by the rarity of its symbols. A confusion is what
outputs have in place of what the references have.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein, Opcode

from dragoman.evaluation.metrics import Metric, Statistics
from dragoman.evaluation.output_rows import Row
from dragoman.evaluation.significance import estimate_all
from dragoman.settings import EvaluationSettings
from dragoman.tokenizers.tokenizer import UNKNOWN_ID, PairTokenizer

Groups = dict[str, NDArray[np.intp]]  # indices of rows by what they have in common

_NUM_LENGTHS = 5  # groups of about equally many rows
_MOST_FEATURES = 20
_RARITY_BOUNDS = (0, 9, 99)
_RARITY_TITLES = ("never", "1 to 9 times", "10 to 99 times", "100 times or more")
_LONGEST = 3  # units of one difference; longer ones are split into single units
_NUM_EXAMPLES = 3
_WORDS = 4.0  # mean words of a reference from which on words are compared, not characters


def break_down(
    rows: Sequence[Row],
    metrics: Sequence[Metric],
    statistics: Mapping[str, Statistics],
    settings: EvaluationSettings,
    rarest: Sequence[int] = (),
) -> dict[str, list[dict[str, Any]]]:
    """Return the groups of each kind, with their rows and [value, low, high] of each score.

    Kinds with fewer than two groups are left out. Without an interval, low and high are None.

    Args:
        statistics: By the name of the metric, (N, k).
        rarest: Of each row, as `count_rarest` returns it; empty: unknown.
    """
    kinds: dict[str, Groups] = {
        "source length": group_by_length(rows) if any(row.source for row in rows) else {},
        "feature": group_by_feature(rows),
        "rare symbols": group_by_rarity(rarest) if len(rarest) else {},
        "origin of the output": group_by_origin(rows),
    }
    by_group = [metric for metric in metrics if metric.by_group]
    breakdown: dict[str, list[dict[str, Any]]] = {}
    for kind, groups in kinds.items():
        if len(groups) < 2:
            continue
        breakdown[kind] = []
        for title, places in groups.items():
            content: dict[str, Any] = {"group": title, "rows": len(places)}
            chosen = {metric.name: statistics[metric.name][places] for metric in by_group}
            for name, found in estimate_all(by_group, chosen, settings).items():
                numbers = (found.value, found.low, found.high)
                content[name] = [None if one is None else round(one, 4) for one in numbers]
            breakdown[kind].append(content)
    return breakdown


def group_by_length(rows: Sequence[Row]) -> Groups:
    """Return up to five groups of about as many rows each, by characters of the source."""
    lengths = np.array([len(row.source) for row in rows])
    bounds = np.quantile(lengths, np.linspace(0, 1, _NUM_LENGTHS + 1)[1:], method="lower")
    group_of = np.searchsorted(np.unique(bounds), lengths)
    groups = {}
    for number in np.unique(group_of):
        places = np.flatnonzero(group_of == number)
        shortest, longest = lengths[places].min(), lengths[places].max()
        groups[f"{shortest}" if shortest == longest else f"{shortest}-{longest}"] = places
    return groups


def group_by_feature(rows: Sequence[Row]) -> Groups:
    """Return a group for each of the most frequent features, the most frequent first."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        for feature in dict.fromkeys(row.features):
            places.setdefault(feature, []).append(place)
    frequent = sorted(places, key=lambda feature: (-len(places[feature]), feature))
    return {feature: np.array(places[feature]) for feature in frequent[:_MOST_FEATURES]}


def group_by_rarity(counts: Sequence[int]) -> Groups:
    """Return groups by the count of the rarest token of each source in the training pairs."""
    group_of = np.searchsorted(_RARITY_BOUNDS, np.asarray(counts))
    return {
        _RARITY_TITLES[number]: np.flatnonzero(group_of == number) for number in np.unique(group_of)
    }


def group_by_origin(rows: Sequence[Row]) -> Groups:
    """Return the rows that the model predicted, and those that training pairs answered."""
    is_remembered = np.array([bool(row.memory_row) for row in rows])
    found = {"model": np.flatnonzero(~is_remembered), "memory": np.flatnonzero(is_remembered)}
    return {name: places for name, places in found.items() if len(places)}


def count_rarest(rows: Sequence[Row], tokenizer: PairTokenizer, counts: Sequence[int]) -> list[int]:
    """Return the count of the rarest token of each source in the training pairs.

    `counts`: of each source id in the training pairs; unknown ids and ids beyond them: 0.
    """
    known = dict(enumerate(counts))
    known[UNKNOWN_ID] = 0
    encoded = tokenizer.encode_sources([row.source for row in rows], [row.features for row in rows])
    return [min((known.get(id_, 0) for id_ in ids[:-1]), default=0) for ids in encoded]


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
        values = asdict(self)
        return {"from": values.pop("expected"), "to": values.pop("found"), **values}


def find_confusions(
    rows: Sequence[Row], *, separator: str | None = None, most: int = 30
) -> list[Confusion]:
    """Return the most frequent differences between outputs and their closest references.

    "cat" for "kat" is ("k", "c"). Neighbouring differences of up to three units are one. Ties keep
    the order of references and rows. Truncated outputs are left out: their end is not the model's.

    `separator`: between two units; "": compare characters; None: see `find_unit`.
    """
    separator = find_unit(rows) if separator is None else separator
    counts = Counter[tuple[str, str]]()
    examples = defaultdict[tuple[str, str], list[Example]](list)
    for row in rows:
        if row.is_exact or not row.is_complete:
            continue
        reference, _ = find_closest(row.hypothesis, row.references, separator)
        output, expected = (split_units(one, separator) for one in (row.hypothesis, reference))
        for pair in _list_differences(expected, output, separator):
            counts[pair] += 1
            example = Example(source=row.source, reference=reference, hypothesis=row.hypothesis)
            if len(examples[pair]) < _NUM_EXAMPLES and example not in examples[pair]:
                examples[pair].append(example)
    return [
        Confusion(expected=pair[0], found=pair[1], count=count, examples=tuple(examples[pair]))
        for pair, count in counts.most_common(most)
    ]


def find_closest(output: str, references: Sequence[str], unit: str = "") -> tuple[str, int]:
    """Return the reference with the fewest edits (the first of equally close), and their number.

    `unit`: between two units, as of `split_units`.
    """
    found = split_units(output, unit)
    distances = [Levenshtein.distance(found, split_units(one, unit)) for one in references]
    least = min(distances)
    return references[distances.index(least)], least


def find_unit(rows: Sequence[Row]) -> str:
    """Return what stands between two units: " " in running text (words), else "" (characters)."""
    num_words = sum(len(row.references[0].split()) for row in rows)
    return " " if num_words >= _WORDS * len(rows) else ""


def split_units(text: str, separator: str) -> Sequence[str]:
    """Return the units of a text: "" separates characters, " " words by any white space."""
    return text.split(separator if separator != " " else None) if separator else text


def align(
    reference: Sequence[str], output: Sequence[str]
) -> Iterator[tuple[bool, list[Opcode], Sequence[str], Sequence[str]]]:
    """Yield the stretches with the fewest edits: whether both are equal, the edits, both sides."""
    edits = Levenshtein.opcodes(reference, output)
    for is_same, group in itertools.groupby(edits, key=lambda edit: edit.tag == "equal"):
        run = list(group)
        expected = reference[run[0].src_start : run[-1].src_end]
        yield is_same, run, expected, output[run[0].dest_start : run[-1].dest_end]


def _list_differences(
    reference: Sequence[str], output: Sequence[str], separator: str
) -> Iterator[tuple[str, str]]:
    """Yield (expected, found) for each run of neighbouring differences."""
    for is_same, run, expected, found in align(reference, output):
        if is_same:
            continue
        if max(len(expected), len(found)) <= _LONGEST:
            yield separator.join(expected), separator.join(found)
            continue
        for edit in run:  # single units, side by side
            yield from itertools.zip_longest(
                reference[edit.src_start : edit.src_end],
                output[edit.dest_start : edit.dest_end],
                fillvalue="",
            )
