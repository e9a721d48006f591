"""Rows that come again: duplicates, several targets of a source, leaks, copies, one target for all."""

from collections import Counter
from collections.abc import Iterator, Mapping
from operator import eq

import numpy as np
from numpy.typing import NDArray

from dragoman.inspection.characters import find_script
from dragoman.inspection.finding import (
    MOST_EXAMPLES,
    Example,
    Finding,
    count_share,
    show_row,
    show_rows,
    show_text,
)
from dragoman.inspection.rows import SplitRows

_MANY_DUPLICATES = 0.05  # of the rows of a split
_MANY_LEAKS = 0.01
_DOMINANT = 0.25
_FEWEST_DOMINANT = 10  # rows


def find_duplicates(splits: Mapping[str, SplitRows]) -> Iterator[Finding]:
    """Find rows that stand in their split already, features and target included."""
    for rows in splits.values():
        _, first, inverse = np.unique(rows.pair_keys, return_index=True, return_inverse=True)
        earlier = first[inverse]
        found = np.flatnonzero(earlier != np.arange(len(rows)))
        if not len(found):
            continue
        is_many = len(found) > _MANY_DUPLICATES * len(rows)
        yield Finding(
            kind="duplicates",
            title=f"duplicates in {rows.shown}",
            severity="warning" if is_many else "note",
            count=len(found),
            told=f"{count_share(len(found), len(rows))} of {rows.shown} repeat an earlier row word for word",
            remedy="a pair that comes more often weighs more in training and in scores: leave the "
            "repeats out, unless that is meant",
            examples=tuple(
                show_row(rows, i, note=f"also in line {rows.lines[earlier[i]]}")
                for i in found[:MOST_EXAMPLES]
            ),
        )


def find_several_targets(splits: Mapping[str, SplitRows]) -> Iterator[Finding]:
    """Find sources, features included, with more than one target in their split."""
    for rows in splits.values():
        _, first, counts = np.unique(rows.pair_keys, return_index=True, return_counts=True)
        keys, places = np.unique(rows.source_keys[first], return_inverse=True)
        targets = np.bincount(places)
        if not len(rows) or targets.max() < 2:
            continue
        best = np.zeros(len(keys), np.int64)
        np.maximum.at(best, places, counts)
        found = np.flatnonzero(np.isin(rows.source_keys, keys[targets > 1]))
        ceiling = int(10_000 * best.sum() / len(rows)) / 100  # rounded down: 100% would be wrong
        yield Finding(
            kind="several_targets",
            title=f"sources with several targets in {rows.shown}",
            severity="note",
            count=len(found),
            told=f"{int((targets > 1).sum()):,} of {len(keys):,} sources of {rows.shown} have up to "
            f"{targets.max()} targets ({len(found):,} rows); with one output a source, at most "
            f"{ceiling:.2f}% of the rows can be matched exactly",
            remedy="in a test they serve as references of one source (dragoman evaluate takes any "
            "of them as right); in training, keep them where all are right, or add a column "
            "that tells them apart (data.features)",
            examples=show_rows(rows, _group(rows.source_keys, found)),
        )


def find_leaks(splits: Mapping[str, SplitRows]) -> Iterator[Finding]:
    """Find sources, features included, that stand in two splits."""
    for name, other in (("valid", "train"), ("test", "train"), ("test", "valid")):
        if name not in splits or other not in splits:
            continue
        rows, seen = splits[name], splits[other]
        found = np.flatnonzero(np.isin(rows.source_keys, seen.source_keys))
        if not len(found):
            continue
        alike = int(np.isin(rows.pair_keys, seen.pair_keys).sum())
        is_many = len(found) > _MANY_LEAKS * len(rows)
        yield Finding(
            kind="leakage",
            title=f"sources of {rows.shown} that stand in {seen.shown}",
            severity="warning" if is_many else "note",
            count=len(found),
            told=f"{count_share(len(found), len(rows))} of {rows.shown} have a source that stands in "
            f"{seen.shown} too, {alike:,} of them with the same target",
            remedy=f"scores on {name} show memory as well: take these rows out of {seen.shown}, or score "
            "the others apart",
            examples=tuple(_show_leak(rows, i, seen) for i in found[:MOST_EXAMPLES]),
        )


def find_copies(splits: Mapping[str, SplitRows]) -> Iterator[Finding]:
    """Find rows, with letters, whose target is their source."""
    for rows in splits.values():
        same = np.fromiter(map(eq, rows.sources, rows.targets), np.bool_, len(rows))
        found = [
            int(i) for i in np.flatnonzero(same) if any(map(find_script, set(rows.sources[i])))
        ]
        if found:
            yield Finding(
                kind="copies",
                title=f"copies in {rows.shown}",
                severity="note",
                count=len(found),
                told=f"{count_share(len(found), len(rows))} of {rows.shown} have their source as target",
                remedy="right where the task leaves some texts as they are; in translation, rows "
                "that nobody translated: leave them out",
                examples=show_rows(rows, found),
            )


def find_dominant_target(rows: SplitRows) -> Iterator[Finding]:
    """Find a target that many rows of the training have."""
    if not len(rows):
        return
    target, count = Counter(rows.targets).most_common(1)[0]
    share = count / len(rows)
    if share < _DOMINANT or count < _FEWEST_DOMINANT:
        return
    found = (i for i, text in enumerate(rows.targets) if text == target)
    yield Finding(
        kind="dominant_target",
        title=f"one target for many rows of {rows.shown}",
        severity="warning" if share >= 0.5 else "note",
        count=count,
        told=f"{count_share(count, len(rows))} of {rows.shown} have the target "
        f"“{show_text(target)}”: a model that always says it is right that often",
        remedy="look at scores on the other rows apart; leave some of these out where the model "
        "says it too often",
        examples=show_rows(rows, found),
    )


def _group(keys: NDArray[np.uint64], found: NDArray[np.int64]) -> list[int]:
    """Return the first of `found`, rows of one source together."""
    shown: list[int] = []
    for i in found:
        if len(shown) >= MOST_EXAMPLES:
            break
        if i not in shown:
            shown += found[keys[found] == keys[i]].tolist()
    return shown


def _show_leak(rows: SplitRows, i: int, seen: SplitRows) -> Example:
    earlier = int(np.argmax(seen.source_keys == rows.source_keys[i]))
    return show_row(rows, i, note=f"{seen.file}:{seen.lines[earlier]}")
