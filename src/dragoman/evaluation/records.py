"""Targets that are records, JSON objects or `field: value`: which fields of them are right.

A record is a multiset of (field, value). Fields of nested objects are dotted; each item of a list,
and each value of a repeated field, is a value of its field. An item that is itself an object or a
list is one value. null, and an empty value of a `field: value`, are not values.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from string import whitespace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Statistics = NDArray[np.float64]
Format = Literal["json", "\n", "|", ";"]  # JSON, or the separator of `field: value`
Record = Counter[tuple[str, str]]

_SEPARATORS: tuple[Format, ...] = ("\n", "|", ";")
_MOST_FIELDS = 20  # with scores
_LEAST_FIELDS = 2.0  # per record, on average: any text before a colon looks like one
WHOLE_COLUMNS = (1, 0)  # rows with all fields right, rows
PARSED_COLUMNS = (2, 0)  # rows whose output parses, rows
# A field begins with a letter, is short, and a space stands after its colon: 12:30, https://.
_FIELD = re.compile(r"\s*([^\W\d_][^:|;\n]{0,39}?)\s*:(?:\s+|\Z)(.*)", re.DOTALL)


def detect_format(references: Sequence[Sequence[str]]) -> Format | None:
    """Return the format in which each of `references` is a record; None: not all are records.

    Of several separators, the one that gives the most fields is chosen.
    """
    texts = [text for row in references for text in row]
    if not texts:
        return None
    if all(parse_record(text, "json") is not None for text in texts):
        return "json"
    best = max(_SEPARATORS, key=lambda separator: _count_if_all_parse(texts, separator))
    found = _count_if_all_parse(texts, best)
    return best if found >= _LEAST_FIELDS * len(texts) else None


def parse_record(text: str, form: Format) -> Record | None:
    """Return the fields of `text` with their values; None: it is not a record.

    Text without a field continues the value before it. Values of JSON are compared as JSON: "1" is
    not 1, but 1.0 is.
    """
    return _parse_json(text) if form == "json" else _parse_lines(text, form)


@dataclass(frozen=True, kw_only=True)
class RecordCounter:
    """The statistics of rows of records: (N, 3 + 3 * (1 + fields)).

    The columns are 1, whether all fields are right, whether the output parses; then, over all
    fields and for each of `fields`: matches, fields of the output, fields of the reference.
    """

    form: Format
    fields: tuple[str, ...]

    @staticmethod
    def of(references: Sequence[Sequence[str]]) -> "RecordCounter":
        """Return the counter for these references, with the most frequent fields first.

        If not all references are records, the format that gives the most fields is used.
        """
        form = detect_format(references) or _guess_format(references)
        counts: Counter[str] = Counter()
        for row in references:
            for text in row:
                counts.update({field for field, _ in parse_record(text, form) or ()})
        fields = sorted(counts, key=lambda field: (-counts[field], field))
        return RecordCounter(form=form, fields=tuple(fields[:_MOST_FIELDS]))

    def count_rows(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Statistics:
        """Return the statistics of each row.

        The closest of several references counts: the one with the fewest missing and extra
        fields, then with the fewest fields. An output that does not parse has no fields.
        """
        statistics = np.zeros((len(hypotheses), 3 + 3 * (1 + len(self.fields))))
        statistics[:, 0] = 1.0
        for counts, hypothesis, texts in zip(statistics, hypotheses, references, strict=True):
            parsed = parse_record(hypothesis, self.form)
            output = parsed or Counter()
            reference = min(
                (parse_record(text, self.form) or Counter() for text in texts),
                key=lambda record: (_count_differences(output, record), record.total()),
            )
            matches = output & reference
            counts[1] = parsed is not None and output == reference
            counts[2] = parsed is not None
            for place, record in enumerate((matches, output, reference)):
                counts[3 + place] = record.total()
                per_field = _count_fields(record)
                for number, field in enumerate(self.fields, start=1):
                    counts[3 + 3 * number + place] = per_field[field]
        return statistics

    def columns_of(self, number: int) -> tuple[int, int, int]:
        """Return the columns of (matches, output, reference); 0: all fields, then each one."""
        first = 3 + 3 * number
        return first, first + 1, first + 2


def compute_precision(sums: Statistics) -> Statistics:
    """Return the fraction of the outputs' fields that match, in percent: (..., 3) -> (...).

    Without any field in the outputs it is 0; without any in the references too, 100.
    """
    return _divide(sums[..., 0], sums[..., 1], sums[..., 2])


def compute_recall(sums: Statistics) -> Statistics:
    """Return the fraction of the references' fields that match, in percent: (..., 3) -> (...)."""
    return _divide(sums[..., 0], sums[..., 2], sums[..., 1])


def compute_f1(sums: Statistics) -> Statistics:
    """Return the harmonic mean of precision and recall, in percent: (..., 3) -> (...)."""
    return _divide(2 * sums[..., 0], sums[..., 1] + sums[..., 2], np.zeros(sums.shape[:-1]))


def _divide(above: Statistics, below: Statistics, others: Statistics) -> Statistics:
    nothing = np.where(others > 0, 0.0, 100.0)
    return np.divide(100.0 * above, below, out=nothing, where=below > 0)


def _count_if_all_parse(texts: Sequence[str], form: Format) -> int:
    """Return the number of fields in `texts`; 0 if one is not a record."""
    count = 0
    for text in texts:
        record = parse_record(text, form)
        if record is None:
            return 0
        count += record.total()
    return count


def _guess_format(references: Sequence[Sequence[str]]) -> Format:
    texts = [text for row in references for text in row]
    forms: tuple[Format, ...] = ("json", *_SEPARATORS)
    return max(
        forms,
        key=lambda form: sum((parse_record(text, form) or Counter()).total() for text in texts),
    )


def _count_differences(record: Record, other: Record) -> int:
    return record.total() + other.total() - 2 * (record & other).total()


def _count_fields(record: Record) -> Counter[str]:
    counts: Counter[str] = Counter()
    for (field, _), count in record.items():
        counts[field] += count
    return counts


def _parse_lines(text: str, separator: str) -> Record | None:
    found: list[tuple[str, str]] = []
    for part in text.split(separator):
        match = _FIELD.fullmatch(part)
        if match:
            found.append((match[1], match[2]))
        elif found:
            field, value = found[-1]
            found[-1] = field, f"{value}{separator}{part}"
        elif part.strip():
            return None
    # A final separator, as in "a: x; b: y;", was joined to the last value.
    pairs = ((field, value.strip().rstrip(separator + whitespace)) for field, value in found)
    return Counter(pair for pair in pairs if pair[1]) if found else None


@dataclass(frozen=True)
class _Object:
    """A JSON object with its repeated names."""

    items: tuple[tuple[str, Any], ...]


def _parse_json(text: str) -> Record | None:
    try:
        content = json.loads(
            text,
            object_pairs_hook=lambda items: _Object(tuple(items)),
            parse_constant=_refuse,
        )
        return Counter(_flatten(content)) if isinstance(content, _Object) else None
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _flatten(content: _Object, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in content.items:
        field = prefix + name
        if isinstance(value, _Object):
            yield from _flatten(value, f"{field}.")
        else:
            items: Iterable[Any] = value if isinstance(value, list) else [value]
            yield from ((field, _write(item)) for item in items if item is not None)


def _write(value: Any) -> str:  # noqa: ANN401
    """Return the same text for all values that are equal as JSON."""
    if isinstance(value, _Object):
        items = sorted((json.dumps(name), _write(each)) for name, each in value.items)
        return "{" + ",".join(f"{name}:{each}" for name, each in items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_write, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value)
