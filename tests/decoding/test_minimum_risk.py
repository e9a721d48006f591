import pytest

from dragoman.decoding.hypothesis import rank_by_risk, weigh


@pytest.mark.parametrize("measure", ["edit", "chrf"])
def test_the_candidate_closest_to_the_others_comes_first(measure):
    texts = ["completely other", "the cat sat", "the cat sat.", "the cat sits"]
    order = rank_by_risk(texts, [1.0] * 4, measure)
    assert order[0] in (1, 2)
    assert order[-1] == 0


def test_weights_count_and_ties_keep_their_order():
    assert rank_by_risk(["ab", "xy"], [1.0, 3.0], "edit") == [1, 0]
    assert rank_by_risk(["ab", "xy"], [1.0, 1.0], "edit") == [0, 1]
    assert rank_by_risk(["xy", "ab", "ab"], [1.0] * 3, "edit")[0] == 1


def test_weights_are_probabilities_and_do_not_vanish():
    one, other = weigh([-1000.0, -1001.0])
    assert other / one == pytest.approx(0.3679, abs=1e-4)
