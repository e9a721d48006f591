"""Scores of records: which fields are right, and what must hold of any."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.commands.report import render_page
from dragoman.evaluation.evaluation import (
    evaluate_rows,
    read_evaluation,
    summarize,
    write_evaluation,
)
from dragoman.evaluation.metrics import (
    RecordCounter,
    choose_metrics,
    find_task,
    is_higher_better,
)
from dragoman.evaluation.output_rows import Row
from dragoman.evaluation.significance import compare
from dragoman.reporting.sections import ReportContent
from dragoman.settings import EvaluationSettings

NAMES = st.sampled_from(["date", "total", "ship to", "Größe"])
VALUES = st.sampled_from(["x", "y z", "12:30", "1.0", "a, b", "http://x"])
PAIRS = st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, 2.0]) | VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=4)


def score_fields(hypotheses, references):
    metrics = choose_metrics(EvaluationSettings(task="records"), references)
    return {
        metric.name: float(metric.from_sums(metric.count_rows(hypotheses, references).sum(axis=0)))
        for metric in metrics
    }


def test_fields_are_scored_one_by_one_and_over_all():
    references = [["a: 1 | b: 2"], ["a: 3 | b: 4"], ["a: 5 | c: 6"]]
    hypotheses = ["a: 1 | b: 2", "a: 3 | b: 0", "nothing of it"]
    scores = score_fields(hypotheses, references)
    assert scores["parsed"] == pytest.approx(200 / 3)
    assert scores["record_match"] == pytest.approx(100 / 3)
    assert scores["field_precision"] == pytest.approx(100 * 3 / 4)
    assert scores["field_recall"] == pytest.approx(100 * 3 / 6)
    assert scores["field_f1"] == pytest.approx(100 * 6 / 10)
    assert (scores["field_precision.a"], scores["field_recall.a"]) == (100, pytest.approx(200 / 3))
    assert (scores["field_precision.b"], scores["field_recall.b"]) == (50, 50)
    assert (scores["field_precision.c"], scores["field_f1.c"]) == (0, 0)


def test_the_closest_of_several_references_counts():
    scores = score_fields(["a: 1; b: 2"], [["a: 1; b: 9; c: 3", "a: 1; b: 2"]])
    assert scores["field_f1"] == scores["record_match"] == 100


def test_an_extra_field_lowers_precision_only():
    scores = score_fields(["a: 1; b: 2; z: 0"], [["a: 1; b: 2"]])
    assert (scores["field_precision"], scores["field_recall"]) == (pytest.approx(200 / 3), 100)


def test_records_without_any_field_are_right_when_empty():
    assert score_fields(["{}"], [["{}"]])["field_f1"] == 100
    assert score_fields(['{"a": 1}'], [["{}"]])["field_f1"] == 0


def test_empty_references_are_of_documents_without_any_field():
    references = [*([f"name: A{i} | total: {i}"] for i in range(9)), [""]]
    assert find_task(EvaluationSettings(), references) == "records"
    scores = score_fields([one for [one] in references], references)
    assert scores["record_match"] == scores["parsed"] == scores["field_f1"] == 100
    scores = score_fields([""] * 10, references)
    assert (scores["record_match"], scores["parsed"]) == (10, 10)


def test_a_field_without_a_name_is_one_of_the_fields():
    scores = score_fields(['{"": 1, "b": 2}'], [['{"": 1, "b": 3}']])
    assert (scores["field_f1"], scores["field_f1."], scores["field_f1.b"]) == (50, 100, 0)


def flatten_plainly(content, prefix=""):
    for name, value in content.items():
        if isinstance(value, dict):
            yield from flatten_plainly(value, f"{prefix}{name}.")
        else:
            for item in value if isinstance(value, list) else [value]:
                if item is not None:
                    yield prefix + name, json.dumps(item, sort_keys=True).replace("2.0", "2")


@given(rows=st.lists(st.tuples(OBJECTS, OBJECTS), min_size=1, max_size=5))
def test_micro_f1_agrees_with_a_plain_count(rows):
    match = output = wanted = 0
    for hypothesis, reference in rows:
        found = Counter(flatten_plainly(hypothesis))
        known = Counter(flatten_plainly(reference))
        match += (found & known).total()
        output += found.total()
        wanted += known.total()
    scores = score_fields([json.dumps(h) for h, _ in rows], [[json.dumps(r)] for _, r in rows])
    expected = 100 * 2 * match / (output + wanted) if output + wanted else 100
    assert scores["field_f1"] == pytest.approx(expected)
    assert scores["parsed"] == 100


@given(rows=st.lists(st.tuples(OBJECTS, OBJECTS), min_size=1, max_size=5))
def test_fields_add_up_to_all_of_them(rows):
    references = [[json.dumps(reference)] for _, reference in rows]
    counter = RecordCounter.of(references)
    hypotheses = [json.dumps({k: v for k, v in h.items() if k in r}) for h, r in rows]
    sums = counter.count_rows(hypotheses, references).sum(axis=0)
    by_field = [sums[list(counter.columns_of(n))] for n in range(1 + len(counter.fields))]
    # References: every field of them has its own columns, as long as there are few.
    assert by_field[0][2] == sum(counts[2] for counts in by_field[1:])
    assert np.all(by_field[0] >= np.sum(by_field[1:], axis=0))


@given(pairs=PAIRS, seed=st.integers(0, 99))
def test_the_order_of_fields_has_no_influence(pairs, seed):
    mixed = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]
    one, other = ("; ".join(f"{n}: {v}" for n, v in each) for each in (pairs, mixed))
    assert score_fields([other], [[one]])["record_match"] == 100


def make_record_row(source, hypothesis, reference, emitted=""):
    return Row(source=source, references=(reference,), hypothesis=hypothesis, emitted=emitted)


def test_values_are_counted_by_how_they_stand_in_the_source(tmp_path):
    rows = [
        make_record_row("Ada, Bonn", "who: Ada | at: BONN", "who: Ada | at: Bonn"),
        make_record_row("Bob, Graz", "who: Eve | at: Graz", "who: Bob | at: Graz"),
        make_record_row("Zoë, Ulm", "no record", "who: Zoë | at: Ulm"),
    ]
    evaluation = evaluate_rows(rows, EvaluationSettings(resamples=100))
    scores = [evaluation.scores[name] for name in ("grounded_exact", "grounded", "ungrounded")]
    assert scores == [50, 75, 25]
    directions = [is_higher_better(name) for name in ("grounded_exact", "grounded", "ungrounded")]
    assert directions == [True, True, False]
    other = [replace(row, hypothesis=row.references[0]) for row in rows]
    metrics = choose_metrics(
        EvaluationSettings(), [row.references for row in rows], sources=[row.source for row in rows]
    )
    found = compare([rows], [other], metrics, EvaluationSettings(resamples=100), names=("a", "b"))
    assert found.differences["ungrounded"].is_better
    without = [replace(row, source="") for row in rows]  # outputs of a file, without their sources
    assert "grounded" not in evaluate_rows(without, EvaluationSettings()).scores.intervals
    shown = render_page(
        ReportContent(name="m", evaluations={"t": evaluation.to_dict()}, rows={"t": rows})
    )
    assert '<mark title="at (nearly)">Bonn</mark>' in shown
    assert "(not in it: who)" in shown


def test_the_scores_before_and_after_values_were_left_out_are_given(tmp_path):
    rows = [
        make_record_row(
            "Ada, 7", "who: Ada | n: 7", "who: Ada | n: 7", "who: Ada | at: Rom | n: 7"
        ),
        make_record_row("Bob, 8", "who: Bob | n: 8", "who: Bob | n: 8"),
    ]
    write_evaluation(tmp_path / "run", evaluate_rows(rows, EvaluationSettings(task="records")))
    stored, content = read_evaluation(tmp_path / "run")
    assert stored == rows
    assert content["scores"]["field_f1"] == 100
    assert content["emitted_field_f1"] == pytest.approx(100 * 2 * 4 / (5 + 4))
    line = "  field F1 before values that do not stand in the source were left out: 88.89"
    assert line in summarize(content)
