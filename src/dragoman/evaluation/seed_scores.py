"""Models that differ only by their seed, over the same rows: the score of each, and where they disagree."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dragoman.evaluation.evaluation import Evaluation
from dragoman.evaluation.metrics import choose_metrics
from dragoman.evaluation.output_rows import Row
from dragoman.evaluation.significance import estimate_mean

_MOST_ROWS = 100  # on which they disagree, kept


def score_seeds(ensemble: Evaluation, runs: Mapping[str, Sequence[Row]]) -> Evaluation:
    """Return the evaluation of an ensemble with the scores of its models, by name, on its rows.

    Where a label is wrong, or a row hard, seeds disagree: the rows with the fewest models behind the
    most frequent output come first.
    """
    outputs = [Counter(row.hypothesis for row in rows) for rows in zip(*runs.values(), strict=True)]
    places = [place for place, found in enumerate(outputs) if len(found) > 1]
    places.sort(key=lambda place: max(outputs[place].values()))  # ties: in the order of the rows
    references = [row.references for row in ensemble.rows]
    metrics = choose_metrics(
        ensemble.settings,
        references,
        sources=[row.source for row in ensemble.rows],
        separator=ensemble.tokenization.separator,
        has_symbols=ensemble.tokenization.has_symbols,
    )
    scores = estimate_mean([*runs.values()], metrics, ensemble.settings)
    return replace(
        ensemble,
        seeds={
            "models": [*runs],
            "scores": {
                name: {
                    "by_model": list(by_run),
                    "mean": mean.value,
                    "interval": None if mean.low is None else [mean.low, mean.high],
                }
                for name, (by_run, mean) in scores.items()
            },
            "disagreements": len(places),
            "most_disagreed": [
                {"row": place, "outputs": dict(outputs[place].most_common())}
                for place in places[:_MOST_ROWS]
            ],
        },
    )
