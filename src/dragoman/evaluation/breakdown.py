"""Scores of groups of rows: by the length of the source, by feature, by the rarity of its symbols."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman.evaluation.intervals import estimate_all
from dragoman.evaluation.metrics import Metric, Statistics
from dragoman.evaluation.output_rows import Row
from dragoman.settings import EvaluationSettings
from dragoman.tokenizers.tokenizer import UNKNOWN_ID, PairTokenizer

Groups = dict[str, NDArray[np.intp]]  # indices of rows by what they have in common

_NUM_LENGTHS = 5  # groups of about equally many rows
_MOST_FEATURES = 20
_RARITY_BOUNDS = (0, 9, 99)
_RARITY_TITLES = ("never", "1 to 9 times", "10 to 99 times", "100 times or more")


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


def count_rarest(rows: Sequence[Row], tokenizer: PairTokenizer, counts: Sequence[int]) -> list[int]:
    """Return the count of the rarest token of each source in the training pairs.

    Args:
        counts: Of each source id in the training pairs; unknown ids and ids beyond them: 0.
    """
    known = dict(enumerate(counts))
    known[UNKNOWN_ID] = 0
    encoded = tokenizer.encode_sources([row.source for row in rows], [row.features for row in rows])
    return [min((known.get(id_, 0) for id_ in ids[:-1]), default=0) for ids in encoded]
