from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from dragoman.data.augmentation import make_augmentations, split_subwords
from dragoman.data.dataset import Batch, EncodedPairs, pad
from dragoman.data.preparation import write_id_rows
from dragoman.data.sampler import TrainingLoader
from dragoman.errors import SettingsError
from dragoman.reading.pairs import Pair
from dragoman.settings import OptimizationSettings, TokenizerSettings
from dragoman.tokenizers.tokenizer import PairTokenizer

WORDS = [
    "the",
    "reader",
    "reads",
    "what",
    "the",
    "writer",
    "rewrites",
    "while",
    "the",
    "rider",
    "rides",
]
TEXTS = [" ".join(np.random.default_rng(i).permutation(WORDS)) for i in range(40)]
BPE = {"kind": "bpe", "vocab_size": 300}


@pytest.fixture(scope="module")
def tokenizer():
    pairs = [Pair(text, text[::-1], (), i + 1, "x.tsv") for i, text in enumerate(TEXTS)]
    return PairTokenizer.train(pairs, TokenizerSettings(source=BPE, target=BPE))


@pytest.fixture(scope="module")
def batch(tokenizer):
    sources = tokenizer.encode_sources(TEXTS, [()] * len(TEXTS))
    return Batch(
        source_ids=pad(sources),
        target_ids=pad(tokenizer.encode_targets([text[::-1] for text in TEXTS])),
    )


def make_dropout(tokenizer, probability):
    source, target = (
        np.array([side.find_parts().get(i, (0, 0)) for i in range(side.vocab_size)])
        for side in (tokenizer.source, tokenizer.target)
    )
    return partial(
        split_subwords, source_parts=source, target_parts=target, probability=probability
    )


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.999])
def test_split_subwords_spell_the_same_text_with_more_tokens(tokenizer, batch, probability):
    found = make_dropout(tokenizer, probability)(batch, np.random.default_rng(1))
    for ids, text in zip(found.target_ids.tolist(), TEXTS, strict=True):
        assert ids[0] == 1
        assert tokenizer.decode_target([i for i in ids if i > 2]) == text[::-1]
    for ids, text in zip(found.source_ids.tolist(), TEXTS, strict=True):
        assert tokenizer.source.decode([i for i in ids if i > 2]) == text
    assert (found.source_ids != 0).sum() > (batch.source_ids != 0).sum()


def test_subwords_are_split_with_their_probability(tokenizer, batch):
    parts = tokenizer.source.find_parts()

    def expect(id_, probability):  # the mean number of tokens that it becomes
        if id_ not in parts:
            return 1.0
        split = sum(expect(part, probability) for part in parts[id_])
        return 1.0 - probability + probability * split

    ids = batch.source_ids[batch.source_ids != 0].tolist()
    for probability in (0.001, 0.3, 1.0):
        dropout = make_dropout(tokenizer, probability)
        found = dropout(batch, np.random.default_rng(1)).source_ids
        expected = sum(expect(id_, probability) for id_ in ids)
        assert int((found != 0).sum()) == pytest.approx(expected, rel=0.05)


def test_a_loader_that_resumes_splits_as_it_would_have(tokenizer, batch, tmp_path):
    sources, targets = (
        [[i for i in row if i] for row in ids.tolist()]
        for ids in (batch.source_ids, batch.target_ids)
    )
    write_id_rows(tmp_path / "x.arrow", [(sources, targets, [0] * len(sources))])

    def make_loader():
        dropout = make_dropout(tokenizer, 0.2)
        pairs = EncodedPairs(tmp_path / "x.arrow")
        return TrainingLoader(pairs, 200, seed=1, augmentations=[dropout])

    def take(loader):
        return [batch.source_ids.tolist() for batch in loader]

    whole = make_loader()
    first, second = take(whole), take(whole)
    assert first != second
    resumed = make_loader()
    resumed.load_state_dict({**make_loader().state_dict(), "epoch": 1, "num_consumed": 2})
    assert take(resumed) == second[2:]


