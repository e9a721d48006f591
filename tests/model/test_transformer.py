import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import BOS, EOS, PAD, pad_right, random_ids
from dragoman.errors import DataError, DragomanError, SettingsError
from dragoman.model.transformer import Transformer, rotate, sinusoidal_positions

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def test_a_target_token_changes_no_logit_before_it(network):
    source, target = random_ids(2, 7, 23), random_ids(2, 9, 23, seed=1)
    before = network(source, target)
    for position in range(9):
        changed = target.clone()
        changed[:, position] = 3 + (changed[:, position] - 2) % 20
        after = network(source, changed)
        torch.testing.assert_close(after[:, :position], before[:, :position], **CLOSE)
        assert not torch.allclose(after[:, position:], before[:, position:], **CLOSE)


def test_padding_changes_no_logit(network):
    source, target = random_ids(3, 6, 23), random_ids(3, 5, 23, seed=1)
    before = network(source, target)
    after = network(pad_right(source, 4), pad_right(target, 7))
    torch.testing.assert_close(after[:, :5], before, **CLOSE)


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_other_rows_change_no_logit(lengths, seed):
    torch.manual_seed(seed)
    network = Transformer(20, 16, 2, 1, 32).eval()
    sources = [random_ids(1, n, 20, seed=seed + i) for i, n in enumerate(lengths)]
    target = random_ids(1, 4, 20, seed=seed)
    together = torch.cat([pad_right(s, max(lengths) - s.shape[1]) for s in sources])
    batched = network(together, target.expand(len(lengths), -1))
    for row, source in enumerate(sources):
        torch.testing.assert_close(batched[row : row + 1], network(source, target), **CLOSE)


