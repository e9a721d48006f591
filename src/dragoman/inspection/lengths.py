"""Lengths of texts in characters and tokens: figures, and rows over the limit."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dragoman.inspection.findings import (
    MOST_EXAMPLES,
    Finding,
    SplitFigures,
    describe_share,
    show_row,
)
from dragoman.inspection.rows import SplitRows, spread
from dragoman.settings import DataSettings, Settings
from dragoman.tokenizers.tokenizer import PairTokenizer

_TRAINED_ROWS = 50_000
_ENCODED_ROWS = 50_000
_LONGEST_ROWS = 20_000  # also encoded, to find those over the limit
_MOST_BYTES = 4  # of a character in UTF-8: no text has more tokens than bytes


def train_tokenizer(rows: SplitRows, settings: Settings) -> tuple[PairTokenizer, list[str]]:
    """Return a tokenizer trained on the rows, or on a sample of many, and a note about a sample.

    Raises:
        SettingsError: The settings of the tokenizer contradict each other.
    """
    sample = rows.sample(_TRAINED_ROWS)
    tokenizer = PairTokenizer.train(iter(sample.pairs), settings.tokenizer)
    note = f"tokens are of a tokenizer trained on a sample of {len(sample):,} rows, evenly spread"
    return tokenizer, [note] if sample.sampled_from else []


def measure_split(rows: SplitRows, tokenizer: PairTokenizer) -> tuple[SplitFigures, list[str]]:
    """Return the sizes of a split, and notes on how they were measured."""
    indices = spread(len(rows), _ENCODED_ROWS)
    source_tokens, target_tokens = _count_tokens(rows, tokenizer, indices)
    lengths = {
        "source_characters": count_characters(rows.sources),
        "target_characters": count_characters(rows.targets),
        "source_tokens": source_tokens,
        "target_tokens": target_tokens,
    }
    figures = SplitFigures(
        files=rows.files,
        rows=len(rows),
        sources=len(np.unique(rows.source_keys)),
        lengths={measure: _describe(values) for measure, values in lengths.items()},
    )
    if len(indices) == len(rows):
        return figures, []
    note = f"lengths in tokens of {rows.name}: a sample of {len(indices):,} rows, evenly spread"
    return figures, [note]


def find_long_rows(
    rows: SplitRows, tokenizer: PairTokenizer, data: DataSettings
) -> Iterator[Finding]:
    """Find rows over data.max_tokens.

    If very many rows could be over the limit, only the longest are encoded.
    """
    longer = np.maximum(count_characters(rows.sources), count_characters(rows.targets))
    longer += np.fromiter((len(pair.features) for pair in rows.pairs), np.int64, len(rows))
    candidates = np.flatnonzero(longer * _MOST_BYTES + 2 > data.max_tokens)
    if len(candidates) > _LONGEST_ROWS:
        candidates = np.sort(candidates[np.argsort(longer[candidates])[-_LONGEST_ROWS:]])
    lengths = np.maximum(*_count_tokens(rows, tokenizer, candidates))
    is_over = lengths > data.max_tokens
    found, lengths = candidates[is_over], lengths[is_over]
    if not len(found):
        return
    stops = data.long_rows == "error"
    policy = "fit stops at them" if stops else "fit skips them (data.long_rows=skip)"
    yield Finding(
        kind="over_long_tokens",
        title=f"rows of {rows.shown} with too many tokens",
        severity="fault" if stops else "warning",
        count=len(found),
        message=f"{describe_share(len(found), rows)} have more than data.max_tokens="
        f"{data.max_tokens} tokens, up to {lengths.max():,}; {policy}",
        remedy=f"raise data.max_tokens ({lengths.max()} is enough for all; memory and time grow), "
        "shorten the texts, or skip the rows with data.long_rows=skip",
        examples=tuple(
            show_row(rows, int(i), note=f"{length:,} tokens")
            for i, length in zip(found[:MOST_EXAMPLES], lengths[:MOST_EXAMPLES], strict=True)
        ),
    )


def _describe(lengths: NDArray[np.int64]) -> dict[str, float]:
    """Return the minimum, the maximum, the mean and percentiles."""
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


def count_characters(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the characters of each text, (N,)."""
    return np.fromiter(map(len, texts), np.int64, len(texts))


def _count_tokens(
    rows: SplitRows, tokenizer: PairTokenizer, indices: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens of sources and of targets, begin and end included."""
    sources, targets = list[int](), list[int]()
    for start in range(0, len(indices), 4096):
        pairs = [rows.pairs[i] for i in indices[start : start + 4096]]
        features = [pair.features for pair in pairs]
        sources += map(len, tokenizer.encode_sources([pair.source for pair in pairs], features))
        targets += map(len, tokenizer.encode_targets([pair.target for pair in pairs]))
    return np.array(sources, np.int64), np.array(targets, np.int64)
