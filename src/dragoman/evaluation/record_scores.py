"""Scores of outputs that are records: which of their fields are right."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dragoman.grounding import find_spans
from dragoman.records import SEPARATORS, Format, Record, detect_format, list_fields, parse_record

Statistics = NDArray[np.float64]

_MOST_FIELDS = 20  # with scores
WHOLE_COLUMNS = (1, 0)  # rows with all fields right, rows
PARSED_COLUMNS = (2, 0)  # rows whose output parses, rows


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
        """Return the counter for these references, with the most frequent fields first."""
        form = find_format(references)
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
            records = (parse_record(text, self.form) or Counter() for text in texts)
            reference = find_closest(output, records)
            matches = output & reference
            counts[1] = parsed is not None and output == reference
            counts[2] = parsed is not None
            for place, record in enumerate((matches, output, reference)):
                counts[3 + place] = record.total()
                per_field = Counter(field for field, _ in record.elements())
                for number, field in enumerate(self.fields, start=1):
                    counts[3 + 3 * number + place] = per_field[field]
        return statistics

    def columns_of(self, number: int) -> tuple[int, int, int]:
        """Return the columns of (matches, output, reference); 0: all fields, then each one."""
        first = 3 + 3 * number
        return first, first + 1, first + 2


def find_format(references: Sequence[Sequence[str]]) -> Format:
    """Return the format of the references; if not all are records, the one with the most fields."""
    texts = [text for row in references for text in row]
    found, forms = detect_format(texts), ("json", *SEPARATORS)
    if found is not None:
        return found
    return max(forms, key=lambda form: sum(len(list_fields(text, form) or ()) for text in texts))


def count_grounded(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    sources: Sequence[str],
    form: Format,
) -> Statistics:
    """Return how many values of each output stand in its source exactly, nearly, not: (N, 3)."""
    statistics = np.zeros((len(hypotheses), 3))
    for counts, source, hypothesis in zip(statistics, sources, hypotheses, strict=True):
        for span in find_spans(source, hypothesis, form):
            counts[("exact", "near", "none").index(span.kind)] += 1
    return statistics


def find_closest(output: Record, references: Iterable[Record]) -> Record:
    """Return the reference with the fewest missing and extra fields, then with the fewest fields."""

    def count_differences(record: Record) -> tuple[int, int]:
        shared = (output & record).total()
        return output.total() + record.total() - 2 * shared, record.total()

    return min(references, key=count_differences)


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


def compute_share(sums: Statistics, *, columns: Sequence[int]) -> Statistics:
    """Return what these columns are of all, in percent, 0 of nothing: (..., k) -> (...)."""
    return np.asarray(
        100.0 * sums[..., list(columns)].sum(axis=-1) / np.maximum(1.0, sums.sum(axis=-1))
    )


def _divide(above: Statistics, below: Statistics, others: Statistics) -> Statistics:
    nothing = np.where(others > 0, 0.0, 100.0)
    return np.divide(100.0 * above, below, out=nothing, where=below > 0)
