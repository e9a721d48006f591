"""Claims about the tokens of both sides: features, shared vocabularies, and their file."""

import copy
import json
import pickle
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.errors import DataError, ModelFolderError, SettingsError
from dragoman.settings import SideSettings, TokenizerSettings
from dragoman.tokenizers.tokenizer import BOS_ID, EOS_ID, UNKNOWN_ID, PairTokenizer

CHARACTERS = SideSettings(kind="characters")
SYMBOLS = SideSettings(kind="symbols")
BPE = SideSettings(kind="bpe", vocab_size=300)
UNIGRAM = SideSettings(kind="unigram", vocab_size=300)
WORDS = SideSettings(kind="regex", pattern=r"\w+")
SIDES = {"characters": CHARACTERS, "symbols": SYMBOLS, "bpe": BPE, "unigram": UNIGRAM, "w": WORDS}


class Pair(NamedTuple):
    source: str
    target: str
    features: tuple[str, ...] = ()
    line: int = 1
    file: str = "pairs.tsv"


PAIRS = [
    Pair("walk <V> tense=PST", "walked", ("<V>", "tense=PST")),
    Pair("<pad> <s> </s> <unk>", "<pad> </s> <V>", ("<V>", "tense=PRS")),
    Pair("go", "went", ("<V>", "tense=PST")),
    Pair("house", "houses", ("<N>",)),
]


def train(source=CHARACTERS, target=CHARACTERS, pairs=PAIRS, **changes):
    chosen = TokenizerSettings(source=source, target=target, **changes)
    return PairTokenizer.train(iter(pairs), chosen)


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("kind", SIDES)
def test_no_text_is_encoded_to_a_feature_or_special_id(kind, is_shared):
    tokenizer = train(SIDES[kind], SIDES[kind], shared=is_shared)
    feature_ids = set(tokenizer.features.values())
    assert len(feature_ids) == 4
    texts = [pair.source for pair in PAIRS] + ["<V>", "tense=PST", "<N>", "<V><N>", "</s>"]
    for ids in tokenizer.source.encode_batch(texts) + tokenizer.target.encode_batch(texts):
        assert not (feature_ids | {0, 1, 2}) & set(ids)


@pytest.mark.parametrize("kind", SIDES)
def test_a_source_is_its_features_its_text_and_the_end(kind):
    tokenizer = train(SIDES[kind])
    ids = tokenizer.encode_sources(["walk <V>", ""], [("tense=PST", "<V>"), ()])
    text_ids = tokenizer.source.encode("walk <V>")
    features = tokenizer.features
    assert ids == [[features["tense=PST"], features["<V>"], *text_ids, EOS_ID], [EOS_ID]]


def test_a_target_is_the_start_its_text_and_the_end():
    tokenizer = train()
    ids = tokenizer.encode_targets(["went", ""])
    assert ids == [[BOS_ID, *tokenizer.target.encode("went"), EOS_ID], [BOS_ID, EOS_ID]]
    assert [*map(tokenizer.decode_target, ids)] == ["went", ""]
    assert tokenizer.decode_target(ids[0]) == "went"


def test_features_are_numbered_by_frequency_then_code_point_after_the_text():
    tokenizer = train()
    first = tokenizer.source.vocab_size
    assert tokenizer.features == {
        "<V>": first,
        "tense=PST": first + 1,
        "<N>": first + 2,
        "tense=PRS": first + 3,
    }
    assert tokenizer.source_vocab_size == first + 4
    assert tokenizer.target_vocab_size == tokenizer.target.vocab_size


def test_unseen_symbols_and_features_are_unknown():
    tokenizer = train()
    ids = tokenizer.encode_sources(["w\u4e2d"], [("<V>", "<ADJ>")])[0]
    assert ids[:2] == [tokenizer.features["<V>"], UNKNOWN_ID]
    assert ids.count(UNKNOWN_ID) == 2


def test_one_tuple_of_features_is_needed_for_each_text():
    with pytest.raises(ValueError, match="longer"):
        train().encode_sources(["a", "b"], [()])


