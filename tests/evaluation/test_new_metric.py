"""A metric that is defined in one place is scored, stored, compared and shown everywhere."""

import json

import numpy as np
import pytest

from dragoman.commands.report import render_page
from dragoman.evaluation import metrics
from dragoman.evaluation.evaluation import (
    evaluate_rows,
    read_evaluation,
    summarize,
    write_evaluation,
)
from dragoman.evaluation.metrics import Metric, choose_metrics, divide_edits, is_higher_better
from dragoman.evaluation.output_rows import Row
from dragoman.evaluation.significance import compare
from dragoman.reporting.sections import ReportContent
from dragoman.settings import EvaluationSettings

SETTINGS = EvaluationSettings(task="text", resamples=100)


def count_missing_letters(hypotheses, references):
    """Letters that the output lacks, and letters of the reference."""
    counts = [
        (max(0, len(row[0]) - len(hypothesis)), len(row[0]))
        for hypothesis, row in zip(hypotheses, references, strict=True)
    ]
    return np.array(counts, float)


SHORTFALL = Metric(
    name="shortfall",  # its name does not say that lower is better
    title="letters too few",
    is_higher_better=False,
    by_row=True,
    by_group=True,
    is_tile=True,
    count_rows=count_missing_letters,
    from_sums=divide_edits,
)


@pytest.fixture
def _metric(monkeypatch):
    monkeypatch.setattr(metrics, "make_translation", lambda *_: [SHORTFALL])
    is_higher_better.cache_clear()
    yield
    is_higher_better.cache_clear()


def make_rows(num_short):
    rows = []
    for number in range(60):
        text = "one two three four"[: 10 + number % 9]
        output = text[:-1] if number < num_short else text
        row = Row(
            source=f"s{number:0{3 + number % 5}}",
            references=(text,),
            hypothesis=output,
            features=("<even>", "<odd>")[number % 2 : number % 2 + 1],
        )
        rows.append(row)
    return rows


@pytest.mark.usefixtures("_metric")
def test_a_new_metric_is_scored_stored_and_summarized(tmp_path):
    write_evaluation(tmp_path / "test", evaluate_rows(make_rows(20), SETTINGS))
    _, content = read_evaluation(tmp_path / "test")
    scores = content["scores"]
    assert 0 < scores["shortfall"] < 10
    assert scores["intervals"]["shortfall"][0] < scores["shortfall"]
    assert scores["titles"]["shortfall"] == "letters too few"
    assert scores["is_higher_better"]["shortfall"] is False
    assert scores["is_higher_better"]["exact_match"] is True
    assert "shortfall" in scores["tiles"]
    assert all("shortfall" in group for group in content["breakdown"]["feature"])
    first = json.loads((tmp_path / "test" / "rows.jsonl").read_text().splitlines()[0])
    assert first["shortfall"] == 10.0
    assert any(line.strip().startswith("letters too few") for line in summarize(content))


@pytest.mark.usefixtures("_metric")
def test_a_new_metric_is_compared_in_its_direction():
    chosen = choose_metrics(SETTINGS, [["one two three four"]])
    found = compare([make_rows(40)], [make_rows(5)], chosen, SETTINGS).differences["shortfall"]
    assert found.difference < 0
    assert found.is_better


@pytest.mark.usefixtures("_metric")
def test_a_report_of_a_new_metric_shows_it_in_every_section():
    content = ReportContent(
        name="m",
        curves={"valid_shortfall": [(1, 9.0), (2, 4.0)]},
        evaluations={"test": evaluate_rows(make_rows(20), SETTINGS).to_dict()},
        settings={"training.monitor": "shortfall"},
    )
    page = render_page(content)
    header, scores, training, breakdowns = page.split("<section id=")[:4]
    assert "letters too few" in header
    assert "lower is better" in header.split("letters too few")[1].split("</li>")[0]
    assert "lower ↓" in scores.split("letters too few")[1].split("</tr>")[0]
    assert "Validation: error rates" in training
    assert "best letters too few: 4 after 2 steps" in training
    assert "letters too few" in breakdowns
