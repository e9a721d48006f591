import pytest

from dragoman.inspection.scripts import find_mixed_word


@pytest.mark.parametrize(
    "word", ["cлон", "Москвa", "mоdel", "СССP", "Bанкомат", "Tип", "σαρδονιoμ"]
)
def test_a_letter_that_only_looks_right_is_found(word):
    assert find_mixed_word(f"a {word}, и.") == word


@pytest.mark.parametrize(
    "text",
    [
        "USB-кабель и pH-фактор", "SMSки в Windowsа", "IСвободно", "TOCСПЕЦ", "σ-алгебра", "ΔT и μm",
        "%sов \\nПривет &nbsp;да {a}нет", "θɔβx ɸχɛ", "Tシャツ", "Google에서", "A股", "β-carotène",
    ],
)  # fmt: skip
def test_words_that_are_meant_as_they_are_are_no_finding(text):
    assert find_mixed_word(text) == ""
