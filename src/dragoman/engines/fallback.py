"""An exported model where it can do what is asked, and PyTorch where it cannot."""

from collections.abc import Callable, Sequence
from functools import cached_property

from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.engine import Engine, Task


class FallbackEngine:
    """The engine `exported`, with the one that `load` returns behind it, loaded when it is needed."""

    def __init__(self, exported: Engine, load: Callable[[], Engine]) -> None:
        self.name = exported.name
        self._exported = exported
        self._load = load

    def find_obstacle(self, task: Task) -> str:
        """Return "": one of the two can do it."""
        return ""

    def search(
        self,
        sources: Sequence[Sequence[int]],
        config: SearchConfig,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each source, best first: see `Engine.search`."""
        task = Task.of_search(sources, config, prefixes)
        return self._choose(task).search(sources, config, prefixes)

    def score(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        config: SearchConfig,
    ) -> list[Hypothesis]:
        """Return each target with its log-probabilities: see `Engine.score`."""
        task = Task.of_scoring(sources, targets, config)
        return self._choose(task).score(sources, targets, config)

    def _choose(self, task: Task) -> Engine:
        return self._fallback if self._exported.find_obstacle(task) else self._exported

    @cached_property
    def _fallback(self) -> Engine:
        return self._load()