@pytest.mark.parametrize("kind", SIDES)
def test_shared_sides_are_one_vocabulary_of_both_texts(kind):
    tokenizer = train(SIDES[kind], SIDES[kind], shared=True)
    assert tokenizer.is_shared
    assert tokenizer.source is tokenizer.target
    assert tokenizer.target_vocab_size == tokenizer.source_vocab_size
    assert tokenizer.source_vocab_size == tokenizer.source.vocab_size + 4
    for pair in PAIRS:
        ids = tokenizer.encode_sources([pair.target], [()])[0]
        assert UNKNOWN_ID not in ids


def test_separate_sides_know_only_their_own_text():
    tokenizer = train()
    assert not tokenizer.is_shared
    assert tokenizer.target.encode("g") == [UNKNOWN_ID]
    assert tokenizer.source.encode("g") != [UNKNOWN_ID]


def test_feature_ids_in_a_shared_target_give_no_text():
    tokenizer = train(shared=True)
    ids = tokenizer.target.encode("went")
    assert tokenizer.decode_target([*tokenizer.features.values(), *ids]) == "went"
    with pytest.raises(ValueError, match="not in 0 to"):
        tokenizer.decode_target([tokenizer.target_vocab_size])


def test_feature_ids_are_refused_in_a_separate_target():
    with pytest.raises(ValueError, match="not in 0 to"):
        train().decode_target([train().target_vocab_size])


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("kind", SIDES)
def test_every_id_has_a_unique_name(kind, is_shared):
    tokenizer = train(SIDES[kind], SIDES[kind], shared=is_shared)
    for names, size in (
        (tokenizer.source_names(), tokenizer.source_vocab_size),
        (tokenizer.target_names(), tokenizer.target_vocab_size),
    ):
        assert len(names) == len(set(names)) == size


def test_only_some_rows_train_the_text_but_all_give_features():
    tokenizer = train(training_rows=1)
    assert tokenizer.source.encode("go") == [UNKNOWN_ID] * 2
    assert "<N>" in tokenizer.features


@pytest.mark.parametrize("num_pairs", [None, 10])
def test_the_rows_that_train_the_text_are_evenly_spread(num_pairs):
    pairs = [Pair(letter, letter) for letter in "abcdefghij"]
    chosen = TokenizerSettings(
        source=SIDES["characters"], target=SIDES["characters"], training_rows=3
    )
    tokenizer = PairTokenizer.train(iter(pairs), chosen, num_pairs=num_pairs)
    assert tokenizer.source.tokens(range(4, tokenizer.source.vocab_size)) == ["a", "e", "h"]


def test_pairs_without_features_give_no_feature_ids():
    tokenizer = train(pairs=[Pair("a", "b")])
    assert tokenizer.features == {}
    assert tokenizer.source_vocab_size == tokenizer.source.vocab_size
    assert tokenizer.encode_sources(["a"], [("<V>",)]) == [[UNKNOWN_ID, 4, EOS_ID]]


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("kind", SIDES)
def test_a_saved_tokenizer_loads_as_it_was(kind, is_shared, tmp_path):
    tokenizer = train(SIDES[kind], SIDES[kind], shared=is_shared)
    path = tmp_path / "tokenizer.json"
    path.write_text("old")
    tokenizer.save(path)
    loaded = PairTokenizer.load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    assert loaded.is_shared == is_shared
    assert loaded.features == tokenizer.features
    sources = [pair.source for pair in PAIRS]
    features = [pair.features for pair in PAIRS]
    ids = tokenizer.encode_sources(sources, features)
    assert loaded.encode_sources(sources, features) == ids
    targets = [pair.target for pair in PAIRS]
    assert [*map(loaded.decode_target, loaded.encode_targets(targets))] == targets
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


texts = st.text(max_size=12) | st.sampled_from(["<V>", "</s>", "a\0b", " ", "e\u0301", "\ud55c"])
any_pairs = st.lists(
    st.builds(
        Pair,
        source=texts,
        target=texts,
        features=st.lists(texts, max_size=3).map(tuple),
    ),
    max_size=6,
)


