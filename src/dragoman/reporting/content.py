"""What a report shows: one value with everything, each part optional; and how it shows scores."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dragoman.evaluation import metrics
from dragoman.evaluation.output_rows import Row
from dragoman.reporting.charts import Estimate


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything in a report; sections without content are left out.

    Texts may hold anything: the page shows them as text.
    """

    name: str  # of the model, or of what else the report is about
    summary: str = ""  # what the model does, its data and size, in a line under its name
    created: str = ""  # time of its making, as in "2027-03-01 12:00 UTC"; "": not shown
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """(step, value) points by name. `step_loss`, `train_loss` and `valid_loss` share a chart;
    `learning_rate` and `tokens_per_s` have one each; every other `valid_` name is a validation
    score, unless it is teacher-forced. Other names are not drawn."""
    inspection: Mapping[str, Any] | None = None
    """The findings in the data, as `Inspection.to_dict` gives them."""
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Content of each `scores.json`, by the name of the evaluation; each key may be missing. The
    one named `test`, else the last one, is the main one."""
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    """Rows by the name of the evaluation, all or some of them: the samples come from these."""
    attention: Sequence[Mapping[str, Any]] = ()
    """Outputs with `source` (optional), `source_tokens` (S texts), `tokens` (T texts), and
    `weights` (T lists of S values from 0 to 1), the attention of each token over the source."""
    neighbours: Mapping[str, Any] = field(default_factory=dict)
    """Wrong outputs with training pairs that bear on them, as `report.find_neighbours` gives them."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every resolved setting by its dotted name."""
    user_settings: Collection[str] | None = None  # names of those that the user set; None: unknown
    versions: Mapping[str, str] = field(default_factory=dict)  # version of each program and library
    facts: Mapping[str, str] = field(default_factory=dict)
    """Anything else, by a label: command, machine, time, memory."""
    hashes: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of each file of pairs

    @property
    def main_evaluation(self) -> str:
        """Name of the evaluation at the top of the page; "" without evaluations."""
        return "test" if "test" in self.evaluations else ["", *self.evaluations][-1]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score with its interval, in percent or in points of 100."""

    name: str
    title: str
    estimate: Estimate
    is_higher_better: bool
    is_tile: bool  # among the few at the top of the page


def list_scores(evaluation: Mapping[str, Any]) -> list[Score]:
    """Return the scores of a scores.json, in its order."""
    scores = evaluation.get("scores", {})
    intervals, tiles = scores.get("intervals", {}), scores.get("tiles", ())
    found = []
    for name, value in scores.items():
        if name == "rows" or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        found.append(
            Score(
                name=name,
                title=find_title(evaluation, name),
                estimate=(value, *(intervals.get(name) or (value, value))),
                is_higher_better=is_higher_better(evaluation, name),
                is_tile=name in tiles,
            )
        )
    return found


def is_higher_better(evaluation: Mapping[str, Any], name: str) -> bool:
    """Return the direction of a score from its scores.json; from an older one, by its name."""
    stored = evaluation.get("scores", {}).get("is_higher_better", {})
    return bool(stored.get(name, metrics.is_higher_better(name)))


def find_title(evaluation: Mapping[str, Any], name: str) -> str:
    """Return the title of a score from its scores.json; else one made of its name."""
    title = evaluation.get("scores", {}).get("titles", {}).get(name)
    return (
        title or {"bleu": "BLEU", "chrf": "chrF", "ter": "TER"}.get(name) or name.replace("_", " ")
    )


def name_unit(*, is_higher_better: bool) -> str:
    """Return the unit of scores, and their direction."""
    return "of 100, higher is better" if is_higher_better else "percent, lower is better"


def show_number(value: float | None, digits: int = 1) -> str:
    """Return a number for a table, with one more decimal below 1."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and abs(value) < 1:
        digits += 1
    return f"{value:,.{digits}f}".replace("-", "−")


def show_estimate(found: Sequence[float | None] | None) -> str:
    """Return a value and its interval, as in "93.1 (92.0 to 94.2)"."""
    if (estimate := take_estimate(found)) is None:
        return "–"
    value, low, high = estimate
    digits = 2 if high < 1 else 1
    shown = [f"{each:,.{digits}f}".replace("-", "−") for each in (value, low, high)]
    return shown[0] if low == high == value else f"{shown[0]} ({shown[1]} to {shown[2]})"


def take_estimate(found: Sequence[float | None] | None) -> Estimate | None:
    """Return an estimate of scores.json; without an interval, its ends are the value."""
    if found is None:
        return None
    value, low, high = found
    assert value is not None
    return value, value if low is None else low, value if high is None else high
