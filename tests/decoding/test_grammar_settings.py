import sys

import pytest

from dragoman.errors import SettingsError
from vocabularies import accepts, constrain, make_tokenizer, write


def test_whitespace_in_json_is_bounded_unless_the_schema_says_otherwise():
    tokenizer = make_tokenizer("characters")
    start = constrain(tokenizer, json_schema="true")
    for text in ["[1]", "[ 1 ]", "[\n  1,\n  2\n]", f"[{' ' * 16}1]", f"[\n{' ' * 16}1]"]:
        assert accepts(start, tokenizer, text)
    for text in [" 1", "1 ", "[\n\n1]", "[ \n1]", f"[{' ' * 17}1]"]:
        assert not accepts(start, tokenizer, text)
    compact = constrain(tokenizer, json_schema='{"x-guidance": {"whitespace_flexible": false}}')
    assert accepts(compact, tokenizer, "[1,2]")
    assert not accepts(compact, tokenizer, "[1, 2]")


FAULTS = [
    ("regex", "a(?=b)", r"decoding\.regex: .*a\(\?=b\).*\^\^\^.*look-around.*Rust's regex crate"),
    ("regex", "(a", r"decoding\.regex: .*unclosed group"),
    ("regex", "\\bfoo", r"decoding\.regex: .*not supported"),
    ("regex", "a\\", r"decoding\.regex: 'a\\\\' ends with a lone backslash"),
    ("regex", "(?ix)a\n#b", r"decoding\.regex: .*flag x"),
    ("regex", "日本", r"decoding\.regex: no output can match: no token"),
    ("regex", "[^\\s\\S]", r"decoding\.regex: no output can match"),
    ("json_schema", '{"type": "intege"}', r"decoding\.json_schema: Invalid type: intege"),
    ("json_schema", '{"uniqueItems": true}', r"json_schema: Unimplemented keys.*docs/json_schema"),
    ("json_schema", '{"type": }', r"decoding\.json_schema: it is no JSON: .*column 10"),
    ("json_schema", "false", r"decoding\.json_schema: Unsatisfiable"),
    ("json_schema", "nowhere.json", r"decoding\.json_schema: nowhere.json: there is no such file"),
    ("grammar", "nowhere.lark", r"decoding\.grammar: nowhere.lark: there is no such file"),
]


@pytest.mark.parametrize(("setting", "value", "message"), FAULTS)
def test_a_broken_constraint_is_told_of(setting, value, message):
    with pytest.raises(SettingsError, match=f"(?s){message}") as caught:
        constrain(make_tokenizer("characters"), **{setting: value})
    assert "no_forcing" not in str(caught.value)  # ours, not the user's
    assert "backtrace" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('start: foo\nbar: "a"\n', r'at 1\(8\): unknown name: "foo"\n +1 \| start: foo\n +\^'),
        ('start: "a', "lexer error"),
        ('start: <pad> "a"', "unknown special token"),
        ("", "no start rule"),
        ('{"grammars": []}', "expecting rule"),
    ],
)
def test_a_broken_grammar_is_shown_where_it_breaks(text, message, tmp_path):
    with pytest.raises(SettingsError, match=rf"(?s)decoding\.grammar: .*{message}.*syntax\.md"):
        constrain(make_tokenizer("characters"), grammar=write(tmp_path / "g", text))


def test_files_that_are_no_text_or_no_schema_are_told_of(tmp_path):
    (tmp_path / "g").write_bytes(b"\xff\xfe")
    for setting in ("grammar", "json_schema"):
        with pytest.raises(SettingsError, match=rf"decoding\.{setting}: .*g: cannot be read"):
            constrain(make_tokenizer("characters"), **{setting: str(tmp_path / "g")})
    with pytest.raises(SettingsError, match=r"s: a schema is an object"):
        constrain(make_tokenizer("characters"), json_schema=write(tmp_path / "s", "[1]"))


def test_without_llguidance_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for values in ({"regex": "a"}, {"json_schema": "{}"}):
        with pytest.raises(
            SettingsError, match=r'needs llguidance.*pip install "dragoman\[guided\]"'
        ):
            constrain(make_tokenizer("characters"), **values)
