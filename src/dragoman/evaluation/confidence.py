"""Calibrated confidence: the log-probability of an output as the probability that it is right.

The probabilities of a model are seldom calibrated: label smoothing makes them too low, long training
too high. One number, the temperature T, corrects most of that and keeps the order of the outputs. It
is fitted on validation rows; on other rows it is only applied and measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dragoman.model_folder.calibration import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    StoredCalibration,
    StoredFields,
    Threshold,
)
from dragoman.records import Field, Format, list_fields
from dragoman.settings import DecodingSettings

_DIGITS = 4
_BINS = 10
_POINTS = 100
_HIGHEST_SCORE = -1e-9  # nats
_LEAST_EVIDENCE = 1e-12
PRECISIONS = (0.9, 0.95, 0.99)
_STEPS = 100  # thresholds are tried at each hundredth of the rows
_NEGLIGIBLE = 40.0  # nats


def find_confidence(score: float, temperature: float = 1.0, *, is_complete: bool = True) -> float:
    """Return the probability that an output is exactly right, from its log-probability in nats.

    For an output with probability p = exp(score) it is 1 - (1 - p)^(1 / T), in [0, 1]: for p = 0.6
    and T = 0.5, 0.84. T = 1 gives the model's own probability; a higher T gives less. A truncated
    output has 0: it is not the model's whole output.

    A calibration holds for the outputs that it was fitted on: the best one of each row, with the
    same search. The other outputs of an n-best list get the same function, which is not calibrated
    for them and need not sum to 1. A sample, an output of minimum risk, a given target that is
    scored, and an output under a constraint or a prefix have the probability that the model gives
    them, however they were chosen. Forbidden tokens and a shortest length do change the model, and
    the probability with it. An ensemble has the mean of its models' probabilities.

    Source: temperature scaling, Guo et al. 2017, section 4.2. There is no softmax over all outputs
    to divide in; here the log-probability of being wrong, log(1 - p), is divided by T. (As a map of
    p it is Kumaraswamy's distribution, 1980, with a = 1.) Calibration error on the test rows of
    French phones, Bulgarian phones and written dates, uncalibrated 19, 18 and 51%, each calibrated
    on its validation rows: 5, 10 and 5%; by p^(1 / T) 7, 12 and 13%; by the log-odds over T 5, 16
    and 39% (benchmarks/calibration.py).
    """
    if not is_complete or math.isnan(score):
        return 0.0
    return 1.0 - math.exp(-float(_find_evidence(score)) / temperature)


def find_score(confidence: float, temperature: float) -> float:
    """Return the log-probability, in nats, whose confidence is `confidence`, in (0, 1)."""
    return math.log(-math.expm1(temperature * math.log1p(-confidence)))


def find_confidences(
    scores: ArrayLike, temperature: float = 1.0, is_complete: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return `find_confidence` of each of `scores`, (N,)."""
    confidence: NDArray[np.float64] = 1.0 - np.exp(-_find_evidence(scores) / temperature)
    if is_complete is not None:
        confidence = np.where(np.asarray(is_complete, bool), confidence, 0.0)
    return np.nan_to_num(confidence, nan=0.0)


def round_confidence(confidence: float) -> float:
    """Return a confidence with four decimals, as it is written and compared with a threshold."""
    return round(confidence, _DIGITS)


class FieldValue(NamedTuple):
    """A value of a record that a model wrote."""

    field: str
    value: str
    confidence: float  # probability that the record has this value: see `find_confidence`
    score: float  # log-probability of the value's tokens, in nats
    start: int  # Prediction.text[start:end] is the value as written
    end: int


def score_fields(
    text: str, form: Format, ends: Sequence[int], log_probs: Sequence[float]
) -> list[tuple[Field, float]]:
    """Return the values of the record `text`, each with the log-probability of its tokens, in nats.

    What ends a value belongs to it: a quote, the comma after a number, the separator of
    `field: value`, the end of the output. "12" and "125" begin alike.

    Args:
        ends: Where each token ends in `text`.
        log_probs: Of each token, and of the end of the output if it is complete.
    """
    starts = [0, *ends]
    ends = [*ends, len(text) + 1][: len(log_probs)]
    found = []
    for value in list_fields(text, form, splits_items=True) or ():
        stop = value.end + (text[value.end - 1] != '"')
        if form != "json":
            after = text.find(form, value.end)
            stop = (len(text) if after < 0 else after) + 1
        score = sum(
            log_prob
            for start, end, log_prob in zip(starts, ends, log_probs, strict=False)
            # A part of a character begins and ends at one place.
            if start < stop and max(end, start + 1) > value.start
        )
        found.append((value, score))
    return found


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A temperature, and how well its confidences are calibrated on some rows."""

    temperature: float
    rows: int
    exact: float  # fraction of the rows that is exact
    calibration_error: float  # mean of |confidence - fraction exact| over bins of equally many rows
    uncalibrated_error: float  # the same at temperature 1
    area: float  # under the curve: mean risk over all coverages; 0: all rows are exact
    bins: tuple[tuple[float, float, int], ...]  # mean confidence, fraction exact, rows
    uncalibrated_bins: tuple[tuple[float, float, int], ...]  # the same at temperature 1
    curve: tuple[tuple[float, float, float], ...]  # coverage, risk (not exact), threshold
    thresholds: tuple[Threshold, ...]
    has_thresholds: bool = True  # they were chosen, for each precision that can be promised
    fields: tuple[dict[str, Any], ...] = ()  # of records: see `field_confidence.measure_fields`
    records: StoredFields | None = None  # by which these are calibrated

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as scores.json stores them; all fractions from 0 to 1."""

        def round_all(points: Sequence[Sequence[float]]) -> list[list[float]]:
            return [[round(value, 6) for value in point] for point in points]

        return {
            "temperature": self.temperature,
            "rows": self.rows,
            "exact": round(self.exact, 6),
            "calibration_error": round(self.calibration_error, 6),
            "uncalibrated_error": round(self.uncalibrated_error, 6),
            "area": round(self.area, 6),
            "bins": round_all(self.bins),
            "uncalibrated_bins": round_all(self.uncalibrated_bins),
            "curve": round_all(self.curve),
            "thresholds": [one.model_dump() for one in self.thresholds],
            "fields": list(self.fields),
        }

    def to_stored(self, pairs: Sequence[str], decoding: DecodingSettings) -> StoredCalibration:
        """Return the part that a model folder stores.

        Args:
            pairs: The files that the rows came from, for people.
            decoding: The settings that made the outputs.
        """
        return StoredCalibration(
            temperature=self.temperature,
            rows=self.rows,
            pairs=tuple(pairs),
            decoding=decoding,
            thresholds=self.thresholds,
            records=self.records,
        )

    def describe(self) -> list[str]:
        """Return lines for the terminal."""
        lines = [
            f"confidence: off by {self.calibration_error:.1%} on average, uncalibrated by "
            f"{self.uncalibrated_error:.1%} (temperature {self.temperature:.3g}, "
            f"{self.rows:,} rows)"
        ]
        lines += [
            f"{one.precision:.0%} exact: keep the {one.coverage:.0%} of rows with confidence "
            f">= {one.threshold:g} "
            + (f"({one.exact:.1%} of them are exact here)" if one.coverage else "(none here)")
            for one in self.thresholds
        ]
        promised = {one.precision for one in self.thresholds}
        missing = [f"{one:.0%}" for one in PRECISIONS if one not in promised]
        if missing and self.has_thresholds:
            lines.append(f"{', '.join(missing)} exact: no threshold can guarantee it")
        return lines


def calibrate(
    scores: ArrayLike,
    is_exact: ArrayLike,
    is_complete: ArrayLike | None = None,
    *,
    level: float = 0.95,
    temperature: float | None = None,
) -> Calibration:
    """Fit the temperature and choose the thresholds on validation rows, and measure them there.

    The temperature is the most likely one from 0.01 to 100; the likelihood has one maximum. Each of
    R exact rows counts as exact with probability (R + 1) / (R + 2), each of W other rows with
    1 / (W + 2), so that few rows, or rows that are all exact, cannot give an extreme temperature.
    Truncated outputs are not used; without others the temperature is 1. For the thresholds see
    `choose_thresholds`.

    If the best checkpoint was chosen on the same rows, all of this is slightly optimistic.

    Args:
        scores: (N,), log-probabilities of the outputs, in nats.
        is_exact: (N,), whether each output is one of its references.
        is_complete: (N,), whether it ended by itself; None: all did.
        level: How often the promise of a threshold holds.
        temperature: One that was fitted on other rows; None: fit it.

    Source: Guo et al. 2017; for the probabilities of the rows: Platt 1999, section 2.2.
    """
    if temperature is None:
        temperature = _fit_temperature(scores, is_exact, is_complete)
    confidence = np.round(find_confidences(scores, temperature, is_complete), _DIGITS)
    thresholds = choose_thresholds(confidence, np.asarray(is_exact, bool), level=level)
    return measure(scores, is_exact, is_complete, temperature=temperature, thresholds=thresholds)


def measure(
    scores: ArrayLike,
    is_exact: ArrayLike,
    is_complete: ArrayLike | None = None,
    *,
    temperature: float,
    thresholds: Sequence[Threshold] | None = None,
) -> Calibration:
    """Measure a temperature and thresholds from other rows.

    The thresholds stay, with their coverage and fraction exact on these rows; None: none were chosen.

    Args: as of `calibrate`.
    """
    right = np.asarray(is_exact, bool)
    confidence, uncalibrated = (
        np.round(find_confidences(scores, one, is_complete), _DIGITS) for one in (temperature, 1.0)
    )
    (bins, error), (uncalibrated_bins, uncalibrated_error) = (
        _fill_bins(one, right) for one in (confidence, uncalibrated)
    )
    curve, area = _draw_curve(confidence, right)
    measured = []
    for one in thresholds or ():
        is_kept = confidence >= one.threshold
        if is_complete is not None:
            is_kept &= np.asarray(is_complete, bool)
        exact = float(right[is_kept].mean()) if is_kept.any() else 0.0
        measured.append(one.model_copy(update={"coverage": float(is_kept.mean()), "exact": exact}))
    return Calibration(
        temperature=temperature,
        rows=len(confidence),
        exact=float(right.mean()),
        calibration_error=error,
        uncalibrated_error=uncalibrated_error,
        area=area,
        bins=bins,
        uncalibrated_bins=uncalibrated_bins,
        curve=tuple(curve),
        thresholds=tuple(measured),
        has_thresholds=thresholds is not None,
    )


def _find_evidence(scores: ArrayLike) -> NDArray[np.float64]:
    """Return -log(1 - p) of log-probabilities, from 0 (impossible) to about 21."""
    bounded = np.minimum(np.asarray(scores, float), _HIGHEST_SCORE)
    evidence: NDArray[np.float64] = -np.log(-np.expm1(bounded))
    return evidence


def _fit_temperature(
    scores: ArrayLike, is_exact: ArrayLike, is_complete: ArrayLike | None
) -> float:
    """Return the temperature with the maximum likelihood."""
    used = np.ones(np.shape(scores), bool) if is_complete is None else np.asarray(is_complete, bool)
    exact = np.asarray(is_exact, bool)[used]
    if not len(exact):
        return 1.0
    evidence = np.maximum(_find_evidence(np.asarray(scores, float)[used]), _LEAST_EVIDENCE)
    num_right, num_wrong = int(exact.sum()), int((~exact).sum())
    wanted = np.where(exact, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))

    def slope(inverse: float) -> float:
        """Return the derivative of the loss by 1 / T, which rises with it: it has one zero."""
        odds = 1.0 / np.expm1(np.minimum(evidence * inverse, 700.0))  # of being wrong
        return float(np.sum(evidence * (1.0 - wanted - wanted * odds)))

    low, high = math.log(1 / HIGHEST_TEMPERATURE), math.log(1 / LOWEST_TEMPERATURE)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) < 0.0 else (low, middle)
    return min(HIGHEST_TEMPERATURE, max(LOWEST_TEMPERATURE, round(math.exp(-low), 6)))


