"""What a long prediction says of its progress."""

import sys

import pytest

from dragoman.commands import predict_progress as module
from dragoman.commands.predict_progress import Progress, format_seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_short_prediction_says_nothing(clock, capsys):
    with Progress() as progress:
        clock[0] += 1.9
        progress.update(1000, 0.5)
    assert capsys.readouterr().err == ""


def test_a_log_gets_a_line_a_minute_with_speed_and_time_left(clock, capsys):
    with Progress() as progress:
        for second in range(1, 181):
            clock[0] = 100.0 + second
            progress.update(second * 500, second / 400)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "dragoman: 30,000 rows, 500 rows/s, 6 min left",
        "dragoman: 60,000 rows, 500 rows/s, 5 min left",
        "dragoman: 90,000 rows, 500 rows/s, 4 min left",
    ]


def test_rows_of_an_earlier_process_do_not_count_as_speed(clock, capsys):
    with Progress() as progress:
        progress.begin(10_000, 0.5)
        clock[0] += 100
        progress.update(11_000, 0.55)
    assert capsys.readouterr().err == "dragoman: 11,000 rows, 10 rows/s, 15 min left\n"


def test_without_a_known_end_there_is_no_time_left(clock, capsys):
    with Progress() as progress:
        clock[0] += 100
        progress.update(11_000, None)
    assert capsys.readouterr().err == "dragoman: 11,000 rows, 110 rows/s\n"


def test_a_terminal_gets_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress() as progress:
        clock[0] += 10
        progress.update(500, 0.25)
    shown = capsys.readouterr().err
    assert "predicting" in shown
    assert "500 rows, 50 rows/s, 30 s left" in shown


@pytest.mark.parametrize(
    ("seconds", "told"), [(4.4, "4 s"), (89, "89 s"), (150, "2 min"), (7500, "2 h 05 min")]
)
def test_times_are_told_for_people(seconds, told):
    assert format_seconds(seconds) == told
