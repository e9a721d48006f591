"""Says when outputs have become all alike, empty or endless, and what usually causes it.

An untrained model does all of that too, so that it is said only of one that had been better, of one
that is well past its warm-up, or of one whose training is over.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

from dragoman.settings import Settings

_FEWEST_ROWS: Final = 16  # of less, nothing can be said
_PATIENCE: Final = 3  # validations in a row before it is said of a model that was never better
_ALIKE: Final = 0.2  # by so much oftener two rows share their output than the data would have it
_SHARE: Final = 0.5  # part of the rows that are empty, endless or repeat one token
_MORE: Final = 0.3  # and by so much more than among the references
_SOUND: Final = 0.5  # part of these limits below which outputs are sound


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the outputs of one validation are like; parts are of 1."""

    num_rows: int
    num_outputs: int  # different ones, about
    num_references: int
    commonest: float  # part of the rows whose output is the most frequent one
    likeness: float  # how often two rows, taken by chance, have the same output
    expected_likeness: float  # the same of the references, or of the sources, whichever is more
    empty: float
    expected_empty: float
    endless: float  # cut at the longest length, though the reference is far shorter
    repeating: float  # half of the tokens, or more, are the one before over again
    expected_repeating: float

    @property
    def worst(self) -> float:
        """How collapsed they are: 1 or more is, below a half is sound; 0 of too few rows."""
        if self.num_rows < _FEWEST_ROWS:
            return 0.0
        return max(self._degrees().values())

    def describe(self) -> list[str]:
        """Return what is wrong, one fault a line, with its numbers; none where nothing is."""
        told = {
            "alike": f"the outputs have become all alike: {self.num_rows:,} validation rows gave "
            f"{self.num_outputs:,} different {'one' if self.num_outputs == 1 else 'ones'} "
            f"(references: {self.num_references:,}), and {self.commonest:.0%} of the rows the same",
            "empty": f"{self.empty:.0%} of the {self.num_rows:,} outputs are empty (references: "
            f"{self.expected_empty:.0%})",
            "endless": f"{self.endless:.0%} of the {self.num_rows:,} outputs do not end by "
            "themselves: they were cut, far longer than their references",
            "repeating": f"{self.repeating:.0%} of the {self.num_rows:,} outputs say one token over "
            f"and over (references: {self.expected_repeating:.0%})",
        }
        return [told[name] for name, degree in self._degrees().items() if degree >= 1.0]

    def _degrees(self) -> dict[str, float]:
        return {
            "alike": (self.likeness - self.expected_likeness) / _ALIKE,
            "empty": _degree(self.empty, self.expected_empty),
            "endless": _degree(self.endless, 0.0),
            "repeating": _degree(self.repeating, self.expected_repeating),
        }


def _degree(share: float, expected: float) -> float:
    return min(share / _SHARE, (share - expected) / _MORE)


class CollapseWatch:
    """Decides, validation by validation, whether a collapse is to be told: once an episode.

    Args:
        patient_until: Updates before which a model that was never better may be as it is.
    """

    def __init__(self, patient_until: int) -> None:
        self._patient_until = patient_until
        self.was_sound = False
        self._num_sound = self._num_collapsed = 0  # validations in a row
        self._was_told = False

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen, as plain values."""
        return {
            "was_sound": self.was_sound,
            "num_sound": self._num_sound,
            "num_collapsed": self._num_collapsed,
            "was_told": self._was_told,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.was_sound, self._was_told = state["was_sound"], state["was_told"]
        self._num_sound, self._num_collapsed = state["num_sound"], state["num_collapsed"]

    def see(self, outputs: Outputs, step: int, *, is_last: bool = False) -> bool:
        """Take the outputs of the validation after `step` updates; return whether to tell."""
        if outputs.num_rows < _FEWEST_ROWS:
            return False
        is_collapsed, is_sound = outputs.worst >= 1.0, outputs.worst < _SOUND
        self._num_collapsed = self._num_collapsed + 1 if is_collapsed else 0
        self._num_sound = self._num_sound + 1 if is_sound else 0
        # The first outputs of a model may differ by chance, and soon be alike on the way to sense.
        if is_sound and (self._num_sound > 1 or step >= self._patient_until):
            self.was_sound, self._was_told = True, False
        is_overdue = self._num_collapsed >= _PATIENCE and step >= self._patient_until
        if not is_collapsed or self._was_told or not (is_last or is_overdue or self.was_sound):
            return False
        self._was_told = True
        return True


def find_patience(settings: Settings) -> int:
    """Return the updates within which outputs may be all alike: the warm-up, and as much twice."""
    return max(3 * settings.optimization.warmup_steps, settings.training.max_steps // 10)


def list_causes(settings: Settings, step: int, *, was_sound: bool, loss: float) -> list[str]:
    """Return what usually causes a collapse, by these settings, the likeliest first.

    Args:
        step: Updates done.
        was_sound: The outputs had been better before.
        loss: Of the training, a token; not a number where that has failed.
    """
    optimization = settings.optimization
    rate = (
        "too high a learning rate, or too short a warm-up: optimization.learning_rate "
        f"{optimization.learning_rate:g} and optimization.warmup_steps "
        f"{optimization.warmup_steps}; try {optimization.learning_rate / 3:.2g}"
    )
    if not isfinite(loss):
        return [f"the training has failed, its loss is {loss}: {rate}"]
    if was_sound:
        return [rate]
    causes = [
        rate,
        "targets that do not depend on their sources: swapped columns (data.source, data.target), "
        "lines that slipped against each other, one target for nearly all; see dragoman inspect",
    ]
    if not settings.model.norm_first:
        causes.insert(
            0,
            "post-norm (model.norm_first false) with too short a warm-up: "
            f"optimization.warmup_steps {optimization.warmup_steps}; set model.norm_first true",
        )
    is_early = step < 2 * find_patience(settings)
    early = f"too few updates yet, {step:,}: raise training.max_steps or training.max_minutes"
    causes.insert(0 if is_early else len(causes), early)
    return causes
