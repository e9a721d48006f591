import unicodedata

import pytest

from dragoman.commands.inspect import inspect


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
