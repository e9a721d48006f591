"""The layout of threads that a race chooses."""

import logging
import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch

from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.engine import ThreadRace, name_call
from dragoman.engines.torch_engine import TorchEngine
from dragoman.settings import DecodingSettings
from networks import make_network


def run(race: ThreadRace, seconds: Mapping[int, float], num_calls: int) -> list[int]:
    """Make calls that take so long with each layout; return the layouts that were used."""
    used = []
    for _ in range(num_calls):
        used.append(race.choose())
        race.record(used[-1], seconds[used[-1]])
    return used


@pytest.mark.parametrize(
    ("num_rows", "kind"),
    [(1, "one row"), (15, "few rows"), (64, "many rows"), (256, "a list"), (1000, "a list")],
)
def test_lists_of_several_batches_race_apart_from_one_batch(num_rows: int, kind: str) -> None:
    assert name_call(num_rows, 5) == f"{kind}, beam 5"


def test_each_layout_is_tried_and_then_the_quickest_stays() -> None:
    assert run(ThreadRace((2, 1)), {2: 1.0, 1: 0.8}, 20) == [2] * 4 + [1] * 16
    assert run(ThreadRace((2, 1)), {2: 0.8, 1: 1.0}, 20) == [2] * 4 + [1] * 4 + [2] * 12


def test_the_first_call_which_loads_the_model_does_not_count() -> None:
    race = ThreadRace((2, 1))
    for seconds in (9.0, 0.5, 0.5, 0.5, 9.0, 0.4, 0.4, 0.4):
        race.record(race.choose(), seconds)
    assert race.choose() == 1


def test_a_layout_that_is_much_slower_is_dropped_after_one_measured_call() -> None:
    assert run(ThreadRace((2, 1)), {2: 1.0, 1: 10.0}, 8) == [2] * 4 + [1] * 2 + [2] * 2


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


def test_a_race_logs_what_it_measured_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dragoman"):
        run(ThreadRace((2, 1), "one row: threads"), {2: 1e-3, 1: 5e-4}, 20)
    assert caplog.messages == [
        "dragoman: one row: threads: 1 (microseconds a token: 2: 1000, 1: 500)"
    ]


def test_pytorch_races_threads_keeps_its_own_number_and_finds_the_same() -> None:
    before = torch.get_num_threads()
    config = SearchConfig(decoding=DecodingSettings(beam_size=2, max_length=9))
    sources = [[5, 6, 7, 2], [9, 2]]
    plain = TorchEngine([make_network()], "cpu").search(sources, config)
    try:
        torch.set_num_threads(2)
        engine = TorchEngine([make_network()], "cpu", races_threads=True)
        for _ in range(10):
            found = engine.search(sources, config)
            assert torch.get_num_threads() == 2
            assert [[one.ids for one in best] for best in found] == [
                [one.ids for one in best] for best in plain
            ]
    finally:
        torch.set_num_threads(before)


_MEASURE = """
import sys
from dragoman.cli import COMMANDS, _take_engine
from dragoman.cli_options import build_parser
from dragoman.engines.engine import ThreadRace
parser, _ = build_parser(COMMANDS)
_take_engine(parser.parse_args(["predict", "model", *sys.argv[1:]]))
race = ThreadRace((2, 1), "one row: threads")
for _ in range(8):
    race.record(race.choose(), 1e-3)
"""


@pytest.mark.parametrize(("words", "shown"), [(["--verbose"], "one row: threads: 2"), ([], "")])
def test_verbose_shows_on_stderr_what_was_measured(words: list[str], shown: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *words], capture_output=True, text=True, check=True
    )
    assert shown in done.stderr
    assert bool(shown) == bool(done.stderr)
