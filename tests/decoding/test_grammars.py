import json
import random
import re
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import EOS
from dragoman.decoding.search_config import resolve_search
from dragoman.errors import SettingsError
from dragoman.settings import DecodingSettings, SideSettings
from dragoman.tokenizers.tokenizer import PairTokenizer, Tokenizer
from vocabularies import (
    KINDS,
    LINES,
    accepts,
    constrain,
    feed,
    list_texts,
    make_tokenizer,
    spell,
    write,
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_the_tokens_and_the_separator_are_the_text(kind):
    tokenizer = make_tokenizer(kind)
    assert tokenizer.target.token_bytes()[:4] == [None] * 4
    assert len(tokenizer.target.token_bytes()) == tokenizer.target.vocab_size
    for line in LINES:
        assert spell(tokenizer, tokenizer.target.encode(line)).decode() == line


WORDS = {
    "characters": ["abc", "ab", "straße", "é😀", "cab", ""],
    "symbols": ["yes no", "yes", "no maybe yes", "nothing", " yes", "yes  no", ""],
    "regex": ["yes no", "abc", "abc cab", " yes", "12", ""],
}
WORDS["bpe"] = WORDS["unigram"] = [*WORDS["characters"], "maybe yes", "日本"]


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_tokens_that_can_lead_to_a_match_are_allowed(kind):
    """Every state of a small language, against a search through the list of its words."""
    tokenizer = make_tokenizer(kind)
    words = {word.encode() for word in WORDS[kind]}
    if kind == "symbols":  # a symbol without text, which doubled and outer separators need
        assert b"" in tokenizer.target.token_bytes()
    start = constrain(tokenizer, regex="|".join(re.escape(word.decode()) for word in words))
    open_, seen = [((), start)], 0
    while open_:
        ids, state = open_.pop()
        expected = np.zeros(tokenizer.target_vocab_size, dtype=bool)
        expected[EOS] = (spell(tokenizer, ids) if ids else b"") in words
        for token in list_texts(tokenizer):
            text = spell(tokenizer, (*ids, token))
            later = text + tokenizer.target.separator.encode()
            if kind == "symbols":  # they are whole: "no" leads to "no yes", and not to "now"
                expected[token] = any(w == text or w.startswith(later) for w in words)
            else:
                expected[token] = any(word.startswith(text) for word in words)
        assert (state.allowed() == expected).all(), ids
        seen += 1
        open_ += [
            ((*ids, int(token)), state.advance(int(token)))
            for token in np.flatnonzero(expected)
            if token != EOS
        ]
    assert seen >= 8


@given(
    regex=st.sampled_from(
        [r"\d{2}-\d{2}", r"(ja|nein)!?", r"[a-c]{2,4}", r"(?i)STRASSE|gr.ße", r"[^a]*e", r"\w+ \w+",
         r"(yes|no)( (yes|no|maybe))*", r"\p{Lu}.*", r"^ja!$", r"a/b|yes", r"(?x) ja | n e i n"]
    ),
    line=st.sampled_from(
        ["12-34", "90 - 12", "ja", "nein!", "ja!!", "abc", "aab", "Größe", "straße", "yes no maybe",
         "yes", "no no", "maybe", "bca cab", "(1+2)", "", "Größe é 😀"]
    ),
    kind=st.sampled_from(KINDS),
)  # fmt: skip
def test_a_regex_matches_what_python_matches(regex, line, kind):
    tokenizer = make_tokenizer(kind)
    if 3 in tokenizer.target.encode(line):
        return
    expected = re.fullmatch(regex.replace(r"\p{Lu}", "[A-ZÄÖÜ]"), line) is not None
    assert accepts(constrain(tokenizer, regex=regex), tokenizer, line) == expected


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["ada", "bob"]}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_file", [True, False])
def test_json_matches_a_schema_in_a_file_or_inline(kind, as_file, tmp_path):
    tokenizer, text = make_tokenizer(kind), json.dumps(SCHEMA)
    state = constrain(tokenizer, json_schema=write(tmp_path / "s", text) if as_file else text)
    spaced = '{ "name" : "bob" , "age" : 150 }'
    assert accepts(state, tokenizer, spaced)
    assert not accepts(state, tokenizer, spaced.replace("bob", "null"))
    if kind != "symbols":
        assert accepts(state, tokenizer, '{"name":"ada","age":36}')
        assert not accepts(state, tokenizer, '{"name":"ada","age":345}')
        assert not accepts(state, tokenizer, '{"name":"ada"}')
        assert not accepts(state, tokenizer, '{"name":"ada","age":36}}')


