"""sacrebleu's BLEU, chrF and TER as formulas over sums of statistics of rows.

sacrebleu counts the statistics of each row (those that its own significance test uses). The short
formulas over their sums are here, vectorized, so that a thousand resampled corpora cost little more
than one. They do the same operations in the same order as sacrebleu, and give the same digits.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Statistics = NDArray[np.float64]
Collect = Callable[[Sequence[str], Sequence[Sequence[str]]], Statistics]

_ORDERS = 4  # of BLEU's n-grams
_CHRF_ORDERS = 6
_BETA_SQUARED = 4  # chrF2
_LOG_OF_ZERO = -9999999999.0  # sacrebleu's


def make_counters(
    bleu_tokenizer: str, references: Sequence[Sequence[str]]
) -> dict[str, tuple[str, Collect]]:
    """Return the signature of "bleu", "chrf" and "ter", and the function that counts its statistics.

    chrF may depend on the order of references: sacrebleu takes the first of equally good ones.

    sacrebleu's methods for statistics are private, but its PairedTest is built on them, from 2.0
    on; last checked in 2.6.0. It needs `num_refs` only for the signature.
    """
    from sacrebleu import BLEU, CHRF, TER

    # force: no warning about text that looks tokenized, as phones and codes always do.
    scorers: dict[str, Any] = {
        "bleu": BLEU(tokenize=bleu_tokenizer, force=True),
        "chrf": CHRF(),
        "ter": TER(),
    }
    numbers = {len(row) for row in references}
    for scorer in scorers.values():
        scorer.num_refs = next(iter(numbers)) if len(numbers) == 1 else -1
    return {
        name: (str(scorer.get_signature()), partial(_collect, scorer=scorer))
        for name, scorer in scorers.items()
    }


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
    streams = _to_streams(references)
    return np.array(scorer._extract_corpus_statistics(hypotheses, streams), float)


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