def _fill_bins(
    confidence: NDArray[np.float64], is_exact: NDArray[np.bool_]
) -> tuple[tuple[tuple[float, float, int], ...], float]:
    """Return mean confidence, fraction exact and rows of up to ten bins, and the calibration error.

    The bins have equally many rows. Source of the error: Guo et al. 2017, section 2.
    """
    order = np.argsort(confidence, kind="stable")
    _, places = np.unique(confidence, return_inverse=True)
    # Rows of equal confidence get their mean, so that the order of the rows has no influence.
    fraction = (np.bincount(places, weights=is_exact) / np.bincount(places))[places]
    bins = tuple(
        (float(confidence[rows].mean()), float(fraction[rows].mean()), len(rows))
        for rows in np.array_split(order, min(_BINS, len(order)))
    )
    return bins, sum(abs(mean - share) * rows for mean, share, rows in bins) / len(order)


def _draw_curve(
    confidence: NDArray[np.float64], is_exact: NDArray[np.bool_]
) -> tuple[list[tuple[float, float, float]], float]:
    """Return up to a hundred points of risk against coverage, and the area under all of them."""
    values, counts, rights = count_from_the_top(confidence, is_exact)
    kept, num_rows = np.cumsum(counts), len(confidence)
    risk = 1.0 - np.cumsum(rights) / kept
    wanted = np.ceil(num_rows * np.arange(1, _POINTS + 1) / _POINTS)
    curve = [
        (float(kept[i] / num_rows), float(risk[i]), float(values[i]))
        for i in np.unique(np.searchsorted(kept, wanted)).tolist()
    ]
    fractions = np.repeat(rights / counts, counts)  # of the rows, the most confident first
    area = 1.0 - np.mean(np.cumsum(fractions) / np.arange(1, num_rows + 1))
    return curve, max(0.0, float(area))