FIELD = {"type": "string", "minLength": 1, "maxLength": 3}
OPEN_SCHEMA = {
    "type": "object",
    "properties": {"s": FIELD, "n": {"type": "number"}, "l": {"type": "array", "items": FIELD}},
    "required": ["s", "n"],
    "additionalProperties": {"type": "null"},
}


@pytest.mark.parametrize("kind", ["bpe", "unigram", "characters"])
@given(seed=st.integers(0, 10**6))
def test_a_random_walk_that_ends_is_json_that_matches(kind, seed):
    tokenizer, chance, ids = make_tokenizer(kind), random.Random(seed), []
    state = constrain(tokenizer, json_schema=json.dumps(OPEN_SCHEMA))
    while not state.allowed()[EOS] and len(ids) < 400:
        ids.append(chance.choice(np.flatnonzero(state.allowed()).tolist()))
        state = state.advance(ids[-1])
    if len(ids) == 400:
        return
    value = json.loads(tokenizer.decode_target(ids))
    assert list(value)[:2] == ["s", "n"]
    assert 1 <= len(value["s"]) <= 3
    assert isinstance(value["n"], int | float)
    assert all(1 <= len(text) <= 3 for text in value.get("l", []))
    assert all(value[key] is None for key in value if key not in ("s", "n", "l"))


def test_an_object_with_a_duplicate_key_does_not_end():
    tokenizer = make_tokenizer("characters")
    start = constrain(tokenizer, json_schema='{"type": "object", "minProperties": 2}')
    assert accepts(start, tokenizer, '{"a":1,"b":2}')
    assert not accepts(start, tokenizer, '{"a":1,"a":2}')


