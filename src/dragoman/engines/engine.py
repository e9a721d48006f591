"""What an inference engine offers: ids in, hypotheses out. It needs no torch."""

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.search_config import SearchConfig
from dragoman.errors import SettingsError

Quantization = Literal["float32", "int8", "int8_float32", "int8_float16", "float16", "bfloat16"]
QuantizationChoice = Literal["auto"] | Quantization
"""auto: the one that `fit` chose."""


class UnsupportedError(SettingsError):
    """An engine cannot do what is asked; `reason` says why."""

    def __init__(self, reason: str, engine: str = "ctranslate2") -> None:
        super().__init__(f"--engine {engine}: {reason}; use --engine torch")
        self.reason = reason


class Engine(Protocol):
    """A trained model on one device."""

    name: str
    """As in --engine."""
    quantization: Quantization
    """Number format of the weights."""

    def search(
        self,
        sources: Sequence[Sequence[int]],
        config: SearchConfig,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each source, best first: `config.decoding.num_searched` of them.

        There are fewer where the search has found no more. Any number of sources; the engine makes
        the batches, and no result depends on them.

        Args:
            sources: The ids of each source, with the end token.
            prefixes: Ids that the output of each source begins with; None: none.

        Raises: UnsupportedError, when the engine cannot do this search.
        """
        ...

    def score(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        config: SearchConfig,
    ) -> list[Hypothesis]:
        """Return each target, its ids without begin and end, with its log-probabilities.

        They always have `log_probs`, and where `config.decoding.alignment` is set, `alignment`. The
        probability is over the tokens that may be emitted, as in a search without rules.
        """
        ...


def make_batches(costs: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Yield the rows, cheapest first, in batches of at most `limit`, padded to the most expensive.

    A row that costs more than `limit` forms its own batch.
    """
    batch: list[int] = []
    for row in sorted(range(len(costs)), key=costs.__getitem__):
        if batch and (len(batch) + 1) * costs[row] > limit:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def add_details(
    engine: Engine,
    sources: Sequence[Sequence[int]],
    found: Sequence[Sequence[Hypothesis]],
    config: SearchConfig,
    num_positions: int | None,
) -> list[list[Hypothesis]]:
    """Return the hypotheses `found` of each source with `log_probs`, and `alignment` if it is set.

    A search does not give them: each hypothesis is scored by the model again.

    Args:
        num_positions: Learned positions of the model; None: sinusoidal ones. An output that was
            truncated at the last one has no place for an end: its last token gets what the score
            of the search leaves for it.
    """
    rows = [(i, one) for i, best_first in enumerate(found) for one in best_first]

    def is_full(one: Hypothesis) -> bool:
        return not one.is_complete and len(one.ids) == num_positions

    targets = [one.ids[:-1] if is_full(one) else one.ids for _, one in rows]
    scored = engine.score([sources[i] for i, _ in rows], targets, config)
    detailed: list[list[Hypothesis]] = [[] for _ in found]
    for (i, one), details in zip(rows, scored, strict=True):
        length = len(one.ids) + one.is_complete  # a truncated one has no end
        log_probs = details.log_probs[:length]
        if is_full(one):
            log_probs = (*log_probs[:-1], one.score - sum(log_probs[:-1]))
        detailed[i].append(one._replace(log_probs=log_probs, alignment=details.alignment[:length]))
    return detailed
