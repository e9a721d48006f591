"""A JSON schema of records: types, required fields, closed fields, patterns of dates and amounts."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import chain, combinations, product
from typing import Any

from dragoman.decoding.grammars import find_refused
from dragoman.errors import DataError
from dragoman.inspection.findings import Finding, SplitRows, report

_LEAST_VALUES = 20  # for a pattern or an enumeration
_MOST_CHOICES = 100
_LEAST_OF_A_CHOICE = 3  # records; rarer values suggest that there are others
_MOST_NAMES = 200  # an object with more of them is a map: its names are values
_MOST_CHECKED = 50_000  # records of a split
_SHOWN = 32  # characters before the place where a record is refused
_YEARS = ("[0-9]{4}", "[0-9]{2}", "([0-9]{2}|[0-9]{4})")
_KINDS = {str: "string", bool: "boolean", int: "number", float: "number", type(None): "null",
          dict: "object", list: "array"}  # fmt: skip


def _list_patterns() -> Iterator[str]:
    """Yield patterns of dates and of amounts; the first that all values match is taken."""
    for day, month in (
        ("(0[1-9]|[12][0-9]|3[01])", "(0[1-9]|1[0-2])"),
        ("(0?[1-9]|[12][0-9]|3[01])", "(0?[1-9]|1[0-2])"),
    ):
        for year, mark in product(_YEARS, ("-", "/", r"\.")):
            for parts in ((year, month, day), (day, month, year), (month, day, year)):
                yield mark.join(parts)
    for digits, currency in product(("[0-9]+", "[0-9]{1,3}({}[0-9]{3})*"), ("", "[$€£¥]")):
        for mark, other in (r"\.", ","), (",", r"\."):
            yield f"-?{currency}{digits.replace('{}', other)}{mark}[0-9]{{2}}"


_PATTERNS = tuple(re.compile(pattern) for pattern in _list_patterns())


@dataclass(frozen=True, kw_only=True)
class DerivedSchema:
    """A JSON schema of the training records, and which records it refuses."""

    schema: dict[str, Any]
    records: Mapping[str, int]  # how many were checked, by split: train, valid
    refused: Mapping[str, Finding]
    """Those that the schema refuses, by split; a split without one is missing."""

    def describe(self) -> list[str]:
        """Return a line for each split."""
        counts = {name: one.count for name, one in self.refused.items()}
        return [
            f"{name}: the schema refuses {counts.get(name, 0):,} of {total:,} records"
            for name, total in self.records.items()
        ]


def derive_from_splits(splits: Mapping[str, SplitRows]) -> DerivedSchema:
    """Derive a schema from the training records, JSON objects; check it on them and on validation.

    Raises:
        DataError: There are no training rows.
        SettingsError: llguidance is not installed, or the schema is too complex for it.
    """
    if (train := splits.get("train")) is None:
        raise DataError("--schema: no pair is left to train on; give more pairs")
    schema = _derive([json.loads(target) for target in train.targets])
    checked = {
        name: splits[name].sample(_MOST_CHECKED) for name in ("train", "valid") if name in splits
    }
    refused = dict[str, Finding]()
    for name, rows in checked.items():
        accepted = find_refused(json.dumps(schema), rows.targets)
        for finding in report(
            rows, list(accepted), "refused", f"records of {rows.shown} that the schema refuses",
            "are refused: a model with this schema cannot emit them",
            "correct the records, or allow what they have in the schema",
            notes={i: f"refused after {text[-_SHOWN:]!r}" for i, text in accepted.items()},
        ):  # fmt: skip
            refused[name] = finding
    records = {name: len(rows) for name, rows in checked.items()}
    return DerivedSchema(schema=schema, records=records, refused=refused)


def _derive(values: Sequence[Any]) -> dict[str, Any]:
    """Return the schema of these values, such as those of a field in all records."""
    by_kind: dict[str, list[Any]] = {}
    for value in values:
        by_kind.setdefault(_KINDS[type(value)], []).append(value)
    kinds = []
    for kind, found in by_kind.items():
        schema: dict[str, Any] = {"type": kind}
        if kind == "object":
            schema |= _derive_object(found)
        elif kind == "array":
            items = [*chain.from_iterable(found)]
            schema |= {"items": _derive(items)} if items else {"maxItems": 0}
        elif kind == "number" and all(isinstance(value, int) for value in found):
            schema = {"type": "integer"}
        elif kind == "string":
            schema |= _restrict(found)
        kinds.append(schema)
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _derive_object(objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    for one in objects:
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    if len(found) > _MOST_NAMES:
        return {"additionalProperties": _derive([*chain.from_iterable(found.values())])}
    # Outputs have the fields in the order of the schema: that of most objects.
    before = Counter(chain.from_iterable(combinations(one, 2) for one in objects))
    follows = {
        name: [other for other in found if before[other, name] > before[name, other]]
        for name in found
    }
    try:
        names = list(TopologicalSorter(follows).static_order())
    except CycleError:
        names = list(found)
    return {
        "properties": {name: _derive(found[name]) for name in names},
        "required": [name for name in found if len(found[name]) == len(objects)],
        "additionalProperties": False,
    }


def _restrict(values: Sequence[str]) -> dict[str, Any]:
    """Return a pattern that all values match, or all values of a closed field; {}: any text."""
    counts = Counter(values)
    if len(values) < _LEAST_VALUES:
        return {}
    for pattern in _PATTERNS:
        if all(map(pattern.fullmatch, counts)):
            return {"pattern": f"^{pattern.pattern}$"}
    is_closed = len(counts) <= _MOST_CHOICES and min(counts.values()) >= _LEAST_OF_A_CHOICE
    return {"enum": sorted(counts)} if is_closed else {}
