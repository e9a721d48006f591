"""What a search returns for one source."""

from typing import NamedTuple


class Hypothesis(NamedTuple):
    """An output: its ids without begin and end, and how sure the model was.

    A tuple, because Lightning takes the results of `predict_step` apart and puts them together
    again, which it refuses to do with a frozen dataclass.
    """

    ids: tuple[int, ...]
    score: float  # sum of the log-probabilities of the ids and, where it is complete, of the end
    is_complete: bool  # it ended by itself; False: it was cut at its longest length
