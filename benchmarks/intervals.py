"""Measures how often 95% intervals hold the score that they are for: prints a table.

python benchmarks/intervals.py

Invented rows, of which few or most have an error. The score of all of them is the true one; sets of
rows are drawn from them, and the interval of each set holds the true score or not. Beside dragoman's
intervals, the percentiles of a plain bootstrap.
"""

import argparse
from collections.abc import Mapping, Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray
from tables import table

from dragoman.evaluation.intervals import estimate_all, resample_sums
from dragoman.evaluation.metrics import Metric, choose_metrics
from dragoman.evaluation.scores import collect
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
    arguments = parser.parse_args()
    settings = EvaluationSettings()
    rows = []
    for kind, share in _SHARES.items():
        hypotheses, references = invent(share)
        metrics = choose_metrics(settings, references)
        statistics = collect(metrics, hypotheses, references)
        for size in arguments.sizes:
            found = simulate(metrics, statistics, size, arguments.trials, settings)
            rows += [
                [
                    kind,
                    f"{size}",
                    metric.title,
                    *(f"{100 * held[metric.name]:.1f}" for held in found),
                ]
                for metric in metrics
            ]
    print(table(["population", "rows", "score", "dragoman, %", "percentiles, %"], rows))


def invent(share: float) -> tuple[list[str], list[list[str]]]:
    """Return outputs and references; `share` of the outputs have words replaced."""
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
) -> tuple[dict[str, float], dict[str, float]]:
    """Return, by score, how often dragoman's intervals held it, and how often percentiles did."""
    generator = np.random.default_rng(size)
    truth = {one.name: float(one.combine(statistics[one.name].sum(axis=0))) for one in metrics}
    ours, theirs = (dict.fromkeys(truth, 0) for _ in range(2))
    tails = (0.5 - settings.confidence_level / 2, 0.5 + settings.confidence_level / 2)
    for trial in range(trials):
        places = generator.integers(0, _POPULATION, size)
        drawn = {name: values[places] for name, values in statistics.items()}
        seeded = settings.model_copy(update={"seed": trial})
        for name, interval in estimate_all(metrics, drawn, seeded).items():
            ours[name] += interval.low <= truth[name] <= interval.high
        for metric in metrics:
            sums = resample_sums(drawn[metric.name], settings.resamples, trial)
            low, high = np.quantile(metric.combine(sums), tails)
            theirs[metric.name] += low <= truth[metric.name] <= high
    return tuple({name: count / trials for name, count in held.items()} for held in (ours, theirs))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
