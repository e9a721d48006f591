import html
import re

from hypothesis import given
from hypothesis import strategies as st

from dragoman.reporting.visible import cut_clusters, mark_unseen, show_text, write_plain

TEXTS = st.text(st.characters(exclude_categories=()))


@given(TEXTS)
def test_no_markup_of_a_text_is_markup_of_the_page(text):
    names = set(re.findall(r"<(/?[a-z]+)", mark_unseen(text)))
    assert names <= {"span", "/span", "wbr"}


@given(TEXTS)
def test_what_is_shown_can_be_written_and_holds_no_control_character(text):
    for shown in (str(show_text(text)), write_plain(text, 100)):
        shown.encode()
        assert not re.search("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", shown)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "M"])))
def test_a_text_of_seen_characters_reads_as_it_is(text):
    assert html.unescape(mark_unseen(text)) == text


def test_unseen_characters_are_written_as_codes():
    assert write_plain("a\u202eb\x00c\nd", 20) == "aU+202EbU+0000c↵d"
    assert ">U+202E<" in show_text("a\u202eb")


def test_the_rest_of_a_long_text_is_counted():
    assert show_text("x" * 20_000, 300).count("x") - show_text("", 300).count("x") < 310
    assert "19,700 more characters" in show_text("x" * 20_000, 300)


def test_an_empty_text_says_so():
    assert "empty" in show_text("")
    assert write_plain("", 5) == "∅"


def test_joined_scripts_and_emoji_are_left_alone():
    for text in ("می\u200cخواهم", "👩\u200d👩\u200d👧", "❤\ufe0f"):
        assert text in show_text(text)


@given(TEXTS)
def test_clusters_make_the_text(text):
    assert "".join(cut_clusters(text)) == text


def test_a_letter_and_its_accents_are_one_cluster():
    assert cut_clusters("e\u0301te\u0301") == ["e\u0301", "t", "e\u0301"]
    assert len(cut_clusters("👩\u200d👩\u200d👧")) == 1
