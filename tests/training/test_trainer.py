import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.errors import SettingsError
from dragoman.settings import OptimizationSettings, Settings, TrainingSettings
from dragoman.training.trainer import Pace, plan_steps

TIMES = {
    "step_s": st.floats(1e-3, 2.0),
    "validation_s": st.floats(0.01, 30.0),
    "scoring_s": st.floats(0.0, 100.0),
}


def total_s(settings, pace):
    training = settings.training
    num_validations = training.max_steps // training.valid_every
    return training.max_steps * pace.step_s + num_validations * pace.validation_s + pace.scoring_s


@given(pace=st.builds(Pace, **TIMES), minutes=st.floats(5.0, 600.0))
def test_the_run_ends_within_the_limit_and_uses_it(pace, minutes):
    planned = plan_steps(Settings(), {}, pace, 60 * minutes)
    assert total_s(planned, pace) <= 60 * minutes
    one_more_s = pace.step_s + pace.validation_s
    assert total_s(planned, pace) >= 0.95 * 60 * minutes - pace.scoring_s - 10 - one_more_s
    assert 4 <= planned.training.max_steps / planned.training.valid_every <= 40


def test_the_planned_steps_are_not_cut_by_early_stopping():
    pace = Pace(step_s=1.0, validation_s=1.0, scoring_s=1.0)
    assert plan_steps(Settings(), {}, pace, 600.0).training.patience == 0


def test_the_peak_of_the_learning_rate_is_reached():
    pace = Pace(step_s=1.0, validation_s=1.0, scoring_s=1.0)
    planned = plan_steps(Settings(), {}, pace, 130.0)
    assert planned.optimization.warmup_steps <= planned.training.max_steps // 4
    roomy = plan_steps(Settings(), {}, pace, 1e6)
    assert roomy.optimization.warmup_steps == Settings().optimization.warmup_steps


def test_typed_values_stay_and_are_counted():
    settings = Settings(
        training=TrainingSettings(valid_every=10, patience=7),
        optimization=OptimizationSettings(warmup_steps=900),
    )
    typed = {"training.valid_every": 10, "training.patience": 7, "optimization.warmup_steps": 900}
    pace = Pace(step_s=1.0, validation_s=20.0, scoring_s=0.0)
    planned = plan_steps(settings, typed, pace, 3600.0)
    assert (planned.training.valid_every, planned.training.patience) == (10, 7)
    assert planned.optimization.warmup_steps == 900
    assert total_s(planned, pace) <= 3600.0


def test_a_limit_without_time_for_a_step_is_an_error_that_says_what_takes_it():
    pace = Pace(step_s=1.0, validation_s=7.0, scoring_s=40.0)
    settings = Settings(training=TrainingSettings(max_minutes=1))
    with pytest.raises(SettingsError, match=r"max_minutes: 1 .*validation takes 7 s.* 40 s"):
        plan_steps(settings, {}, pace, 55.0)
