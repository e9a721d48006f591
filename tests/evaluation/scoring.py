from collections.abc import Sequence

from dragoman.evaluation.evaluation import (
    Scores,
    collect_statistics,
    score_statistics,
)
from dragoman.evaluation.metrics import choose_metrics
from dragoman.settings import EvaluationSettings


def score(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    separator: str = " ",
    *,
    settings: EvaluationSettings | None = None,
    has_symbols: bool = False,
) -> Scores:
    """Return the scores of `hypotheses`, as running text without `settings`."""
    settings = settings or EvaluationSettings(task="text")
    metrics = choose_metrics(settings, references, separator=separator, has_symbols=has_symbols)
    return score_statistics(metrics, collect_statistics(metrics, hypotheses, references), settings)
