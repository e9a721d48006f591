"""The metrics. Each is a formula over sums of sufficient statistics of the rows.

So the score of any set of rows, also of a resampled one, is a sum and a short formula: intervals
and significance tests never read a text again. A metric that is added here is scored, stored,
compared and shown everywhere.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from dragoman.grounding import find_spans
from dragoman.records import SEPARATORS, Format, Record, detect_format, list_fields, parse_record
from dragoman.settings import EvaluationSettings

Statistics = NDArray[np.float64]
CountRows = Callable[[Sequence[str], Sequence[Sequence[str]]], Statistics]
"""Hypotheses, and one or more references of each -> statistics, (N, k)."""
Task = Literal["text", "phones", "records"]

_EDIT_RATES = {"token_error_rate": "PER", "word_error_rate": "WER", "character_error_rate": "CER"}
_MOST_FIELDS = 20  # of records, with scores
_WHOLE_COLUMNS = (1, 0)  # rows with all fields right, rows
_PARSED_COLUMNS = (2, 0)  # rows whose output parses, rows
_ORDERS = 4  # of BLEU's n-grams
_CHRF_ORDERS = 6
_BETA_SQUARED = 4  # chrF2
_LOG_OF_ZERO = -9999999999.0  # sacrebleu's


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score: its sufficient statistics in each row, its formula, and where it is shown.

    Metrics with the same `count_rows` (the same callable) share their statistics.
    """

    name: str
    title: str
    is_higher_better: bool
    by_row: bool = False
    """Meaningful for a single row: written to rows.jsonl, and chooses the rows that differ most."""
    by_group: bool = False  # broken down by length, feature and rarity
    is_tile: bool = False  # among the few scores at the top of the report
    signature: str = ""  # sacrebleu's: only scores with the same one can be compared
    count_rows: CountRows
    from_sums: Callable[[Statistics], Statistics]
    """Sums over rows, (..., k) -> the score in percent or points of 100, (...)."""
    is_proportion: bool = False  # each row counts 0 or 1, and the score is their mean


def choose_metrics(
    settings: EvaluationSettings,
    references: Sequence[Sequence[str]],
    *,
    sources: Sequence[str] = (),
    separator: str = " ",
    has_symbols: bool = False,
) -> list[Metric]:
    """Return the metrics for the task of `settings`, the task's own first.

    Args:
        references: Of each row. An auto task, the fields of records, and the number of references
            in sacrebleu's signatures depend on them.
        sources: Of each row, in which values of records are searched; empty: unknown.
        separator: Between two tokens; empty: white space.
        has_symbols: Target tokens are symbols: phones, if the task is auto.
    """
    task = find_task(settings, references, has_symbols=has_symbols)
    if task == "phones":
        errors = make_edit_rate("token_error_rate", separator)
        return [errors, make_row_errors(), make_exact_match()]
    words, characters = "word_error_rate", "character_error_rate"
    metrics = [make_exact_match(), make_edit_rate(words, separator), make_edit_rate(characters)]
    if task == "records":
        grounding = make_grounding(references, sources) if any(sources) else []
        return [*make_records(references), *grounding, *metrics]
    translation = make_translation(settings, references)
    # Without four words in any reference BLEU is always 0, and TER close to WER. To these
    # tokenizers of BLEU a character is a word.
    is_by_character = settings.bleu_tokenizer in ("char", "zh")
    cut: Callable[[str], Sequence[str]] = str if is_by_character else str.split
    if any(len(cut(text)) >= _ORDERS for row in references for text in row):
        return [*translation, *reversed(metrics)]
    if settings.task == "auto":
        translation = [metric for metric in translation if metric.name == "chrf"]
    return [*metrics, *translation]


def list_known_metrics(settings: EvaluationSettings | None = None) -> dict[str, Metric]:
    """Return the metrics of all tasks by name, for one reference a row, without single fields."""
    settings = settings or EvaluationSettings()
    found = [
        make_exact_match(),
        *map(make_edit_rate, _EDIT_RATES),
        *make_translation(settings, [["one reference"]]),
        *make_records([]),
        *make_grounding([], []),
    ]
    return {metric.name: metric for metric in found}


