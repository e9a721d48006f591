"""Numbers of an evaluation as people read them: scores with intervals, and how two splits differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dragoman.reporting.charts import Estimate

_POINTS = ("bleu", "chrf")
_LOWER_IS_BETTER = ("ter", "loss", "edits")


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score with its interval, in percent or in points of 100."""

    name: str
    title: str
    value: float
    low: float
    high: float

    @property
    def estimate(self) -> Estimate:
        """The value and the two ends of its interval: the value itself where none is known."""
        return self.value, self.low, self.high


def list_scores(evaluation: Mapping[str, Any]) -> list[Score]:
    """Return the scores of an evaluation's `scores.json`, in its order."""
    scores = evaluation.get("scores", {})
    titles, intervals = scores.get("titles", {}), scores.get("intervals", {})
    found = []
    for name, value in scores.items():
        if name in titles or name in intervals or (name != "rows" and _is_number(value)):
            if not _is_number(value):
                continue
            low, high = intervals.get(name) or (value, value)
            title = titles.get(name) or name_score(name)
            found.append(Score(name=name, title=title, value=value, low=low, high=high))
    return found


def name_score(name: str) -> str:
    """Return the name of a score for people: "exact match" of "exact_match"."""
    known = {"bleu": "BLEU", "chrf": "chrF", "ter": "TER"}
    return known.get(name) or name.replace("_", " ")


def is_lower_better(name: str) -> bool:
    """Return whether a score counts faults, by its name."""
    return name.endswith("error_rate") or name in _LOWER_IS_BETTER


def name_unit(name: str) -> str:
    """Return what a score is counted in, and which way is better."""
    unit = "points of 100" if name in _POINTS else "percent"
    return f"{unit} ({'lower' if is_lower_better(name) else 'higher'} is better)"


def show_number(value: float | None, digits: int = 1) -> str:
    """Return a number for a table; small ones keep two digits that count."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and abs(value) < 1:
        digits += 1
    return f"{value:,.{digits}f}".replace("-", "−")


def show_estimate(estimate: Estimate | None) -> str:
    """Return a value and its interval, as in "93.1 (92.0 to 94.2)"."""
    if estimate is None:
        return "–"
    value, low, high = estimate
    digits = 2 if high < 1 else 1
    shown = [f"{each:,.{digits}f}".replace("-", "−") for each in (value, low, high)]
    return shown[0] if low == high == value else f"{shown[0]} ({shown[1]} to {shown[2]})"


def subtract(one: Estimate, other: Estimate) -> Estimate:
    """Return `one` - `other` with its interval, for values from rows that are not the same ones.

    Source: MOVER, the method of variance estimates recovery: Zou and Donner 2008, section 2.
    """
    (value, low, high), (second, lowest, highest) = one, other
    below = math.hypot(value - low, highest - second)
    above = math.hypot(high - value, second - lowest)
    difference = value - second
    return difference, difference - below, difference + above


def compare_splits(evaluations: Mapping[str, Mapping[str, Any]], main: str) -> list[dict[str, Any]]:
    """Return, for each other evaluation, how each score of the main one differs from its own."""
    mine = {score.name: score for score in list_scores(evaluations[main])} if main else {}
    compared = []
    for name, evaluation in evaluations.items():
        lines: list[dict[str, Any]] = []
        for score in list_scores(evaluation):
            if name == main or score.name not in mine:
                continue
            value, low, high = subtract(mine[score.name].estimate, score.estimate)
            is_known = score.low < score.high or mine[score.name].low < mine[score.name].high
            lines.append(
                {
                    "title": score.title,
                    "difference": _sign(value),
                    "interval": f"{_sign(low)} to {_sign(high)}" if is_known else "–",
                    "verdict": _judge(score.name, value, low, high) if is_known else "–",
                }
            )
        if lines:
            compared.append({"name": name, "lines": lines})
    return compared


def list_breakdowns(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each breakdown with its scores' names, and its groups with their rows and estimates."""
    titles = evaluation.get("scores", {}).get("titles", {})
    found = []
    for title, groups in (evaluation.get("breakdown") or {}).items():
        names = [
            name for name, value in (groups[0] if groups else {}).items() if _is_estimate(value)
        ]
        estimates = {
            name: [tuple(group[name]) if name in group else None for group in groups]
            for name in names
        }
        found.append(
            {
                "title": title,
                "names": {name: titles.get(name) or name_score(name) for name in names},
                "groups": [str(group["group"]) for group in groups],
                "rows": [group["rows"] for group in groups],
                "estimates": estimates,
            }
        )
    return [one for one in found if one["groups"]]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_estimate(value: object) -> bool:
    return isinstance(value, Sequence) and len(value) == 3 and all(map(_is_number, value))


def _sign(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


def _judge(name: str, value: float, low: float, high: float) -> str:
    if low <= 0 <= high:
        return "no clear difference"
    return "better" if (value < 0) == is_lower_better(name) else "worse"
