"""How long an output may become."""

from jaxtyping import Int
from torch import Tensor

from dragoman.settings import DecodingSettings


def longest_outputs(
    source_ids: Int[Tensor, "B S"], pad_id: int, decoding: DecodingSettings
) -> list[int]:
    """Return the longest output of each source in tokens, its end included.

    It is max_length_ratio * tokens of the source + max_length_extra: it depends on the row alone,
    never on its neighbours or its padding. A source of 10 tokens has 70 with ratio 2 and extra 50.
    """
    lengths = (source_ids != pad_id).sum(dim=1).tolist()
    return [int(decoding.max_length_ratio * n) + decoding.max_length_extra for n in lengths]