@cache
def is_higher_better(name: str) -> bool:
    """Return the direction of a known metric by its name, as "ter" or "field_f1.total".

    Any other name: True. For a score of an evaluation read scores.json, which stores the direction.
    """
    metric = list_known_metrics().get(name.partition(".")[0])
    return metric is None or metric.is_higher_better


def find_task(
    settings: EvaluationSettings, references: Sequence[Sequence[str]], *, has_symbols: bool = False
) -> Task:
    """Return the task of `settings`; an auto task depends on the references."""
    if settings.task != "auto":
        return settings.task
    if detect_format(_list_texts(references)) is not None:
        return "records"
    return "phones" if has_symbols else "text"


def make_exact_match() -> Metric:
    """Return the fraction of rows whose output is one of their references."""
    return Metric(
        name="exact_match",
        title="exact match",
        is_higher_better=True,
        by_group=True,
        is_tile=True,
        count_rows=_count_exact,
        from_sums=divide_hits,
        is_proportion=True,
    )


def make_row_errors() -> Metric:
    """Return the fraction of rows whose output is not one of their references.

    In grapheme-to-phoneme conversion, where each row is a word, this is the word error rate.
    """
    return Metric(
        name="word_error_rate",
        title="WER",
        is_higher_better=False,
        count_rows=_count_inexact,
        from_sums=divide_hits,
        is_proportion=True,
    )


def make_edit_rate(name: str, separator: str = " ") -> Metric:
    """Return the edits of phones, words or characters over those of the references: `count_edits`.

    Args:
        name: token_error_rate (of phones), word_error_rate or character_error_rate. A token of a
            tokenizer may be less than a word.
        separator: Between two phones or words; empty: white space.
    """
    is_by_character = name == "character_error_rate"
    split = str if is_by_character else partial(_split_tokens, separator=separator)
    return Metric(
        name=name,
        title=_EDIT_RATES[name],
        is_higher_better=False,
        by_row=True,
        by_group=True,
        is_tile=True,
        count_rows=partial(count_edits, split=split),
        from_sums=divide_edits,
    )


def make_translation(
    settings: EvaluationSettings, references: Sequence[Sequence[str]]
) -> list[Metric]:
    """Return chrF, BLEU and TER, equal to sacrebleu's to the last digit.

    chrF may depend on the order of references: sacrebleu takes the first of equally good ones.

    sacrebleu's methods for statistics are private, but its PairedTest is built on them, from 2.0
    on; last checked in 2.6.0. It needs `num_refs` only for the signature.
    """
    from sacrebleu import BLEU, CHRF, TER

    # force: no warning about text that looks tokenized, as phones and codes always do.
    bleu = BLEU(tokenize=settings.bleu_tokenizer, force=True)
    scorers: tuple[tuple[Any, str, Callable[[Statistics], Statistics]], ...] = (
        (CHRF(), "chrF", compute_chrf),
        (bleu, "BLEU", compute_bleu),
        (TER(), "TER", compute_ter),
    )
    numbers = {len(row) for row in references}
    for scorer, _, _ in scorers:
        scorer.num_refs = next(iter(numbers)) if len(numbers) == 1 else -1
    return [
        Metric(
            name=title.lower(),
            title=title,
            is_higher_better=title != "TER",
            by_row=title == "chrF",
            by_group=title == "chrF",
            is_tile=title != "TER",
            signature=str(scorer.get_signature()),
            count_rows=partial(_collect, scorer=scorer),
            from_sums=from_sums,
        )
        for scorer, title, from_sums in scorers
    ]


