import html
import itertools
import re

from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from dragoman.evaluation.breakdown import find_closest
from dragoman.grounding import Span
from dragoman.reporting.text import (
    compare_texts,
    mark_hidden,
    show_differences,
    show_text,
    write_plain,
)

TEXTS = st.text(st.characters(exclude_categories=()))
SHORT_TEXTS = st.text(st.sampled_from("ab \u0301é<&日"), max_size=20)


@given(TEXTS)
def test_markup_in_a_text_is_never_markup_of_the_page(text):
    names = set(re.findall(r"<(/?[a-z]+)", mark_hidden(text)))
    assert names <= {"span", "/span", "wbr"}


@given(TEXTS)
def test_what_is_shown_can_be_written_and_holds_no_control_character(text):
    for shown in (str(show_text(text)), write_plain(text, 100)):
        shown.encode()
        assert not re.search("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", shown)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "M"])))
def test_a_text_without_hidden_characters_reads_as_it_is(text):
    assert html.unescape(mark_hidden(text)) == text


def test_hidden_characters_are_written_as_codes():
    assert write_plain("a\u202eb\x00c\nd", 20) == "aU+202EbU+0000c↵d"
    assert ">U+202E<" in show_text("a\u202eb")


def test_the_end_of_a_long_text_is_counted():
    assert show_text("x" * 20_000, 300).count("x") - show_text("", 300).count("x") < 310
    assert "19,700 more characters" in show_text("x" * 20_000, 300)


def test_an_empty_text_says_so():
    assert "empty" in show_text("")
    assert write_plain("", 5) == "∅"


def test_joined_scripts_and_emoji_are_left_alone():
    for text in ("می\u200cخواهم", "👩\u200d👩\u200d👧", "❤\ufe0f"):
        assert text in show_text(text)


@given(SHORT_TEXTS, SHORT_TEXTS, st.sampled_from(["", " ", "b"]))
def test_the_stretches_make_both_texts(reference, output, unit):
    stretches = compare_texts(reference, output, unit)
    assert "".join(one.text for one in stretches if one.kind != "extra") == reference
    assert "".join(one.text for one in stretches if one.kind != "missing") == output
    assert all(one.text for one in stretches)


@given(SHORT_TEXTS, SHORT_TEXTS)
def test_no_two_neighbours_are_of_one_kind(reference, output):
    kinds = [one.kind for one in compare_texts(reference, output)]
    assert all(one != other for one, other in itertools.pairwise(kinds))
    assert "extra missing" not in " ".join(kinds)  # what is missing comes first


@given(SHORT_TEXTS, st.sampled_from(["", " ", "b"]))
def test_equal_texts_have_no_marks(text, unit):
    assert not re.search("<(ins|del)", "".join(show_differences(text, text, unit)))


def test_each_side_shows_its_own_text_with_what_only_it_has():
    expected, found = show_differences("a bc", "abc<")
    assert '<del><span class="aloud">[missing: </span><span class="space">␣</span>' in expected
    assert '<ins><span class="aloud">[extra: </span>&lt;' in found
    assert "&lt;" not in expected
    assert "␣" not in found


def test_running_text_is_marked_by_whole_words_and_phones_by_phones():
    expected, found = show_differences("a grey house", "a green house", " ")
    assert ">grey<" in expected
    assert ">green<" in found
    expected, found = show_differences("tʃ|a", "ʃ|a", "|")
    assert ">tʃ<" in expected
    assert ">ʃ<" in found


def test_an_empty_text_beside_another_says_so():
    expected, found = show_differences("abc", "")
    assert "abc" in expected
    assert "empty</i>" in found


def test_long_texts_are_shown_around_their_differences():
    expected, found = show_differences("x" * 1000 + "a" + "y" * 1000, "x" * 1000 + "b" + "y" * 1000)
    assert len(expected + found) < 1500
    assert expected.count("952 characters") == found.count("952 characters") == 2
    assert "</span>a<" in expected
    assert "</span>b<" in found


def test_the_end_of_very_long_texts_is_not_compared():
    assert "the rest is not compared" in show_differences("x" * 100_000, "y" * 100_000)[1]


@given(SHORT_TEXTS, st.lists(SHORT_TEXTS, min_size=1, max_size=4))
def test_the_closest_reference_has_the_fewest_edits(output, references):
    closest, edits = find_closest(output, references)
    assert edits == Levenshtein.distance(output, closest)
    assert edits == min(Levenshtein.distance(output, one) for one in references)


def test_edits_are_counted_in_units_without_what_is_between_them():
    assert find_closest("a cat sat", ["the dog sat", "one"], " ") == ("the dog sat", 2)


def test_values_are_marked_where_they_stand_with_their_fields():
    source = "<b> " + "x" * 400 + " 8.20"
    spans = [
        Span("a<b", "<b>", 0, 3, "exact"),
        Span("b", "b> x", 1, 5, "near"),  # they overlap
        Span("c", "8.20", len(source) - 4, len(source), "exact"),  # beyond the usual length
        Span("d", "9", None, None, "none"),
    ]
    shown = str(show_text(source, spans=spans))
    assert re.findall(r'<mark title="(.*?)">(.*?)</mark>', shown) == [
        ("a&lt;b", "&lt;"),
        ("a&lt;b, b (nearly)", "b&gt;"),
        ("b (nearly)", " x"),
        ("c", "8.20"),
    ]
    assert html.unescape(re.sub("<.*?>", "", shown)) == source
