import pytest

from dragoman.commands.inspect import inspect
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
def test_text_that_is_right_is_not_held_for_wrong(tmp_path, text):
    rows = [*invent_rows(300), (text, f"A translation of number {len(text)}.")]
    inspection = inspect(write_rows(tmp_path / "pairs.tsv", rows))
    assert [finding.kind for finding in inspection.findings] == []


@pytest.mark.parametrize(("text", "right"), WRONG)
def test_wrongly_decoded_text_is_named_with_what_it_should_be(tmp_path, text, right):
    rows = invent_rows(300)
    rows[40] = (text, rows[40][1])
    inspection = inspect(write_rows(tmp_path / "pairs.tsv", rows))
    found = {finding.kind: finding for finding in inspection.findings}["mojibake"]
    assert found.count == 1
    assert found.examples[0].line == 41
    assert f"should be: {right}" in found.examples[0].text
