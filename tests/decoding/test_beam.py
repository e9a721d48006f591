import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import EOS, random_ids
from dragoman.decoding.hypothesis import normalize
from dragoman.decoding.search import search
from dragoman.decoding.search_config import SearchConfig
from dragoman.settings import DecodingSettings
from networks import join, make_network, make_sources, score_plainly


def settings_of(limit=8, **values):
    return DecodingSettings(max_length_ratio=0.0, max_length_extra=limit, **values)


def find(network, source_ids, decoding, prefixes=None):
    models = network if isinstance(network, list) else [network]
    return search(models, source_ids, SearchConfig(decoding=decoding), prefixes)


def enumerate_all(network, source, decoding):
    """Every output up to the limit, best first: what no search can beat."""
    limit, ends = decoding.max_length_extra, []
    open_ = [((), 0.0)]
    for _ in range(limit):
        longer = []
        for ids, score in open_:
            log_probs = score_plainly(network, source, ids).tolist()
            for token, log_prob in enumerate(log_probs):
                if log_prob == -math.inf:
                    continue
                total = score + log_prob
                if token == EOS or len(ids) + 1 == limit:
                    kept = ids if token == EOS else (*ids, token)
                    ends.append((normalize(total, len(ids) + 1, decoding), kept, token == EOS))
                else:
                    longer.append(((*ids, token), total))
        open_ = longer
    return sorted(ends, reverse=True)


