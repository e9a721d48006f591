import io
import re

import pytest
from rich.console import Console
from rich.text import Text

from conftest import BRIEF, SMALL, quiet_console, write_pairs
from dragoman import read_settings
from dragoman.commands.fit import fit
from dragoman.training.logs import read_curves
from dragoman.training.schedules import learning_rate_factor


def run(tmp_path, *words, console=None, pairs=200):
    """Train to write words in capitals; return the output and the curves."""
    console = console or quiet_console()
    settings = read_settings(None, [*SMALL, *BRIEF, *words])
    write_pairs(tmp_path / "pairs.tsv", pairs)
    fit(tmp_path / "pairs.tsv", tmp_path / "model", settings, console=console)
    return console.file.getvalue(), read_curves(tmp_path / "model.training")


def test_the_log_has_all_curves_at_their_steps(tmp_path):
    words = ["--training.max_steps", "7", "--training.valid_every", "2"]
    _, curves = run(tmp_path, *words, "--optimization.warmup_steps", "4")
    every, validated = list(range(1, 8)), [2, 4, 6, 7]
    for name in ("update_loss", "learning_rate", "tokens_per_s"):
        assert [step for step, _ in curves[name]] == every, name
    for name in ("loss", "perplexity", "token_accuracy", "exact_match", "token_error_rate"):
        assert [step for step, _ in curves[f"valid_{name}"]] == validated, name
    assert "valid_character_error_rate" in curves
    assert all(speed > 0.0 for _, speed in curves["tokens_per_s"])
    settings = read_settings(tmp_path / "model" / "config.yaml").optimization
    for step, rate in curves["learning_rate"]:
        factor = learning_rate_factor(step, settings, 7)
        assert rate == pytest.approx(settings.learning_rate * factor, rel=1e-5)


@pytest.mark.parametrize("accumulate", ["1", "3"])
def test_the_loss_of_a_step_is_over_its_own_tokens(tmp_path, accumulate):
    """Across the ends of epochs: with few pairs, an epoch has a step or two."""
    words = ["--training.valid_every", "1", "--training.max_steps", "5"]
    _, curves = run(tmp_path, *words, "--training.accumulate", accumulate, pairs=60)
    assert dict(curves["update_loss"]).keys() == {1, 2, 3, 4, 5}
    if accumulate == "1":
        for step, loss in curves["train_loss"]:
            assert dict(curves["update_loss"])[step] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("width", [80, 200])
def test_the_bar_shows_the_score_the_best_score_and_the_time_left(tmp_path, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, legacy_windows=False)
    words = ["--training.valid_every", "1", "--training.monitor", "token_error_rate"]
    told, _ = run(tmp_path, *words, "--training.max_steps", "4", console=console)
    last = Text.from_ansi(told[told.rindex("4/4") :]).plain.splitlines()[0]
    figures = r"4/4 +loss \d+\.\d{3}  token_error_rate [\d.]+ \(.*best.*\)  [\d,]+ tokens/s *"
    assert re.match(figures + r"0:00:00", last), last
    assert "…" not in last


def test_the_best_score_is_printed_with_its_step(tmp_path):
    words = ["--training.valid_every", "1", "--training.max_steps", "6"]
    for monitor, better in (("loss", min), ("exact_match", max)):
        (tmp_path / monitor).mkdir()
        told, curves = run(tmp_path / monitor, *words, "--training.monitor", monitor)
        last = next(line for line in told.splitlines() if line.startswith("step 6:"))
        best = better(score for _, score in curves[f"valid_{monitor}"])
        at = next(step for step, score in curves[f"valid_{monitor}"] if score == best)
        assert ("the best so far" if at == 6 else f"best {best:.4g} at {at}") in last


def test_outputs_that_are_all_alike_in_the_end_are_reported_with_usual_causes(tmp_path):
    words = ["--data.valid_fraction", "0.3", "--optimization.learning_rate", "1e-9"]
    told, _ = run(tmp_path, *words)
    assert told.count("warning: step 3: ") == 1
    assert "for example: '" in told
    assert told.count("usual causes: too high a learning rate") == 1
    assert "optimization.learning_rate 1e-09, try 3.3e-10" in told


def test_a_run_that_learns_prints_no_warning(trained):
    told = trained[0].with_name("console.txt").read_text()
    assert "step 400:" in told
    assert "warning" not in told
