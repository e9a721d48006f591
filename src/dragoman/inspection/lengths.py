"""How long the texts are, in characters, and in tokens of the tokenizer that would be trained."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dragoman.inspection.rows import SplitRows
from dragoman.reading.pairs import Pair
from dragoman.settings import Settings
from dragoman.tokenizers.pair_tokenizer import PairTokenizer

_TRAINED_ROWS = 50_000
_ENCODED_ROWS = 50_000
_LONGEST_ROWS = 20_000  # that are encoded besides, to find those over the limit
_MOST_BYTES = 4  # of a character in UTF-8: no text has more tokens than bytes


def describe_lengths(lengths: NDArray[np.int64]) -> dict[str, float]:
    """Return the least, the greatest, the mean and percentiles."""
    low, median, high, higher = np.percentile(lengths, [5, 50, 95, 99])
    return {
        "min": int(lengths.min()),
        "p5": round(float(low), 1),
        "median": round(float(median), 1),
        "p95": round(float(high), 1),
        "p99": round(float(higher), 1),
        "max": int(lengths.max()),
        "mean": round(float(lengths.mean()), 2),
    }


def count_lengths(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the characters of each text, (N,)."""
    return np.fromiter(map(len, texts), np.int64, len(texts))


def train_tokenizer(rows: SplitRows, settings: Settings) -> tuple[PairTokenizer, bool]:
    """Return the tokenizer of the training rows, or of some of many, and whether it is of all.

    Raises:
        SettingsError: The settings of the tokenizer do not go together.
    """
    indices = _spread(len(rows), _TRAINED_ROWS)
    tokenizer = PairTokenizer.train(
        (Pair(rows.sources[i], rows.targets[i], rows.features[i], 0, rows.file) for i in indices),
        settings.tokenizer,
    )
    return tokenizer, len(indices) == len(rows)


def measure_tokens(
    rows: SplitRows, tokenizer: PairTokenizer
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens of sources and targets, ends counted, of all rows, or of some of many."""
    return _encode(rows, tokenizer, _spread(len(rows), _ENCODED_ROWS))


def find_over_limit(
    rows: SplitRows, tokenizer: PairTokenizer, max_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the rows over `max_tokens`, and the tokens of their longer side.

    Of very many rows that could be, only the longest are encoded.
    """
    longer = np.maximum(count_lengths(rows.sources), count_lengths(rows.targets))
    longer += np.fromiter(map(len, rows.features), np.int64, len(rows))
    may_be = np.flatnonzero(longer * _MOST_BYTES + 2 > max_tokens)
    if len(may_be) > _LONGEST_ROWS:
        may_be = np.sort(may_be[np.argsort(longer[may_be])[-_LONGEST_ROWS:]])
    lengths = np.maximum(*_encode(rows, tokenizer, may_be))
    return may_be[lengths > max_tokens], lengths[lengths > max_tokens]


def _encode(
    rows: SplitRows, tokenizer: PairTokenizer, indices: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    sources, targets = list[int](), list[int]()
    for start in range(0, len(indices), 4096):
        chunk = indices[start : start + 4096]
        features = [rows.features[i] for i in chunk]
        sources += map(len, tokenizer.encode_sources([rows.sources[i] for i in chunk], features))
        targets += map(len, tokenizer.encode_targets([rows.targets[i] for i in chunk]))
    return np.array(sources, np.int64), np.array(targets, np.int64)


def _spread(total: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of the numbers below `total`, evenly spread."""
    if total <= most:
        return np.arange(total)
    return np.linspace(0, total - 1, most).astype(np.int64)
