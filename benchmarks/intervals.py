"""Measures how often 95% intervals hold the true score; prints a table.

python benchmarks/intervals.py

Invented rows, of which few or most have an error. The score of all of them is the true one. Sets of
rows are drawn from them, and the interval of each set holds the true score, misses it, or is not
shown, as too few rows are wrong. Beside dragoman's intervals, the percentiles of a plain bootstrap.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from tables import show

from dragoman.evaluation.evaluation import collect_statistics
from dragoman.evaluation.metrics import Metric, choose_metrics
from dragoman.evaluation.significance import draw_counts, estimate_all
from dragoman.settings import EvaluationSettings

_POPULATION = 5000
_WORDS = [f"{a}{b}{c}" for a in "bdgkmnst" for b in "aeiou" for c in "lnrst"]
_SHARES = {"few rows wrong": 0.07, "most rows wrong": 0.8}

Statistics = Mapping[str, NDArray[np.float64]]


def main() -> None:
    """Simulate each kind of rows at each size; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--trials", type=int, default=500, help="sets of rows (default: %(default)s)"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[50, 100, 400], help="rows of a set"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to it too")
    arguments = parser.parse_args()
    settings = EvaluationSettings()
    rows = []
    for kind, share in _SHARES.items():
        hypotheses, references = invent(share)
        metrics = choose_metrics(settings, references)
        statistics = collect_statistics(metrics, hypotheses, references)
        for size in arguments.sizes:
            found = simulate(metrics, statistics, size, arguments.trials, settings)
            rows += [
                [
                    kind,
                    f"{size}",
                    metric.title,
                    *(f"{100 * fraction[metric.name]:.1f}" for fraction in found),
                ]
                for metric in metrics
            ]
    heads = ["population", "rows", "score", "shown, %", "shown and missing, %"]
    show([*heads, "percentiles missing, %"], rows, arguments.json)


def invent(share: float) -> tuple[list[str], list[list[str]]]:
    """Return outputs and references; a fraction `share` of the outputs has words replaced."""
    chance = Random(1)
    hypotheses, references = [], []
    for _ in range(_POPULATION):
        words = chance.choices(_WORDS, k=chance.randint(4, 14))
        output = list(words)
        if chance.random() < share:
            for place in chance.sample(range(len(words)), chance.randint(1, len(words))):
                output[place] = chance.choice(_WORDS)
        hypotheses.append(" ".join(output))
        references.append([" ".join(words)])
    return hypotheses, references


def simulate(
    metrics: Sequence[Metric],
    statistics: Statistics,
    size: int,
    trials: int,
    settings: EvaluationSettings,
) -> tuple[dict[str, float], ...]:
    """Return fractions of sets by score: interval shown, shown and missing, percentiles missing."""
    generator = np.random.default_rng(size)
    truth = {one.name: float(one.from_sums(statistics[one.name].sum(axis=0))) for one in metrics}
    shown, missing, percentiles_missing = (dict.fromkeys(truth, 0) for _ in range(3))
    tails = (0.5 - settings.confidence_level / 2, 0.5 + settings.confidence_level / 2)
    for trial in range(trials):
        places = generator.integers(0, _POPULATION, size)
        drawn = {name: values[places] for name, values in statistics.items()}
        seeded = settings.model_copy(update={"seed": trial})
        for name, interval in estimate_all(metrics, drawn, seeded).items():
            if interval.low is not None and interval.high is not None:
                shown[name] += 1
                missing[name] += not interval.low <= truth[name] <= interval.high
        for metric in metrics:
            rows = drawn[metric.name]
            counts = draw_counts(len(rows), settings.resamples, np.random.default_rng(trial))
            sums = np.concatenate([chunk @ rows for chunk in counts])
            low, high = np.quantile(metric.from_sums(sums), tails)
            percentiles_missing[metric.name] += not low <= truth[metric.name] <= high
    return tuple(
        {name: count / trials for name, count in counts.items()}
        for counts in (shown, missing, percentiles_missing)
    )


if __name__ == "__main__":
    main()
