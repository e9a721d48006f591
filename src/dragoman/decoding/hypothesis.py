"""What a search returns for one source: hypotheses, the best first."""

from typing import NamedTuple


class Hypothesis(NamedTuple):
    """An output: its ids without begin and end, and how sure the model was.

    A tuple, because Lightning takes the results of `predict_step` apart and puts them together
    again, which it refuses to do with a frozen dataclass.
    """

    ids: tuple[int, ...]
    score: float  # sum of the log-probabilities of the ids and, where it is complete, of the end
    normalized_score: float  # the score as hypotheses are compared: by decoding.length_norm
    is_complete: bool  # it ended by itself; False: it was cut at its longest length
    log_probs: tuple[float, ...] = ()  # where asked for: of each id and, where complete, of the end
    alignment: tuple[tuple[float, ...], ...] = ()  # where asked for: for each of log_probs, the
    # attention over the tokens of the source: the mean of the heads of the decoder's last layer
