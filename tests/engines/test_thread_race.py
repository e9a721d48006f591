"""The layout of threads that a race chooses."""

from collections.abc import Mapping

from dragoman.engines.ctranslate2_engine import ThreadRace


def run(race: ThreadRace, seconds: Mapping[int, float], num_calls: int) -> list[int]:
    """Make calls that take so long with each layout; return the layouts that were used."""
    used = []
    for _ in range(num_calls):
        used.append(race.choose())
        race.record(used[-1], seconds[used[-1]])
    return used


def test_each_layout_is_tried_and_then_the_quickest_stays() -> None:
    assert run(ThreadRace((2, 1)), {2: 1.0, 1: 0.8}, 20) == [2] * 3 + [1] * 17
    assert run(ThreadRace((2, 1)), {2: 0.8, 1: 1.0}, 20) == [2] * 3 + [1] * 3 + [2] * 14


def test_the_first_call_which_loads_the_model_does_not_count() -> None:
    race = ThreadRace((2, 1))
    for seconds in (9.0, 0.5, 0.5, 9.0, 0.4, 0.4):
        race.record(race.choose(), seconds)
    assert race.choose() == 1


def test_a_layout_that_is_much_slower_is_dropped_after_one_measured_call() -> None:
    assert run(ThreadRace((2, 1)), {2: 1.0, 1: 10.0}, 8) == [2] * 3 + [1] * 2 + [2] * 3


def test_the_race_is_run_again_when_calls_have_become_much_slower() -> None:
    race = ThreadRace((2, 1))
    run(race, {2: 1.0, 1: 0.5}, 10)
    busy = {2: 1.5, 1: 9.0}  # all threads of one call wait for a core that another process holds
    used = run(race, busy, 20)
    assert used[:3] == [1] * 3
    assert used[-10:] == [2] * 10


def test_one_slow_call_does_not_start_the_race_again() -> None:
    race = ThreadRace((2, 1))
    run(race, {2: 1.0, 1: 0.5}, 10)
    run(race, {1: 9.0}, 1)
    assert run(race, {2: 1.0, 1: 0.5}, 5) == [1] * 5
