"""Comparisons: their level when nothing differs, what they find, and sacrebleu's own tests."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.significance import PairedTest

from dragoman.errors import DataError
from dragoman.evaluation.metrics import choose_metrics
from dragoman.evaluation.output_rows import Row
from dragoman.evaluation.significance import compare, estimate_mean, find_p_value
from dragoman.settings import EvaluationSettings

QUICK = EvaluationSettings(task="text", resamples=300)
WORDS = [f"{first}{second}" for first in "bcdfghklmnprst" for second in ("an", "et", "is", "o")]


def metrics_named(*names):
    return [metric for metric in choose_metrics(QUICK, [["a"]]) if metric.name in names]


METRICS = metrics_named("exact_match", "word_error_rate", "chrf")


def invent_references(num_rows, seed=1):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 16))) for _ in range(num_rows)]


def invent_run(references, rate, seed):
    """Outputs of which about `rate` of the words are wrong."""
    draw = random.Random(seed)
    rows = []
    for number, reference in enumerate(references, start=1):
        words = [draw.choice(WORDS) if draw.random() < rate else w for w in reference.split()]
        rows.append(
            Row(
                source=f"source {number}",
                references=(reference,),
                hypothesis=" ".join(words),
                line=number,
                file="test.tsv",
            )
        )
    return rows


def draw_runs(draw, num_runs, num_rows, seed_effect, statistics):
    """Return the rows of runs over the same sources, and a metric that knows their errors."""
    (metric,) = metrics_named("word_error_rate")
    places = draw.integers(0, statistics.shape[1], num_rows)
    runs = []
    for luck in draw.normal(0, seed_effect, num_runs):
        better = statistics[:, places, 0].argmin(axis=0)
        taken = draw.integers(0, 2, num_rows)
        is_lucky = draw.random(num_rows) < abs(luck)
        taken = np.where(is_lucky, better if luck < 0 else 1 - better, taken)
        runs.append(statistics[taken, places])
    known = dict(enumerate(runs))
    counted = replace(metric, count_rows=lambda texts, _, known=known: known[int(texts[0])])
    rows = [[Row(source="", references=("",), hypothesis=str(run))] * num_rows for run in known]
    return rows, counted


def count_rejections(num_trials, num_rows, num_runs, seed_effect, statistics):
    """Return how often each test rejects at 5% what is true, in percent: bootstrap, swaps.

    `statistics`, (2, rows, k): two outputs of each source; a run takes one of them each time,
    with luck from one seed for all rows.
    """
    draw = np.random.default_rng(4)
    rejected = np.zeros(2)
    for trial in range(num_trials):
        rows, counted = draw_runs(draw, 2 * num_runs, num_rows, seed_effect, statistics)
        settings = EvaluationSettings(resamples=200, seed=trial)
        found = compare(rows[:num_runs], rows[num_runs:], [counted], settings, num_rows=0)
        difference = found.differences["word_error_rate"]
        rejected += [difference.bootstrap_p <= 0.05, difference.randomization_p <= 0.05]
        assert (difference.low <= 0 <= difference.high) == (difference.bootstrap_p > 0.05) or (
            abs(difference.bootstrap_p - 0.05) < 0.01
        )
    return 100 * rejected / num_trials


@pytest.fixture(scope="module")
def statistics():
    """Of two outputs of each source, of the same quality: (2, rows, 2)."""
    draw = random.Random(3)
    (metric,) = metrics_named("word_error_rate")
    sides = [[], []]
    references = invent_references(3000, seed=3)
    for reference in references:
        rate = draw.betavariate(1, 3)
        for side in sides:
            side.append(
                " ".join(
                    draw.choice(WORDS) if draw.random() < rate else w for w in reference.split()
                )
            )
    return np.stack([metric.count_rows(side, [[r] for r in references]) for side in sides])


def test_tests_keep_their_level_when_two_systems_are_alike(statistics):
    rates = count_rejections(500, 100, 1, 0.0, statistics)
    assert np.all((rates >= 3) & (rates <= 7)), rates


def test_the_bootstrap_keeps_its_level_over_seeds_that_differ(statistics):
    by_rows, _ = count_rejections(400, 100, 1, 0.2, statistics)
    assert by_rows > 15  # one run each: about these runs, though the seed alone made them differ
    over_seeds, _ = count_rejections(400, 100, 3, 0.2, statistics)
    assert 3 <= over_seeds <= 7


def test_the_interval_of_a_mean_covers_other_rows_and_other_seeds(statistics):
    draw, missed, num_trials = np.random.default_rng(5), 0, 400
    (metric,) = metrics_named("word_error_rate")
    truth = metric.from_sums(statistics.sum(axis=(0, 1)))
    for trial in range(num_trials):
        rows, counted = draw_runs(draw, 4, 100, 0.2, statistics)
        found = estimate_mean(rows, [counted], EvaluationSettings(resamples=200, seed=trial))
        by_run, mean = found["word_error_rate"]
        assert mean.value == pytest.approx(sum(by_run) / 4)
        missed += not mean.low <= truth <= mean.high
    assert 3 <= 100 * missed / num_trials <= 7


@pytest.mark.parametrize("num_runs", [1, 3])
def test_a_real_difference_is_found(num_runs):
    references = invent_references(150)
    baseline = [invent_run(references, 0.30, seed) for seed in range(num_runs)]
    other = [invent_run(references, 0.15, 10 + seed) for seed in range(num_runs)]
    found = compare(baseline, other, METRICS, QUICK)
    for difference in found.differences.values():
        assert difference.is_better
        assert difference.bootstrap_p < 0.02
        assert difference.randomization_p < 0.02
        assert not difference.low <= 0 <= difference.high
        assert difference.low < difference.difference < difference.high
    rate = found.differences["word_error_rate"]
    assert rate.difference == pytest.approx(
        np.mean(rate.other_by_run) - np.mean(rate.baseline_by_run)
    )
    assert (found.rows, found.baseline_runs, found.other_runs) == (150, num_runs, num_runs)


def test_one_row_more_is_no_difference():
    references = invent_references(60)
    baseline = invent_run(references, 0.0, 1)
    other = [replace(baseline[0], hypothesis="wrong"), *baseline[1:]]
    difference = compare([baseline], [other], METRICS, QUICK).differences["exact_match"]
    assert difference.bootstrap_p > 0.2
    assert difference.randomization_p > 0.2
    assert difference.low is difference.high is None  # one row shows nothing of other rows


def test_four_rows_that_differ_have_an_interval():
    references = invent_references(60)
    baseline = invent_run(references, 0.0, 1)
    other = [*(replace(row, hypothesis="wrong") for row in baseline[:4]), *baseline[4:]]
    for difference in compare([baseline], [other], METRICS, QUICK).differences.values():
        assert difference.low < difference.difference < difference.high


def test_the_same_outputs_have_no_difference_and_no_interval():
    run = invent_run(invent_references(50), 0.3, 1)
    for num_runs in (1, 2, 3):
        found = compare([run], [run] * num_runs, METRICS, QUICK)
        assert found.different_rows == ()
        for difference in found.differences.values():
            assert difference.difference == pytest.approx(0, abs=1e-9)
            assert difference.bootstrap_p == difference.randomization_p == 1
            assert difference.low is difference.high is None


def test_swapping_the_systems_changes_the_sign_of_the_difference():
    references = invent_references(60)
    runs = [invent_run(references, 0.3, 1)], [invent_run(references, 0.2, 2)]
    one, other = compare(*runs, METRICS, QUICK), compare(*runs[::-1], METRICS, QUICK)
    for name, difference in one.differences.items():
        back = other.differences[name]
        assert back.difference == pytest.approx(-difference.difference)
        assert (back.low, back.high) == pytest.approx((-difference.high, -difference.low))
        assert back.bootstrap_p == difference.bootstrap_p
        assert back.randomization_p == difference.randomization_p


def test_repeated_runs_change_no_mean():
    references = invent_references(60)
    one, two = (invent_run(references, rate, seed) for rate, seed in ((0.3, 1), (0.2, 2)))
    single = compare([one], [two], METRICS, QUICK)
    repeated = compare([one] * 2, [two] * 3, METRICS, QUICK)
    for name, difference in single.differences.items():
        same = repeated.differences[name]
        assert same.difference == pytest.approx(difference.difference)
        assert same.randomization_p == difference.randomization_p
        # Seeds that give the same outputs add no spread.
        assert (same.low, same.high) == pytest.approx((difference.low, difference.high))


def test_p_values_are_close_to_sacrebleus():
    references = invent_references(120)
    baseline = invent_run(references, 0.25, 1)
    metrics = {"BLEU": sacrebleu.BLEU(force=True), "chrF2": sacrebleu.CHRF()}
    settings = EvaluationSettings(task="text", resamples=2000)
    for rate in (0.25, 0.22, 0.19):
        other = invent_run(references, rate, 2)
        systems = [(n, [r.hypothesis for r in run]) for n, run in (("a", baseline), ("b", other))]
        found = compare([baseline], [other], metrics_named("bleu", "chrf"), settings).differences
        for kind in ("ar", "bs"):
            test = PairedTest(systems, metrics, [references], test_type=kind, n_samples=2000)
            _, expected = test()
            for name, key in (("bleu", "BLEU"), ("chrf", "chrF2")):
                assert found[name].other == expected[key][1].score
                p = expected[key][1].p_value
                if kind == "ar":
                    assert found[name].randomization_p == pytest.approx(p, abs=0.04)
                elif p < 0.2:  # sacrebleu counts one side: differences that are larger still
                    assert found[name].bootstrap_p / 2 == pytest.approx(p, abs=0.03)


def test_rows_that_differ_most_come_first():
    references = ["a b c d", "e f g h", "i j k l", "m n o p"]
    baseline = invent_run(references, 0.0, 1)
    texts = ["a b c d", "e f g x", "x x x x", "m n x x"]
    other = [replace(row, hypothesis=text) for row, text in zip(baseline, texts, strict=True)]
    found = compare([baseline], [other], METRICS, QUICK, num_rows=2)
    assert found.different_by == "word_error_rate"
    assert [(row.line, row.baseline_score, row.other_score) for row in found.different_rows] == [
        (3, 0, 100),
        (4, 0, 50),
    ]
    assert (found.different_rows[0].baseline, found.different_rows[0].other) == (
        "i j k l",
        "x x x x",
    )
    assert len(compare([baseline], [other], METRICS, QUICK).different_rows) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"source": "else"},
            r"new: row 3 \(test.tsv:3\) has the source 'else', old has 'source 3'",
        ),
        ({"references": ("x",)}, r"row 3 .* has the references \['x'\], old has \['"),
        ({"features": ("<V>",)}, r"row 3 .* has the features \['<V>'\], old has \[\]"),
    ],
)
def test_the_first_different_test_row_is_named(change, message):
    rows = invent_run(invent_references(5), 0.2, 1)
    other = [*rows[:2], replace(rows[2], **change), rows[3], replace(rows[4], source="z")]
    with pytest.raises(DataError, match=message):
        compare([rows], [other], METRICS, QUICK, names=("old", "new"))


def test_fewer_test_rows_are_refused():
    rows = invent_run(invent_references(5), 0.2, 1)
    with pytest.raises(DataError, match="other, run 2: 3 test rows, baseline has 5: row 4 is"):
        compare([rows], [rows, rows[:3]], METRICS, QUICK)


def test_to_dict_gives_plain_values():
    references = invent_references(20)
    found = compare(
        [invent_run(references, 0.3, 1)], [invent_run(references, 0.2, 2)], METRICS, QUICK
    ).to_dict()
    assert json.loads(json.dumps(found))["scores"].keys() == {
        "exact_match",
        "word_error_rate",
        "chrf",
    }
    assert {"difference", "low", "high", "bootstrap_p", "randomization_p"} < found["scores"][
        "chrf"
    ].keys()


@given(chance=st.lists(st.floats(-10, 10), min_size=1, max_size=50), difference=st.floats(-10, 10))
def test_a_p_value_is_never_zero_and_falls_with_the_difference(chance, difference):
    p = find_p_value(np.array(chance), difference)
    assert 0 < p <= 1
    assert find_p_value(np.array(chance), difference * 1.5) <= p
