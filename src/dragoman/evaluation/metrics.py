"""Every score is a function of sums over rows: what to count in a row, and what the sums make.

So a score of any set of rows, a resampled one too, is a sum and a short formula: intervals and tests
(`intervals`, `comparison`) never look at a text again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from dragoman.evaluation import records, sacrebleu_metrics
from dragoman.settings import EvaluationSettings

Statistics = NDArray[np.float64]
Task = Literal["text", "phones", "records"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score: its sufficient statistics in each row, its formula, and where it is shown.

    Metrics that share `collect` (the same callable) share their statistics.
    """

    name: str
    title: str
    is_higher_better: bool
    by_row: bool = False
    """Meaningful for a single row: written to rows.jsonl, and chooses the rows that differ most."""
    by_group: bool = False
    """Broken down by length, feature and rarity."""
    is_tile: bool = False
    """Among the few scores at the top of the report."""
    signature: str = ""  # sacrebleu's: only scores of the same signature can be compared
    collect: Callable[[Sequence[str], Sequence[Sequence[str]]], Statistics]
    """Hypotheses, and the references of each, at least one -> statistics, (N, k)."""
    combine: Callable[[Statistics], Statistics]
    """Sums over rows, (..., k) -> the score in percent or points of 100, (...)."""
    is_proportion: bool = False
    """Each row counts 0 or 1, and the score is their mean."""


def choose_metrics(
    settings: EvaluationSettings,
    references: Sequence[Sequence[str]],
    *,
    separator: str = " ",
    has_symbols: bool = False,
) -> list[Metric]:
    """Return the metrics that suit the task of `settings`, the most telling ones first.

    Args:
        settings: The task, and how BLEU cuts text into words.
        references: Those that outputs will be compared with: they tell an automatic task, the
            fields of records, and the number of references in sacrebleu's signatures.
        separator: What stands between two tokens; empty: white space.
        has_symbols: Target tokens are symbols: phones, if the task is automatic.
    """
    task = find_task(settings, references, has_symbols=has_symbols)
    title = {"text": "WER", "phones": "PER", "records": "token error rate"}[task]
    metrics = [
        measure_exact_match(),
        measure_token_errors(title, separator),
    ]
    if task == "phones":
        return [*metrics, measure_row_errors()]
    metrics.append(measure_character_errors())
    if task == "records":
        return [*measure_records(references), *metrics]
    measured = measure_translation(settings, references)
    if settings.task == "auto" and not _has_running_text(references):
        measured = [one for one in measured if one.name == "chrf"]
    return [*metrics, *measured]


def list_known_metrics(settings: EvaluationSettings | None = None) -> dict[str, Metric]:
    """Return the metrics of all tasks by name, for one reference a row, without single fields."""
    settings = settings or EvaluationSettings()
    found = [
        measure_exact_match(),
        measure_token_errors("WER", " "),
        measure_character_errors(),
        measure_row_errors(),
        *measure_translation(settings, [["one reference"]]),
        *measure_records([]),
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
    settings: EvaluationSettings,
    references: Sequence[Sequence[str]],
    *,
    has_symbols: bool = False,
) -> Task:
    """Return the task of `settings`; an automatic one by the references."""
    if settings.task != "auto":
        return settings.task
    if records.detect_format(references) is not None:
        return "records"
    return "phones" if has_symbols else "text"


def measure_exact_match() -> Metric:
    """Return the share of the rows whose output is one of their references."""
    return Metric(
        name="exact_match",
        title="exact match",
        is_higher_better=True,
        by_group=True,
        is_tile=True,
        collect=_count_exact,
        combine=divide_hits,
        is_proportion=True,
    )


def measure_row_errors() -> Metric:
    """Return the share of the rows whose output is none of their references.

    In grapheme-to-phoneme conversion, where a row is a word, it is called the word error rate.
    """
    return Metric(
        name="word_error_rate",
        title="WER",
        is_higher_better=False,
        collect=_count_inexact,
        combine=divide_hits,
        is_proportion=True,
    )


def measure_token_errors(title: str, separator: str) -> Metric:
    """Return the edits of tokens over the tokens of the references: see `count_edits`.

    Tokens are what stands between separators; an empty `separator` means white space.
    """
    return _measure_edits("token_error_rate", title, partial(_split, separator=separator))


