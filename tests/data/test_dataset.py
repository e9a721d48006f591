import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.data.dataset import EncodedPairs, IdsWriter, encode_splits
from dragoman.errors import DataError
from dragoman.reading.pairs import Pair
from dragoman.settings import DataSettings, SideSettings, TokenizerSettings
from dragoman.tokenizers.tokenizer import PairTokenizer

ids = st.lists(st.integers(0, 2**31 - 1), max_size=9)
chunks = st.lists(st.lists(st.tuples(ids, ids), min_size=1, max_size=6), max_size=4)


def write(path, chunks):
    with IdsWriter(path) as writer:
        for chunk in chunks:
            writer.write([s for s, _ in chunk], [t for _, t in chunk])
    return EncodedPairs(path)


@settings(max_examples=60, deadline=None)
@given(chunks=chunks, data=st.data())
def test_any_rows_are_gathered_as_they_were_written(tmp_path_factory, chunks, data):
    pairs = write(tmp_path_factory.mktemp("ids") / "x.arrow", chunks)
    rows = [row for chunk in chunks for row in chunk]
    assert len(pairs) == len(rows)
    if not rows:
        return
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
    batch = pairs.gather(np.array(wanted))
    for i, row in enumerate(wanted):
        for side, found in zip(rows[row], (batch.source_ids[i], batch.target_ids[i]), strict=True):
            assert found[: len(side)].tolist() == side
            assert (found[len(side) :] == 0).all()
    assert pairs.source_lengths[wanted].tolist() == [len(rows[row][0]) for row in wanted]


def test_another_process_opens_the_same_rows(tmp_path):
    pairs = write(tmp_path / "x.arrow", [[([5, 6], [1, 7, 2])], [([8], [1, 2])]])
    again = pickle.loads(pickle.dumps(pairs))
    rows = np.array([1, 0])
    assert again.gather(rows).source_ids.tolist() == pairs.gather(rows).source_ids.tolist()


def test_a_file_that_was_not_finished_does_not_appear(tmp_path):
    with pytest.raises(ZeroDivisionError), IdsWriter(tmp_path / "x.arrow") as writer:
        writer.write([[1]], [[2]])
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_source_ids_are_counted_over_all_chunks(tmp_path):
    with IdsWriter(tmp_path / "ids.arrow") as writer:
        writer.write([[3, 4, 3], []], [[5], [5]])
        writer.write([[4]], [[6]])
    counts = EncodedPairs(tmp_path / "ids.arrow").count_source_ids(8)
    assert counts.tolist() == [0, 0, 0, 2, 2, 0, 0, 0]


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


def id_files(folder):
    return {split: folder / f"{split}.arrow" for split in ("train", "valid")}


def test_each_split_has_the_ids_of_its_pairs(tokenizer, tmp_path):
    counts, long_rows, unknown = encode_splits(PAIRS, tokenizer, id_files(tmp_path), DataSettings())
    assert counts == {"train": 2, "valid": 1}
    assert long_rows.total == unknown.total == 0
    batch = EncodedPairs(tmp_path / "train.arrow").gather(np.array([0]))
    assert batch.source_ids.tolist() == tokenizer.encode_sources(["ab"], [("<V>",)])
    assert batch.target_ids.tolist() == tokenizer.encode_targets(["AB"])


def test_long_rows_are_skipped_and_counted_with_long_rows_skip(tokenizer, tmp_path):
    settings = DataSettings(max_tokens=5, long_rows="skip")
    counts, long_rows, _ = encode_splits(PAIRS, tokenizer, id_files(tmp_path), settings)
    assert counts == {"train": 1, "valid": 1}
    assert "x.tsv:3: 9 tokens, over data.max_tokens 5" in long_rows.report()


def test_long_rows_stop_the_run_by_default_and_leave_no_file(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"x\.tsv:3: 9 tokens"):
        encode_splits(PAIRS, tokenizer, id_files(tmp_path), DataSettings(max_tokens=5))
    assert list(tmp_path.iterdir()) == []
