import torch
from hypothesis import given
from hypothesis import strategies as st

from dragoman.decoding.rules import allow_prefix, delay_end, forbid, forbid_repeats


def test_forbidden_tokens_have_no_logit():
    logits = torch.zeros(2, 4)
    assert forbid(logits, [1, 3]).isneginf().tolist() == [[False, True, False, True]] * 2
    assert not logits.isneginf().any()  # the caller's own is left alone


def test_the_end_is_masked_in_rows_that_are_too_short():
    delayed = delay_end(torch.zeros(2, 3), 2, torch.tensor([True, False]))
    assert delayed.isneginf().tolist() == [[False, False, True], [False, False, False]]


@given(
    rows=st.integers(1, 12).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=3)
    ),
    size=st.integers(1, 4),
)  # fmt: skip
def test_exactly_the_repeats_are_masked(rows, size):
    found = forbid_repeats(torch.zeros(len(rows), 4), torch.tensor(rows), size).isneginf()
    for row, forbidden in zip(rows, found.tolist(), strict=True):
        grams = {tuple(row[i : i + size]) for i in range(len(row) - size + 1)}
        last = row[len(row) - size + 1 :] if size <= len(row) else None
        for token in range(4):
            is_repeat = last is not None and (*last, token) in grams
            assert forbidden[token] == is_repeat


def test_a_prefix_keeps_its_probability_and_masks_the_others():
    log_probs = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    masked = allow_prefix(log_probs, torch.tensor([0, -1]))
    assert masked[0].isneginf().tolist() == [False, True]
    torch.testing.assert_close(masked[:, 0], log_probs[:, 0])
    torch.testing.assert_close(masked[1], log_probs[1])
