"""`learning-curve`: nested parts of the training pairs, the same held-out pairs, and twice as many."""

import json
import shutil

import numpy as np
import pytest

import dragoman
from conftest import quiet_console, write_pairs
from dragoman.cli import main
from dragoman.commands.evaluate import find_run
from dragoman.commands.learning_curve import continue_curve
from dragoman.data.run_data import RunData
from dragoman.errors import SettingsError
from dragoman.evaluation.metrics import list_known_metrics
from dragoman.model_folder.folder import ModelFolder
from runs import WORDS, settings


@pytest.fixture(scope="module")
def curve(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve")
    pairs = write_pairs(folder / "pairs.tsv", 300)
    typed = settings("--training.max_steps", "4")
    found = dragoman.learning_curve(
        pairs, folder / "curve", typed, metric="character_error_rate", console=quiet_console()
    )
    return pairs, found


def test_the_points_are_parts_of_the_training_pairs_with_their_seeds(curve):
    _, found = curve
    assert [one.fraction for one in found.points] == [1 / 8, 1 / 4, 1 / 2, 1.0]
    assert [one.num_pairs for one in found.points] == sorted(one.num_pairs for one in found.points)
    for one in found.points:
        assert len(one.by_seed) == 2
        value, low, high = one.score
        assert low < value < high
        assert value == pytest.approx(np.mean(one.by_seed))
    read = [
        ModelFolder.read(found.page.parent / f"{part}-seed-1").metrics for part in ("1", "0.125")
    ]
    assert read[0]["data"]["pairs"]["valid"] == read[1]["data"]["pairs"]["valid"]


def test_smaller_parts_are_in_larger_ones_and_held_out_pairs_stay(tmp_path):
    pairs, sources = write_pairs(tmp_path / "pairs.tsv", 300), {}
    for fraction in ("0.25", "0.5", "1"):
        used = settings("--data.train_fraction", fraction)
        folder = tmp_path / fraction
        folder.mkdir()
        data = RunData.read([pairs], used, folder)
        data.encode(used)
        assert data.statistics.num_pairs == 300  # so that as many are held out
        sources[fraction] = {one.source for one in data.read_split("train")}
        held = [one.source for one in data.read_split("valid")]
        assert held == sources.setdefault("valid", held)
    assert sources["0.25"] < sources["0.5"] < sources["1"]
    assert 0.15 < len(sources["0.25"]) / len(sources["1"]) < 0.35


def test_a_repeated_curve_trains_nothing_again(curve):
    pairs, found = curve
    console = quiet_console()
    typed = settings("--training.max_steps", "4")
    again = dragoman.learning_curve(
        pairs, found.page.parent, typed, metric="character_error_rate", console=console
    )
    assert console.file.getvalue().count("already complete") == 8
    assert again.points == found.points
    with pytest.raises(SettingsError, match=r"may not change|model.dropout"):
        dragoman.learning_curve(
            pairs, found.page.parent, settings("--model.dropout", "0.3"), console=console
        )


def test_all_models_are_scored_on_the_rows_that_none_leaves_out(curve, tmp_path):
    pairs, found = curve
    folder = shutil.copytree(found.page.parent, tmp_path / "curve")
    path = folder / "0.125-seed-1" / "evaluation" / "valid" / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    typed = settings("--training.max_steps", "4")
    again = dragoman.learning_curve(
        pairs, folder, typed, metric="character_error_rate", console=quiet_console()
    )
    rows, _ = find_run(folder / "1-seed-1")
    metric = list_known_metrics(typed.evaluation)["character_error_rate"]
    counts = metric.count_rows([r.hypothesis for r in rows[1:]], [r.references for r in rows[1:]])
    assert again.points[-1].by_seed[0] == metric.from_sums(counts.sum(axis=0))
    assert "Without 1 held-out rows" in again.conclusion


def test_the_command_prints_the_curve_and_its_picture(curve, capsys):
    pairs, found = curve
    words = ["learning-curve", str(pairs), "--out", str(found.page.parent), *WORDS,
             "--training.max_steps", "4"]  # fmt: skip
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "cannot tell whether twice the pairs help: all points have the same score" in shown
    assert f"picture: {found.page}" in shown
    assert main([*words, "--metric", "word_error_rate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metric"] == "word_error_rate"
    assert main([*words, "--metric", "chfr"]) == 2
    assert "did you mean chrf" in capsys.readouterr().err
    assert "<svg" in found.page.read_text()


def test_a_power_law_is_continued():
    num_pairs = np.array([100.0, 200.0, 400.0, 800.0])
    for limit, exponent in ((0.0, 1.0), (12.0, 0.5), (3.0, 0.25)):
        errors = limit + 200 * num_pairs**-exponent
        now, later = continue_curve(num_pairs, errors[:, None])
        assert now[0] == pytest.approx(errors[-1], abs=0.05)
        assert later[0] == pytest.approx(limit + 200 * 1600**-exponent, abs=0.1)


def test_errors_that_do_not_fall_give_no_gain():
    now, later = continue_curve(np.array([1.0, 2.0, 4.0, 8.0]), np.full((4, 1), 30.0))
    assert now[0] == pytest.approx(later[0]) == pytest.approx(30.0)


def test_a_metric_that_does_not_exist_is_refused_before_the_first_run(tmp_path):
    with pytest.raises(SettingsError, match=r"--metric exact_math: .* did you mean exact_match"):
        dragoman.learning_curve(tmp_path / "pairs.tsv", tmp_path / "curve", metric="exact_math")


def test_a_metric_of_another_task_is_refused_after_the_first_run(tmp_path):
    pairs, out = write_pairs(tmp_path / "pairs.tsv", 300), tmp_path / "curve"
    typed = settings("--training.max_steps", "2")
    with pytest.raises(SettingsError, match=r"--metric field_f1: not one of these pairs"):
        dragoman.learning_curve(pairs, out, typed, metric="field_f1", console=quiet_console())
    assert [one.name for one in out.glob("*-seed-*/") if (one / "config.yaml").exists()] == [
        "1-seed-1"
    ]
