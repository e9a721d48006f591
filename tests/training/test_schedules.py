import pytest

from dragoman.errors import SettingsError
from dragoman.settings import OptimizationSettings
from dragoman.training.module import learning_rate_factor

SCHEDULES = ["inverse_sqrt", "cosine", "linear", "constant"]


def factors(schedule, warmup, steps, max_steps=100):
    settings = OptimizationSettings(schedule=schedule, warmup_steps=warmup)
    return [learning_rate_factor(step, settings, max_steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_rises_in_a_line_to_its_peak_after_the_warmup(schedule):
    assert factors(schedule, 4, 5) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors(schedule, 0, 1) == [1.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_cosine_and_linear_fall_to_zero_at_the_last_step(schedule):
    course = factors(schedule, 10, 101)
    assert course[10:] == sorted(course[10:], reverse=True)
    assert course[55] == pytest.approx(0.5)
    assert course[100] == pytest.approx(0.0)


def test_inverse_sqrt_halves_at_four_times_the_warmup():
    assert factors("inverse_sqrt", 9, 40)[39] == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_that_ends_needs_an_end(schedule):
    with pytest.raises(SettingsError, match="max_steps"):
        factors(schedule, 0, 1, max_steps=None)
