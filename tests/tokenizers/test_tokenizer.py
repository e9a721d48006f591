"""Claims about one vocabulary: text comes back, and nothing that it reads like is special."""

import copy
import json
import os
import pickle
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from dragoman.errors import DataError, DragomanError, ModelFolderError, SettingsError
from dragoman.settings import SideSettings
from dragoman.tokenizers import vocabularies
from dragoman.tokenizers.tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    UNKNOWN_ID,
    Tokenizer,
)

TEXTS = [
    "ein Haus am See",
    "das alte Haus",
    "der See ist tief und das Haus ist alt",
    "<pad> <s> </s> <unk> [UNK] <V> tense=PST",
    "<pad> </s>  </s> <unk>\t\u2581 \u0120",
    "d\u00e9j\u00e0 vu, \ud55c\uad6d\uc5b4",
    "12. M\u00e4rz 2024",
] * 3

SIDES = {
    "characters": SideSettings(kind="characters"),
    "symbols": SideSettings(kind="symbols"),
    "symbols-wide": SideSettings(kind="symbols", separator=" | "),
    "regex": SideSettings(kind="regex", pattern=r"\w+"),
    "regex-empty-matches": SideSettings(kind="regex", pattern=r"\d*"),
    "bpe": SideSettings(kind="bpe", vocab_size=300),
    "unigram": SideSettings(kind="unigram", vocab_size=300),
}
TOKENIZERS = {name: Tokenizer.train(TEXTS, side) for name, side in SIDES.items()}
LOSSLESS = ["bpe", "unigram"]
CLOSED = [name for name in SIDES if name not in LOSSLESS]
HARD = [
    "",
    " ",
    "  a  b  ",
    "\t\r\n\n",
    "\x00\x01\x7f\x85\u2028",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "e\u0301 \u1100\u1161\u11a8",
    "\u2581 \u2581a \u0120b <0x41>",
    "<pad><s></s><unk>",
    "<pad> <s> </s> <unk> ",
    "\ufffd\uffff\U0010ffff",
    "C[C@@H](N)C(=O)O",
]
SPECIAL_LOOKALIKES = ["<pad>", "<s>", "</s>", "<unk>", "[UNK]", "[PAD]", "<pad> ", "<unk> ", "<V>"]
ANY_TEXT = st.text() | st.lists(st.sampled_from(HARD + SPECIAL_LOOKALIKES + TEXTS)).map("".join)


def train_with_form(name: str, form: str) -> Tokenizer:
    return Tokenizer.train(TEXTS, SIDES[name].model_copy(update={"unicode_form": form}))


FORMED = {
    (name, form): train_with_form(name, form)
    for name in ("bpe", "unigram", "characters")
    for form in ("nfc", "nfd")
}


@pytest.mark.parametrize("name", LOSSLESS)
@given(text=ANY_TEXT)
def test_subwords_give_any_text_back_without_unknowns(name, text):
    ids = TOKENIZERS[name].encode(text)
    assert TOKENIZERS[name].decode(ids) == text
    assert not {PAD_ID, BOS_ID, EOS_ID, UNKNOWN_ID} & set(ids)


@pytest.mark.parametrize("name", CLOSED)
@given(text=ANY_TEXT | st.text(alphabet=sorted(set("".join(TEXTS)))))
def test_closed_vocabularies_give_text_back_unless_a_token_is_unknown(name, text):
    ids = TOKENIZERS[name].encode(text)
    assert not {PAD_ID, BOS_ID, EOS_ID} & set(ids)
    if UNKNOWN_ID not in ids:
        assert TOKENIZERS[name].decode(ids) == text


@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=5))
@pytest.mark.parametrize("name", CLOSED)
def test_closed_vocabularies_have_every_token_of_their_training(name, texts):
    tokenizer = Tokenizer.train(texts, SIDES[name])
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert UNKNOWN_ID not in ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("text", HARD + SPECIAL_LOOKALIKES)
def test_hard_text_round_trips_if_trained_on(name, text):
    tokenizer = Tokenizer.train([*TEXTS, text], SIDES[name])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert min(ids, default=4) >= 4


@pytest.mark.parametrize("name", ["symbols", "regex"])
def test_an_unseen_token_that_reads_like_a_special_one_is_unknown(name):
    tokenizer = Tokenizer.train(["a b"], SIDES[name])
    for text in SPECIAL_LOOKALIKES:
        assert not {PAD_ID, BOS_ID, EOS_ID} & set(tokenizer.encode(text))
        assert UNKNOWN_ID in tokenizer.encode(text)


@pytest.mark.parametrize(("name", "form"), FORMED)
@given(text=ANY_TEXT)
def test_unicode_forms_give_nfc_text_back(name, form, text):
    ids = FORMED[name, form].encode(text)
    if UNKNOWN_ID not in ids:
        assert FORMED[name, form].decode(ids) == unicodedata.normalize("NFC", text)


