import pytest
import torch

from conftest import BOS, EOS, random_ids
from dragoman.data.dataset import pad
from dragoman.decoding.search import align, score_targets, search
from dragoman.decoding.search_config import SearchConfig
from dragoman.settings import DecodingSettings
from networks import join, make_network, make_sources, score_plainly

TARGETS = [[4, 5, 6], [], [9], [3, 3, 10, 7]]


def test_each_token_and_the_end_have_their_probability():
    network, sources = make_network(2), make_sources([5, 1, 8, 3], 2)
    found = score_targets([network], join(sources, 2), TARGETS, DecodingSettings())
    for hypothesis, source, ids in zip(found, sources, TARGETS, strict=True):
        ended = [*ids, EOS]
        expected = [
            score_plainly(network, source, ended[:t])[i].item() for t, i in enumerate(ended)
        ]
        assert hypothesis.log_probs == pytest.approx(expected, abs=1e-4)
        assert hypothesis.score == pytest.approx(sum(expected), abs=1e-3)
        assert hypothesis.normalized_score == pytest.approx(sum(expected) / len(ended), abs=1e-3)
        assert hypothesis.ids == tuple(ids)


def test_an_alignment_distributes_each_token_over_its_source():
    network, sources = make_network(2), make_sources([5, 1, 8, 3], 2)
    decoding = DecodingSettings(alignment=True)
    found = score_targets([network], join(sources, 2), TARGETS, decoding)
    for hypothesis, source, ids in zip(found, sources, TARGETS, strict=True):
        assert len(hypothesis.alignment) == len(ids) + 1
        for weights in hypothesis.alignment:
            assert len(weights) == source.shape[1]
            assert sum(weights) == pytest.approx(1.0, abs=1e-5)


def test_the_alignment_is_the_attention_of_the_last_layer(network):
    """Computed by hand from the stock layers, in both orders of the norm."""
    source, target = random_ids(2, 6, 23), torch.tensor([[BOS, 4, 5], [BOS, 7, 8]])
    memory = network.encode(source)
    x = network.embed(target, network.target_embedding, network.target_positions)
    *others, last = network.transformer.decoder.layers
    mask = torch.nn.Transformer.generate_square_subsequent_mask(3)
    for layer in others:
        x = layer(x, memory.states, tgt_mask=mask)
    if last.norm_first:
        x = x + last._sa_block(last.norm1(x), mask, None)
        query = last.norm2(x)
    else:
        query = last.norm1(x + last._sa_block(x, mask, None))
    _, expected = last.multihead_attn(query, memory.states, memory.states)
    torch.testing.assert_close(align(network, source, target), expected, rtol=1e-4, atol=1e-5)


def test_a_model_scores_its_own_output_as_the_search_did():
    network, source = make_network(0), random_ids(12, 5, 20, seed=5)
    outputs = network.generate(source, 30, beam_size=3)
    ended = [[BOS, *ids, EOS] for ids in outputs if len(ids) < 30]
    rows = [i for i, ids in enumerate(outputs) if len(ids) < 30]
    assert rows  # some end
    decoding = DecodingSettings(max_length_ratio=0.0, max_length_extra=30, beam_size=3)
    found = search([network], source[rows], SearchConfig(decoding=decoding))
    for scored, [best], ids in zip(
        network.score(source[rows], pad(ended)), found, ended, strict=True
    ):
        assert scored.score == pytest.approx(best.score, abs=1e-3)
        assert list(scored.ids) == ids[1:-1]
