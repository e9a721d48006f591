"""Pairs with one source are the references of it: brought together, in the order of their file."""

from collections.abc import Iterable
from dataclasses import dataclass

from dragoman.reading.pairs import Pair


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One source with all its references, in the order in which they came."""

    source: str
    features: tuple[str, ...]
    references: tuple[str, ...]
    line: int  # of its first pair, in `file`
    file: str


def group_references(pairs: Iterable[Pair]) -> list[Group]:
    """Return a group for each (features, source); groups and references in first-seen order.

    A reference that comes twice is kept once.
    """
    found: dict[tuple[tuple[str, ...], str], tuple[Pair, dict[str, None]]] = {}
    for pair in pairs:
        _, references = found.setdefault((pair.features, pair.source), (pair, {}))
        references[pair.target] = None
    return [
        Group(
            source=pair.source,
            features=pair.features,
            references=tuple(references),
            line=pair.line,
            file=pair.file,
        )
        for pair, references in found.values()
    ]