def test_nfd_splits_hangul_and_decoding_recomposes_it():
    tokenizer = FORMED["characters", "nfd"]
    ids = tokenizer.encode("\ud55c\uad6d")
    assert tokenizer.tokens(ids) == list("\u1112\u1161\u11ab\u1100\u116e\u11a8")
    assert tokenizer.decode(ids) == "\ud55c\uad6d"
    assert UNKNOWN_ID not in tokenizer.encode("\uad6d\ud55c")


def test_a_separator_gets_the_unicode_form_of_the_text():
    side = SideSettings(kind="symbols", separator="\u00e9", unicode_form="nfd")
    tokenizer = Tokenizer.train(["a\u00e9b"], side)
    assert len(tokenizer.encode("b\u00e9a")) == 2
    assert tokenizer.decode(tokenizer.encode("b\u00e9a")) == "b\u00e9a"


def test_symbols_keep_outer_and_double_separators():
    tokenizer = Tokenizer.train([" a  b "], SIDES["symbols"])
    for text in (" a", "a ", "a  b", " ", "a b", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert Tokenizer.train(["a b"], SIDES["symbols"]).encode("a  b").count(UNKNOWN_ID) == 1


def test_unknown_tokens_give_unknown_ids_one_each():
    tokenizer = TOKENIZERS["characters"]
    assert tokenizer.encode("a\u4e2dd\u4e2d").count(UNKNOWN_ID) == 2
    assert tokenizer.decode(tokenizer.encode("a\u4e2dd")) == "ad"


def test_ids_are_ordered_by_frequency_then_code_point():
    tokenizer = Tokenizer.train(["c c c", "b a"], SIDES["symbols"])
    assert tokenizer.tokens(range(4, 7)) == ["c", "a", "b"]
    assert tokenizer.vocab_size == 7


@pytest.mark.parametrize("name", SIDES)
def test_batches_and_single_texts_give_the_same_ids(name):
    tokenizer = TOKENIZERS[name]
    texts = HARD + TEXTS
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []


@pytest.mark.parametrize("name", SIDES)
def test_every_id_has_a_unique_name(name):
    tokenizer = TOKENIZERS[name]
    names = tokenizer.tokens(range(tokenizer.vocab_size))
    assert len(set(names)) == tokenizer.vocab_size
    assert tokenizer.tokens([]) == []


def test_a_token_that_reads_like_a_special_one_has_another_name():
    tokenizer = Tokenizer.train(["<pad> <<pad>>"], SIDES["symbols"])
    assert tokenizer.tokens([0, 1, 4, 5]) == ["<<<pad>>>", "<s>", "<<pad>>", "<pad>"]


def test_a_part_of_a_character_is_named_by_its_bytes():
    tokenizer = Tokenizer.train(["a"], SideSettings(kind="bpe", vocab_size=260))
    assert tokenizer.tokens(tokenizer.encode(" \u00e4")) == [" ", "<C3>", "<A4>"]


@pytest.mark.parametrize("name", SIDES)
def test_ids_out_of_range_are_refused_and_special_ones_left_out(name):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("ein Haus")
    assert tokenizer.decode([BOS_ID, *ids, EOS_ID, PAD_ID, UNKNOWN_ID]) == tokenizer.decode(ids)
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"id {wrong} is not in"):
            tokenizer.decode([4, wrong])
        with pytest.raises(ValueError, match=f"id {wrong} is not in"):
            tokenizer.tokens([wrong])


@pytest.mark.parametrize("name", LOSSLESS)
def test_any_ids_decode(name):
    tokenizer = TOKENIZERS[name]
    text = tokenizer.decode(range(tokenizer.vocab_size))
    assert "\ufffd" in text
    text.encode("utf-8")


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("vocab_size", [260, 261, 263])
def test_vocab_size_limits_all_ids(name, vocab_size):
    side = SideSettings(kind=name, vocab_size=vocab_size)
    words = [first + last for first in "bdgklmnprst" for last in ("as", "en", "asen", "enas")]
    assert Tokenizer.train(words, side).vocab_size == vocab_size


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("text", ["a", " ", "\n", "\x00", "aaaa" * 1000, "\u4e2d" * 500])
def test_subwords_train_on_tiny_texts(name, text):
    tokenizer = Tokenizer.train([text], SIDES[name])
    assert tokenizer.decode(tokenizer.encode(text + "b")) == text + "b"
    assert 260 <= tokenizer.vocab_size <= 300


@pytest.mark.parametrize("name", LOSSLESS)
def test_digits_stay_single(name):
    tokenizer = Tokenizer.train(["am 12. 12. 2024", "2024-12-12"] * 5, SIDES[name])
    assert tokenizer.tokens(tokenizer.encode("2024")) == ["2", "0", "2", "4"]


