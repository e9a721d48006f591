"""Records that point into their sources: lossless both ways, with a place for each token."""

import json
import os
import subprocess
import sys
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.errors import ModelFolderError, SettingsError
from dragoman.reading.pairs import Pair
from dragoman.settings import SideSettings, TokenizerSettings
from dragoman.tokenizers.pointers import Pointers, Structure, Word
from dragoman.tokenizers.tokenizer import EOS_ID, UNKNOWN_ID, PairTokenizer

LINES = [
    ("the turf team inc.", "Name: the turf team | Type: inc."),
    ("a b  c", "Name: a b | Type: c"),
    ("RUSH, WILLIE H", "Name: WILLIE H | Type: RUSH,"),
]
OBJECTS = [
    (
        'say "no" (1,250.50) 3',
        json.dumps({"name": 'say "no"', "lines": [{"n": "3"}]}, separators=(",", ":")),
    ),
    (
        "Ünal | KG: 8.20 x",
        '{"name":"Ünal KG","lines":[{"n":8.20},{"n":"x"}]}',
    ),
]
KINDS = ["characters", "bpe"]


def make(rows, kind="characters", unicode_form="none"):
    side = SideSettings(kind=kind, vocab_size=300, unicode_form=unicode_form)
    settings = TokenizerSettings(source=side, target=side, shared=True, pointers=True)
    return PairTokenizer.train([Pair(*row, (), 0, "") for row in rows], settings)


def trained(rows):
    found = Pointers.train(*zip(*rows, strict=True))
    assert found is not None
    return found


def test_a_value_is_the_numbers_of_its_words():
    pointers = trained(LINES)
    assert pointers.words == "spaces"
    parts = pointers.split_target(*LINES[0])
    name, kind = (pointers.structures.index(text) for text in (" | Name: ", " | Type: "))
    assert parts == [Structure(name), Word(0), Word(1), Word(2), Structure(kind), Word(3)]


def test_words_are_as_coarse_as_the_values_allow():
    assert trained([("see (1999), p", "a: 1999 | b: p")] * 2).words == "punctuation"
    assert trained([("12km far", "a: 12 | b: far")] * 2).words == "all"


@pytest.mark.parametrize(
    ("source", "target", "numbers"),
    [
        ("张伟在北京大学", "name: 张伟 | at: 北京", [0, 1, 3, 4]),
        ("김철수는 서울에서", "name: 김철수 | at: 서울", [0, 1, 2, 4, 5]),
        ("ไปกรุงเทพฯ", "name: กรุง | at: เทพ", [2, 3, 4, 5, 6, 7]),
        ("(दिल्ली)में", "name: दिल्ली | at: में", [1, 3]),
        ("(Be\u0301la.Ko\u0308ln)", "name: Be\u0301la | at: Ko\u0308ln", [1, 3]),
    ],
)
def test_words_of_any_script_can_be_pointed_to(source, target, numbers):
    pointers = trained([(source, target)] * 2)
    parts = pointers.split_target(source, target)
    assert [part.number for part in parts if isinstance(part, Word)] == numbers
    assert not any(isinstance(part, str) for part in parts)


def test_words_that_the_value_writes_together_are_pointed_to():
    source, target = "call 030 123 456", "a: 030123456 | b: call"
    pointers = trained([(source, target)] * 2)
    names = [pointers.structures.index(text) for text in (" | a: ", "", " | b: ")]
    first, together, second = map(Structure, names)
    assert pointers.split_target(source, target) == [
        first, Word(1), together, Word(2), together, Word(3), second, Word(0)
    ]  # fmt: skip


def test_a_word_with_cases_is_spelled_whole():
    pointers = trained([("at a 20", "a: at a | b: 20")] * 2)
    assert "Category" in pointers.split_target("at a 20", "a: Category | b: 20")


def test_a_field_that_rarely_stands_in_its_source_is_spelled():
    rows = [(f"{name} sells food", f"name: {name} | kind: shop") for name in ("ab", "cd", "ef")]
    assert trained(rows).fields == ("name",)


def test_the_occurrence_after_the_last_value_is_pointed_to():
    pointers = trained([("5 a 5 b", "x: a | y: 5")] * 2)
    words = [
        part.number
        for part in pointers.split_target("5 a 5 b", "x: a | y: 5")
        if isinstance(part, Word)
    ]
    assert words == [1, 2]


def test_a_value_points_to_the_place_that_is_typical_of_its_field():
    rows = [
        ("tea 4.50 water 3.00 total 7.50 cash 7.50", "total: 7.50 | first: tea"),
        ("soup 6.10 total 6.10 cash 10.00", "total: 6.10 | first: soup"),
        ("ink 2.00 pen 1.00 total 3.00 cash 5.00", "total: 3.00 | first: ink"),
        ("bread 2.20 total 2.20 cash 2.20", "total: 2.20 | first: bread"),
    ]
    pointers = trained(rows)
    assert pointers.typical.keys() == {"total"}
    for source, target in rows:
        [number] = [one.number for one in pointers.split_target(source, target)[1:2]]
        words = source.split()
        assert words[number - 1] == "total"
        assert words[number] == target.split()[1]


SCRIPT = """
import json
from dragoman.tokenizers.pointers import Pointers
sums = [f"{number}.50" for number in range(3, 9)]
sources = [f"tea {one} milk 1.00 sum due now net {one} paid 10.00" for one in sums]
print(json.dumps(Pointers.train(sources, [f"total: {one} | first: tea" for one in sums]).to_dict()))
"""


