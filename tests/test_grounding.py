"""Where values stand in the source: exactly, nearly, or nowhere; and records without the latter."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.grounding import find_spans, leave_out_ungrounded

ACUTE = "\u0301"


def find(source, value):
    """Return how `value` stands in `source`, and what stands at its place."""
    [span] = find_spans(source, json.dumps({"a": value}), "json")
    return span.kind, None if span.start is None else source[span.start : span.end]


@pytest.mark.parametrize(
    ("source", "value", "kind", "at"),
    [
        ("Total: 8.20 EUR", "8.20", "exact", "8.20"),
        ("Caf\u00e9 Roma", "Cafe" + ACUTE, "exact", "Caf\u00e9"),
        ("Cafe" + ACUTE + " Roma", "Caf\u00e9", "exact", "Cafe" + ACUTE),
        ("Cafe" + ACUTE + " Roma", "Roma", "exact", "Roma"),
        ("Cafe" + ACUTE, "Cafe", "none", None),  # without its accent, and 1 edit in 4 letters
        ("👩‍💻 Ada 👍🏽", "Ada", "exact", "Ada"),
        ("👍🏽", "👍", "none", None),
        ("👩‍💻", "👩", "none", None),
        ("الاسم: أحمد علي", "أحمد", "exact", "أحمد"),
        ("東京都港区", "東京", "exact", "東京"),
        ("हिन्दी", "ह", "none", None),
        (
            unicodedata.normalize("NFD", "인천 이"),
            "이",
            "exact",
            unicodedata.normalize("NFD", "이"),
        ),
        (unicodedata.normalize("NFD", "인천"), "이", "none", None),
        ("57499", "5", "none", None),  # a part of a number
        ("Stanford", "for", "none", None),  # a part of a word
        ("Berlins Mauer", "Berlin", "near", "Berlins"),
        ("NO 1,  LOT 2 | KEPONG", "NO 1, LOT 2, KEPONG", "near", "NO 1,  LOT 2 | KEPONG"),
        ("ACME ltd.", "Acme Ltd", "near", "ACME ltd"),
        ("Rober left", "Roger", "near", "Rober"),  # 1 edit in 5 letters
        ("TAMAN IDUSTRIES", "TAMAN INDUSTRIES", "near", "TAMAN IDUSTRIES"),
        ("２０２４年", "2024年", "near", "２０２４年"),
        ("Große Straße", "GROSSE STRASSE", "near", "Große Straße"),
        ("12.60", "12.50", "none", None),  # similar numbers are other numbers
        ("12/3", "1/23", "none", None),
        ("3. Oktober 2024", "2024-10-03", "none", None),
        ("John Smith", "Jane Brown", "none", None),
        ("grade A", "A+", "none", None),
        ("blood group AB-", "AB+", "none", None),
        ("$50.00", "£50.00", "none", None),
        ("50 in all", "50%", "none", None),
        ("call (+49) 30-1234", "+49 30 1234", "near", "+49) 30-1234"),
        ("$ 50.00", "$50.00", "near", "$ 50.00"),
        ("Müller GmbH", "Muller GmbH", "near", "Müller GmbH"),
        ("5 off", "-5", "none", None),
        ("1,250.50 in all", 1250.5, "near", "1,250.50"),
        ("1.250,5 in all", 1250.5, "near", "1.250,5"),
        ("1 250", 1250, "near", "1 250"),
        ("9.00", 9.0, "near", "9.00"),
        ("340 123 450 000 000 019", 340123450000000018, "none", None),  # equal as floats
        ("340 123 450 000 000 018", 340123450000000018, "near", "340 123 450 000 000 018"),
        ("9", 9, "exact", "9"),
        ("1,250.00", 1.25, "none", None),
        ("23.03.2018", 23.03, "exact", "23.03"),
        ("yes", True, "none", None),
        ("", "x", "none", None),
    ],
)
def test_a_value_stands_exactly_or_nearly_or_nowhere(source, value, kind, at):
    assert find(source, value) == (kind, at)


def test_the_same_value_of_two_fields_has_two_places():
    source = "from Bonn to Bonn, 8.20, 8"
    spans = find_spans(source, "from: Bonn; to: Bonn; via: Bonn; count: 8", ";")
    assert [(span.field, span.start) for span in spans] == [
        ("from", 5),
        ("to", 13),
        ("via", 5),  # there is no third place
        ("count", 25),  # rather than in 8.20
    ]


def test_values_of_nested_objects_and_lists_have_their_places():
    source = "Ada 3, Bob 4"
    output = '{"rows": [{"who": "Ada", "n": 3}, {"who": "Eve", "n": 4}], "note": "", "x": null}'
    spans = find_spans(source, output, "json")
    assert [(one.field, one.value, one.kind) for one in spans] == [
        ("rows.who", "Ada", "exact"),
        ("rows.n", "3", "exact"),
        ("rows.who", "Eve", "none"),
        ("rows.n", "4", "exact"),
    ]
    text, kept, count = leave_out_ungrounded(source, output, "json", "near")
    assert kept == [one for one in spans if one.kind != "none"]
    assert (json.loads(text)["rows"], count) == ([{"who": "Ada", "n": 3}, {"n": 4}], 1)


def test_an_output_that_is_no_record_has_no_places():
    assert find_spans("abc", '{"a": "abc', "json") == []
    assert leave_out_ungrounded("abc", '{"a": "x', "json", "exact") == ('{"a": "x', [], 0)


TEXTS = st.text("aé" + ACUTE + "Bß1 2.,|-👩\u200d💻한ﬁ字", min_size=1, max_size=12)


@given(source=TEXTS, values=st.lists(TEXTS, min_size=1, max_size=4), is_decomposed=st.booleans())
def test_an_exact_place_holds_the_value_and_no_other_values_are_kept(source, values, is_decomposed):
    source = unicodedata.normalize("NFD", source) if is_decomposed else source
    output = json.dumps({str(number): value for number, value in enumerate(values)})
    for span in find_spans(source, output, "json"):
        if span.kind == "exact":
            same = [
                unicodedata.normalize("NFC", x) for x in (source[span.start : span.end], span.value)
            ]
            assert same[0] == same[1]
        assert (span.start is None) == (span.kind == "none")
    for required in ("exact", "near"):
        kept, _, _ = leave_out_ungrounded(source, output, "json", required)
        kinds = {span.kind for span in find_spans(source, kept, "json")}
        assert kinds <= ({"exact"} if required == "exact" else {"exact", "near"})


@given(before=TEXTS, value=TEXTS, after=TEXTS)
def test_a_value_between_spaces_is_found(before, value, after):
    if value.strip() and not {value[0], value[-1]} & {ACUTE, "\u200d"}:
        kind, at = find(f"{before} {value} {after}", value)
        assert (kind, at is None) == ("exact", False)
