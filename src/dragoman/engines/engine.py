"""An engine: what computes a trained model. Ids in, hypotheses out; no torch is needed here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.search_config import SearchConfig


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked of an engine at once."""

    config: SearchConfig
    longest_source: int = 0
    """Tokens of the longest source."""
    longest_target: int | None = None
    """Tokens of the longest output that is given, its end included; None: they are searched for."""
    has_prefixes: bool = False
    """Whether outputs begin with something given."""

    @classmethod
    def of_search(
        cls,
        sources: Sequence[Sequence[int]],
        config: SearchConfig,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> "Task":
        """Return what `Engine.search` asks."""
        longest = max(map(len, sources), default=0)
        return cls(config=config, longest_source=longest, has_prefixes=prefixes is not None)

    @classmethod
    def of_scoring(
        cls,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        config: SearchConfig,
    ) -> "Task":
        """Return what `Engine.score` asks."""
        return cls(
            config=config,
            longest_source=max(map(len, sources), default=0),
            longest_target=max(map(len, targets), default=0) + 1,
        )


class Engine(Protocol):
    """A trained model, on one device."""

    name: str
    """As in --engine."""

    def find_obstacle(self, task: Task) -> str:
        """Return why this engine cannot do `task`, or ""."""
        ...

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
            sources: The ids of each source, its end included.
            prefixes: Ids that the output of each source begins with; None: none.
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
        probability is over all tokens but padding and begin: it is the one that a search without
        rules would have given it.
        """
        ...
