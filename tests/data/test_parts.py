import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dragoman.data.batch import Batch
from dragoman.data.parts import choose_part_tokens, cut_batch, cut_by_budget

rows = st.lists(st.tuples(st.integers(0, 30), st.integers(2, 30)), min_size=1, max_size=40)


@given(rows=rows, most_tokens=st.integers(1, 200))
def test_every_row_is_in_one_piece_and_only_a_row_alone_is_over_the_budget(rows, most_tokens):
    source, target = np.array(rows).T
    pieces = cut_by_budget(source, target, most_tokens)
    assert sorted(np.concatenate(pieces).tolist()) == list(range(len(rows)))
    for piece in pieces:
        cost = len(piece) * max(source[piece].max(), target[piece].max())
        assert cost <= most_tokens or len(piece) == 1


@given(rows=rows, part_tokens=st.none() | st.integers(1, 200), extra=st.integers(0, 5))
def test_parts_hold_the_rows_of_the_batch_without_the_padding_of_longer_rows(
    rows, part_tokens, extra
):
    sources = [[7] * source for source, _ in rows]
    targets = [[1, *[5] * (target - 2), 2] for _, target in rows]
    batch = Batch.from_lists(sources, targets)
    wide = Batch(
        source_ids=torch.nn.functional.pad(batch.source_ids, (0, extra + 1)),
        target_ids=torch.nn.functional.pad(batch.target_ids, (0, extra)),
    )
    parts = cut_batch(wide, part_tokens, num_threads=3)
    found = [
        ([i for i in source if i], [i for i in target if i])
        for part in parts
        for source, target in zip(part.source_ids.tolist(), part.target_ids.tolist(), strict=True)
    ]
    assert sorted(found) == sorted(zip(sources, targets, strict=True))
    for part in parts:
        assert part.source_ids.shape[1] == max(1, (part.source_ids != 0).sum(1).max())
        assert part.target_ids.shape[1] == (part.target_ids != 0).sum(1).max()


def test_sentences_of_all_lengths_are_cut_with_hardly_any_padding_on_either_side():
    random = np.random.Generator(np.random.PCG64(1))
    source = random.poisson(15, 20_000) + 1
    target = (source * random.lognormal(0, 0.2, 20_000)).astype(int) + 2
    pieces = cut_by_budget(source, target, 1024)
    for side in (source, target):
        places = sum(len(piece) * side[piece].max() for piece in pieces)
        assert side.sum() / places > 0.97


def test_there_is_a_part_for_each_thread_between_the_smallest_and_the_largest():
    assert choose_part_tokens(2048, 2) == 1024
    assert choose_part_tokens(1024, 2) == 512
    assert choose_part_tokens(8192, 2) == 1024
    assert choose_part_tokens(2048, 64) == 256