def make_records(references: Sequence[Sequence[str]]) -> list[Metric]:
    """Return the metrics of records: whole records, all fields together, then each field."""
    counter = RecordCounter.of(references)
    metrics = [
        Metric(
            name=name,
            title=title,
            is_higher_better=True,
            count_rows=counter.count_rows,
            from_sums=partial(_pick, columns=columns, formula=divide_hits),
            is_proportion=True,
        )
        for name, title, columns in (
            ("record_match", "all fields right", _WHOLE_COLUMNS),
            ("parsed", "outputs that parse", _PARSED_COLUMNS),
        )
    ]
    for place, field in enumerate(("", *counter.fields)):
        matches, output, reference = counter.columns_of(place)
        for name, title, formula, columns in (
            ("field_f1", "F1", compute_f1, (matches, output, reference)),
            ("field_precision", "precision", compute_precision, (matches, output, reference)),
            ("field_recall", "recall", compute_precision, (matches, reference, output)),
        ):
            is_main = name == "field_f1" and not place
            metrics.append(
                Metric(
                    name=f"{name}.{field}" if place else name,
                    title=f"{field}: {title}" if place else f"field {title}",
                    is_higher_better=True,
                    by_row=is_main,
                    by_group=is_main,
                    is_tile=is_main,
                    count_rows=counter.count_rows,
                    from_sums=partial(_pick, columns=columns, formula=formula),
                )
            )
    return metrics


def make_grounding(references: Sequence[Sequence[str]], sources: Sequence[str]) -> list[Metric]:
    """Return which values of the outputs stand in the source of their row."""
    count_rows = partial(count_grounded, sources=sources, form=find_format(references))
    return [
        Metric(
            name=name,
            title=title,
            is_higher_better=name != "ungrounded",
            count_rows=count_rows,
            from_sums=partial(compute_share, columns=columns),
        )
        for name, title, columns in (
            ("grounded_exact", "values in the source, exactly", (0,)),
            ("grounded", "values in the source, or nearly", (0, 1)),
            ("ungrounded", "values not in the source", (2,)),
        )
    ]


def divide_hits(sums: Statistics) -> Statistics:
    """Return hits over rows in percent: (..., 2) -> (...)."""
    return np.asarray(100.0 * sums[..., 0] / sums[..., 1])


def divide_edits(sums: Statistics) -> Statistics:
    """Return edits over length in percent: (..., 2) -> (...); over 1 where all is empty."""
    return np.asarray(100.0 * sums[..., 0] / np.maximum(1.0, sums[..., 1]))


def count_edits(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    split: Callable[[str], Sequence[str]],
) -> Statistics:
    """Return the edits (insertions, deletions, substitutions) to the closest reference, its length.

    Of equally close references the shortest counts, as in BLEU, so that the order of references
    has no influence and a tie never improves the rate. The rate is summed edits over summed
    lengths; it may exceed 100 percent.
    """
    counts = []
    for hypothesis, row in zip(hypotheses, references, strict=True):
        output = split(hypothesis)
        counts.append(min((Levenshtein.distance(output, one), len(one)) for one in map(split, row)))
    return np.array(counts, float).reshape(-1, 2)


def _split_tokens(text: str, separator: str) -> list[str]:
    return [token for token in text.split(separator or None) if token]


