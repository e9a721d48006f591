"""Intervals: how often they hold the score of the whole population, and what holds of each."""

import dataclasses
import random

import numpy as np
import pytest

from dragoman.evaluation.evaluation import collect_statistics
from dragoman.evaluation.metrics import choose_metrics
from dragoman.evaluation.significance import bound_share, draw_counts, estimate_all
from dragoman.settings import EvaluationSettings

QUICK = EvaluationSettings(resamples=200)
WORDS = [f"{first}{second}" for first in "bcdfghklmnprst" for second in ("an", "et", "is", "o")]


def estimate(metric, statistics, settings):
    return estimate_all([metric], {metric.name: statistics}, settings)[metric.name]


def invent_texts(num_rows, part_wrong):
    """Rows of 4 to 16 words, of which some have wrong words: a few, or most."""
    draw = random.Random(part_wrong)
    hypotheses, references = [], []
    for _ in range(num_rows):
        reference = draw.choices(WORDS, k=draw.randint(4, 16))
        rate = draw.betavariate(1, 2) if draw.random() < part_wrong else 0.0
        hypotheses.append(
            " ".join(draw.choice(WORDS) if draw.random() < rate else word for word in reference)
        )
        references.append([" ".join(reference)])
    return hypotheses, references


def invent_records(num_rows, part_wrong):
    draw = random.Random(part_wrong)
    hypotheses, references = [], []
    for _ in range(num_rows):
        fields = {name: draw.choice(WORDS) for name in draw.sample("abcdef", k=draw.randint(2, 5))}
        rate = draw.betavariate(1, 2) if draw.random() < part_wrong else 0.0
        output = {
            name: draw.choice(WORDS) if draw.random() < rate else value
            for name, value in fields.items()
            if draw.random() > rate / 3
        }
        hypotheses.append("; ".join(f"{name}: {value}" for name, value in output.items()))
        references.append(["; ".join(f"{name}: {value}" for name, value in fields.items())])
    return hypotheses, references


def measure(texts, names, task="text"):
    """Return the metrics of these names, and the statistics of the rows."""
    metrics = [
        metric
        for metric in choose_metrics(EvaluationSettings(task=task), texts[1])
        if metric.name in names
    ]
    return metrics, collect_statistics(metrics, *texts)


def measure_coverage(metric, population, num_rows, trials):
    """Return how many intervals, each from rows of the population, hold its score, in percent.

    Also how many of the sets of rows have an interval, in percent.
    """
    truth = float(metric.from_sums(population.sum(axis=0)))
    generator = np.random.default_rng(2)
    hits = intervals = 0
    for trial in range(trials):
        rows = population[generator.integers(0, len(population), num_rows)]
        found = estimate(metric, rows, QUICK.model_copy(update={"seed": trial}))
        if found.low is not None:
            intervals += 1
            hits += found.low <= truth <= found.high
    return 100 * hits / max(1, intervals), 100 * intervals / trials


@pytest.mark.parametrize(("part_wrong", "num_rows"), [(0.9, 60), (0.3, 60), (0.15, 200)])
def test_intervals_hold_the_score_of_the_population_95_times_in_100(part_wrong, num_rows):
    names = ("exact_match", "word_error_rate", "character_error_rate", "bleu", "chrf")
    metrics, statistics = measure(invent_texts(1500, part_wrong), names)
    assert len(metrics) == len(names)
    for metric in metrics:
        hits, known = measure_coverage(metric, statistics[metric.name], num_rows, trials=300)
        assert 93 <= hits <= 97, metric.name
        assert known > 95, metric.name


@pytest.mark.parametrize(("part_wrong", "num_rows"), [(0.9, 60), (0.3, 200)])
def test_intervals_of_fields_hold_the_score_of_the_population_95_times_in_100(part_wrong, num_rows):
    names = ("record_match", "field_f1", "field_precision", "field_recall")
    metrics, statistics = measure(invent_records(1500, part_wrong), names, "records")
    for metric in metrics:
        hits, known = measure_coverage(metric, statistics[metric.name], num_rows, trials=300)
        assert 93 <= hits <= 97, metric.name
        assert known > 95, metric.name


@pytest.mark.parametrize(
    ("hits", "rows", "low", "high"),
    [
        (0, 50, 0.0, 7.1348),
        (50, 50, 92.8652, 100.0),
        (5, 10, 23.6593, 76.3407),
        (1, 1, 20.6549, 100.0),
    ],
)
def test_a_proportion_has_wilsons_interval(hits, rows, low, high):
    found = bound_share(hits, rows, 0.95)
    assert [100 * each for each in found] == pytest.approx([low, high], abs=1e-4)