def test_subword_dropout_without_subwords_is_refused(inflection):
    with pytest.raises(SettingsError, match="no side has them"):
        make_augmentations(OptimizationSettings(subword_dropout=0.1), inflection)


INFLECTED = [
    ("walk", "walked"), ("kitap", "kitaplar"), ("gehen", "gegangen"), ("ev", "evler"), ("x-ray", "x-rays"), ("go", "went"),
]  # fmt: skip


@pytest.fixture(scope="module")
def inflection():
    pairs = [Pair(source, target, ("V",), 1, "x.tsv") for source, target in INFLECTED]
    characters = {"kind": "characters"}
    settings = TokenizerSettings(source=characters, target=characters, shared=True)
    return PairTokenizer.train(pairs, settings)


def encode(tokenizer, pairs):
    sources, targets = zip(*pairs, strict=True)
    ids = tokenizer.encode_sources(sources, [("V",)] * len(pairs))
    return Batch(source_ids=pad(ids), target_ids=pad(tokenizer.encode_targets(targets)))


@pytest.mark.parametrize("seed", range(20))
def test_a_hallucinated_stem_is_the_same_on_both_sides_and_keeps_its_last_letter(inflection, seed):
    batch = encode(inflection, INFLECTED)
    [augment] = make_augmentations(OptimizationSettings(hallucination=0.999), inflection)
    found = augment(batch, np.random.default_rng(seed))
    texts = [
        (
            inflection.source.decode([i for i in source if i < inflection.source.vocab_size]),
            inflection.decode_target(target),
        )
        for source, target in zip(found.source_ids.tolist(), found.target_ids.tolist(), strict=True)
    ]
    assert torch.equal(found.source_ids[:, :1], batch.source_ids[:, :1])  # the feature
    walk, kitap, gehen, ev, ray, go = texts
    assert (walk[0] + "ed", walk[0][3]) == (walk[1], "k")
    assert (kitap[0] + "lar", kitap[0][4]) == (kitap[1], "p")
    assert gehen == INFLECTED[2]  # ge and en are shorter than a stem
    assert ev == INFLECTED[3]
    assert go == INFLECTED[5]
    assert (ray[0] + "s", ray[0][1], ray[0][4]) == (ray[1], "-", "y")


def test_hallucination_replaces_half_the_letters_of_the_pairs_that_it_chooses(inflection):
    batch = encode(inflection, [("kitap", "kitaplar")] * 4000)
    [augment] = make_augmentations(OptimizationSettings(hallucination=0.3), inflection)
    found = augment(batch, np.random.default_rng(1))
    changed = (found.source_ids != batch.source_ids)[:, 1:5].float()
    assert changed.any(dim=1).float().mean() == pytest.approx(0.3 * (1 - 0.5**4), abs=0.05)
    # A letter may be replaced by itself.
    assert 0.09 < changed.mean() < 0.3 * 0.5


@pytest.mark.parametrize("seed", range(5))
def test_padding_changes_no_hallucinated_stem(inflection, seed):
    [augment] = make_augmentations(OptimizationSettings(hallucination=0.999), inflection)
    batch = encode(inflection, INFLECTED)
    padded = Batch(
        source_ids=functional.pad(batch.source_ids, (0, 20)),
        target_ids=functional.pad(batch.target_ids, (0, 20)),
    )
    found, expected = (augment(one, np.random.default_rng(seed)) for one in (padded, batch))
    assert not torch.equal(expected.source_ids, batch.source_ids)
    for side in ("source_ids", "target_ids"):
        padding = getattr(padded, side).shape[1] - getattr(batch, side).shape[1]
        assert torch.equal(
            getattr(found, side), functional.pad(getattr(expected, side), (0, padding))
        )


def test_hallucination_without_a_vocabulary_of_shared_characters_is_refused(tokenizer):
    with pytest.raises(SettingsError, match="one vocabulary of characters"):
        make_augmentations(OptimizationSettings(hallucination=0.5), tokenizer)
