import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import EOS
from dragoman.decoding.search_config import resolve_search
from dragoman.errors import SettingsError
from dragoman.settings import DecodingSettings, SideSettings
from dragoman.tokenizers.tokenizer import PairTokenizer, Tokenizer
from vocabularies import KINDS, make_tokenizer


def constrain(tokenizer, path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return resolve_search(DecodingSettings(choices=str(path)), tokenizer).constraint


def list_outputs(state):
    """Every output that the states allow."""
    allowed = np.flatnonzero(state.allowed()).tolist()
    assert allowed  # from every state some choice can be reached
    outputs = [()] if EOS in allowed else []
    for token in allowed:
        if token != EOS:
            outputs += [(token, *rest) for rest in list_outputs(state.advance(token))]
    return outputs


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(
    lines=st.lists(
        st.lists(st.sampled_from(["yes", "no", "maybe"]), min_size=1, max_size=4).map(" ".join),
        min_size=1, max_size=12,
    )
)  # fmt: skip
def test_exactly_the_list_is_allowed(kind, lines, tmp_path_factory):
    tokenizer = make_tokenizer(kind, features=2)
    path = tmp_path_factory.mktemp("choices") / "c.txt"
    state = constrain(tokenizer, path, "\n".join(lines))
    assert state.allowed().shape == (tokenizer.target_vocab_size,)
    expected = {tuple(ids[1:-1]) for ids in tokenizer.encode_targets(lines)}
    outputs = list_outputs(state)
    assert len(outputs) == len(expected)
    assert set(outputs) == expected
    assert {*map(tokenizer.decode_target, outputs)} == set(lines)


@pytest.mark.parametrize("form", ["nfc", "nfd"])
def test_a_choice_is_read_in_its_composed_form(form, tmp_path):
    side = SideSettings(kind="characters", unicode_form=form)
    tokenizer = Tokenizer.train(["Größe", "é", "각"], side)
    pair = PairTokenizer(source=tokenizer, target=tokenizer, features={})
    state = constrain(pair, tmp_path / "c", "Gröe\ne\u0301\n각\n")
    assert sorted([*map(pair.decode_target, list_outputs(state))]) == ["Gröe", "é", "각"]


@pytest.mark.parametrize(
    "content", ["yes\nno\n", b"\xef\xbb\xbfyes\r\nno\r\n", "no\nyes\nno\n\n\n"]
)
def test_line_ends_marks_and_repeated_lines_change_nothing(content, tmp_path):
    tokenizer = make_tokenizer("characters")
    outputs = list_outputs(constrain(tokenizer, tmp_path / "c", content))
    assert sorted([*map(tokenizer.decode_target, outputs)]) == ["no", "yes"]


def test_every_invalid_line_is_reported(tmp_path):
    content = b"yes\n\nZebra\nno\n\xff\n" + b"Qu\n" * 20
    with pytest.raises(SettingsError) as caught:
        constrain(make_tokenizer("characters"), tmp_path / "c", content)
    message = str(caught.value)
    assert message.startswith(f"decoding.choices: {tmp_path / 'c'}: 23 invalid lines")
    for part in ["c:2: the line is empty", "c:3: 'Zebra' has a symbol that the target's voc",
                 "c:5: byte 0xff", "c:6: 'Qu'", "21 x symbol that", "13 more"]:  # fmt: skip
        assert part in message


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty; write one output per line"), ("\n\n", "is empty"), (b"\xff\xfea\0", "UTF-16")],
)
def test_a_file_without_a_list_is_reported(content, message, tmp_path):
    with pytest.raises(SettingsError, match=rf"decoding\.choices: .*c.*{message}"):
        constrain(make_tokenizer("characters"), tmp_path / "c", content)


def test_a_missing_file_is_reported_with_the_likely_one(tmp_path):
    (tmp_path / "cities.txt").write_text("yes\n")
    decoding = DecodingSettings(choices=str(tmp_path / "city.txt"))
    with pytest.raises(
        SettingsError, match=r"decoding\.choices: .*no such file; did you mean .*cities"
    ):
        resolve_search(decoding, make_tokenizer("characters"))


def test_a_long_list_works_like_a_short_one(tmp_path):
    chance = random.Random(0)
    words = ["".join(w) for w in itertools.islice(itertools.product("abcnoyes", repeat=5), 30_000)]
    chance.shuffle(words)
    tokenizer = make_tokenizer("characters")
    state = constrain(tokenizer, tmp_path / "c", "\n".join(words))
    for word in chance.sample(words, 200):
        at = state
        for token in tokenizer.target.encode(word):
            assert at.allowed()[token]
            at = at.advance(token)
        assert np.flatnonzero(at.allowed()).tolist() == [EOS]
