"""What a search does not give by itself: the log-probability of each token, and the alignment."""

from collections.abc import Sequence

from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.engine import Engine


def add_details(
    engine: Engine,
    sources: Sequence[Sequence[int]],
    found: Sequence[Sequence[Hypothesis]],
    config: SearchConfig,
    num_positions: int | None,
) -> list[list[Hypothesis]]:
    """Return the hypotheses `found` of each source with `log_probs`, and `alignment` if it is set.

    They are forced through the model once more. `num_positions` are those that it has learned: an
    output that was cut at the last one has no place for an end, and its last token is given what
    the search's score leaves for it.
    """
    rows = [(i, one) for i, best_first in enumerate(found) for one in best_first]

    def is_full(one: Hypothesis) -> bool:
        return not one.is_complete and len(one.ids) == num_positions

    forced = [one.ids[:-1] if is_full(one) else one.ids for _, one in rows]
    scored = engine.score([sources[i] for i, _ in rows], forced, config)
    detailed: list[list[Hypothesis]] = [[] for _ in found]
    for (i, one), details in zip(rows, scored, strict=True):
        length = len(one.ids) + one.is_complete  # one that was cut has no end to speak of
        log_probs = details.log_probs[:length]
        if is_full(one):
            log_probs = (*log_probs[:-1], one.score - sum(log_probs[:-1]))
        detailed[i].append(one._replace(log_probs=log_probs, alignment=details.alignment[:length]))
    return detailed
