"""Which number of threads is quicker, measured on the calls of a process themselves."""

import math
from collections import defaultdict
from collections.abc import Sequence

_MEASURED = 2  # calls with each layout, after one that loads it
_MUCH_SLOWER = 2.0
_MOST_SLOW = 3  # in a row: other processes have come or gone


class ThreadRace:
    """Chooses among layouts of threads, by the seconds a token of like calls.

    A layout is a number of replicas of the model, which share the threads. Each is used for some
    calls, in this order; then the quickest is, until calls take much longer than it did.
    """

    def __init__(self, layouts: Sequence[int]) -> None:
        self.layouts = tuple(layouts)
        self._seconds: defaultdict[int, list[float]] = defaultdict(list)  # by layout
        self._num_slow = 0

    def choose(self) -> int:
        """Return the layout of the next call."""
        for layout in self.layouts:
            if len(self._seconds[layout]) <= _MEASURED and not self._is_lost(layout):
                return layout
        return min(self.layouts, key=self._find_best)

    def record(self, layout: int, seconds: float) -> None:
        """Note how long a token of a call with `layout` took."""
        times = self._seconds[layout]
        if len(times) <= _MEASURED:
            times.append(seconds)
            return
        is_slow = seconds > _MUCH_SLOWER * self._find_best(layout)
        self._num_slow = self._num_slow + 1 if is_slow else 0
        if self._num_slow == _MOST_SLOW:
            self._seconds.clear()
            self._num_slow = 0

    def _is_lost(self, layout: int) -> bool:
        """Return whether its first measured call was so slow that no second one is needed."""
        found = self._find_best(layout)
        best = min(map(self._find_best, self.layouts))
        return math.isfinite(found) and found > _MUCH_SLOWER * best

    def _find_best(self, layout: int) -> float:
        return min(self._seconds[layout][1:], default=math.inf)
