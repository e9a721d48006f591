import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dragoman.evaluation.breakdown import group_by_feature, group_by_length, group_by_rarity
from dragoman.evaluation.output_rows import Row


def rows_of(*sources, features=()):
    return [Row(source=s, references=("r",), hypothesis="h", features=features) for s in sources]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=80))
def test_every_row_is_in_one_group_of_its_length(lengths):
    groups = group_by_length(rows_of(*("x" * n for n in lengths)))
    assert sorted(np.concatenate(list(groups.values()))) == list(range(len(lengths)))
    assert 1 <= len(groups) <= 5
    for title, places in groups.items():
        ends = [int(n) for n in title.split("-")]
        found = [lengths[place] for place in places]
        assert (min(found), max(found)) == (ends[0], ends[-1])
    for before, after in itertools.pairwise(groups):
        assert int(before.split("-")[-1]) < int(after.split("-")[0])


def test_features_are_grouped_the_most_frequent_first():
    rows = rows_of("a", features=("<V>", "<PST>")) + rows_of("b", features=("<V>",))
    assert [(title, list(places)) for title, places in group_by_feature(rows).items()] == [
        ("<V>", [0, 1]),
        ("<PST>", [0]),
    ]


def test_rows_are_grouped_by_their_rarest_symbol():
    groups = group_by_rarity([0, 1, 9, 10, 99, 100, 5000])
    assert [(title, list(places)) for title, places in groups.items()] == [
        ("never", [0]),
        ("1 to 9 times", [1, 2]),
        ("10 to 99 times", [3, 4]),
        ("100 times or more", [5, 6]),
    ]
