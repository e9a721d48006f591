import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import random_ids
from dragoman.decoding.length import limit_lengths
from dragoman.decoding.plan import SearchPlan
from dragoman.decoding.search import search
from dragoman.settings import DecodingSettings
from networks import join, make_network, make_sources, score_plainly


def search_greedily(network, source_ids, limit=20, **values):
    decoding = DecodingSettings(max_length_ratio=0.0, max_length_extra=limit, **values)
    return [best[0] for best in search([network], source_ids, SearchPlan(decoding=decoding))]


def search_plainly(network, source, limit):
    """The whole decoder again at each step, one row at a time: what the search must equal."""
    ids, score = [], 0.0
    for _ in range(limit):
        log_probs = score_plainly(network, source, ids)
        best, chosen = log_probs.max(-1)
        score += best.item()
        if chosen == network.eos_id:
            return tuple(ids), score, True
        ids.append(chosen.item())
    return tuple(ids), score, False


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    extra=st.integers(0, 5),
    limit=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_a_hypothesis_depends_on_its_source_alone(lengths, extra, limit, seed):
    network, sources = make_network(seed), make_sources(lengths, seed)
    found = search_greedily(network, join(sources, extra), limit)
    for hypothesis, source in zip(found, sources, strict=True):
        ids, score, is_complete = search_plainly(network, source, limit)
        assert hypothesis.ids == ids
        assert hypothesis.is_complete == is_complete
        assert abs(hypothesis.score - score) < 1e-3


def test_the_searches_above_end_in_both_ways():
    found = [
        h.is_complete
        for seed in range(10)
        for h in search_greedily(make_network(seed), random_ids(8, 5, 20, seed=seed), 12)
    ]
    assert {True, False} == set(found)


def test_the_mode_of_the_model_is_kept_and_dropout_is_off():
    network = make_network().train()
    source = random_ids(3, 5, 20)
    assert search_greedily(network, source) == search_greedily(network, source)
    assert network.training


def test_no_sources_have_no_hypotheses():
    assert search_greedily(make_network(), torch.zeros(0, 4, dtype=torch.long)) == []


def test_limits_depend_on_the_tokens_of_the_row_alone():
    decoding = DecodingSettings(max_length_ratio=2.0, max_length_extra=50, min_length_ratio=0.5)
    assert limit_lengths([10, 16, 17, 0], decoding) == [(5, 82), (8, 82), (8, 114), (0, 50)]


def test_each_row_has_a_limit_of_its_own():
    network = make_network(1)
    sources = make_sources([3, 20, 40], 1)
    decoding = DecodingSettings(max_length_ratio=0.25, max_length_extra=1, min_length=99)
    found = search([network], join(sources), SearchPlan(decoding=decoding))
    for [best], limit in zip(found, [5, 9, 13], strict=True):  # the shortest gives way to it
        assert len(best.ids) == (limit - 1 if best.is_complete else limit)