@pytest.mark.parametrize("stop", ["full", "exact"])
@pytest.mark.parametrize(("norm", "penalty"), [("average", 1.0), ("wu", 0.6), ("average", 0.5)])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_as_wide_as_the_space_finds_the_best_of_all(stop, norm, penalty, seed):
    network, source = make_network(seed, vocab_size=5), random_ids(1, 4, 20, seed=seed)
    decoding = settings_of(
        4, beam_size=60, num_hypotheses=60, stop=stop, length_norm=norm, length_penalty=penalty
    )
    best = enumerate_all(network, source, decoding)
    [found] = find(network, source, decoding)
    assert [(h.ids, h.is_complete) for h in found] == [(i, c) for _, i, c in best[:60]]
    for hypothesis, (score, _, _) in zip(found, best, strict=False):
        assert hypothesis.normalized_score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_five_on_a_tiny_vocabulary_equals_brute_force(seed):
    network, source = make_network(seed, vocab_size=4), random_ids(1, 4, 20, seed=seed)
    # Two tokens, the end and the unknown one: five hypotheses hold all prefixes of two tokens.
    decoding = settings_of(3, beam_size=5, num_hypotheses=1, stop="exact")
    [(_, ids, is_complete), *_] = enumerate_all(network, source, decoding)
    [[best]] = find(network, source, decoding)
    assert (best.ids, best.is_complete) == (ids, is_complete)


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    extra=st.integers(0, 4),
    beam_size=st.integers(2, 6),
    seed=st.integers(0, 9),
    method=st.sampled_from(["beam", "diverse", "sampling"]),
    stop=st.sampled_from(["full", "exact"]),
    penalty=st.sampled_from([0.0, 0.6, 1.0]),
)
def test_hypotheses_depend_on_their_source_alone(
    lengths, extra, beam_size, seed, method, stop, penalty
):
    network, sources = make_network(seed), make_sources(lengths, seed)
    if method == "diverse":
        beam_size = 2 * max(1, beam_size // 2)
    decoding = settings_of(
        12, beam_size=beam_size, num_samples=beam_size, num_hypotheses=beam_size, method=method,
        stop=stop, length_penalty=penalty,
    )  # fmt: skip
    together = find(network, join(sources, extra), decoding)
    for found, source in zip(together, sources, strict=True):
        [alone] = find(network, source, decoding)
        assert [h.ids for h in found] == [h.ids for h in alone]
        assert [h.score for h in found] == pytest.approx([h.score for h in alone], abs=1e-3)


@settings(max_examples=15)
@given(seed=st.integers(0, 30))
def test_a_score_is_the_sum_of_the_log_probabilities(seed):
    network, source = make_network(seed), random_ids(1, 5, 20, seed=seed)
    for hypothesis in find(network, source, settings_of(beam_size=4, num_hypotheses=4))[0]:
        ids = [*hypothesis.ids, EOS] if hypothesis.is_complete else hypothesis.ids
        score = sum(
            score_plainly(network, source, ids[:t])[token].item() for t, token in enumerate(ids)
        )
        assert hypothesis.score == pytest.approx(score, abs=1e-3)
        assert hypothesis.normalized_score == pytest.approx(score / len(ids), abs=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_a_beam_of_one_is_greedy(seed):
    """The beam's own code at width one: one group of diverse search."""
    network, source = make_network(seed), random_ids(6, 5, 20, seed=seed)
    greedy = find(network, source, settings_of(12))
    narrow = find(network, source, settings_of(12, method="diverse", diverse_groups=1, beam_size=1))
    for [one], [other] in zip(greedy, narrow, strict=True):
        assert one.ids == other.ids
        assert one.is_complete == other.is_complete
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_the_exact_stop_never_finds_less_than_the_full_one():
    better = 0
    for seed in range(30):
        network, source = make_network(seed), random_ids(3, 5, 20, seed=seed)
        full = find(network, source, settings_of(12, beam_size=3))
        exact = find(network, source, settings_of(12, beam_size=3, stop="exact"))
        for [one], [other] in zip(full, exact, strict=True):
            assert other.normalized_score >= one.normalized_score - 1e-5
            better += other.normalized_score > one.normalized_score + 1e-4
    assert better > 0  # it does make a difference


def test_groups_differ_only_with_a_diversity_penalty():
    network, source = make_network(3), random_ids(4, 5, 20, seed=3)
    base = {"method": "diverse", "beam_size": 4, "num_hypotheses": 4, "diverse_groups": 2}
    beams = find(network, source, settings_of(beam_size=2, num_hypotheses=2))
    for found, of_beam in zip(
        find(network, source, settings_of(diverse_strength=0.0, **base)), beams, strict=True
    ):
        assert [h.ids for h in found[:2]] == [h.ids for h in of_beam]
        assert len({(h.ids, h.is_complete) for h in found}) == len(found)  # not one of each group
    apart = find(network, source, settings_of(diverse_strength=50.0, **base))
    assert all(len({h.ids[:1] for h in found}) >= 2 for found in apart)


def test_an_ensemble_of_a_model_with_itself_is_the_model():
    network, source = make_network(1), random_ids(4, 5, 20)
    decoding = settings_of(beam_size=3, num_hypotheses=3)
    alone, doubled = find(network, source, decoding), find([network, network], source, decoding)
    assert [[h.ids for h in f] for f in alone] == [[h.ids for h in f] for f in doubled]


def test_an_ensemble_averages_the_probabilities():
    networks, source = [make_network(1), make_network(2)], random_ids(1, 5, 20)
    [[best]] = find(networks, source, settings_of(1))
    mean = torch.stack([score_plainly(n, source, []).exp() for n in networks]).mean(0)
    assert (best.ids or (EOS,)) == (mean.argmax().item(),)
    assert best.score == pytest.approx(mean.max().log().item(), abs=1e-4)


def repeats(ids, size):
    grams = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    return len(grams) != len(set(grams))


@pytest.mark.parametrize("method", ["greedy", "beam", "diverse", "sampling"])
@pytest.mark.parametrize("seed", range(3))
def test_every_search_follows_the_rules(method, seed):
    network, sources = make_network(seed), make_sources([3, 5, 8, 2], seed)
    decoding = settings_of(
        12, min_length=4, no_repeat_ngram=2,
        method="beam" if method == "greedy" else method,
        beam_size=1 if method == "greedy" else 4, num_samples=4,
        num_hypotheses=1 if method == "greedy" else 4,
    )  # fmt: skip
    prefixes = [[5, 6], [], [7], [4, 9, 10]]
    plan = SearchConfig(decoding=decoding, forbidden_ids=(4, 8))
    for best_first, prefix in zip(
        search([network], join(sources), plan, prefixes), prefixes, strict=True
    ):
        for hypothesis in best_first:
            ids = hypothesis.ids
            assert list(ids[: len(prefix)]) == prefix  # above the rules: 4 is forbidden
            assert not set(ids[len(prefix) :]) & {4, 8, 0, 1, 2}
            assert len(ids) >= 4
            assert len(ids) <= 12 + len(prefix)
            assert not repeats(ids, 2)


def test_the_best_hypothesis_with_a_prefix_has_its_probability():
    network, source = make_network(5), random_ids(1, 5, 20, seed=5)
    [[best]] = find(network, source, settings_of(6, beam_size=3), [[4, 7]])
    ids = [*best.ids, EOS] if best.is_complete else best.ids
    score = sum(score_plainly(network, source, ids[:t])[i].item() for t, i in enumerate(ids))
    assert best.score == pytest.approx(score, abs=1e-3)


def test_forbidding_all_but_the_end_gives_an_empty_output():
    network = make_network()
    plan = SearchConfig(
        decoding=settings_of(min_length=3, beam_size=2), forbidden_ids=tuple(range(3, 11))
    )
    [[best, *_]] = search([network], random_ids(1, 5, 20), plan)
    assert best.ids == ()
    assert not math.isnan(best.score)


def test_all_lists_are_sorted_and_have_num_hypotheses():
    network, source = make_network(2), random_ids(5, 5, 20)
    for count in itertools.chain([1, 3, 5]):
        for found in find(network, source, settings_of(beam_size=5, num_hypotheses=count)):
            scores = [h.normalized_score for h in found]
            assert len(found) == count
            assert scores == sorted(scores, reverse=True)
