"""An engine: what computes a trained model. Ids in, hypotheses out; no torch is needed here."""

from collections.abc import Sequence
from typing import Protocol

from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.plan import SearchPlan


class Engine(Protocol):
    """A trained model, on one device."""

    name: str
    """As in --engine."""

    def find_obstacle(
        self,
        plan: SearchPlan,
        *,
        longest_source: int = 0,
        longest_target: int | None = None,
        has_prefixes: bool = False,
    ) -> str:
        """Return why this engine cannot search by `plan`, or "".

        Args:
            longest_source: Tokens of the longest source.
            longest_target: Tokens of the longest output, its end included; None: that of a search.
            has_prefixes: Outputs begin with something given.
        """
        ...

    def search(
        self,
        sources: Sequence[Sequence[int]],
        plan: SearchPlan,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each source, best first: `plan.decoding.num_searched` of them.

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
        plan: SearchPlan,
    ) -> list[Hypothesis]:
        """Return each target, its ids without begin and end, with its log-probabilities.

        They always have `log_probs`, and where `plan.decoding.alignment` is set, `alignment`. The
        probability is over all tokens but padding and begin: it is the one that a search without
        rules would have given it.
        """
        ...
