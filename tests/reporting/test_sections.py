from dragoman.evaluation.output_rows import Row
from dragoman.reporting.sections import choose_samples
from reporting.example import make_rows


def make_row(hypothesis: str, reference: str, confidence: float | None = None) -> Row:
    return Row(source="s", references=(reference,), hypothesis=hypothesis, confidence=confidence)


def test_lists_are_bounded_and_sorted():
    lists = {one["title"]: one["samples"] for one in choose_samples(make_rows(500, seed=1))}
    assert list(lists) == ["Typical rows", "Confident and wrong", "Least confident", "Furthest off"]
    assert all(len(samples) == 6 for samples in lists.values())
    sure = [sample["row"].confidence for sample in lists["Confident and wrong"]]
    assert sure == sorted(sure, reverse=True)
    unsure = [sample["row"].confidence for sample in lists["Least confident"]]
    assert unsure == sorted(unsure)
    assert not any(sample["row"].is_exact for sample in lists["Confident and wrong"])
    typical = [sample["row"].line for sample in lists["Typical rows"]]
    assert typical == sorted(set(typical))


def test_the_furthest_off_have_the_most_edits_relative_to_their_length():
    rows = [make_row("abcx", "abcd"), make_row("xyz", "abc"), make_row("a" * 90 + "xx", "a" * 90)]
    furthest = choose_samples(rows)[-1]["samples"]
    assert [sample["row"].hypothesis[:3] for sample in furthest] == ["xyz", "abc", "aaa"]
    assert [sample["edits"] for sample in furthest] == [3, 1, 2]


def test_without_confidence_or_errors_their_lists_are_left_out():
    assert [one["title"] for one in choose_samples([make_row("a", "a")])] == ["Typical rows"]
    titles = [one["title"] for one in choose_samples([make_row("a", "b")])]
    assert titles == ["Typical rows", "Furthest off"]


def test_a_place_is_shown_as_far_as_it_is_known():
    rows = [
        Row(source="s", references=("a",), hypothesis="a", file="x.tsv", line=3),
        Row(source="s", references=("a",), hypothesis="a", file="x.tsv"),
        make_row("a", "a"),
    ]
    assert [one["place"] for one in choose_samples(rows)[0]["samples"]] == ["x.tsv:3", "x.tsv", ""]