GRAMMAR = """
start: "(" start ")" | NUMBER "+" NUMBER
NUMBER: /[0-9]{1,3}/
%ignore / /
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_grammar_matches_more_than_a_regex_can(kind, tmp_path):
    tokenizer = make_tokenizer(kind)
    state = constrain(tokenizer, grammar=write(tmp_path / "g.lark", GRAMMAR))
    assert accepts(state, tokenizer, "( 67 + 89 )")
    assert not accepts(state, tokenizer, "67")
    if kind != "symbols":
        assert accepts(state, tokenizer, "((1+2))")
        assert not accepts(state, tokenizer, "((1+2)")


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_and_features_of_the_source_are_never_allowed(kind):
    tokenizer = make_tokenizer(kind, features=3)
    allowed = constrain(tokenizer, regex="(?s:.*)").allowed()
    assert allowed.shape == (tokenizer.target_vocab_size,)
    assert not allowed[[0, 1, 3, -3, -2, -1]].any()
    if kind not in ("bpe", "unigram"):  # whose pieces may be a part of a character
        assert allowed[4:-3].all()


def test_a_token_without_text_is_not_allowed_by_its_number(tmp_path):
    tokenizer = make_tokenizer("characters")
    state = constrain(tokenizer, grammar=write(tmp_path / "g", 'start: <[0-9]> "a"'))
    assert np.flatnonzero(state.allowed()).tolist() == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_a_value(kind):
    tokenizer, chance = make_tokenizer(kind), random.Random(0)
    states, masks = [constrain(tokenizer, json_schema="{}")], []
    for _ in range(60):
        state = chance.choice(states)
        masks.append((state, state.allowed().copy()))
        tokens = [t for t in np.flatnonzero(state.allowed()).tolist() if t != EOS]
        if tokens:
            states.append(state.advance(chance.choice(tokens)))
    for state, mask in masks:
        assert (state.allowed() == mask).all()
        again = constrain(tokenizer, json_schema="{}")
        assert (again.allowed() == states[0].allowed()).all()
    with pytest.raises(ValueError, match="read-only"):
        states[0].allowed()[0] = True


def test_the_end_comes_only_after_the_whole_grammar(tmp_path):
    lark = 'start: s "c"\ns[stop=""]: /[ab]{3,}/'  # llguidance's mask allows the end after s
    tokenizer = make_tokenizer("characters")
    state = feed(constrain(tokenizer, grammar=write(tmp_path / "g", lark)), tokenizer, "aaaa")
    assert not state.allowed()[EOS]


def test_a_negated_terminal_gives_only_valid_utf_8(tmp_path):
    tokenizer = make_tokenizer("bpe")
    state = constrain(tokenizer, grammar=write(tmp_path / "g", "start: T\nT: ~/ab/"))
    byte = tokenizer.target.token_bytes().index(b"\xe2")
    assert state.allowed()[byte]
    assert not state.advance(byte).allowed()[EOS]
    assert not accepts(state, tokenizer, "ab")
    assert accepts(state, tokenizer, "é")


def train(form, *lines):
    side = SideSettings(kind="characters", unicode_form=form)
    tokenizer = Tokenizer.train(lines, side)
    return PairTokenizer(source=tokenizer, target=tokenizer, features={})


def test_composed_text_ends_only_where_composing_changes_nothing():
    tokenizer = train("nfc", "é", "\u0301e", "x\u0301")
    state = constrain(tokenizer, regex=".{1,2}")
    e, accent, x = (tokenizer.target.token_bytes().index(c.encode()) for c in "e\u0301x")
    assert feed(state, tokenizer, "é").allowed()[EOS]
    assert state.advance(x).advance(accent).allowed()[EOS]  # there is no x with an accent
    decomposed = state.advance(e).advance(accent)
    assert not decomposed.allowed().any()  # would be read as é, which the grammar has not seen
    plain = constrain(train("none", "é", "\u0301e"), regex=".{1,2}")
    assert plain.advance(e).allowed()[EOS]


def test_a_token_too_long_for_llguidance_is_reported():
    side = SideSettings(kind="symbols")
    for length in (1022, 1023):  # with a separator on both sides
        tokenizer = Tokenizer.train(["a " + "b" * length], side)
        pair = PairTokenizer(source=tokenizer, target=tokenizer, features={})
        if length == 1022:
            assert accepts(constrain(pair, regex="[ab ]*"), pair, "a " + "b" * length)
        else:
            with pytest.raises(SettingsError, match="longest token has 1025 bytes"):
                constrain(pair, regex="[ab ]*")


def test_decomposed_tokens_are_refused():
    with pytest.raises(SettingsError, match=r"decoding\.regex: .*unicode_form is nfd"):
        constrain(train("nfd", "é"), regex="é")


def test_a_grammar_that_gets_too_complex_is_an_error(tmp_path):
    tokenizer = make_tokenizer("characters")
    rules = "".join(f'r{i}: "a" start | "a"\n' for i in range(50))  # recursive on the right
    lark = f"start: {' | '.join(f'r{i}' for i in range(50))}\n{rules}"
    state = constrain(tokenizer, grammar=write(tmp_path / "g", lark))
    [token] = tokenizer.target.encode("a")
    with pytest.raises(SettingsError, match=r"decoding\.grammar: it is too complex .*'aaaa.*2000"):
        for _ in range(100):
            assert state.allowed()[token]
            state = state.advance(token)


def test_symbols_that_cannot_be_separated_are_reported_at_once():
    with pytest.raises(SettingsError, match="no output can match"):
        constrain(make_tokenizer("symbols"), regex="ja(?:nein)+")


def test_whitespace_in_json_is_bounded_unless_the_schema_sets_it():
    tokenizer = make_tokenizer("characters")
    start = constrain(tokenizer, json_schema="true")
    for text in ["[1]", "[ 1 ]", "[\n  1,\n  2\n]", f"[{' ' * 16}1]", f"[\n{' ' * 16}1]"]:
        assert accepts(start, tokenizer, text)
    for text in [" 1", "1 ", "[\n\n1]", "[ \n1]", f"[{' ' * 17}1]"]:
        assert not accepts(start, tokenizer, text)
    compact = constrain(tokenizer, json_schema='{"x-guidance": {"whitespace_flexible": false}}')
    assert accepts(compact, tokenizer, "[1,2]")
    assert not accepts(compact, tokenizer, "[1, 2]")


INVALID = [
    ("regex", "a(?=b)", r"decoding\.regex: .*a\(\?=b\).*\^\^\^.*look-around.*Rust's regex crate"),
    ("regex", "(a", r"decoding\.regex: .*unclosed group"),
    ("regex", "\\bfoo", r"decoding\.regex: .*not supported"),
    ("regex", "a\\", r"decoding\.regex: 'a\\\\' ends with a lone backslash"),
    ("regex", "(?ix)a\n#b", r"decoding\.regex: .*flag x"),
    ("regex", "日本", r"decoding\.regex: no output can match: no token"),
    ("regex", "[^\\s\\S]", r"decoding\.regex: no output can match"),
    ("json_schema", '{"type": "intege"}', r"decoding\.json_schema: Invalid type: intege"),
    ("json_schema", '{"uniqueItems": true}', r"json_schema: Unimplemented keys.*docs/json_schema"),
    ("json_schema", '{"type": }', r"decoding\.json_schema: invalid JSON: .*column 10"),
    ("json_schema", '{"not":' * 3000 + "{}" + "}" * 3000, "json_schema: it is nested too deeply"),
    ("json_schema", '{"not":' * 960 + "{}" + "}" * 960, "json_schema: "),
    ("json_schema", "false", r"decoding\.json_schema: Unsatisfiable"),
    ("json_schema", "nowhere.json", r"decoding\.json_schema: nowhere.json: there is no such file"),
    ("grammar", "nowhere.lark", r"decoding\.grammar: nowhere.lark: there is no such file"),
]


@pytest.mark.parametrize(("setting", "value", "message"), INVALID)
def test_an_invalid_constraint_is_reported(setting, value, message):
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
def test_an_invalid_grammar_is_reported_with_its_line(text, message, tmp_path):
    with pytest.raises(SettingsError, match=rf"(?s)decoding\.grammar: .*{message}.*syntax\.md"):
        constrain(make_tokenizer("characters"), grammar=write(tmp_path / "g", text))


def test_files_without_text_or_schema_are_reported(tmp_path):
    (tmp_path / "g").write_bytes(b"\xff\xfe")
    for setting in ("grammar", "json_schema"):
        with pytest.raises(SettingsError, match=rf"decoding\.{setting}: .*g: cannot be read"):
            constrain(make_tokenizer("characters"), **{setting: str(tmp_path / "g")})
    with pytest.raises(SettingsError, match=r"s: a schema must be an object"):
        constrain(make_tokenizer("characters"), json_schema=write(tmp_path / "s", "[1]"))


def test_without_llguidance_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for values in ({"regex": "a"}, {"json_schema": "{}"}):
        with pytest.raises(
            SettingsError, match=r'needs llguidance.*pip install "dragoman\[guided\]"'
        ):
            constrain(make_tokenizer("characters"), **values)


def test_the_keys_of_a_schema_come_in_the_order_of_the_records(tmp_path):
    inner = {"properties": {"age": {"type": "integer"}, "name": {"type": "string"}}}
    schema = json.dumps({"properties": {"tags": {"items": inner}, **inner["properties"]}})
    tokenizer, fields = make_tokenizer("characters"), ("name", "age")
    mine = '{"name":"ada","age":36,"tags":[{"name":"bob","age":1}]}'
    other = '{"tags":[{"age":1,"name":"bob"}],"age":36,"name":"ada"}'
    for value in (schema, write(tmp_path / "schema.json", schema)):
        ordered = resolve_search(DecodingSettings(json_schema=value), tokenizer, fields).constraint
        assert accepts(ordered, tokenizer, mine)
        assert not accepts(ordered, tokenizer, other)
        assert accepts(constrain(tokenizer, json_schema=value), tokenizer, other)
