"""The search that the settings name."""

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from dragoman.decoding.greedy import search_greedily
from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.length import limit_lengths
from dragoman.decoding.plan import SearchPlan
from dragoman.model.transformer import Transformer


def search(
    models: Sequence[Transformer],
    source_ids: Int[Tensor, "B S"],
    plan: SearchPlan,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> list[list[Hypothesis]]:
    """Return the hypotheses of each source, best first."""
    lengths = (source_ids != models[0].pad_id).sum(dim=1).tolist()
    limits = limit_lengths(lengths, plan.decoding)
    found = search_greedily(models[0], source_ids, [limit.longest for limit in limits])
    return [[hypothesis] for hypothesis in found]
