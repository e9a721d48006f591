"""What a report shows: one value with everything, each part optional."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dragoman.evaluation.output_rows import Row


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything in a report; sections without content are left out.

    Texts may hold anything: the page shows them as text.
    """

    name: str
    """Of the model, or of what else the report is about."""
    created: str = ""
    """Time of its making, as in "2027-03-01 12:00 UTC"; "": not shown."""
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
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every resolved setting by its dotted name."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Version of each program and library."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Anything else, by a label: time, memory, hashes of the data."""

    @property
    def main_evaluation(self) -> str:
        """Name of the evaluation at the top of the page; "": there is none."""
        return "test" if "test" in self.evaluations else ["", *self.evaluations][-1]
