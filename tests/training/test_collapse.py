import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conftest import quiet_console
from dragoman.settings import Settings
from dragoman.training.callbacks import CollapseWarning, describe_collapse
from dragoman.training.validation_metrics import DecodedRow

NUM_ROWS = 60


def make_rows(write, *, refer=None, seed=0, is_complete=True):
    """Rows with random sources; `refer` gives their references, `write` the outputs."""
    chance, rows = random.Random(seed), []
    for _ in range(NUM_ROWS):
        source = [chance.randint(4, 30) for _ in range(chance.randint(3, 9))]
        reference = refer(source) if refer else [id_ + 1 for id_ in source]
        rows.append(DecodedRow(source, reference, tuple(write(source, reference)), is_complete))
    return rows


def make_warning(patient_until):
    values = {"optimization": {"warmup_steps": 0}, "training": {"max_steps": 10 * patient_until}}
    return CollapseWarning(quiet_console(), Settings.model_validate(values), None)


COLLAPSED = {
    "all alike": lambda source, reference: [7, 8, 9],
    "a few": lambda source, reference: [[7, 8, 9], [8, 9, 7], [9, 8]][len(source) % 3],
    "one for most": lambda source, reference: reference if source[0] < 12 else [5, 6],
    "empty": lambda source, reference: reference if source[0] < 12 else [],
    "one token over and over": lambda source, reference: [source[0]] * 12,
}
HEALTHY = describe_collapse(make_rows(lambda source, reference: reference))
ALIKE = describe_collapse(make_rows(COLLAPSED["all alike"]))


@pytest.mark.parametrize("write", COLLAPSED.values(), ids=COLLAPSED)
def test_a_planted_collapse_is_reported_once(write):
    warning, fault = make_warning(1000), describe_collapse(make_rows(write))
    assert not any(warning.see(HEALTHY, step) for step in (500, 1000, 1500))
    assert warning.see(fault, 2000)
    assert not any(warning.see(fault, step) for step in (2500, 3000))
    assert not warning.see(HEALTHY, 3500)
    assert not warning.see(fault, 4000)
    assert not warning.see(fault, 4000, is_last=True)


def test_outputs_that_never_end_are_reported_unless_their_references_are_as_long():
    long = make_rows(lambda source, reference: [*source * 9][:40], is_complete=False)
    assert "truncated, far longer" in describe_collapse(long)
    truncated = make_rows(
        lambda source, reference: reference[:40],
        refer=lambda source: source * 20,
        is_complete=False,
    )
    assert describe_collapse(truncated) == ""


def test_the_numbers_are_those_of_the_rows():
    rows = make_rows(lambda source, reference: [7, 8] if source[0] < 21 else reference)
    same = sum(row.hypothesis == (7, 8) for row in rows)
    fault = describe_collapse(rows)
    assert fault.startswith(f"{same / NUM_ROWS:.0%} of the outputs are the same")
    assert f"({NUM_ROWS - same + 1} different outputs of {NUM_ROWS} rows, {NUM_ROWS} diff" in fault


def test_an_untrained_model_is_given_time_to_improve():
    warning = make_warning(1000)
    assert [warning.see(ALIKE, step) for step in range(250, 2000, 250)].index(True) == 3
    assert make_warning(1000).see(ALIKE, 250, is_last=True)


def test_random_outputs_of_an_untrained_model_do_not_count_as_sound():
    warning = make_warning(1000)
    assert not warning.see(HEALTHY, 100)
    assert not warning.see(ALIKE, 200)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), wrong=st.floats(0.0, 1.0))
def test_outputs_that_differ_are_no_collapse_however_wrong_they_are(seed, wrong):
    chance = random.Random(seed)

    def write(source, reference):
        if chance.random() < 0.1:
            return [5, 6, 7]  # some are alike in any run
        return [id_ if chance.random() > wrong else chance.randint(4, 30) for id_ in reference]

    assert describe_collapse(make_rows(write, seed=seed)) == ""


@settings(max_examples=50, deadline=None)
@given(
    target=st.lists(st.integers(4, 9), max_size=12),
    share=st.floats(0.9, 1.0),
    seed=st.integers(0, 99),
)
def test_data_whose_references_are_alike_are_no_collapse(target, share, seed):
    """Whatever the one target is: empty, one repeated token, or text."""
    chance = random.Random(seed)

    def refer(source):
        return target if chance.random() < share else list(source)

    rows = make_rows(lambda source, reference: target, refer=refer, seed=seed)
    assume(sum(row.reference == target for row in rows) > 0.9 * NUM_ROWS)
    assert describe_collapse(rows) == ""


def test_one_source_with_many_references_is_no_collapse():
    rows = [DecodedRow([5, 6], [i, i + 1], (4, 5), True) for i in range(NUM_ROWS)]
    assert describe_collapse(rows) == ""


def test_few_rows_say_nothing():
    assert describe_collapse(make_rows(COLLAPSED["all alike"])[:8]) == ""
    assert describe_collapse([]) == ""
