import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import BOS, EOS, PAD, pad_right, random_ids
from dragoman.decoding.greedy import search_greedily
from dragoman.decoding.length import limit_lengths
from dragoman.model.transformer import Transformer
from dragoman.settings import DecodingSettings


def make_network(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    network = Transformer(20, 16, 2, 2, 32, target_vocab_size=11)
    torch.nn.init.normal_(network.output.weight)  # decided models: no near ties, ends by chance
    return network.eval()


def search_plainly(network, source, limit):
    """The whole decoder again at each step, one row at a time: what the search must equal."""
    ids, score = [BOS], 0.0
    for _ in range(limit):
        logits = network(source, torch.tensor([ids]))[0, -1]
        logits[[PAD, BOS]] = -torch.inf
        best, chosen = logits.log_softmax(-1).max(-1)
        score += best.item()
        ids.append(chosen.item())
        if ids[-1] == EOS:
            return tuple(ids[1:-1]), score, True
    return tuple(ids[1:]), score, False


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    extra=st.integers(0, 5),
    limit=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_a_hypothesis_depends_on_its_source_alone(lengths, extra, limit, seed):
    network = make_network(seed)
    sources = [random_ids(1, n, 20, seed=seed + 7 * i) for i, n in enumerate(lengths)]
    batch = torch.cat([pad_right(s, max(lengths) + extra - s.shape[1]) for s in sources])
    limits = [1 + (limit * (i + 1)) % 20 for i in range(len(lengths))]
    found = search_greedily(network, batch, limits)
    with torch.no_grad():
        for hypothesis, source, row_limit in zip(found, sources, limits, strict=True):
            ids, score, is_complete = search_plainly(network, source, row_limit)
            assert hypothesis.ids == ids
            assert hypothesis.is_complete == is_complete
            assert abs(hypothesis.score - score) < 1e-3


def test_the_searches_above_end_in_both_ways():
    found = [
        h.is_complete
        for seed in range(10)
        for h in search_greedily(make_network(seed), random_ids(8, 5, 20, seed=seed), [12] * 8)
    ]
    assert {True, False} == set(found)


def test_the_mode_of_the_model_is_kept_and_dropout_is_off():
    network = make_network().train()
    source = random_ids(3, 5, 20)
    assert search_greedily(network, source, [9] * 3) == search_greedily(network, source, [9] * 3)
    assert network.training


def test_no_sources_have_no_hypotheses():
    assert search_greedily(make_network(), torch.zeros(0, 4, dtype=torch.long), []) == []


def test_limits_depend_on_the_tokens_of_the_row_alone():
    decoding = DecodingSettings(max_length_ratio=2.0, max_length_extra=50, min_length_ratio=0.5)
    assert limit_lengths([10, 16, 17, 0], decoding) == [(5, 82), (8, 82), (8, 114), (0, 50)]