@pytest.mark.parametrize("num_rows", [1, 2, 5, 50])
def test_rows_all_right_or_all_wrong_have_an_interval_of_proportions_only(num_rows):
    texts = [f"one two three four {n}" for n in range(num_rows)]
    references = [[text] for text in texts]
    metrics = choose_metrics(EvaluationSettings(task="text"), references)
    for hypotheses in (texts, ["xyz"] * num_rows):
        statistics = collect_statistics(metrics, hypotheses, references)
        for metric in metrics:
            found = estimate(metric, statistics[metric.name], QUICK)
            if metric.is_proportion:
                assert found.low <= found.value <= found.high
                assert found.high - found.low > 100 / (num_rows + 20), metric.name
            else:
                assert found.low is found.high is None, metric.name


@pytest.mark.parametrize(("num_different", "is_known"), [(1, False), (9, False), (10, True)])
def test_ten_wrong_rows_and_ten_right_ones_are_needed_for_an_interval(num_different, is_known):
    texts = [f"one two three four {n}" for n in range(60)]
    references = [[text] for text in texts]
    metrics = choose_metrics(EvaluationSettings(task="text"), references)
    few_wrong = ["one two three five six", *texts[1:]]
    few_wrong[:num_different] = ["one two three five six"] * num_different
    few_right = [*texts[:num_different], *["xyz"] * (60 - num_different)]
    for hypotheses in (few_wrong, few_right):
        statistics = collect_statistics(metrics, hypotheses, references)
        for metric in metrics:
            found = estimate(metric, statistics[metric.name], QUICK)
            assert (found.low is not None) is (is_known or metric.is_proportion), metric.name


@pytest.mark.parametrize(("part_wrong", "num_rows"), [(0.07, 100), (0.05, 200), (0.04, 400)])
def test_of_100_sets_of_rows_at_most_5_show_an_interval_that_misses(part_wrong, num_rows):
    names = ("exact_match", "word_error_rate", "character_error_rate", "bleu", "chrf")
    metrics, statistics = measure(invent_texts(1500, part_wrong), names)
    for metric in metrics:
        hits, known = measure_coverage(metric, statistics[metric.name], num_rows, trials=200)
        assert (100 - hits) * known / 100 <= (5 if known < 100 else 7), metric.name


@pytest.mark.parametrize("num_rows", [20, 40])
def test_every_interval_holds_its_value_and_stays_in_range(num_rows):
    metrics, statistics = measure(
        invent_texts(num_rows, 0.8), ("exact_match", "word_error_rate", "bleu", "chrf", "ter")
    )
    for metric in metrics:
        found = estimate(metric, statistics[metric.name], QUICK)
        assert 0 <= found.low <= found.value <= found.high
        assert found.high <= 100 or not metric.is_higher_better


def test_more_rows_make_it_narrower_and_a_higher_level_wider():
    metrics, statistics = measure(invent_texts(400, 0.6), ("exact_match", "chrf", "bleu"))
    sure = EvaluationSettings(resamples=200, confidence_level=0.99)
    for metric in metrics:
        rows = statistics[metric.name]
        few, many = estimate(metric, rows[:40], QUICK), estimate(metric, rows, QUICK)
        assert many.high - many.low < few.high - few.low
        wide = estimate(metric, rows, sure)
        assert wide.low < many.low < many.high < wide.high


def test_a_score_has_the_same_interval_alone_and_among_others():
    metrics, statistics = measure(invent_texts(80, 0.6), ("exact_match", "chrf", "bleu", "ter"))
    together = estimate_all(metrics, statistics, QUICK)
    for metric in metrics:
        alone = estimate(metric, statistics[metric.name], QUICK)
        assert dataclasses.astuple(alone) == pytest.approx(
            dataclasses.astuple(together[metric.name])
        )


def test_a_seed_gives_the_same_interval_again():
    (metric,), statistics = measure(invent_texts(80, 0.6), ("chrf",))
    found = [
        estimate(metric, statistics["chrf"], EvaluationSettings(resamples=200, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(("num_rows", "resamples"), [(1, 7), (30, 100), (600_000, 7)])
def test_each_resample_has_as_many_rows(num_rows, resamples):
    chunks = list(draw_counts(num_rows, resamples, np.random.default_rng(1)))
    assert sum(len(chunk) for chunk in chunks) == resamples
    for chunk in chunks:
        assert np.all(chunk.sum(axis=1) == num_rows)
        assert chunk.shape[0] == 1 or not np.array_equal(chunk[0], chunk[1]) or num_rows == 1