def _count_exact(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
    hits = [h in row for h, row in zip(hypotheses, references, strict=True)]
    return np.stack([np.array(hits, float), np.ones(len(hits))], axis=1)


def _count_inexact(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
    return np.array([1.0, 0.0]) + np.array([-1.0, 1.0]) * _count_exact(hypotheses, references)


def _pick(
    sums: Statistics, *, columns: Sequence[int], formula: Callable[[Statistics], Statistics]
) -> Statistics:
    return formula(sums[..., list(columns)])


def compute_bleu(sums: Statistics) -> Statistics:
    """Return BLEU of sums of its statistics: (..., 10) -> (...).

    They are lengths of output and reference, 4 orders of matches, 4 of n-grams. Where no output has
    four words it is 0, as BLEU is defined.

    Source: Papineni et al. 2002; smoothing "exp": Chen and Cherry 2014, method 3.
    """
    output, reference = sums[..., 0], sums[..., 1]
    matches, totals = sums[..., 2 : 2 + _ORDERS], sums[..., 2 + _ORDERS :]
    is_shorter = (output < reference) & (output > 0)
    ratio = np.divide(reference, output, out=np.ones_like(output), where=is_shorter)
    brevity = _exp(1.0 - ratio)
    logs, smoothing = np.zeros_like(output), np.ones_like(output)
    for n in range(_ORDERS):
        match, total = matches[..., n], totals[..., n]
        is_smoothed = (match == 0) & (total > 0)
        smoothing = np.where(is_smoothed, smoothing * 2, smoothing)
        above = np.where(is_smoothed, 100.0, 100.0 * match)
        below = np.where(is_smoothed, smoothing * total, total)
        precision = np.divide(above, below, out=np.zeros_like(output), where=total > 0)
        logs = logs + _log(precision)
    return np.where(matches.any(axis=-1), brevity * _exp(logs / _ORDERS), 0.0)


def compute_chrf(sums: Statistics) -> Statistics:
    """Return chrF2 of sums of its statistics: (..., 18) -> (...).

    They are n-grams of the output, of the reference, and matches, for orders 1 to 6. Orders that
    neither side has do not count, as in sacrebleu.

    Source: Popović 2015.
    """
    counts = sums.reshape(*sums.shape[:-1], _CHRF_ORDERS, 3)
    output, reference, match = np.moveaxis(counts, -1, 0)  # (..., orders) each
    has_both = (output > 0) & (reference > 0)
    num_orders = np.maximum(1, has_both.sum(axis=-1))
    precision, recall = (
        np.divide(match, length, out=np.zeros_like(match), where=has_both).sum(axis=-1) / num_orders
        for length in (output, reference)
    )
    above = (1 + _BETA_SQUARED) * precision * recall
    below = _BETA_SQUARED * precision + recall
    return np.asarray(100 * np.divide(above, below, out=np.zeros_like(above), where=below > 0))


def compute_ter(sums: Statistics) -> Statistics:
    """Return TER of sums of its statistics: (..., 2) -> (...); 100 where only outputs have words.

    They are edits, and the mean length of the references of a row.
    """
    edits, length = sums[..., 0], sums[..., 1]
    alone = np.where(edits > 0, 1.0, 0.0)
    return np.asarray(100 * np.divide(edits, length, out=alone, where=length > 0))


def _collect(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    scorer: Any,  # noqa: ANN401
) -> Statistics:
    most = max(map(len, references))  # list k holds the k-th one of every row, or None
    streams = [[row[k] if k < len(row) else None for row in references] for k in range(most)]
    return np.array(scorer._extract_corpus_statistics(hypotheses, streams), float)


def _exp(values: Statistics) -> Statistics:
    # Not numpy's, which differs from the C library's, and so from sacrebleu's, in the last digit.
    return np.asarray(np.frompyfunc(math.exp, 1, 1)(values), float)


def _log(values: Statistics) -> Statistics:
    log = np.frompyfunc(lambda value: math.log(value) if value > 0 else _LOG_OF_ZERO, 1, 1)
    return np.asarray(log(values), float)


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
            if parsed is None and hypothesis in texts:  # such as "", where no field is wanted
                parsed = Counter()
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
    texts = _list_texts(references)
    found, forms = detect_format(texts), ("json", *SEPARATORS)
    if found is not None:
        return found
    return max(forms, key=lambda form: sum(len(list_fields(text, form) or ()) for text in texts))


def _list_texts(references: Sequence[Sequence[str]]) -> list[str]:
    """Return the references that are not empty: those may be of documents without any field."""
    return [text for row in references for text in row if text.strip()]


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

    Without any field in the outputs it is 0; without any in the references too, 100. With outputs
    and references exchanged, it is the recall.
    """
    return _divide(sums[..., 0], sums[..., 1], sums[..., 2])


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
