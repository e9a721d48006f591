from collections import Counter

import pytest
import torch

from conftest import EOS, random_ids
from dragoman.decoding.plan import SearchPlan
from dragoman.decoding.sampling import keep_top_k, keep_top_p, pick
from dragoman.decoding.search import search
from dragoman.settings import DecodingSettings
from networks import make_network, score_plainly


def draw(network, source, count, limit=1, **values):
    decoding = DecodingSettings(
        method="sampling", num_samples=count, num_hypotheses=count, max_length_ratio=0.0,
        max_length_extra=limit, **values,
    )  # fmt: skip
    return search([network], source, SearchPlan(decoding=decoding))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_come_as_often_as_they_are_probable(temperature):
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


def test_a_very_low_temperature_and_the_one_likeliest_token_are_greedy():
    network, source = make_network(2), random_ids(4, 5, 20)
    greedy = search(
        [network], source, SearchPlan(decoding=DecodingSettings(max_length_ratio=0, max_length_extra=9))
    )  # fmt: skip
    best = [[h.ids for h in found] for found in greedy]
    for values in ({"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}):
        assert [[h.ids for h in f] for f in draw(network, source, 1, 9, **values)] == best


def test_top_k_and_top_p_keep_the_likeliest():
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