def choose_thresholds(
    confidence: NDArray[np.float64],
    is_exact: NDArray[np.bool_],
    *,
    precisions: Sequence[float] = PRECISIONS,
    level: float = 0.95,
) -> list[Threshold]:
    """Return the lowest threshold for each of `precisions`, where one can be promised.

    Of other rows of the same kind, those above the threshold are exact at least as often as its
    precision. For each precision this fails with probability 1 - `level` at most. So more of the
    rows at hand must be exact than the precision: for 0.95, all of 59 rows, or 966 of 1,000. The
    bound is the one-sided one of Clopper and Pearson 1934.

    The lowest of many thresholds that pass would be lucky more often than each of them. So they are
    tested in a fixed order, from the most confident rows down, until one fails (Bauer 1991: then
    none needs a correction). An early error among few rows would end this too soon, so it is
    repeated from twice, four times, ... the rows on; these few starts share the 1 - `level`
    (Angelopoulos et al. 2021, "Learn then Test", section 2.3).

    Args:
        confidence: (N,); a row of confidence 0 is never kept.
        is_exact: (N,).
    """
    values, counts, rights = count_from_the_top(confidence, is_exact)
    values = values[values > 0.0]
    kept = np.cumsum(counts)[: len(values)]
    right = np.cumsum(rights)[: len(values)]
    found = []
    for precision in precisions:
        place = _find_lowest(kept, right, precision, 1.0 - level)
        if place is not None:
            found.append(
                Threshold(
                    precision=precision,
                    threshold=float(values[place]),
                    coverage=float(kept[place] / len(confidence)),
                    exact=float(right[place] / kept[place]),
                )
            )
    return found


