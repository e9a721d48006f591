import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.data import sampler
from dragoman.data.dataset import Batch, EncodedPairs, pad
from dragoman.data.preparation import write_id_rows
from dragoman.data.sampler import (
    EvaluationLoader,
    TrainingLoader,
    choose_micro_batch_tokens,
    cut_batch,
    cut_by_budget,
    plan_batches,
    take_share,
)

lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=80)


def make_pairs(folder, lengths) -> EncodedPairs:
    """Row i holds the id i, as often as it is long."""
    sources = [[i + 3] * s for i, (s, _) in enumerate(lengths)]
    targets = [[i + 3] * t for i, (_, t) in enumerate(lengths)]
    write_id_rows(folder / "x.arrow", [(sources, targets, [0] * len(lengths))])
    return EncodedPairs(folder / "x.arrow")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    random = np.random.default_rng(0)
    return make_pairs(tmp_path_factory.mktemp("ids"), random.integers(1, 40, (300, 2)).tolist())


@pytest.fixture(scope="class")
def small_blocks():
    """Several blocks and pools, of few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "POOL_ROWS", 64)
        patch.setattr(sampler, "_BLOCK_ROWS", 16)
        yield


def rows_of(batches):
    return [tuple(batch.source_ids[:, 0].tolist()) for batch in batches]


@settings(max_examples=60, deadline=None)
@given(lengths=lengths, budget=st.integers(1, 200), seed=st.integers(0, 5))
def test_a_plan_holds_every_row_within_the_budget(tmp_path_factory, lengths, budget, seed):
    pairs = make_pairs(tmp_path_factory.mktemp("ids"), lengths)
    plan = plan_batches(pairs, budget, seed=seed, epoch=0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(lengths)))
    for batch in plan:
        longest = max(max(lengths[row]) for row in batch)
        assert longest * len(batch) <= budget or len(batch) == 1


def test_the_same_seed_and_epoch_give_the_same_plan_and_others_another(pairs):
    def plan(seed, epoch):
        return [tuple(b) for b in plan_batches(pairs, 200, seed=seed, epoch=epoch)]

    assert plan(1, 0) == plan(1, 0)
    assert plan(1, 0) != plan(1, 1)
    assert plan(1, 0) != plan(2, 0)


def test_a_plan_is_the_same_on_every_machine(tmp_path):
    pairs = make_pairs(tmp_path, [(i % 3 + 1, 1) for i in range(10)])
    found = [batch.tolist() for batch in plan_batches(pairs, 6, seed=7, epoch=1)]
    assert found == [[7, 1, 4], [8, 2], [9, 0, 6, 3], [5]]


def test_batches_are_of_like_lengths(pairs):
    plan = plan_batches(pairs, 400, seed=1, epoch=0)
    longest = np.maximum(pairs.source_lengths, pairs.target_lengths)
    padded = sum(longest[b].max() * len(b) for b in plan)
    assert longest.sum() / padded > 0.9  # batches of random rows: 0.72 here


def test_a_batch_has_rows_of_many_lengths_and_is_cut_into_its_micro_batches_again(pairs):
    plan = plan_batches(pairs, 400, micro_batch_tokens=100, seed=1, epoch=0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(300))
    source, target = pairs.source_lengths, pairs.target_lengths
    longest = np.maximum(source, target)
    padded = 0
    for rows in plan:
        parts = [rows[piece] for piece in cut_by_budget(source[rows], target[rows], 100)]
        assert len(parts) <= 4
        padded += sum(longest[part].max() * len(part) for part in parts)
    assert longest.sum() / padded > 0.9
    of_one_length = plan_batches(pairs, 400, seed=1, epoch=0)
    spreads = [np.mean([np.ptp(longest[b]) for b in batches]) for batches in (plan, of_one_length)]
    assert spreads[0] > 3 * spreads[1]


def test_a_plan_of_rare_rows_has_empty_pools(pairs, small_blocks):
    plan = plan_batches(pairs, 100, seed=1, epoch=0, weights=[(300, 0.01)])
    assert len(plan) <= len(plan.rows) == 3
    assert len(plan_batches(pairs, 100, seed=1, epoch=0, weights=[(300, 0.001)])) == 0


def test_many_pools_hold_every_row_once(pairs, small_blocks):
    plan = plan_batches(pairs, 100, seed=1, epoch=0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(300))


@settings(max_examples=60, deadline=None)
@given(
    spans=st.lists(
        st.tuples(st.integers(0, 40), st.floats(0.01, 4.0) | st.sampled_from([1.0, 2.0, 0.5])),
        min_size=1, max_size=4,
    ),
    num_epochs=st.integers(1, 12),
)  # fmt: skip
def test_rows_are_drawn_by_their_weights(pairs, small_blocks, spans, num_epochs):
    spans = [*spans, (300 - sum(num_rows for num_rows, _ in spans), 1.0)]
    weights = np.repeat([weight for _, weight in spans], [num_rows for num_rows, _ in spans])
    drawn = np.zeros(300)
    for epoch in range(num_epochs):
        plan = plan_batches(pairs, 100, seed=1, epoch=epoch, weights=spans)
        of_epoch = np.bincount(np.concatenate(plan), minlength=300)
        drawn += of_epoch
        assert (abs(of_epoch - weights) < 1).all()  # exact for whole numbers
    assert (abs(drawn - num_epochs * weights) < 1).all()
    start = 0
    for num_rows, weight in spans:  # of all rows of a file, nearly the wanted number
        found, wanted = drawn[start : start + num_rows].sum(), num_epochs * num_rows * weight
        assert abs(found - wanted) < 3
        start += num_rows


def test_weights_of_one_change_no_plan(pairs):
    def plan(weights):
        return [*map(tuple, plan_batches(pairs, 200, seed=1, epoch=3, weights=weights))]

    assert plan([(300, 1.0)]) == plan(())


@settings(max_examples=60, deadline=None)
@given(longer=st.lists(st.integers(1, 40), min_size=1, max_size=60), ranks=st.integers(1, 5))
def test_each_row_of_a_batch_goes_to_one_rank_and_all_have_as_much_to_do(longer, ranks):
    rows, lengths = 7 + np.arange(len(longer)), np.array(longer)
    shares = [take_share(rows, lengths, rank, ranks) for rank in range(ranks)]
    assert sorted(np.concatenate(shares).tolist()) == rows.tolist()
    tokens = [int(lengths[share - 7].sum()) for share in shares]
    assert max(tokens) - min(tokens) <= 2 * max(longer)


@pytest.mark.parametrize("weights", [(), [(40, 2.5), (260, 0.3)]])
@pytest.mark.parametrize("ranks", [2, 3, 50])
def test_a_step_has_the_same_rows_over_any_number_of_ranks(pairs, ranks, weights):
    def load(rank, num_ranks):
        return TrainingLoader(pairs, 200, seed=1, rank=rank, num_ranks=num_ranks, weights=weights)

    alone = [sorted(batch.rows.tolist()) for batch in load(0, 1)]
    loaders = [load(rank, ranks) for rank in range(ranks)]
    shared = zip(*loaders, strict=True)
    of_all = [
        sorted(row for one in step if one.rows is not None for row in one.rows.tolist())
        for step in shared
    ]
    assert of_all == alone


@pytest.mark.parametrize("accumulate", [7, 50])
def test_the_last_step_of_an_epoch_is_filled_with_its_first_batches(pairs, accumulate):
    epoch = rows_of(TrainingLoader(pairs, 400, seed=3))
    loader = TrainingLoader(pairs, 400, seed=3, accumulate=accumulate)
    batches = rows_of(loader)
    assert len(epoch) % accumulate
    assert len(loader) == len(batches) == -(-len(epoch) // accumulate) * accumulate
    assert batches == (epoch * 50)[: len(batches)]


@settings(max_examples=30, deadline=None)
@given(
    consumed=st.integers(0, 60),
    weights=st.sampled_from([(), [(40, 2.5), (260, 0.3)]]),
    accumulate=st.sampled_from([1, 7, 50]),
)
def test_a_loader_continues_where_another_stopped(pairs, consumed, weights, accumulate):
    given = {"weights": weights, "accumulate": accumulate}
    whole = TrainingLoader(pairs, 400, micro_batch_tokens=100, seed=3, **given)
    sequence = rows_of(itertools.chain(*[whole] * 8))
    first = TrainingLoader(pairs, 400, micro_batch_tokens=100, seed=3, **given)
    second = TrainingLoader(pairs, 400, seed=99, **given)  # as on a machine that wants other parts
    endless = itertools.chain.from_iterable(itertools.repeat(first))
    before = rows_of(itertools.islice(endless, consumed))
    second.load_state_dict(first.state_dict())
    after = rows_of(itertools.islice(itertools.chain.from_iterable(itertools.repeat(second)), 10))
    assert before + after == sequence[: consumed + 10]
    assert all(type(value) is int for value in first.state_dict().values())


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_an_evaluation_counts_every_row_once_over_all_ranks(pairs, ranks):
    loaders = [EvaluationLoader(pairs, 333, seed=1, rank=r, num_ranks=ranks) for r in range(ranks)]
    batches = [list(loader) for loader in loaders]
    assert {len(b) for b in batches} == {len(loaders[0])}
    seen = [
        int(row[0])
        for batch in itertools.chain.from_iterable(batches)
        for row in batch.target_ids
        if row.any()
    ]
    assert sorted(seen) == [i + 3 for i in range(300)]
    assert rows_of(loaders[0]) == rows_of(loaders[0])


rows = st.lists(st.tuples(st.integers(0, 30), st.integers(2, 30)), min_size=1, max_size=40)


@given(rows=rows, most_tokens=st.integers(1, 200))
def test_every_row_is_in_one_micro_batch_and_only_a_row_alone_is_over_the_budget(rows, most_tokens):
    source, target = np.array(rows).T
    pieces = cut_by_budget(source, target, most_tokens)
    assert sorted(np.concatenate(pieces).tolist()) == list(range(len(rows)))
    longest = [max(source[piece].max(), target[piece].max()) for piece in pieces]
    for i, piece in enumerate(pieces):
        assert len(piece) * longest[i] <= most_tokens or len(piece) == 1
        if i + 1 < len(pieces):  # not even one more row fits, or they are empty
            [next_] = pieces[i + 1][:1]
            longer = max(source[next_], target[next_], 1)
            assert (len(piece) + 1) * longer > most_tokens


@given(rows=rows, micro_batch_tokens=st.none() | st.integers(1, 200), extra=st.integers(0, 5))
def test_micro_batches_hold_the_rows_of_the_batch_without_the_padding_of_longer_rows(
    rows, micro_batch_tokens, extra
):
    sources = [[7] * source for source, _ in rows]
    targets = [[1, *[5] * (target - 2), 2] for _, target in rows]
    batch = Batch(source_ids=pad(sources), target_ids=pad(targets))
    wide = Batch(
        source_ids=torch.nn.functional.pad(batch.source_ids, (0, extra + 1)),
        target_ids=torch.nn.functional.pad(batch.target_ids, (0, extra)),
    )
    micro_batches = cut_batch(wide, micro_batch_tokens, num_threads=3)
    found = [
        ([i for i in source if i], [i for i in target if i])
        for micro_batch in micro_batches
        for source, target in zip(
            micro_batch.source_ids.tolist(), micro_batch.target_ids.tolist(), strict=True
        )
    ]
    assert sorted(found) == sorted(zip(sources, targets, strict=True))
    for micro_batch in micro_batches:
        assert micro_batch.source_ids.shape[1] == max(1, (micro_batch.source_ids != 0).sum(1).max())
        assert micro_batch.target_ids.shape[1] == (micro_batch.target_ids != 0).sum(1).max()


def test_micro_batches_of_all_lengths_have_little_padding_on_either_side():
    random = np.random.Generator(np.random.PCG64(1))
    source = random.poisson(15, 20_000) + 1
    target = (source * random.lognormal(0, 0.2, 20_000)).astype(int) + 2
    pieces = cut_by_budget(source, target, 1024)
    for side in (source, target):
        places = sum(len(piece) * side[piece].max() for piece in pieces)
        assert side.sum() / places > 0.97


def test_each_thread_has_a_micro_batch_between_the_smallest_and_the_largest():
    assert choose_micro_batch_tokens(2048, 2) == 1024
    assert choose_micro_batch_tokens(1024, 2) == 512
    assert choose_micro_batch_tokens(8192, 2) == 1024
    assert choose_micro_batch_tokens(2048, 64) == 256
