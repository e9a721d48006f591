from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import EOS, random_ids
from dragoman.decoding.hypothesis import limit_lengths
from dragoman.decoding.search import _draw, keep_top_k, keep_top_p, pick, search
from dragoman.decoding.search_config import SearchConfig
from dragoman.settings import DecodingSettings
from networks import join, make_network, make_sources, score_plainly


def search_greedily(network, source_ids, limit=20, **values):
    decoding = DecodingSettings(max_length_ratio=0.0, max_length_extra=limit, **values)
    return [best[0] for best in search([network], source_ids, SearchConfig(decoding=decoding))]


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


def test_no_limit_is_above_the_maximum_length_or_the_learned_positions():
    decoding = DecodingSettings(max_length=60)
    assert [limit.longest for limit in limit_lengths([1, 900], decoding)] == [60, 60]
    assert [limit.longest for limit in limit_lengths([1, 900], decoding, 40)] == [40, 40]


def test_each_row_has_its_own_limit():
    network = make_network(1)
    sources = make_sources([3, 20, 40], 1)
    decoding = DecodingSettings(max_length_ratio=0.25, max_length_extra=1, min_length=99)
    found = search([network], join(sources), SearchConfig(decoding=decoding))
    for [best], limit in zip(found, [5, 9, 13], strict=True):  # the shortest gives way to it
        assert len(best.ids) == (limit - 1 if best.is_complete else limit)


def draw(network, source, count, limit=1, **values):
    decoding = DecodingSettings(
        method="sampling", num_samples=count, num_hypotheses=count, max_length_ratio=0.0,
        max_length_extra=limit, **values,
    )  # fmt: skip
    return search([network], source, SearchConfig(decoding=decoding))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_are_as_frequent_as_they_are_probable(temperature):
    network, source = make_network(4), random_ids(1, 5, 20, seed=4)
    log_probs = score_plainly(network, source, [])
    expected = torch.softmax(log_probs / temperature, dim=0)
    [found] = draw(network, source, 4000, temperature=temperature)
    counts = Counter((h.ids or (EOS,))[0] for h in found)
    for token, probability in enumerate(expected.tolist()):
        deviation = (4000 * probability * (1 - probability)) ** 0.5
        assert abs(counts[token] - 4000 * probability) <= 5 * deviation + 1e-6
    for hypothesis in found[:20]:  # scores are the model's, whatever the temperature
        token = (hypothesis.ids or (EOS,))[0]
        assert hypothesis.score == pytest.approx(log_probs[token].item(), abs=1e-4)


def test_the_seed_chooses_the_samples():
    network, source = make_network(), random_ids(2, 5, 20)
    one, again = draw(network, source, 8, 9), draw(network, source, 8, 9)
    other = draw(network, source, 8, 9, seed=2)
    assert one == again
    assert one != other
    assert len({h.ids for h in one[0]}) > 1


def test_a_very_low_temperature_and_the_most_probable_token_are_greedy():
    network, source = make_network(2), random_ids(4, 5, 20)
    greedy = search(
        [network], source, SearchConfig(decoding=DecodingSettings(max_length_ratio=0, max_length_extra=9))
    )  # fmt: skip
    best = [[h.ids for h in found] for found in greedy]
    for values in ({"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}):
        assert [[h.ids for h in f] for f in draw(network, source, 1, 9, **values)] == best


def test_top_k_and_top_p_keep_the_most_probable():
    log_probs = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]).log()
    assert keep_top_k(log_probs, 2).isfinite().tolist() == [[False, True, True], [True, True, True]]
    assert keep_top_p(log_probs, 0.7).isfinite().tolist() == [
        [False, True, True],
        [False, False, True],
    ]
    assert keep_top_p(log_probs, 0.81).isfinite().tolist()[0] == [True, True, True]


def test_a_token_is_picked_where_the_sums_pass_the_chance():
    log_probs = torch.tensor([[0.0, 0.25, 0.75]]).log().expand(4, 3)
    chances = torch.tensor([0.0, 0.2499, 0.2501, 0.9999])
    assert pick(log_probs, chances).tolist() == [1, 1, 2, 2]


def test_no_chance_is_rounded_up_to_one():
    """The 449,328th number of this seed is nearer to 1 than to the 32-bit number before it."""
    chances = _draw(torch.tensor([[EOS]]), 0, [449_328], DecodingSettings(seed=16))
    assert 0.9999999 < chances[0, -1] < 1.0