def test_bpe_makes_frequent_words_one_token():
    tokenizer = TOKENIZERS["bpe"]
    assert tokenizer.tokens(tokenizer.encode("das Haus")) == ["das", " Haus"]


def test_marks_stay_with_their_letters():
    tokenizer = Tokenizer.train(["\u0939\u093f\u0928\u094d\u0926\u0940"] * 3, SIDES["bpe"])
    assert len(tokenizer.encode("\u0939\u093f\u0928\u094d\u0926\u0940")) == 1


def test_the_byte_alphabet_is_that_of_hugging_face():
    assert vocabularies._byte_alphabet().keys() == set(ByteLevel.alphabet())
    assert sorted(vocabularies._byte_alphabet().values()) == list(range(256))


SCRIPT = """
import json, sys
from dragoman.settings import SideSettings
from dragoman.tokenizers.tokenizer import Tokenizer
sides, texts = json.load(sys.stdin)
print(json.dumps([Tokenizer.train(texts, SideSettings(**side)).to_dict() for side in sides]))
"""


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_training_gives_the_same_in_every_process(hash_seed):
    given_ = [side.model_dump() for side in SIDES.values()], TEXTS
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(given_),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )
    assert json.loads(finished.stdout) == [TOKENIZERS[name].to_dict() for name in SIDES]


@pytest.mark.parametrize("vocab_size", [270, 400, 700])
def test_unigram_training_is_repeatable(vocab_size):
    syllables = [first + last for first in "bdgklmnprst" for last in "aeiou"]
    words = ["".join(syllables[n * k % 55] for k in (1, 3, 7)) for n in range(400)]
    side = SideSettings(kind="unigram", vocab_size=vocab_size)
    first = Tokenizer.train(words, side).to_dict()
    assert all(Tokenizer.train(iter(words), side).to_dict() == first for _ in range(3))


@pytest.mark.parametrize("name", SIDES)
def test_json_pickle_and_copy_keep_a_tokenizer(name):
    tokenizer = TOKENIZERS[name]
    texts = HARD + TEXTS
    for restored in (
        Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict()))),
        pickle.loads(pickle.dumps(tokenizer)),
        copy.deepcopy(tokenizer),
    ):
        assert restored.to_dict() == tokenizer.to_dict()
        assert restored.settings == tokenizer.settings
        assert restored.encode_batch(texts) == tokenizer.encode_batch(texts)


@pytest.mark.parametrize(
    "name", [name for name in SIDES if SIDES[name].kind in ("characters", "symbols")]
)
def test_a_lone_surrogate_is_a_symbol(name):
    text, tokenizer = "a\ud800b", TOKENIZERS[name]
    assert UNKNOWN_ID in tokenizer.encode(text)
    knows = Tokenizer.train([text], SIDES[name])
    assert knows.decode(knows.encode(text)) == text


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_training_on_no_text_is_refused(name, texts):
    with pytest.raises(DataError, match="no text"):
        Tokenizer.train(texts, SIDES[name])


@pytest.mark.parametrize("name", SIDES)
def test_an_error_while_reading_the_texts_is_raised(name):
    def read():
        yield "one"
        raise DataError("pairs.tsv:2: invalid")

    with pytest.raises(DataError, match=r"pairs\.tsv:2"):
        Tokenizer.train(read(), SIDES[name])


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (SideSettings(kind="regex"), "pattern is empty"),
        (SideSettings(kind="regex", pattern="(a"), r"pattern '\(a' is not a regular expression"),
        (SideSettings(kind="symbols", separator=""), "separator is empty"),
        (SideSettings(kind="bpe", vocab_size=259), "vocab_size is 259.*at least 260"),
        (SideSettings(kind="unigram", vocab_size=8), "vocab_size is 8.*at least 260"),
    ],
)
def test_settings_that_do_not_suit_their_kind_are_refused(side, message):
    with pytest.raises(SettingsError, match=message):
        Tokenizer.train(TEXTS, side)


def test_a_pattern_with_catastrophic_backtracking_is_a_settings_error():
    with pytest.raises(SettingsError, match="too many steps"):
        Tokenizer.train(["a" * 60], SideSettings(kind="regex", pattern="(a+)+b"))


def break_bpe(change):
    content = copy.deepcopy(TOKENIZERS["bpe"].to_dict())
    change(content["tokens"])
    return content


def swap_ids(tokens):
    vocab = tokens["model"]["vocab"]
    vocab["<pad> "], vocab["a"] = vocab["a"], vocab["<pad> "]