def measure_character_errors() -> Metric:
    """Return the edits of characters over the characters of the references: see `count_edits`."""
    return _measure_edits("character_error_rate", "CER", str)


def measure_translation(
    settings: EvaluationSettings, references: Sequence[Sequence[str]]
) -> list[Metric]:
    """Return sacrebleu's BLEU, chrF and TER: its numbers, to the last digit."""
    collectors = sacrebleu_metrics.make_collectors(settings.bleu_tokenizer, references)
    return [
        Metric(
            name=name,
            title=title,
            is_higher_better=name != "ter",
            by_row=name == "chrf",
            is_tile=name != "ter",
            signature=collectors[name][0],
            collect=collectors[name][1],
            combine=combine,
        )
        for name, title, combine in (
            ("bleu", "BLEU", sacrebleu_metrics.combine_bleu),
            ("chrf", "chrF", sacrebleu_metrics.combine_chrf),
            ("ter", "TER", sacrebleu_metrics.combine_ter),
        )
    ]


def measure_records(references: Sequence[Sequence[str]]) -> list[Metric]:
    """Return what records are scored by: whole ones, and fields: over all, then each by itself."""
    counter = records.RecordCounter.of(references)
    collect = counter.collect
    shares = (
        ("record_match", "all fields right", counter.whole_columns),
        ("parsed", "outputs that parse", counter.parsed_columns),
    )
    metrics = [
        Metric(
            name=name,
            title=title,
            is_higher_better=True,
            collect=collect,
            combine=partial(_pick, columns=columns, formula=divide_hits),
            is_proportion=True,
        )
        for name, title, columns in shares
    ]
    for place, field in enumerate(("", *counter.fields)):
        for name, title, formula in _OF_FIELDS:
            metrics.append(
                Metric(
                    name=f"{name}.{field}" if field else name,
                    title=f"{field}: {title}" if field else f"field {title}",
                    is_higher_better=True,
                    by_row=name == "field_f1" and not field,
                    by_group=name == "field_f1" and not field,
                    is_tile=name == "field_f1" and not field,
                    collect=collect,
                    combine=partial(_pick, columns=counter.columns_of(place), formula=formula),
                )
            )
    return metrics


def divide_hits(sums: Statistics) -> Statistics:
    """Return hits over rows, in percent: (..., 2) -> (...)."""
    return np.asarray(100.0 * sums[..., 0] / sums[..., 1])


def divide_edits(sums: Statistics) -> Statistics:
    """Return edits over length, in percent: (..., 2) -> (...); over 1 where all is empty."""
    return np.asarray(100.0 * sums[..., 0] / np.maximum(1.0, sums[..., 1]))


def count_edits(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Return the edits (insertions, deletions, substitutions) to the closest reference, its length.

    Of equally close references the shortest counts, so that a tie never flatters (BLEU's rule
    too), and the order of references plays no part. Summed edits over summed lengths make a rate,
    which so may pass 100 percent.
    """
    return min((Levenshtein.distance(hypothesis, one), len(one)) for one in references)


def _has_running_text(references: Sequence[Sequence[str]]) -> bool:
    """Whether some reference has four words.

    Without, BLEU is 0 whatever comes out, and TER says no more than WER: no words change places.
    """
    return any(len(text.split(maxsplit=3)) == 4 for row in references for text in row)


def _measure_edits(name: str, title: str, cut: Callable[[str], Sequence[str]]) -> Metric:
    return Metric(
        name=name,
        title=title,
        is_higher_better=False,
        by_row=True,
        by_group=True,
        is_tile=True,
        collect=partial(_count_all_edits, cut=cut),
        combine=divide_edits,
    )


def _count_all_edits(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    cut: Callable[[str], Sequence[str]],
) -> Statistics:
    counts = [
        count_edits(cut(hypothesis), [cut(one) for one in row])
        for hypothesis, row in zip(hypotheses, references, strict=True)
    ]
    return np.array(counts, float).reshape(-1, 2)


def _split(text: str, separator: str) -> list[str]:
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


_OF_FIELDS = (
    ("field_f1", "F1", records.find_f1),
    ("field_precision", "precision", records.find_precision),
    ("field_recall", "recall", records.find_recall),
)