@given(
    pairs=any_pairs,
    source=st.sampled_from(sorted(SIDES)),
    target=st.sampled_from(sorted(SIDES)),
    is_shared=st.booleans(),
)
def test_any_pairs_are_encoded_the_same_once_saved(
    tmp_path_factory, pairs, source, target, is_shared
):
    sides = SIDES[source], SIDES[source if is_shared else target]
    tokenizer = train(*sides, [Pair("a b", "a b"), *pairs], shared=is_shared)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(path)
    loaded = PairTokenizer.load(path)
    assert loaded.to_dict() == tokenizer.to_dict()
    assert loaded.source_names() == tokenizer.source_names()
    ids = tokenizer.encode_sources(
        [pair.source for pair in pairs], [pair.features for pair in pairs]
    )
    assert ids == [loaded.encode_sources([pair.source], [pair.features])[0] for pair in pairs]
    assert UNKNOWN_ID not in {id_ for row in ids for id_ in row}
    assert all(max(row) < tokenizer.source_vocab_size for row in ids)
    targets = [pair.target for pair in pairs]
    assert [*map(loaded.decode_target, tokenizer.encode_targets(targets))] == targets


CHANGED = [train(side, side, shared=True).to_dict() for side in SIDES.values()]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@given(content=st.sampled_from(CHANGED), value=json_values, data=st.data())
def test_a_file_with_any_changed_value_is_refused_or_works(tmp_path_factory, content, value, data):
    content = copy.deepcopy(content)
    part: Any = content
    while True:
        key = data.draw(st.sampled_from(list(part) if isinstance(part, dict) else range(len(part))))
        if not isinstance(part[key], dict | list) or not part[key] or data.draw(st.booleans()):
            break
        part = part[key]
    part[key] = value
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(content))
    try:
        tokenizer = PairTokenizer.load(path)
    except ModelFolderError:
        return
    ids = tokenizer.encode_targets(["walk", "go went"])
    assert ids == [tokenizer.encode_targets([text])[0] for text in ("walk", "go went")]
    tokenizer.save(path)
    assert PairTokenizer.load(path).to_dict() == tokenizer.to_dict()


def test_pickling_keeps_shared_sides_one():
    restored = pickle.loads(pickle.dumps(train(BPE, BPE, shared=True)))
    assert restored.is_shared
    assert [*map(restored.decode_target, restored.encode_targets(["a <V>"]))] == ["a <V>"]


def test_training_twice_gives_the_same_file(tmp_path):
    for name in ("one", "two"):
        train(UNIGRAM, BPE).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_side_without_text_is_refused():
    with pytest.raises(DataError, match="no text"):
        train(pairs=[])
    with pytest.raises(DataError, match="no text"):
        train(pairs=[Pair("a", "")])


def test_all_errors_of_the_settings_are_named_at_once():
    with pytest.raises(SettingsError) as caught:
        train(SideSettings(kind="regex"), SideSettings(kind="symbols", separator=""), shared=True)
    message = str(caught.value)
    assert "3 errors" in message
    assert "tokenizer.source.pattern" in message
    assert "tokenizer.target.separator" in message
    assert "differ in kind, separator: give both sides the same" in message


def test_an_invalid_pattern_is_quoted_as_typed():
    with pytest.raises(SettingsError, match=r"tokenizer\.target\.pattern '\['"):
        train(target=SideSettings(kind="regex", pattern="["))


def save_changed(path, **changes):
    train().save(path)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, r"its format is 2, and this dragoman \(.*pip install --upgrade dragoman"),
        ({"version": "1"}, "version: Input should be 1"),
        ({"format": "other"}, "not a dragoman tokenizer"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
        ({"source": {}}, "source: settings: Field required"),
        ({"target": None}, "target"),
        ({"features": {"<V>": 9}}, "features: .*list"),
        ({"features": [1]}, "features.0: .*string"),
        ({"features": ["<V>", "<V>"]}, "features: one of them has two ids"),
        (
            {"target": {"settings": {"kind": "characters"}, "tokens": ["a", "a"]}},
            "target: the token 'a' has two ids",
        ),
    ],
)
def test_a_changed_file_is_refused_by_name_and_error(changes, message, tmp_path):
    path = tmp_path / "tokenizer.json"
    save_changed(path, **changes)
    with pytest.raises(ModelFolderError, match=message) as caught:
        PairTokenizer.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe", b'{"format": 1}', b"{"])
def test_an_invalid_file_is_refused(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json"):
        PairTokenizer.load(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    train(BPE).save(path)
    content = path.read_bytes()
    for part in (0.01, 0.5, 0.99):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(ModelFolderError, match="not valid JSON"):
            PairTokenizer.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelFolderError, match="cannot be read"):
        PairTokenizer.load(tmp_path / "tokenizer.json")
