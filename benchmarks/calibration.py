"""Measures the calibration error of confidence for several formulas; prints a table.

python benchmarks/calibration.py MODEL ...

Each MODEL is a folder that `fit` wrote with data.test, with evaluations of the validation and the
test rows. The temperature of each formula is the most likely one on the validation rows; the
calibration error is that of the test rows.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tables import show

from dragoman.commands.evaluate import find_run
from dragoman.evaluation.confidence import find_confidences
from dragoman.evaluation.output_rows import Row

Values = NDArray[np.float64]

_BINS = 10
_TEMPERATURES = np.geomspace(0.01, 100, 4000)


def raise_probability(scores: Values, temperature: float) -> Values:
    """Return p^(1 / T)."""
    return np.exp(scores / temperature)


def divide_log_odds(scores: Values, temperature: float) -> Values:
    """Return the probability whose log-odds are those of p divided by T."""
    log_odds = scores - np.log(-np.expm1(np.minimum(scores, -1e-9)))
    return np.asarray(1 / (1 + np.exp(-np.clip(log_odds / temperature, -500, 500))))


FORMULAS: dict[str, Callable[[Values, float], Values]] = {
    "1 - (1 - p)^(1/T), dragoman's": find_confidences,
    "p^(1/T)": raise_probability,
    "log-odds / T": divide_log_odds,
}


def main() -> None:
    """Calibrate each model by each formula; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="model folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to it too")
    arguments = parser.parse_args()
    heads = ["model", "exact on valid, test, %", "uncalibrated", *FORMULAS]
    rows = []
    for model in arguments.models:
        valid, test = (read(find_run(model, split)[0]) for split in ("valid", "test"))
        shares = ", ".join(f"{100 * is_exact.mean():.1f}" for _, is_exact in (valid, test))
        errors = [find_error(np.exp(test[0]), test[1])]
        for formula in FORMULAS.values():
            temperature = fit(formula, *valid)
            errors.append(find_error(formula(test[0], temperature), test[1]))
        rows.append([model.name, shares, *(f"{100 * error:.1f}%" for error in errors)])
    show(heads, rows, arguments.json)


def read(rows: Sequence[Row]) -> tuple[Values, NDArray[np.bool_]]:
    """Return the log-probability of each complete output, and whether it is exact."""
    complete = [row for row in rows if row.is_complete and row.score is not None]
    return (
        np.array([row.score for row in complete], float),
        np.array([row.is_exact for row in complete]),
    )


def fit(
    formula: Callable[[Values, float], Values], scores: Values, is_exact: NDArray[np.bool_]
) -> float:
    """Return the most likely temperature."""

    def loss(temperature: float) -> float:
        confidence = np.clip(formula(scores, temperature), 1e-9, 1 - 1e-9)
        return float(-np.log(np.where(is_exact, confidence, 1 - confidence)).sum())

    return float(min(_TEMPERATURES, key=loss))


def find_error(confidence: Values, is_exact: NDArray[np.bool_]) -> float:
    """Return the calibration error over ten bins of equally many rows."""
    bins = np.array_split(np.argsort(confidence, kind="stable"), _BINS)
    gaps = [abs(confidence[one].mean() - is_exact[one].mean()) * len(one) for one in bins]
    return float(sum(gaps) / len(confidence))


if __name__ == "__main__":
    main()
