import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.data.dataset import EncodedPairs
from dragoman.data.preparation import write_id_rows

ids = st.lists(st.integers(0, 2**31 - 1), max_size=9)
chunks = st.lists(st.lists(st.tuples(ids, ids), min_size=1, max_size=6), max_size=4)


def write(path, chunks):
    batches = [(*map(list, zip(*chunk, strict=True)), [0] * len(chunk)) for chunk in chunks]
    write_id_rows(path, batches)
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


def test_source_ids_are_counted_over_all_chunks(tmp_path):
    batches = [([[3, 4, 3], []], [[5], [5]], [0, 0]), ([[4]], [[6]], [0])]
    write_id_rows(tmp_path / "ids.arrow", batches)
    counts = EncodedPairs(tmp_path / "ids.arrow").count_source_ids(8)
    assert counts.tolist() == [0, 0, 0, 2, 2, 0, 0, 0]
