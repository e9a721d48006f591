import numpy as np
import pytest

from dragoman.data.dataset import EncodedPairs
from dragoman.data.encoding import encode_splits
from dragoman.errors import DataError
from dragoman.reading.pairs import Pair
from dragoman.settings import DataSettings, SideSettings, TokenizerSettings
from dragoman.tokenizers.pair_tokenizer import PairTokenizer

PAIRS = [
    ("train", Pair("ab", "AB", ("<V>",), 1, "x.tsv")),
    ("valid", Pair("b", "B", (), 2, "x.tsv")),
    ("train", Pair("abababab", "AB", (), 3, "x.tsv")),
]


@pytest.fixture
def tokenizer():
    side = SideSettings(kind="characters")
    settings = TokenizerSettings(source=side, target=side)
    return PairTokenizer.train([pair for _, pair in PAIRS], settings)


def files(folder):
    return {split: folder / f"{split}.arrow" for split in ("train", "valid")}


def test_each_split_has_the_ids_of_its_pairs(tokenizer, tmp_path):
    counts, faults = encode_splits(PAIRS, tokenizer, files(tmp_path), DataSettings())
    assert counts == {"train": 2, "valid": 1}
    assert faults.total == 0
    batch = EncodedPairs(tmp_path / "train.arrow").gather(np.array([0]))
    assert batch.source_ids.tolist() == tokenizer.encode_sources(["ab"], [("<V>",)])
    assert batch.target_ids.tolist() == tokenizer.encode_targets(["AB"])


def test_long_rows_are_counted_and_left_out_when_asked(tokenizer, tmp_path):
    settings = DataSettings(max_tokens=5, long_rows="skip")
    counts, faults = encode_splits(PAIRS, tokenizer, files(tmp_path), settings)
    assert counts == {"train": 1, "valid": 1}
    assert "x.tsv:3: 9 tokens, over data.max_tokens 5" in faults.report()


def test_long_rows_stop_the_run_by_default_and_leave_no_file(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"x\.tsv:3: 9 tokens"):
        encode_splits(PAIRS, tokenizer, files(tmp_path), DataSettings(max_tokens=5))
    assert list(tmp_path.iterdir()) == []
