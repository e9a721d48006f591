"""How seldom a model has seen what a source is made of."""

from collections.abc import Sequence

from dragoman.evaluation.rows import Row
from dragoman.tokenizers.pair_tokenizer import PairTokenizer
from dragoman.tokenizers.special_ids import UNKNOWN_ID


def count_rarest(rows: Sequence[Row], tokenizer: PairTokenizer, counts: Sequence[int]) -> list[int]:
    """Return how often the rarest token of each source stood in the training pairs.

    Args:
        counts: How often each source id did; an id beyond them, or an unknown one: never.
    """
    known = dict(enumerate(counts))
    known[UNKNOWN_ID] = 0
    encoded = tokenizer.encode_sources([row.source for row in rows], [row.features for row in rows])
    return [min((known.get(id_, 0) for id_ in ids[:-1]), default=0) for ids in encoded]
