import pytest

from dragoman.inspection.character_checks import list_hidden


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم", "क्\u200dषेत्र", "ක්\u200dර", "മലയാള\u200dം", "ਕ\u200d੍ਰ",  # joiners
        "👩🏽\u200d💻", "🏴\u200d☠️", "❤️\u200d🔥", "🙂\u200d↔️", "⛹🏿\u200d♀️",  # emoji
        "\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f",  # Wales
        "ไทย\u200bภาษา", "ភាសា\u200bខ្មែរ", "ဗမာ\u200bစာ",  # places to break a line
        "שלום\u200f!", "عربي \u2067ABC\u2069",  # directions
        "ᠮᠣᠩ\u180eᠭᠣᠯ", "\u0601١٢", "two\nlines\r\nand\ta tab", "1\u20e3", "l'été\u00a0!", "全\u3000角",
    ],
)  # fmt: skip
def test_hidden_characters_in_their_place_are_none(text):
    assert list_hidden(text, text) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ab\u200dc", "\u200d"), ("日\u200c本", "\u200c"), ("при\u200bвет", "\u200b"), ("abc\u200f", "\u200f"),
        ("\ufeffabc", "\ufeff"), ("a\rb", "\r"), ("a\x1bb", "\x1b"), ("a\ufffeb", "\ufffe"), ("x\U000e0067", "\U000e0067"),
    ],
)  # fmt: skip
def test_hidden_characters_out_of_place_are_listed(text, found):
    assert list_hidden(text, text) == [found]


def test_a_direction_mark_is_in_place_where_the_other_side_goes_from_right_to_left():
    assert list_hidden("ABC\u200e", "ABC\u200eשלום") == []


def test_a_private_character_is_in_place_where_both_sides_have_it():
    assert list_hidden("Bullet \ue000", "Bullet \ue000Punkt \ue000") == []
