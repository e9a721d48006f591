import numpy as np
import pytest

from dragoman.data.dataset import Batch, EncodedPairs, IdsWriter, SubwordDropout
from dragoman.data.sampler import TrainingLoader
from dragoman.errors import SettingsError
from dragoman.reading.pairs import Pair
from dragoman.settings import TokenizerSettings
from dragoman.tokenizers.tokenizer import PairTokenizer
from dragoman.training.datamodule import PairDataModule

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
    return Batch.from_lists(sources, tokenizer.encode_targets([text[::-1] for text in TEXTS]))


def make_dropout(tokenizer, probability):
    source, target = (
        np.array([side.find_parts().get(i, (0, 0)) for i in range(side.vocab_size)])
        for side in (tokenizer.source, tokenizer.target)
    )
    return SubwordDropout(source_parts=source, target_parts=target, probability=probability)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.999])
def test_split_subwords_spell_the_same_text_with_more_tokens(tokenizer, batch, probability):
    found = make_dropout(tokenizer, probability).apply(batch, np.random.default_rng(1))
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
        found = dropout.apply(batch, np.random.default_rng(1)).source_ids
        expected = sum(expect(id_, probability) for id_ in ids)
        assert int((found != 0).sum()) == pytest.approx(expected, rel=0.05)


def test_a_loader_that_resumes_splits_as_it_would_have(tokenizer, batch, tmp_path):
    with IdsWriter(tmp_path / "x.arrow") as writer:
        rows = [
            [[i for i in row if i] for row in ids.tolist()]
            for ids in (batch.source_ids, batch.target_ids)
        ]
        writer.write(*rows)

    def make_loader():
        dropout = make_dropout(tokenizer, 0.2)
        pairs = EncodedPairs(tmp_path / "x.arrow")
        return TrainingLoader(pairs, 200, seed=1, subword_dropout=dropout)

    def take(loader):
        return [batch.source_ids.tolist() for batch in loader]

    whole = make_loader()
    first, second = take(whole), take(whole)
    assert first != second
    resumed = make_loader()
    resumed.load_state_dict({**make_loader().state_dict(), "epoch": 1, "num_consumed": 2})
    assert take(resumed) == second[2:]


def test_subword_dropout_without_subwords_is_refused():
    rows = [(text, text) for text in TEXTS]
    settings = {"tokenizer.source.kind": "characters", "tokenizer.target.kind": "characters"}
    data = PairDataModule(rows, {**settings, "optimization.subword_dropout": 0.1})
    data.prepare_data()
    with pytest.raises(SettingsError, match="no side has them"):
        data.train_dataloader()
