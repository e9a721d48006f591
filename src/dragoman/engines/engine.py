"""What an inference engine offers: ids in, hypotheses out. It needs no torch."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.search_config import SearchConfig
from dragoman.errors import SettingsError

Quantization = Literal["float32", "int8", "int8_float32", "int8_float16", "float16", "bfloat16"]
QuantizationChoice = Literal["auto"] | Quantization
"""auto: the one that `fit` chose."""

Ids = Sequence[Sequence[int]]  # of several rows

_KINDS = {"one row": 1, "few rows": 15, "many rows": 255}  # the most rows of each
_MEASURED = 3  # calls with each layout of threads, after one that loads it
_MUCH_SLOWER = 2.0
_MOST_SLOW = 3  # in a row: other processes have come or gone


class UnsupportedError(SettingsError):
    """An engine cannot do what is asked; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"--engine ctranslate2: {reason}; use --engine torch")
        self.reason = reason


class Engine(Protocol):
    """A trained model on one device."""

    name: str
    """As in --engine."""
    quantization: Quantization
    """Number format of the weights."""

    def search(
        self, sources: Ids, config: SearchConfig, prefixes: Ids | None = None
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

    def score(self, sources: Ids, targets: Ids, config: SearchConfig) -> list[Hypothesis]:
        """Return each target, its ids without begin and end, with its log-probabilities.

        They always have `log_probs`, and where `config.decoding.alignment` is set, `alignment`. The
        probability is over the tokens that may be emitted, as in a search without rules.
        """
        ...


class ThreadRace:
    """Chooses among layouts of threads, by the seconds a token of like calls.

    A layout is, in CTranslate2, a number of replicas of the model, which share the threads; in
    PyTorch, a number of threads. Each is used for some calls, in this order; then the quickest is,
    until calls take much longer than it did.
    """

    def __init__(self, layouts: Sequence[int], name: str = "") -> None:
        self.layouts, self.name = tuple(layouts), name
        self._seconds: defaultdict[int, list[float]] = defaultdict(list)  # by layout
        self._num_slow = 0

    def choose(self) -> int:
        """Return the layout of the next call."""
        best = {layout: self._find_best(layout) for layout in self.layouts}
        for layout in self.layouts:
            # No second call where the first was much slower.
            is_lost = _MUCH_SLOWER * min(best.values()) < best[layout] < math.inf
            if len(self._seconds[layout]) <= _MEASURED and not is_lost:
                return layout
        return min(best, key=best.__getitem__)

    def record(self, layout: int, seconds: float) -> None:
        """Note how long a token of a call with `layout` took; log the times once a race has ended."""
        times = self._seconds[layout]
        if len(times) > _MEASURED:
            is_slow = seconds > _MUCH_SLOWER * self._find_best(layout)
            self._num_slow = self._num_slow + 1 if is_slow else 0
            if self._num_slow == _MOST_SLOW:
                self._seconds.clear()
                self._num_slow = 0
            return
        times.append(seconds)
        chosen = self.choose()
        if len(self.layouts) > 1 and len(self._seconds[chosen]) > _MEASURED:
            shown = ", ".join(f"{one}: {1e6 * self._find_best(one):.0f}" for one in self.layouts)
            logging.getLogger(__name__).info(
                f"dragoman: {self.name}: {chosen} (microseconds a token: {shown})"
            )

    def _find_best(self, layout: int) -> float:
        return min(self._seconds[layout][1:], default=math.inf)


def name_call(num_rows: int, beam_size: int) -> str:
    """Return the kind of a call: what is quickest for one row may not be for many.

    A list of several batches keeps replicas busy, where one batch needs several threads.
    """
    rows = next((kind for kind, most in _KINDS.items() if num_rows <= most), "a list")
    return f"{rows}, beam {beam_size}" if beam_size else f"{rows}, given targets"


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
    sources: Ids,
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
