import itertools
import re

from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from dragoman.reporting.differences import compare_texts, find_closest, show_differences

TEXTS = st.text(st.sampled_from("ab \u0301é<&日"), max_size=20)


@given(TEXTS, TEXTS)
def test_the_parts_make_both_texts(reference, output):
    parts = compare_texts(reference, output)
    assert "".join(part.text for part in parts if part.kind != "put in") == reference
    assert "".join(part.text for part in parts if part.kind != "left out") == output
    assert all(part.text for part in parts)


@given(TEXTS, TEXTS)
def test_no_two_neighbours_are_of_one_kind(reference, output):
    kinds = [part.kind for part in compare_texts(reference, output)]
    assert all(one != other for one, other in itertools.pairwise(kinds))
    assert "put in left out" not in " ".join(kinds)  # what is missing comes first


@given(TEXTS)
def test_equal_texts_have_no_marks(text):
    assert not re.search("<(ins|del)", show_differences(text, text))


def test_an_accent_is_not_torn_from_its_letter():
    parts = compare_texts("cafe\u0301", "cafe")
    assert [(part.kind, part.text) for part in parts] == [
        ("same", "caf"), ("left out", "e\u0301"), ("put in", "e"),
    ]  # fmt: skip


def test_marks_are_told_in_words_and_show_their_spaces():
    shown = show_differences("a bc", "abc<")
    assert '<del><span class="aloud">[missing: </span><span class="space">␣</span>' in shown
    assert '<ins><span class="aloud">[extra: </span>&lt;' in shown


def test_an_empty_output_says_so():
    assert "empty</i>" in show_differences("abc", "")


def test_long_texts_are_shown_around_their_differences():
    shown = show_differences("x" * 1000 + "a" + "y" * 1000, "x" * 1000 + "b" + "y" * 1000)
    assert len(shown) < 1000
    assert shown.count("952 characters") == 2
    assert "</span>a<" in shown
    assert "</span>b<" in shown


def test_endless_texts_are_compared_in_part():
    assert "the rest is not compared" in show_differences("x" * 100_000, "y" * 100_000)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
def test_the_closest_reference_has_the_fewest_edits(output, references):
    closest, edits = find_closest(output, references)
    assert edits == Levenshtein.distance(output, closest)
    assert edits == min(Levenshtein.distance(output, one) for one in references)
