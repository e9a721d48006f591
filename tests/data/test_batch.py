import torch

from dragoman.data.dataset import Batch, pad


def test_rows_are_padded_on_the_right_to_the_longest():
    assert pad([[5, 6, 7], [8], []]).tolist() == [[5, 6, 7], [8, 0, 0], [0, 0, 0]]
    assert pad([[5], [6, 7]], pad_id=9).tolist() == [[5, 9], [6, 7]]


def test_no_rows_make_an_empty_batch():
    assert pad([]).shape == (0, 0)


def test_a_batch_moves_as_a_whole():
    batch = Batch(source_ids=pad([[5, 6]]), target_ids=pad([[1, 7, 2]])).to("meta")
    assert batch.source_ids.device.type == batch.target_ids.device.type == "meta"
    assert batch.source_ids.dtype == torch.int64