INVALID = {
    "not a dict": [],
    "empty": {},
    "hugging face alone": TOKENIZERS["bpe"].to_dict()["tokens"],
    "unknown setting": {"settings": {"kinds": "bpe"}, "tokens": []},
    "pattern missing": {"settings": {"kind": "regex"}, "tokens": []},
    "tokens a dict": {"settings": {"kind": "characters"}, "tokens": {}},
    "tokens no strings": {"settings": {"kind": "characters"}, "tokens": [1]},
    "two ids": {"settings": {"kind": "characters"}, "tokens": ["a", "a"]},
    "list for bpe": {"settings": {"kind": "bpe"}, "tokens": ["a"]},
    "unigram as bpe": {
        "settings": {"kind": "bpe"},
        "tokens": TOKENIZERS["unigram"].to_dict()["tokens"],
    },
    "id missing": break_bpe(lambda tokens: tokens["model"]["vocab"].pop("!")),
    "id beyond": break_bpe(lambda tokens: tokens["model"]["vocab"].update({"!": 9999})),
    "id twice": break_bpe(lambda tokens: tokens["model"]["vocab"].update({"!": 9})),
    "special moved": break_bpe(swap_ids),
    "byte missing": break_bpe(
        lambda tokens: tokens["model"]["vocab"].update(
            {"!!": tokens["model"]["vocab"].pop("!"), "!": 9999}
        )
    ),
    "merge of nothing": break_bpe(lambda tokens: tokens["model"]["merges"].append(["zq", "qz"])),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_content_is_refused(name):
    with pytest.raises(ModelFolderError):
        Tokenizer.from_dict(INVALID[name])


def test_only_pieces_and_merges_are_taken_from_a_file():
    expected = TOKENIZERS["bpe"].to_dict()
    for change in ({"pre_tokenizer": None}, {"normalizer": {"type": "Lowercase"}}):
        content = break_bpe(lambda tokens, change=change: tokens.update(change))
        assert Tokenizer.from_dict(content).to_dict() == expected


def test_every_error_is_a_dragoman_error_with_a_message():
    with pytest.raises(DragomanError, match="two ids"):
        Tokenizer.from_dict(INVALID["two ids"])


FORK_SCRIPT = """
import os
from dragoman.settings import SideSettings
from dragoman.tokenizers.tokenizer import Tokenizer
texts = ["ein Haus am See"] * 2000
tokenizer = Tokenizer.train(texts, SideSettings(vocab_size=300))
expected = tokenizer.encode_batch(texts)
child = os.fork()
if child == 0:
    os._exit(0 if tokenizer.encode_batch(texts) == expected else 1)
assert os.waitpid(child, 0)[1] == 0
assert tokenizer.encode_batch(texts) == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_encodes_without_warning_or_hanging():
    env = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    finished = subprocess.run(
        [sys.executable, "-c", FORK_SCRIPT], capture_output=True, text=True, env=env, timeout=60
    )
    assert (finished.returncode, finished.stderr) == (0, "")


# Any texts, any settings

ANY_SIDE = st.builds(
    SideSettings,
    kind=st.sampled_from(["characters", "symbols", "regex", "bpe", "unigram"]),
    vocab_size=st.integers(260, 280),
    separator=st.sampled_from([" ", "a", "ab", "\u00e9", "\0", " | ", "\n"]),
    pattern=st.sampled_from([r"\w+", r"\d*", ".", r"\p{L}\p{M}*", "(?=a)", "^", r"\s", "a|ab"]),
    unicode_form=st.sampled_from(["none", "nfc", "nfd"]),
)
PLAIN_TEXTS = st.lists(
    st.text(max_size=20) | ANY_TEXT | st.text("ab \0\u0301\u00e9\u1100\u1161", max_size=20), max_size=5
)  # fmt: skip


@given(texts=PLAIN_TEXTS, others=PLAIN_TEXTS, side=ANY_SIDE)
def test_any_side_round_trips_alone_in_a_batch_and_after_saving(texts, others, side):
    tokenizer = Tokenizer.train(["a b", *texts], side)
    batch = tokenizer.encode_batch([*texts, *others])
    assert batch == [tokenizer.encode(text) for text in [*texts, *others]]
    for place, (text, ids) in enumerate(zip([*texts, *others], batch, strict=True)):
        assert not {PAD_ID, BOS_ID, EOS_ID} & set(ids)
        if UNKNOWN_ID not in ids:
            form = side.unicode_form
            assert tokenizer.decode(ids) == (
                text if form == "none" else unicodedata.normalize("NFC", text)
            )
        else:
            assert place >= len(texts)
            assert side.kind not in ("bpe", "unigram")
    restored = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert restored.to_dict() == tokenizer.to_dict()
    assert restored.encode_batch([*texts, *others]) == batch
    names = tokenizer.tokens(range(tokenizer.vocab_size))
    assert len(set(names)) == tokenizer.vocab_size
