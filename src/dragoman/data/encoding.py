"""From pairs to ids: one pass over the pairs, one memory-mapped file a split."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Literal

from dragoman.data.dataset import ROWS_PER_CHUNK, IdsWriter
from dragoman.errors import DataError
from dragoman.reading.pairs import Pair, RowErrors
from dragoman.settings import DataSettings
from dragoman.tokenizers.pair_tokenizer import PairTokenizer

Split = Literal["train", "valid", "test"]


def encode_splits(
    pairs: Iterable[tuple[Split, Pair]],
    tokenizer: PairTokenizer,
    files: Mapping[Split, Path],
    settings: DataSettings,
) -> tuple[dict[Split, int], RowErrors]:
    """Write the ids of `pairs` to the file of their split; return the rows written, and faults.

    Rows over `data.max_tokens` are left out and counted when `data.long_rows` is skip.

    Raises:
        DataError: There are rows over `data.max_tokens`, and `data.long_rows` is error; no file is
            left behind then.
    """
    faults = RowErrors()
    counts = dict.fromkeys(files, 0)
    with ExitStack() as stack:
        writers = {split: stack.enter_context(IdsWriter(path)) for split, path in files.items()}
        for chunk in _chunks(pairs, ROWS_PER_CHUNK):
            for split, writer in writers.items():
                rows = [pair for name, pair in chunk if name == split]
                counts[split] += _encode_rows(rows, tokenizer, writer, settings.max_tokens, faults)
        if faults.total and settings.long_rows == "error":
            raise DataError(
                f"{faults.report()}\nraise data.max_tokens, or set data.long_rows skip to train "
                "without these rows"
            )
    return counts, faults


def _encode_rows(
    rows: list[Pair],
    tokenizer: PairTokenizer,
    writer: IdsWriter,
    max_tokens: int,
    faults: RowErrors,
) -> int:
    sources = tokenizer.encode_sources(
        [pair.source for pair in rows], [pair.features for pair in rows]
    )
    targets = tokenizer.encode_targets([pair.target for pair in rows])
    kept = []
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        length = max(len(source), len(target))
        if length <= max_tokens:
            kept.append(i)
        else:
            faults.add(
                rows[i].file,
                rows[i].line,
                "over data.max_tokens",
                f"{length:,} tokens, over data.max_tokens {max_tokens:,}",
            )
    if kept:
        writer.write(
            [sources[i] for i in kept], [targets[i] for i in kept], [rows[i].line for i in kept]
        )
    return len(kept)


def _chunks(pairs: Iterable[tuple[Split, Pair]], size: int) -> Iterator[list[tuple[Split, Pair]]]:
    iterator = iter(pairs)
    while chunk := list(islice(iterator, size)):
        yield chunk
