import random

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dragoman.settings import Settings
from dragoman.training.collapse import CollapseWatch, find_patience, list_causes
from dragoman.training.decoded_outputs import DecodedRow, OutputCounts, read_counts

NUM_ROWS = 60


def count(rows, cut=None):
    """What the outputs of `rows` are like, counted at once or in two batches."""
    counts = OutputCounts()
    for part in [rows] if cut is None else [rows[:cut], rows[cut:]]:
        counts.update(part)
    return read_counts(counts.compute())


def make_rows(write, *, refer=None, seed=0, is_complete=True):
    """Rows with random sources; `refer` gives their references, `write` the outputs."""
    chance, rows = random.Random(seed), []
    for _ in range(NUM_ROWS):
        source = [chance.randint(4, 30) for _ in range(chance.randint(3, 9))]
        reference = refer(source) if refer else [id_ + 1 for id_ in source]
        rows.append(DecodedRow(source, reference, tuple(write(source, reference)), is_complete))
    return rows


COLLAPSED = {
    "all alike": lambda source, reference: [7, 8, 9],
    "a few": lambda source, reference: [[7, 8, 9], [8, 9, 7], [9, 8]][len(source) % 3],
    "one for most": lambda source, reference: reference if source[0] < 12 else [5, 6],
    "empty": lambda source, reference: reference if source[0] < 12 else [],
    "one token over and over": lambda source, reference: [source[0]] * 12,
}


@pytest.mark.parametrize("write", COLLAPSED.values(), ids=COLLAPSED)
def test_a_planted_collapse_is_told_once_an_episode(write):
    watch = CollapseWatch(patient_until=1000)
    healthy = count(make_rows(lambda source, reference: reference))
    broken = count(make_rows(write))
    assert not any(watch.see(healthy, step) for step in (500, 1000, 1500))
    assert watch.see(broken, 2000)
    assert not any(watch.see(broken, step) for step in (2500, 3000))
    assert not watch.see(healthy, 3500)
    assert watch.see(broken, 4000)
    assert not watch.see(broken, 4000, is_last=True)
    assert broken.describe()


def test_outputs_that_never_end_are_told_unless_their_references_are_as_long():
    long = make_rows(lambda source, reference: [*source * 9][:40], is_complete=False)
    assert "do not end" in " ".join(count(long).describe())
    cut = make_rows(
        lambda source, reference: reference[:40],
        refer=lambda source: source * 20,
        is_complete=False,
    )
    assert count(cut).describe() == []


def test_the_numbers_are_those_of_the_rows():
    outputs = count(make_rows(lambda source, reference: [7, 8] if source[0] < 21 else reference))
    same = sum(
        row.hypothesis == (7, 8) for row in make_rows(lambda s, r: [7, 8] if s[0] < 21 else r)
    )
    assert outputs.num_rows == NUM_ROWS
    assert outputs.commonest == same / NUM_ROWS
    assert outputs.num_references == pytest.approx(NUM_ROWS, abs=1)  # two may share a hash
    assert outputs.num_outputs == pytest.approx(NUM_ROWS - same + 1, abs=1)
    told = " ".join(outputs.describe())
    assert f"{NUM_ROWS} validation rows gave {outputs.num_outputs} different ones" in told
    assert f"{same / NUM_ROWS:.0%} of the rows the same" in told


def test_an_untrained_model_is_given_time_to_be_better():
    watch = CollapseWatch(patient_until=1000)
    broken = count(make_rows(COLLAPSED["all alike"]))
    assert [watch.see(broken, step) for step in range(250, 2000, 250)].index(True) == 3
    assert CollapseWatch(patient_until=1000).see(broken, 250, is_last=True)


def test_chance_outputs_of_an_untrained_model_are_not_taken_for_sense():
    watch = CollapseWatch(patient_until=1000)
    assert not watch.see(count(make_rows(lambda source, reference: source)), 100)
    assert not watch.see(count(make_rows(COLLAPSED["all alike"])), 200)


@settings(max_examples=50, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=8),
    wrong=st.floats(0.0, 1.0),
    patience=st.integers(0, 2000),
)
def test_a_run_whose_outputs_differ_is_never_told_of_however_wrong_they_are(seeds, wrong, patience):
    """From the third validation on; before, outputs may be anything."""
    watch = CollapseWatch(patience)
    for step, seed in enumerate(seeds):
        chance = random.Random(seed)

        def write(source, reference, chance=chance):
            if chance.random() < 0.1:
                return [5, 6, 7]  # some are alike in any run
            return [id_ if chance.random() > wrong else chance.randint(4, 30) for id_ in reference]

        assert not watch.see(count(make_rows(write, seed=seed)), 500 * step, is_last=step == 7)


@settings(max_examples=50, deadline=None)
@given(
    target=st.lists(st.integers(4, 9), max_size=12),
    share=st.floats(0.9, 1.0),
    seed=st.integers(0, 99),
)
def test_data_whose_references_are_alike_are_never_told_of(target, share, seed):
    """Whatever the one target is: empty, one token over and over, or sense."""
    chance = random.Random(seed)

    def refer(source):
        return target if chance.random() < share else list(source)

    outputs = count(make_rows(lambda source, reference: target, refer=refer, seed=seed))
    assume(outputs.expected_likeness > 0.82)
    watch = CollapseWatch(0)
    assert not any(watch.see(outputs, step, is_last=step == 5) for step in range(6))


def test_one_source_with_many_references_is_not_told_of():
    rows = [DecodedRow([5, 6], [i, i + 1], (4, 5), True) for i in range(NUM_ROWS)]
    assert count(rows).worst < 1.0


def test_few_rows_say_nothing():
    outputs = count(make_rows(COLLAPSED["all alike"])[:8])
    assert not CollapseWatch(0).see(outputs, 9, is_last=True)
    assert count([]).describe() == []


@given(seed=st.integers(0, 99), cut=st.integers(0, NUM_ROWS))
@settings(max_examples=20, deadline=None)
def test_counts_do_not_depend_on_the_batches(seed, cut):
    rows = make_rows(lambda source, reference: source[:2], seed=seed)
    assert count(rows) == count(rows, cut)


def test_counts_of_two_ranks_add_up():
    rows = make_rows(lambda source, reference: source[:2])
    ranks = [OutputCounts(), OutputCounts()]
    ranks[0].update(rows[:23])
    ranks[1].update(rows[23:])
    added = torch.stack([rank.compute() for rank in ranks]).sum(0)  # what a reduction by sum gives
    assert read_counts(added) == count(rows)


def test_causes_name_the_settings_at_hand():
    values = {"optimization": {"learning_rate": 0.03, "warmup_steps": 7}}
    causes = list_causes(Settings.model_validate(values), 4000, was_sound=True, loss=2.0)
    assert len(causes) == 1
    assert "optimization.learning_rate 0.03 and optimization.warmup_steps 7; try 0.01" in causes[0]
    post_norm = Settings.model_validate({**values, "model": {"norm_first": False}})
    told = list_causes(post_norm, 50_000, was_sound=False, loss=2.0)
    assert "post-norm" in told[0]
    assert "data.source" in told[2]
    assert "too few updates" in told[3]
    assert "too few updates" in list_causes(Settings(), 10, was_sound=False, loss=2.0)[0]
    [failed] = list_causes(Settings(), 4000, was_sound=False, loss=float("nan"))
    assert "its loss is nan" in failed
    assert find_patience(Settings()) == 4000
