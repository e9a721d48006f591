"""What a report shows: one value that holds everything, each part optional."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dragoman.evaluation.rows import Row


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """All that goes into a report; a section without content is left out.

    Texts of users stand as they are: whatever they hold, the page shows it as text.
    """

    name: str
    """What the report is about, as the name of a model folder."""
    created: str = ""
    """When it was made, for people, as in "2027-03-01 12:00 UTC". "": not told."""
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """By name, the (updates done, value) points of each curve of the training, in their order.

    `update_loss`, `train_loss` and `valid_loss` share a chart; `learning_rate` and `tokens_per_s`
    have one each; every other name that begins with `valid_`, but for what is
    teacher-forced, is a validation score (the name of the
    score behind it). Other names are not drawn.
    """
    inspection: Mapping[str, Any] | None = None
    """What the data doctor found, as its `to_dict()` gives it: `splits`, `findings`, `preset`."""
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By the name of an evaluation, the content of its `scores.json`: `scores` (and in it `titles`
    and `intervals`), `breakdown`, `confusions`, `confidence`, `speed`, `data`, `rows`.

    Each key may be missing. The one named `test`, else the last one, makes the summary.
    """
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    """By the name of an evaluation, its rows, of which samples are chosen: all of them, or a part."""
    attention: Sequence[Mapping[str, Any]] = ()
    """A few outputs: `source_tokens` (S texts), `tokens` (T texts), and `weights` (T lists of S
    values from 0 to 1): how much of its attention each token of the output paid to the source;
    `source`, its text, for a title, may be missing."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every resolved setting by its dotted name; the name before the first dot is its section."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """The version of each program and library, by its name."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What else is to be known, by a label for people: time, memory, hashes of the data."""

    @property
    def main_evaluation(self) -> str:
        """The name of the evaluation that makes the summary; "" where there is none."""
        return "test" if "test" in self.evaluations else ["", *self.evaluations][-1]
