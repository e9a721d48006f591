"""sacrebleu's BLEU, chrF and TER as sums over rows, its own numbers, for many sums at once.

sacrebleu counts (its statistics of a row are what its own significance test uses); the short
formulas over the sums are here, so that a thousand resampled corpora take no longer than one. They
do the same operations in the same order, and so give the same digits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Statistics = NDArray[np.float64]

_ORDERS = 4  # of BLEU's n-grams
_CHRF_ORDERS = 6
_BETA_SQUARED = 4  # chrF2
_LOG_OF_ZERO = -9999999999.0  # sacrebleu's


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a metric takes from sacrebleu; see `metrics.Metric`."""

    signature: str
    collect: Callable[[Sequence[str], Sequence[Sequence[str]]], Statistics]
    combine: Callable[[Statistics], Statistics]
    suppose_right: Callable[[Statistics], Statistics]
    suppose_wrong: Callable[[Statistics], Statistics]


def make_bleu(tokenizer: str, references: Sequence[Sequence[str]]) -> Part:
    """Return BLEU; its statistics are lengths of output and reference, matches, n-grams: 2 + 4 + 4.

    It is 0 where no output has four words, as BLEU is defined.
    """
    from sacrebleu import BLEU

    # force: keep quiet about text that looks tokenized, which phones and codes always do.
    return Part(
        combine=combine_bleu,
        suppose_right=partial(_suppose_bleu, share=1.0),
        suppose_wrong=partial(_suppose_bleu, share=0.0),
        **_use(BLEU(tokenize=tokenizer, force=True), references),
    )


def make_chrf(references: Sequence[Sequence[str]]) -> Part:
    """Return chrF; its statistics are (n-grams of output, of reference, matches) for 1 to 6.

    It may depend on the order of references: sacrebleu takes the first of equally good ones.
    """
    from sacrebleu import CHRF

    return Part(
        combine=combine_chrf,
        suppose_right=partial(_suppose_chrf, share=1.0),
        suppose_wrong=partial(_suppose_chrf, share=0.0),
        **_use(CHRF(), references),
    )


def make_ter(references: Sequence[Sequence[str]]) -> Part:
    """Return TER; its statistics are edits, and the mean length of the references of the row."""
    from sacrebleu import TER

    return Part(
        combine=combine_ter,
        suppose_right=suppose_no_edits,
        suppose_wrong=suppose_all_edited,
        **_use(TER(), references),
    )


def combine_bleu(sums: Statistics) -> Statistics:
    """Return BLEU of sums of its statistics: (..., 10) -> (...).

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


def combine_chrf(sums: Statistics) -> Statistics:
    """Return chrF2 of sums of its statistics: (..., 18) -> (...).

    Source: Popović 2015; orders that neither side has do not count, as in sacrebleu.
    """
    zero = np.zeros(sums.shape[:-1])
    precision, recall, num_orders = zero, zero, zero
    for n in range(_CHRF_ORDERS):
        output, reference, match = (sums[..., 3 * n + i] for i in range(3))
        has_both = (output > 0) & (reference > 0)
        precision = precision + np.divide(match, output, out=zero.copy(), where=has_both)
        recall = recall + np.divide(match, reference, out=zero.copy(), where=has_both)
        num_orders = num_orders + has_both
    precision, recall = (each / np.maximum(1, num_orders) for each in (precision, recall))
    above = (1 + _BETA_SQUARED) * precision * recall
    below = _BETA_SQUARED * precision + recall
    return 100 * np.divide(above, below, out=zero.copy(), where=below > 0)


def combine_ter(sums: Statistics) -> Statistics:
    """Return TER of sums of its statistics: (..., 2) -> (...); 100 where only outputs have words."""
    edits, length = sums[..., 0], sums[..., 1]
    alone = np.where(edits > 0, 1.0, 0.0)
    return np.asarray(100 * np.divide(edits, length, out=alone, where=length > 0))


def suppose_no_edits(statistics: Statistics) -> Statistics:
    """Return (edits, length) of rows without an edit: (N, 2)."""
    return np.stack([np.zeros(len(statistics)), statistics[:, 1]], axis=1)


def suppose_all_edited(statistics: Statistics) -> Statistics:
    """Return (edits, length) of rows without a token that is right: (N, 2)."""
    return statistics[:, [1, 1]]


def _suppose_bleu(statistics: Statistics, share: float) -> Statistics:
    """Return the statistics of outputs as long as the reference, of whose n-grams `share` match."""
    length = statistics[:, 1:2]
    ngrams = np.maximum(0.0, length - np.arange(_ORDERS))  # (N, 4)
    return np.concatenate([length, length, share * ngrams, ngrams], axis=1)


def _suppose_chrf(statistics: Statistics, share: float) -> Statistics:
    references = statistics[:, 1::3]  # (N, 6)
    supposed = np.stack([references, references, share * references], axis=2)
    return supposed.reshape(len(statistics), -1)


def _use(metric: Any, references: Sequence[Sequence[str]]) -> dict[str, Any]:  # noqa: ANN401
    """Return the signature of sacrebleu's `metric`, and how to get its statistics.

    Its methods for statistics are private, though they are what its PairedTest is built on, from
    2.0 on; last looked at in 2.6.0. It asks for `num_refs` only to write its signature.
    """
    numbers = {len(row) for row in references}
    metric.num_refs = numbers.pop() if len(numbers) == 1 else -1
    return {"signature": str(metric.get_signature()), "collect": partial(_collect, metric=metric)}


def _collect(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metric: Any,  # noqa: ANN401
) -> Statistics:
    streams = _to_streams(references)
    return np.array(metric._extract_corpus_statistics(hypotheses, streams), float)


def _to_streams(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the references as sacrebleu takes them: list k holds the k-th one of every row."""
    most = max(map(len, references))
    streams = [[row[k] if k < len(row) else None for row in references] for k in range(most)]
    return cast(list[list[str]], streams)  # its types lack the None of a row that has less


def _exp(values: Statistics) -> Statistics:
    # Not numpy's, which differs from the C library's, and so from sacrebleu's, in the last digit.
    return np.asarray(np.frompyfunc(math.exp, 1, 1)(values), float)


def _log(values: Statistics) -> Statistics:
    return np.asarray(np.frompyfunc(_log_of, 1, 1)(values), float)


def _log_of(value: float) -> float:
    return math.log(value) if value > 0 else _LOG_OF_ZERO