def count_from_the_top(
    confidence: NDArray[np.float64], is_exact: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct confidences, falling, with the number of their rows and exact rows."""
    values, places = np.unique(-confidence, return_inverse=True)
    counts = np.bincount(places, minlength=len(values))
    rights = np.bincount(places[is_exact], minlength=len(values))
    return -values, counts, rights


def is_sure(num_right: int, num_kept: int, precision: float, chance: float) -> bool:
    """Return whether the lower bound of Clopper and Pearson is `precision` or more.

    Its level is 1 - `chance`: rows with a lower precision would have so many right ones with a
    probability below `chance`.
    """
    num_wrong = num_kept - num_right
    if num_wrong > num_kept * (1.0 - precision):  # the observed fraction is less
        return False
    log_chances: list[float] = []
    for i in range(num_wrong, -1, -1):  # each is less likely than the one before
        log_chances.append(
            math.lgamma(num_kept + 1) - math.lgamma(i + 1) - math.lgamma(num_kept - i + 1)
            + i * math.log1p(-precision) + (num_kept - i) * math.log(precision)
        )  # fmt: skip
        if log_chances[-1] < log_chances[0] - _NEGLIGIBLE:
            break
    total = sum(math.exp(one - log_chances[0]) for one in log_chances)
    return log_chances[0] + math.log(total) <= math.log(chance)


def _find_lowest(
    kept: NDArray[np.int64], right: NDArray[np.int64], precision: float, chance: float
) -> int | None:
    """Return the last index, that of the most rows kept, with a promise; None: there is none."""
    if not len(kept):
        return None
    num_rows = int(kept[-1])
    starts = _choose_starts(num_rows, precision, chance)
    step = max(1, num_rows // _STEPS)
    best: int | None = None
    for start in starts:
        wanted = [*range(start, num_rows, step), num_rows]
        for place in np.unique(np.searchsorted(kept, wanted)).tolist():
            if not is_sure(int(right[place]), int(kept[place]), precision, chance / len(starts)):
                break
            best = place if best is None else max(best, place)
    return best


def _choose_starts(num_rows: int, precision: float, chance: float) -> list[int]:
    """Return the numbers of rows to start at: the fewest that can pass, if all exact, doubled."""
    starts: list[int] = []
    while True:
        share = chance / (len(starts) + 1)
        fewest = math.ceil(math.log(share) / math.log(precision))
        more = [fewest << times for times in range(len(starts) + 1)]
        if more[-1] > num_rows:
            return starts
        starts = more