def test_training_gives_the_same_in_every_process():
    found = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert len(json.loads(found[0])["typical"]["total"]) > 3


def test_targets_without_values_of_their_source_have_no_pointers():
    assert Pointers.train(["a b"], ["c d"]) is None
    assert Pointers.train(["a b"] * 9, ["name: x | total: 7"] * 9) is None
    tokenizer = make([("a b", "c d")])
    assert tokenizer.pointers is None
    assert tokenizer.read_target(tokenizer.encode_targets(["c d"], ["a b"])[0], "a b") == "c d"


def test_pointers_need_one_vocabulary():
    with pytest.raises(SettingsError, match=r"set tokenizer\.shared"):
        PairTokenizer.train([Pair(*LINES[0], (), 0, "")], TokenizerSettings(pointers=True))


@pytest.mark.parametrize("rows", [LINES, OBJECTS], ids=["lines", "json"])
@pytest.mark.parametrize("kind", KINDS)
def test_targets_come_back_with_a_place_for_each_token(rows, kind):
    tokenizer = make(rows, kind)
    sources, targets = zip(*rows, strict=True)
    for source, target, ids in zip(
        sources, targets, tokenizer.encode_targets(targets, sources), strict=True
    ):
        assert UNKNOWN_ID not in ids
        assert tokenizer.read_target(ids[1:-1], source) == target
        ends = tokenizer.find_target_ends(ids[1:-1], source)
        assert len(ends) == len(ids) - 2
        assert ends == sorted(ends)
        assert ends[-1] == len(target)
        assert len(ids) < len(tokenizer.encode_targets([target])[0])  # it is not spelled


@pytest.mark.parametrize("form", ["nfc", "nfd"])
def test_values_are_composed_as_all_outputs_of_their_form(form):
    composed = ("(한국, Zoë.Köln)", "land: 한국 | name: Zoë")
    source, target = (normalize("NFD", text) for text in composed)
    tokenizer = make([(source, target)] * 2, "bpe", form)
    ids, same = tokenizer.encode_targets([target, composed[1]], [source, composed[0]])
    assert ids == same
    assert not tokenizer.spells(ids)
    assert tokenizer.read_target(ids[1:-1], source) == composed[1]
    assert tokenizer.find_target_ends(ids[1:-1], source)[-1] == len(composed[1])
    assert tokenizer.encode_sources([source], [()]) == tokenizer.encode_sources(composed[:1], [()])


def test_words_of_sources_have_a_number_and_a_case():
    tokenizer = make(LINES)
    [ids] = tokenizer.encode_sources(["Turf  team"], [()])
    names = tokenizer.source_names()
    assert [names[id_] for id_ in ids[:-1]] == ["⟨0⟩", "⟨Capital⟩", *"turf", "⟨1⟩", *"  team"]
    assert ids[-1] == EOS_ID
    assert len(names) == len(set(names)) == tokenizer.source_vocab_size


def test_words_that_have_no_number_are_marked_as_unknown():
    tokenizer = make(LINES)
    assert tokenizer.pointers.num_words == 4
    [short, long] = tokenizer.encode_sources(["a b a b ", "a b a b a"], [(), ()])
    assert (short.count(UNKNOWN_ID), long.count(UNKNOWN_ID)) == (0, 1)


def test_the_start_of_an_output_has_the_tokens_of_a_whole_one():
    tokenizer = make(LINES)
    source, target = LINES[0]
    whole, start = tokenizer.encode_targets([target, "Name: the turf team | Type: "], [source] * 2)
    assert start[:-1] == whole[: len(start) - 1]
    assert len(start) == len(whole) - 1


def test_an_output_that_points_beyond_its_source_shows_it():
    tokenizer = make(LINES)
    [ids] = tokenizer.encode_targets([LINES[0][1]], [LINES[0][0]])
    assert tokenizer.read_target(ids[1:-1], "x") == "Name: x\ufffd\ufffd | Type: \ufffd"


def test_a_stored_tokenizer_points_alike(tmp_path):
    tokenizer = make(OBJECTS, "bpe")
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = PairTokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.pointers == tokenizer.pointers
    [ids] = tokenizer.encode_targets([OBJECTS[0][1]], [OBJECTS[0][0]])
    assert loaded.read_target(ids[1:-1], OBJECTS[0][0]) == OBJECTS[0][1]


@pytest.mark.parametrize("num_words", [0, -3, 10**9])
def test_a_stored_tokenizer_of_another_program_is_refused(num_words, tmp_path):
    content = make(LINES).to_dict()
    content["pointers"]["num_words"] = num_words
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelFolderError, match="1 to 4,000 words"):
        PairTokenizer.load(tmp_path / "tokenizer.json")


texts = st.text(st.sampled_from('ab1 "\\|:{}é'), max_size=12)


@given(texts, st.dictionaries(st.sampled_from(["name", "lines"]), texts | st.integers(0, 99)))
def test_any_target_comes_back(source, record):
    lines, objects = trained(LINES), trained(OBJECTS)
    for pointers, target in (
        (lines, " | ".join(f"{name}: {value}" for name, value in record.items())),
        (objects, json.dumps(record, ensure_ascii=False, separators=(",", ":"))),
        (lines, source),
        (lines, f" | {source}"),
    ):
        parts = pointers.split_target(source, target)
        assert "".join(pointers.join(source, parts)) == target