def test_moving_a_source_token_changes_the_logits(network):
    source, target = random_ids(1, 6, 23), random_ids(1, 4, 23, seed=1)
    swapped = source[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.equal(source, swapped)
    assert not torch.allclose(network(source, target), network(swapped, target), **CLOSE)


def test_moving_a_target_token_changes_the_logits_after_it(network):
    source, target = random_ids(1, 6, 23), random_ids(1, 4, 23, seed=1)
    swapped = target[:, [1, 0, 2, 3]]
    assert not torch.equal(target, swapped)
    difference = network(source, target) - network(source, swapped)
    assert (difference[:, 2:].abs() > 1e-4).any()


def test_logits_depend_on_the_content_of_a_row_not_its_index(network):
    # The usual answer adds the position of the *batch row* when B equals L.
    source, target = random_ids(1, 5, 23).expand(5, 5), random_ids(1, 5, 23, seed=1).expand(5, 5)
    logits = network(source, target)
    torch.testing.assert_close(logits, logits[:1].expand_as(logits), **CLOSE)


def test_a_stock_transformer_with_the_weights_gives_the_states(network):
    if network.rotation is not None:
        pytest.skip("the stock module has no rotary positions")
    layer = network.transformer.decoder.layers[0]
    stock = nn.Transformer(
        32, 4, 2, 3, 64,
        activation=layer.activation, norm_first=layer.norm_first, batch_first=True, dropout=0.1,
    ).eval() if not layer.norm_first else None  # fmt: skip
    if stock is None:
        with pytest.warns(UserWarning, match="nested_tensor"):
            stock = nn.Transformer(32, 4, 2, 3, 64, norm_first=True, batch_first=True).eval()
    stock.load_state_dict(network.transformer.state_dict())
    source, target = random_ids(2, 6, 23), random_ids(2, 5, 23, seed=1)
    states = stock(
        network.embed(source, network.source_embedding, network.source_positions),
        network.embed(target, network.target_embedding, network.target_positions),
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(5),
    )
    torch.testing.assert_close(network.project(states), network(source, target), **CLOSE)


def test_evaluation_equals_training_without_dropout():
    torch.manual_seed(0)
    network = Transformer(20, 16, 2, 2, 32, dropout=0.0)
    source, target = pad_right(random_ids(3, 6, 20), 3), random_ids(3, 5, 20, seed=1)
    trained = network.train()(source, target)
    with torch.no_grad():  # where torch takes its own fast path
        torch.testing.assert_close(network.eval()(source, target), trained, **CLOSE)


def test_a_source_of_padding_alone_makes_no_nan(network):
    source = random_ids(3, 6, 23)
    source[1] = PAD
    with torch.no_grad():
        assert network(source, random_ids(3, 4, 23)).isfinite().all()
    logits = network.train()(source, random_ids(3, 4, 23))
    logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_logits_have_exactly_a_column_for_each_id(network):
    logits = network(random_ids(1, 3, 23), random_ids(1, 3, 23))
    assert logits.shape[-1] == network.target_vocab_size
    assert network.target_embedding.num_embeddings % 8 == 0


def test_a_shared_vocabulary_is_tied_by_default_and_a_separate_one_is_not():
    shared, separate = (
        Transformer(20, 16, 2, 1, 32),
        Transformer(20, 16, 2, 1, 32, target_vocab_size=20),
    )
    assert shared.source_embedding is shared.target_embedding
    assert shared.output is None
    assert separate.source_embedding is not separate.target_embedding
    assert separate.output is not None


def test_sinusoidal_positions_are_unlimited():
    network = Transformer(20, 16, 2, 1, 32).eval()
    short = network(random_ids(1, 10, 20), random_ids(1, 5, 20))
    assert network(random_ids(1, 1100, 20), random_ids(1, 1050, 20)).isfinite().all()
    torch.testing.assert_close(network(random_ids(1, 10, 20), random_ids(1, 5, 20)), short)
    assert "table" not in " ".join(network.state_dict())
    table, beyond = network.source_positions(1000, 1024), network.source_positions(1000, 1030)
    torch.testing.assert_close(beyond[:24], table)


def test_rotary_scores_depend_on_distances_alone():
    torch.manual_seed(0)
    positions = sinusoidal_positions(0, 103, 8)
    query, key = torch.randn(2, 1, 1, 1, 8)
    score = {
        (i, j): (rotate(query, positions[i : i + 1]) * rotate(key, positions[j : j + 1])).sum()
        for i, j in [(3, 1), (102, 100), (1, 3)]
    }
    torch.testing.assert_close(score[3, 1], score[102, 100])
    assert not torch.isclose(score[3, 1], score[1, 3])


def test_rotary_attention_is_that_of_its_formula():
    """Complex numbers: value i of a head and value i + Dh / 2 are one, multiplied by e^(i angle)."""
    torch.manual_seed(0)
    network = Transformer(20, 16, 2, 1, 32, positions="rotary").eval()
    attention = network.transformer.encoder.layers[0].self_attn
    x = torch.randn(1, 6, 16)
    query, key, value = (
        part.view(6, 2, 8)
        for part in (x[0] @ attention.in_proj_weight.T + attention.in_proj_bias).split(16, dim=-1)
    )
    angle = torch.arange(6)[:, None] * 10000 ** (-torch.arange(4) / 4)  # (L, Dh / 2)
    turn = torch.polar(torch.ones(6, 4), angle)[:, None]
    query, key = (torch.complex(part[..., :4], part[..., 4:]) * turn for part in (query, key))
    scores = torch.einsum("ihd,jhd->hij", query, key.conj()).real / 8**0.5
    mixed = torch.einsum("hij,jhd->ihd", scores.softmax(dim=-1), value)
    expected = attention.out_proj(mixed.reshape(1, 6, 16))
    torch.testing.assert_close(attention(x, x, x)[0], expected, **CLOSE)


def test_a_sequence_longer_than_learned_positions_is_an_error_with_a_remedy():
    network = Transformer(20, 16, 2, 1, 32, max_seq_len=8, positions="learned")
    with pytest.raises(DragomanError, match=r"9 tokens .* 8 learned positions.*max_positions"):
        network(random_ids(1, 9, 20), random_ids(1, 5, 20))


@pytest.mark.parametrize(
    "sizes",
    [
        {"d_model": 30, "nhead": 4},
        {"d_model": 20, "nhead": 4, "positions": "rotary"},
        {"pad_id": 1},
        {"eos_id": 99},
    ],
)
def test_sizes_that_do_not_fit_are_errors(sizes):
    with pytest.raises(SettingsError):
        Transformer(20, **{"d_model": 16, "nhead": 2, **sizes})


def test_generate_gives_ids_without_begin_and_end(network):
    for ids in network.generate(random_ids(4, 5, 23), max_length=7):
        assert len(ids) <= 7
        assert not {PAD, BOS, EOS} & set(ids)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own
@pytest.mark.usefixtures("no_shape_checks")
def test_the_check_of_ids_does_not_stop_an_export_by_torch():
    network, ids = Transformer(20, 16, 2, 1, 32).eval(), torch.full((2, 3), 4)
    exported = torch.export.export(network, (ids, ids)).module()
    torch.testing.assert_close(exported(ids, ids), network(ids, ids))


@pytest.mark.parametrize("id_", [-1, 20, 23, 24])  # matrices have 24 rows
def test_ids_outside_of_the_vocabulary_are_refused(id_):
    network = Transformer(20, 16, 2, 1, 32)
    good, bad = torch.full((2, 3), 4), torch.tensor([[4, 4, id_]] * 2)
    for compute in (network, network.score):
        for source_ids, target_ids, side in ((bad, good, "source"), (good, bad, "target")):
            with pytest.raises(DataError, match=f"{side}_ids: found id {id_}, and the vocabulary"):
                compute(source_ids, target_ids)
    with pytest.raises(DataError, match=f"source_ids: found id {id_}"):
        network.generate(bad)
