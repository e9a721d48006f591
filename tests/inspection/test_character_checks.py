import unicodedata

import pytest

from dragoman.commands.inspect import inspect
from dragoman.inspection.character_checks import list_hidden
from inspection.clean import invent_rows, write_rows

RIGHT = [
    "À l’œuvre, mes amis…", "ÇA Y EST… DÉJÀ «VU»", "SÃO PAULO, NÃO", "PÂTÉ «maison» à 5 €",
    "là\u00a0: «\u00a0oui\u00a0»", "Það er gott í ÞÓRSHÖFN", "ĞÜŞİÖÇ ığüşöç", "Příliš žluťoučký kůň…",
    "„Äh…“ — Überraschung!“", "Ёлка — «её», № 5", "Їжак і ґудзик", "Việt Nam – đã", "3×4=12 ± 2 µm",
    "Ελληνικά «ναι»", "他说：“你好”", "(╯°□°)╯", "¿Qué? ¡Sí!", "Fußnote¹ und thé²",
]  # fmt: skip
WRONG = [
    ("FranÃ§ois", "François"), ("itâ€™s", "it’s"), ("РџСЂРёРІРµС‚", "Привет"), ("ÃƒÂ©tude", "étude"),
    ("Ð¿Ñ\x80Ð¸Ð²ÐµÑ‚", "привет"), ("√©t√©", "été"), ("ðŸ˜€ hi", "😀 hi"), ("pĹ™Ă­liĹˇ", "příliš"),
]  # fmt: skip


@pytest.mark.parametrize("text", RIGHT)
def test_correct_text_is_not_reported_as_mojibake(tmp_path, text):
    rows = [*invent_rows(300), (text, f"A translation of number {len(text)}.")]
    inspection = inspect(write_rows(tmp_path / "pairs.tsv", rows))
    assert [finding.kind for finding in inspection.findings] == []


@pytest.mark.parametrize(("text", "right"), WRONG)
def test_mojibake_is_named_with_its_repair(tmp_path, text, right):
    rows = invent_rows(300)
    rows[40] = (text, rows[40][1])
    inspection = inspect(write_rows(tmp_path / "pairs.tsv", rows))
    found = {finding.kind: finding for finding in inspection.findings}["mojibake"]
    assert found.count == 1
    assert found.examples[0].line == 41
    assert f"should be: {right}" in found.examples[0].text


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
def test_hidden_characters_in_place_are_not_listed(text):
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


def test_a_direction_mark_is_in_place_where_the_other_side_is_right_to_left():
    assert list_hidden("ABC\u200e", "ABC\u200eשלום") == []


def test_a_private_character_is_in_place_where_both_sides_have_it():
    assert list_hidden("Bullet \ue000", "Bullet \ue000Punkt \ue000") == []


def find(path, sources: list[str]) -> dict[str, list[int]]:
    path.write_text("".join(f"{text} {n}\tnumber {n}\n" for n, text in enumerate(sources)), "utf-8")
    return {
        finding.kind: [one.line for one in finding.examples] for finding in inspect(path).findings
    }


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    "text", ["quả bưởi này ngon", "서울의 봄", "पढ़ा क़लम", "שָׁלוֹם חֲבֵרִים", "جدًّا", "Ångström"]
)
def test_one_form_throughout_is_no_finding(tmp_path, text, form):
    assert find(tmp_path / "pairs.tsv", [unicodedata.normalize(form, text)] * 300) == {}


@pytest.mark.parametrize("text", ["quả bưởi này ngon", "서울의 봄", "Ångström"])
@pytest.mark.parametrize(("usual", "rare"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_rows_in_the_rarer_form_are_named(tmp_path, text, usual, rare):
    sources = [unicodedata.normalize(usual, text)] * 300
    sources[20] = sources[123] = unicodedata.normalize(rare, text)
    assert find(tmp_path / "pairs.tsv", sources) == {"unicode_forms": [21, 124]}


@pytest.mark.parametrize(
    ("usual", "rare"),
    [("5 Å", "5 \u212b"), ("पढ\u093cा", "प\u095dा"), ("ש\u05b8\u05c1", "ש\u05c1\u05b8")],
)
def test_a_second_code_point_or_another_order_of_marks_is_found(tmp_path, usual, rare):
    sources = [usual] * 300
    sources[20] = rare
    assert find(tmp_path / "pairs.tsv", sources) == {"unicode_forms": [21]}
