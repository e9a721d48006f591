import sys
from dataclasses import replace

import pytest

from dragoman.commands.compare import compare, describe_comparison
from dragoman.errors import DataError
from dragoman.evaluation.evaluation import TargetTokenization, evaluate_rows, write_evaluation
from dragoman.evaluation.output_rows import Row
from dragoman.settings import EvaluationSettings, Settings

SETTINGS = Settings(evaluation=EvaluationSettings(resamples=200))


@pytest.fixture
def write(tmp_path):
    """Write a run whose first `wrong` rows are not right."""

    def write(name, wrong, count=80, cut=None, first="a"):
        rows = [
            Row(source=f"{first}{i}", references=("K AE T",), hypothesis="K AE T", line=i + 1)
            for i in range(count)
        ]
        rows = [replace(r, hypothesis="K AE D") if i < wrong else r for i, r in enumerate(rows)]
        write_evaluation(tmp_path / name, evaluate_rows(rows, SETTINGS.evaluation, cut))
        return str(tmp_path / name)

    return write


def test_a_real_difference_is_distinguished_from_chance(write):
    baseline, better, equal = write("a", 40), write("b", 5), write("c", 39)
    clear, chance = compare([baseline, better, equal], SETTINGS)
    exact = clear.differences["exact_match"]
    assert exact.difference == pytest.approx(43.75)
    assert exact.low > 0
    assert max(exact.bootstrap_p, exact.randomization_p) < 0.01
    exact = chance.differences["exact_match"]
    assert min(exact.bootstrap_p, exact.randomization_p) > 0.1
    message = "\n".join(describe_comparison(chance))
    assert "better, may be chance" in message
    assert "a39" in message


def test_the_tokenization_is_that_of_the_evaluation(write):
    phones = TargetTokenization(has_symbols=True)
    [found] = compare([write("a", 40, cut=phones), write("b", 5, cut=phones)], SETTINGS)
    assert found.differences["token_error_rate"].title == "PER"


def test_the_level_is_that_of_the_evaluation_unless_another_is_given(write, monkeypatch):
    stored = Settings(evaluation=EvaluationSettings(confidence_level=0.8))
    monkeypatch.setattr(sys.modules[__name__], "SETTINGS", stored)
    runs = [write("a", 40), write("b", 5)]
    other = Settings(evaluation=EvaluationSettings(confidence_level=0.9))
    for typed, level in ((None, 0.8), (other, 0.9)):
        [found] = compare(runs, typed)
        assert found.level == level
        assert f"[{100 * level:g}%]" in describe_comparison(found)[1]


def test_runs_joined_by_commas_are_one_system(write):
    baseline = ",".join([write("a1", 40), write("a2", 44)])
    [found] = compare([baseline, ",".join([write("b1", 5), write("b2", 9)])], SETTINGS)
    assert (found.baseline_runs, found.other_runs) == (2, 2)
    assert found.differences["exact_match"].baseline == pytest.approx(47.5)
    assert "2 against 2 runs" in describe_comparison(found)[0]


def test_different_test_rows_are_an_error(write):
    with pytest.raises(DataError, match="only runs over the same test rows"):
        compare([write("a", 4), write("b", 4, first="x")], SETTINGS)
    with pytest.raises(DataError, match="79 test rows"):
        compare([write("c", 4), write("d", 4, count=79)], SETTINGS)


def test_one_run_is_an_error(write):
    run = write("a", 4)
    with pytest.raises(DataError, match="two runs or more"):
        compare([run], SETTINGS)
    with pytest.raises(DataError, match="is given twice"):
        compare([run, run], SETTINGS)
