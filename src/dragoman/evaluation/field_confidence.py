"""Confidence by field: the log-probability of a value as the probability that it is right.

Each field with enough values on the validation rows has a calibration of its own, since a model may
be sure of totals and unsure of names; the other fields share one, fitted on all values. Its thresholds
promise something of their own values only.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dragoman.errors import shorten
from dragoman.evaluation.confidence import PRECISIONS, FieldValue, calibrate, measure
from dragoman.evaluation.metrics import find_closest
from dragoman.evaluation.significance import bound_share
from dragoman.model_folder.calibration import StoredField, StoredFields
from dragoman.records import Format, list_fields

OTHERS = ""  # stands for the fields without a calibration of their own
_LEAST_VALUES = 50  # of a field, for a calibration of its own
_MOST_FIELDS = 50
_SHOWN = 0.95  # precision of the threshold in a summary


class JudgedValue(NamedTuple):
    """A value of an output, and whether the reference has it, too."""

    field: str
    score: float
    is_right: bool
    is_complete: bool  # the whole output


def judge_values(
    text: str, values: Sequence[FieldValue], references: Sequence[str], form: Format
) -> Iterator[tuple[FieldValue, bool]]:
    """Yield each of the `values` of the record `text`, and whether the closest reference has it."""
    output, *records = (
        [(one.name, one.value) for one in list_fields(record, form, splits_items=True) or ()]
        for record in (text, *references)
    )
    left = find_closest(Counter(output), map(Counter, records)).copy()
    for value, key in zip(values, output, strict=True):
        yield value, left[key] > 0
        left[key] -= 1


def calibrate_fields(values: Sequence[JudgedValue], *, level: float = 0.95) -> StoredFields:
    """Fit a temperature, and choose thresholds, for each field: see `confidence.calibrate`.

    The values of a list are taken as independent: where they are right or wrong together, a threshold
    fails more often than promised.
    """
    counts = Counter(value.field for value in values)
    frequent = [name for name, count in counts.most_common(_MOST_FIELDS) if count >= _LEAST_VALUES]

    def fit(chosen: Sequence[JudgedValue], temperature: float | None = None) -> StoredField:
        if not chosen:
            return StoredField(temperature=1.0, values=0)
        scored = list(zip(*chosen, strict=True))[1:]
        found = calibrate(*scored, level=level, temperature=temperature)
        return StoredField(
            temperature=found.temperature, values=found.rows, thresholds=found.thresholds
        )

    of_all = fit(values)
    rest = fit([one for one in values if one.field not in frequent], of_all.temperature)
    return StoredFields(
        fields={name: fit([one for one in values if one.field == name]) for name in frequent},
        others=of_all.model_copy(update={"thresholds": rest.thresholds}),
    )


def measure_fields(
    values: Sequence[JudgedValue], stored: StoredFields, *, level: float = 0.95
) -> list[dict[str, Any]]:
    """Return how often the values of each field are right, all of them and above each threshold.

    Plain values, as scores.json stores them; the most frequent fields first.
    """
    groups = defaultdict[str, list[JudgedValue]](list)
    for value in values:
        groups[value.field if value.field in stored.fields else OTHERS].append(value)
    rows = []
    for name in sorted(groups, key=lambda name: (name == OTHERS, -len(groups[name]))):
        own = stored.find(name)
        found = measure(
            *list(zip(*groups[name], strict=True))[1:],
            temperature=own.temperature,
            thresholds=own.thresholds,
        )
        thresholds = []
        for one in found.thresholds:
            kept = one.coverage * found.rows
            low, high = bound_share(one.exact * kept, kept, level) if kept else (0.0, 1.0)
            thresholds.append({**one.model_dump(), "interval": [round(low, 6), round(high, 6)]})
        rows.append({
            "field": name, "values": found.rows, "right": round(found.exact, 6),
            "temperature": found.temperature,
            "calibration_error": round(found.calibration_error, 6), "thresholds": thresholds,
        })  # fmt: skip
    return rows


def list_field_confidence(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the result of `measure_fields` as lines for the terminal.

    Of the thresholds, that for 95% is shown, else the highest one.
    """
    if not rows:
        return []
    lines = ["values of each field that are right, and confidence that promises it:"]
    width = max(len(_name(row)) for row in rows)
    for row in rows:
        line = f"  {_name(row):<{width}}  {row['right']:>4.0%} right"
        if row["thresholds"]:
            by_precision = {one["precision"]: one for one in row["thresholds"]}
            one = by_precision.get(_SHOWN) or by_precision[max(by_precision)]
            low, high = one["interval"]
            line += (
                f"; {one['exact']:.0%} [{low:.0%}, {high:.0%}] right at {one['coverage']:.0%} kept, "
                f"with confidence >= {one['threshold']:g} (promised: {one['precision']:.0%})"
            )
        else:
            line += f"; no threshold can guarantee {PRECISIONS[0]:.0%}"
        lines.append(line)
    return lines


def _name(row: Mapping[str, Any]) -> str:
    return shorten(row["field"], 40) or "other fields"
