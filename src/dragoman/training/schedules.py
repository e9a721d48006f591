"""Schedules of the learning rate: the factor on its peak at each step."""

import math

from dragoman.errors import SettingsError
from dragoman.settings import OptimizationSettings


def learning_rate_factor(
    step: int, optimization: OptimizationSettings, max_steps: int | None
) -> float:
    """Return the factor on the peak learning rate at `step`, from 0.

    Every schedule rises linearly over `warmup_steps`, so that the step after them has factor 1.
    cosine and linear reach zero at `max_steps`; the others do not need it (None).

    With warmup_steps 4, the first steps have 0.2, 0.4, 0.6, 0.8, then 1.0.

    Raises:
        SettingsError: cosine or linear without `max_steps`.
    """
    warmup = optimization.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if optimization.schedule == "inverse_sqrt":
        return inverse_sqrt(step, warmup)
    if optimization.schedule == "constant":
        return 1.0
    if max_steps is None:
        raise SettingsError(
            f"optimization.schedule: {optimization.schedule} reaches zero at the last step: "
            "give max_steps, or use inverse_sqrt or constant"
        )
    done = min(1.0, (step - warmup) / max(1, max_steps - warmup))
    if optimization.schedule == "linear":
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done))


def inverse_sqrt(step: int, warmup: int) -> float:
    """Return sqrt((warmup + 1) / (step + 1)): 1.0 at `warmup`, 0.5 at about four times that.

    Source: Vaswani et al. 2017, section 5.3, rescaled to peak at 1.
    """
    return math.sqrt((warmup + 1) / (step + 1))
