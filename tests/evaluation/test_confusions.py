from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from dragoman.evaluation.breakdown import find_confusions
from dragoman.evaluation.output_rows import Row


def rows(*pairs):
    return [Row(source="s", references=(a,), hypothesis=b) for a, b in pairs]


def found(*pairs, **options):
    return [(c.expected, c.found, c.count) for c in find_confusions(rows(*pairs), **options)]


def test_substitutions_deletions_and_insertions_are_distinguished():
    assert found(("kat", "cat")) == [("k", "c", 1)]
    assert found(("katt", "kat")) == [("t", "", 1)]
    assert found(("kat", "kaat")) == [("", "a", 1)]


def test_the_most_frequent_comes_first_with_its_examples():
    confusions = find_confusions(rows(("ab", "ac"), ("xb", "xc"), ("kat", "cat")))
    assert [(c.expected, c.found, c.count) for c in confusions] == [("b", "c", 2), ("k", "c", 1)]
    assert [one.reference for one in confusions[0].examples] == ["ab", "xb"]


def test_neighbouring_differences_are_one_up_to_three_units():
    assert found(("thin", "din")) == [("th", "d", 1)]
    assert sum(count for *_, count in found(("abcdX", "efghX"))) == 4


def test_phones_are_compared_whole_and_running_text_by_words():
    assert found(("AH B EH", "AH P EH"), separator=" ") == [("B", "P", 1)]
    assert found(("the cat sat down", "the dog sat down")) == [("cat", "dog", 1)]


def test_outputs_are_compared_with_the_closest_reference():
    row = Row(source="s", references=("zzzz", "kat"), hypothesis="cat")
    [confusion] = find_confusions([row])
    assert (confusion.expected, confusion.found) == ("k", "c")


def test_truncated_outputs_have_no_confusions():
    whole, cut = rows(("kat", "cat"), ("kat", "kattttttttt"))
    assert len(find_confusions([whole, replace(cut, is_complete=False)])) == 1


def test_exact_rows_have_no_confusions():
    assert found(("a", "a"), ("b c d e", "b c d e")) == []


@given(st.lists(st.tuples(st.text("ab c", max_size=6), st.text("ab c", max_size=6)), max_size=4))
def test_every_edit_is_in_a_confusion(pairs):
    edits = sum(Levenshtein.distance(a, b) for a, b in pairs)
    lines = found(*pairs, separator="", most=10_000)
    covered = sum(count * max(len(a), len(b)) for a, b, count in lines)
    assert edits <= covered <= 2 * edits
