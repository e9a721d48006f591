import math

from dragoman.reporting.sections import (
    is_higher_better,
    list_scores,
    show_estimate,
    show_number,
    take_estimate,
)
from reporting.example import make_evaluation, make_rows


def test_scores_have_titles_and_intervals_and_signatures_are_not_scores():
    scores = list_scores(make_evaluation(make_rows(50, seed=0)))
    assert [score.title for score in scores[:3]] == ["PER", "exact match", "character error rate"]
    assert not any("signature" in score.name or score.name == "rows" for score in scores)
    for score in scores:
        value, low, high = score.estimate
        assert low <= value <= high


def test_a_score_without_an_interval_is_an_interval_of_itself():
    (score,) = list_scores({"scores": {"rows": 3, "bleu": 12.0, "bleu_signature": "x"}})
    assert score.estimate == (12.0, 12.0, 12.0)
    assert show_estimate(score.estimate) == "12.0"


def test_numbers_are_shown_as_people_write_them():
    assert show_number(1234.56) == "1,234.6"
    assert show_number(-0.126) == "−0.13"
    assert show_number(math.nan) == show_number(None) == "–"
    assert show_estimate(None) == "–"
    assert show_estimate((0.5, 0.25, 0.75)) == "0.50 (0.25 to 0.75)"


def test_a_stored_direction_wins_over_the_name():
    stored = {"scores": {"gap": 1.0, "ter": 2.0, "is_higher_better": {"gap": False}}}
    assert [is_higher_better(stored, name) for name in ("gap", "ter", "chrf")] == [
        False,
        False,
        True,
    ]


def test_an_estimate_without_an_interval_shows_its_value_alone():
    assert show_estimate(take_estimate([50.0, None, None])) == "50.0"
    assert take_estimate(None) is None
