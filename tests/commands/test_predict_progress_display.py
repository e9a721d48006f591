"""Progress of a long prediction, on standard error."""

import sys

import pytest

from dragoman.commands import predict as module
from dragoman.commands.predict import ProgressDisplay


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_short_prediction_shows_no_progress(clock, capsys):
    progress = ProgressDisplay()
    clock[0] += 1.9
    progress.update(1000, 0.5)
    assert capsys.readouterr().err == ""


def test_a_log_gets_a_line_a_minute_with_speed_and_time_left(clock, capsys):
    progress = ProgressDisplay()
    for second in range(1, 181):
        clock[0] = 100.0 + second
        progress.update(second * 500, second / 400)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "dragoman: 30,000 rows, 500 rows/s, 0:05:40 left",
        "dragoman: 60,000 rows, 500 rows/s, 0:04:40 left",
        "dragoman: 90,000 rows, 500 rows/s, 0:03:40 left",
    ]


def test_rows_of_an_earlier_process_do_not_count_as_speed(clock, capsys):
    progress = ProgressDisplay(10_000, 0.5)
    clock[0] += 100
    progress.update(11_000, 0.55)
    assert capsys.readouterr().err == "dragoman: 11,000 rows, 10 rows/s, 0:15:00 left\n"


def test_without_a_known_end_there_is_no_time_left(clock, capsys):
    progress = ProgressDisplay()
    clock[0] += 100
    progress.update(11_000, None)
    assert capsys.readouterr().err == "dragoman: 11,000 rows, 110 rows/s\n"


def test_a_terminal_gets_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = ProgressDisplay()
    clock[0] += 10
    progress.update(500, 0.25)
    progress.stop()
    shown = capsys.readouterr().err
    assert "predicting" in shown
    assert "500 rows, 50 rows/s, 0:00:30 left" in shown
