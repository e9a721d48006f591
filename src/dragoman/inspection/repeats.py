"""Repeated rows: duplicates, several targets for a source, leaks, copies, one dominant target."""

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from dragoman.inspection.findings import (
    MOST_EXAMPLES,
    Finding,
    SplitRows,
    report,
    show_row,
    show_text,
)
from dragoman.reading.row_errors import name_row

_MANY_DUPLICATES = 0.05  # of the rows of a split
_MANY_LEAKS = 0.01
_DOMINANT = 0.25
_FEWEST_DOMINANT = 10  # rows


def find_leaks(files: Mapping[str, SplitRows]) -> Iterator[Finding]:
    """Find sources, features included, that are in two splits."""
    for name, other in (("valid", "train"), ("test", "train"), ("test", "valid")):
        if name not in files or other not in files:
            continue
        rows, seen = files[name], files[other]
        found = np.flatnonzero(np.isin(rows.source_keys, seen.source_keys))
        same_target = int(np.isin(rows.pair_keys, seen.pair_keys).sum())
        searched = f" (in a sample of {len(seen):,} rows of {seen.shown})" * bool(seen.sampled_from)
        first = {
            int(i): seen.pairs[np.argmax(seen.source_keys == rows.source_keys[i])]
            for i in found[:MOST_EXAMPLES]
        }
        yield from report(
            rows, found, "leakage", f"sources of {rows.shown} that are also in {seen.shown}",
            f"have a source that is also in {seen.shown}, {same_target:,} of them with the same "
            f"target{searched}",
            f"scores on {name} partly measure memory: remove these rows from {seen.shown}, or score "
            "the others separately",
            severity="warning" if len(found) > _MANY_LEAKS * len(rows) else "note",
            notes={i: name_row(pair.file, pair.line) for i, pair in first.items()},
        )  # fmt: skip


def find_duplicates(rows: SplitRows) -> Iterator[Finding]:
    """Find rows that repeat an earlier row of their file, features and target included."""
    _, first, inverse = np.unique(rows.pair_keys, return_index=True, return_inverse=True)
    earlier = first[inverse]
    found = np.flatnonzero(earlier != np.arange(len(rows)))
    known = {int(i): rows.pairs[earlier[i]] for i in found[:MOST_EXAMPLES]}
    return report(
        rows, found, "duplicates", f"duplicates in {rows.shown}",
        "repeat an earlier row exactly",
        "repeated pairs weigh more in training and in scores: remove the repeats, unless they are "
        "intended",
        severity="warning" if len(found) > _MANY_DUPLICATES * len(rows) else "note",
        notes={i: f"also in {name_row(pair.file, pair.line)}" for i, pair in known.items()},
    )  # fmt: skip


def find_several_targets(rows: SplitRows) -> Iterator[Finding]:
    """Find sources, features included, with more than one target in their file."""
    _, first, counts = np.unique(rows.pair_keys, return_index=True, return_counts=True)
    keys, places = np.unique(rows.source_keys[first], return_inverse=True)
    targets = np.bincount(places)
    if targets.max() < 2:
        return
    best = np.zeros(len(keys), np.int64)
    np.maximum.at(best, places, counts)
    found = np.flatnonzero(np.isin(rows.source_keys, keys[targets > 1]))
    ceiling = int(10_000 * best.sum() / len(rows)) / 100  # rounded down: 100% would be wrong
    yield Finding(
        kind="several_targets",
        title=f"sources with several targets in {rows.shown}",
        severity="note",
        count=len(found),
        message=f"{int((targets > 1).sum()):,} of {len(keys):,} sources of {rows.shown} have up "
        f"to {targets.max()} targets ({len(found):,} rows); with one output per source, at most "
        f"{ceiling:.2f}% of the rows can be matched exactly",
        remedy="in a test they are alternative references of one source (dragoman evaluate "
        "accepts any of them); in training, keep them if all are right, or add a column that "
        "distinguishes them (data.features)",
        examples=tuple(show_row(rows, i) for i in _group_by_source(rows.source_keys, found)),
    )


def find_copies(rows: SplitRows) -> Iterator[Finding]:
    """Find rows with letters whose target equals their source."""
    found = [
        i
        for i, pair in enumerate(rows.pairs)
        if pair.source == pair.target and any(map(str.isalpha, pair.source))
    ]
    return report(
        rows, found, "copies", f"copies in {rows.shown}", "have their source as target",
        "right if the task leaves some texts unchanged; in translation these are untranslated rows: "
        "remove them",
        severity="note",
    )  # fmt: skip


def find_dominant_target(rows: SplitRows) -> Iterator[Finding]:
    """Find a target that many training rows share."""
    target, count = Counter(rows.targets).most_common(1)[0]
    share = count / len(rows)
    if share < _DOMINANT or count < _FEWEST_DOMINANT:
        return iter(())
    return report(
        rows, [i for i, text in enumerate(rows.targets) if text == target], "dominant_target",
        f"one target for many rows of {rows.shown}",
        f"have the target “{show_text(target)}”: a model that always writes it is right that often",
        "score the other rows separately; remove some of these rows if the model writes it too often",
        severity="warning" if share >= 0.5 else "note",
    )  # fmt: skip


def _group_by_source(keys: NDArray[np.uint64], found: NDArray[np.int64]) -> list[int]:
    """Return the first of `found`, rows of one source together."""
    shown: list[int] = []
    for i in found:
        if len(shown) < MOST_EXAMPLES and i not in shown:
            shown += found[keys[found] == keys[i]].tolist()
    return shown[:MOST_EXAMPLES]
