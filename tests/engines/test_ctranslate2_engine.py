"""CTranslate2 = PyTorch: the same tokens, the same n-best lists, the same scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.decoding.search_config import SearchConfig, resolve_search
from dragoman.engines.ctranslate2_engine import CTranslate2Engine, unsupported_reason
from dragoman.engines.engine import UnsupportedError
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import DragomanError
from dragoman.model.building import copy_weights
from dragoman.settings import DecodingSettings
from dragoman.tokenizers.tokenizer import EOS_ID
from exported import OPTIONS, draw_sources, make_model, name_option

CLOSE = 2e-3  # nats, over a whole output
TIE = 1e-4


def make_engines(**options):
    """A random model, by PyTorch and by CTranslate2."""
    model, tokenizer, network = make_model(**options)
    fast = CTranslate2Engine(model, tokenizer, copy_weights(network), device="cpu", threads=2)
    return TorchEngine([network], "cpu"), fast


@pytest.fixture(scope="module", params=OPTIONS, ids=name_option)
def engines(request):
    return make_engines(**request.param)


def config_of(limit=12, ratio=0.5, **values):
    return SearchConfig(
        decoding=DecodingSettings(max_length_ratio=ratio, max_length_extra=limit, **values)
    )


def check_equal(engines, sources, config):
    """The same lists: outputs that differ at a rank are equally good."""
    expected, found = (engine.search(sources, config) for engine in engines)
    for ours, theirs in zip(expected, found, strict=True):
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=CLOSE)
        for one, other in zip(ours, theirs, strict=True):
            assert one.normalized_score == pytest.approx(other.normalized_score, abs=CLOSE)
            if (one.ids, one.is_complete) != (other.ids, other.is_complete):
                assert one.normalized_score == pytest.approx(other.normalized_score, abs=TIE)


def test_greedy_outputs_are_the_same(engines):
    check_equal(engines, draw_sources(1), config_of())


@settings(max_examples=4)  # near ties are rare, not absent
@given(
    seed=st.integers(0, 99),
    beam=st.integers(2, 6),
    penalty=st.sampled_from([0.0, 0.6, 1.0]),
    rules=st.sampled_from(
        [
            {},
            {"min_length": 3},
            {"min_length_ratio": 0.3},
            {"no_repeat_ngram": 2},
            {"minimum_risk": "edit", "num_hypotheses": 1},
            {"forbidden": (5, 6)},
        ]
    ),
)
def test_beams_give_the_same_lists(engines, seed, beam, penalty, rules):
    rules = dict(rules)
    forbidden = rules.pop("forbidden", ())
    rules = {"num_hypotheses": beam, **rules}
    decoding = config_of(6, 0.25, beam_size=beam, length_penalty=penalty, **rules)
    check_equal(
        engines,
        draw_sources(seed, 5),
        SearchConfig(decoding=decoding.decoding, forbidden_ids=forbidden),
    )


def test_given_targets_have_the_same_probabilities(engines):
    sources = draw_sources(3)
    targets = [ids[:-1][: 3 + i] for i, ids in enumerate(draw_sources(4))]
    targets[0] = []
    targets = [[i % 20 for i in ids if i % 20 > 3] for ids in targets]
    expected, found = (engine.score(sources, targets, config_of()) for engine in engines)
    for ours, theirs in zip(expected, found, strict=True):
        assert ours.ids == theirs.ids
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=CLOSE)
        assert ours.score == pytest.approx(theirs.score, abs=CLOSE)


SEARCHES = [
    {},
    {"beam_size": 4, "num_hypotheses": 4},
    {"beam_size": 4, "num_hypotheses": 4, "method": "diverse"},
    {"method": "sampling", "num_samples": 20, "num_hypotheses": 20},
    {"method": "sampling", "num_samples": 20, "minimum_risk": "edit"},
    {"beam_size": 4, "num_hypotheses": 4, "regex": "[A-Za-z]{2,5}"},
]


@pytest.mark.parametrize("is_shared", [True, False])
def test_no_search_emits_an_id_that_spells_nothing(is_shared):
    model, tokenizer, network = make_model(is_shared=is_shared, features=("<V>", "<N>"))
    with torch.no_grad():  # to the model itself, they are the likeliest
        network.output.bias[list(tokenizer.never_emitted)] = 50.0
        network.output.bias[tokenizer.target_vocab_size :] = 50.0
    fast = CTranslate2Engine(model, tokenizer, copy_weights(network), device="cpu")
    config = config_of()
    found = [*fast.search(draw_sources(1), config)]
    for values in SEARCHES:
        config = resolve_search(config_of(**values).decoding, tokenizer)
        found += TorchEngine([network], "cpu").search(draw_sources(1), config)
        if not unsupported_reason(config):
            found += fast.search(draw_sources(1), config)
    texts = tokenizer.target.token_bytes()
    emitted = {id_ for best_first in found for one in best_first for id_ in one.ids}
    assert len(emitted) > 10
    assert all(texts[id_] is not None for id_ in emitted)


def test_a_source_with_only_its_end_is_searched(engines):
    check_equal(engines, [[EOS_ID], [7, 8, EOS_ID]], config_of())


def test_no_sources_give_no_outputs(engines):
    assert engines[1].search([], config_of()) == []
    assert engines[1].score([], [], config_of()) == []


def test_the_number_of_threads_and_the_batch_change_no_output():
    model, tokenizer, network = make_model()
    both, one = (
        CTranslate2Engine(model, tokenizer, copy_weights(network), device="cpu", threads=n)
        for n in (2, 1)
    )
    sources = draw_sources(7, 40)
    together = both.search(sources, config_of(batch_tokens=64))
    alone = [one.search([ids], config_of())[0] for ids in sources]
    for found in (alone, one.search(sources, config_of())):
        assert [[h.ids for h in row] for row in found] == [[h.ids for h in r] for r in together]


def test_loading_does_not_change_the_number_of_pytorch_threads():
    engine, before = make_engines()[1], torch.get_num_threads()
    assert before == 1
    for count in (1, 12):
        engine.search(draw_sources(0, count), config_of())
        assert torch.get_num_threads() == before


def test_int8_is_close_and_does_not_change_the_weights():
    model, tokenizer, network = make_model()
    weights = copy_weights(network)
    before = {name: value.copy() for name, value in weights.items()}
    engine = CTranslate2Engine(model, tokenizer, weights, device="cpu", quantization="int8")
    sources = draw_sources(5)
    expected = TorchEngine([network], "cpu").score(sources, [[5, 6]] * len(sources), config_of())
    found = engine.score(sources, [[5, 6]] * len(sources), config_of())
    differences = [abs(a.score - b.score) for a, b in zip(expected, found, strict=True)]
    assert 1e-4 < max(differences) < 0.5
    assert all((weights[name] == value).all() for name, value in before.items())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"method": "sampling"}, "method sampling"),
        ({"method": "diverse", "beam_size": 4}, "method diverse"),
        ({"beam_size": 4, "stop": "exact"}, "stop exact"),
        ({"beam_size": 4, "length_norm": "wu"}, "length_norm wu"),
        ({"alignment": True}, "alignment"),
        ({"regex": "a+"}, "regex"),
        ({"json_schema": '{"type": "object", "properties": {}}'}, "json_schema is"),
        ({"choices": "file.txt"}, "choices"),
        ({"grammar": "file.lark"}, "grammar"),
    ],
)
def test_an_unsupported_setting_is_named(values, reason):
    assert reason in unsupported_reason(config_of(**values))
    assert unsupported_reason(config_of()) == ""


def test_settings_of_beams_and_samples_are_no_reason_in_greedy_search():
    decoding = DecodingSettings(stop="exact", length_norm="wu", temperature=0.5, seed=7)
    assert unsupported_reason(SearchConfig(decoding=decoding)) == ""


def test_a_setting_that_the_engine_does_not_know_is_refused():
    class Later(DecodingSettings):
        repetition_penalty: float = 1.0

    assert unsupported_reason(SearchConfig(decoding=Later())) == ""
    later = Later(repetition_penalty=1.2)
    assert "decoding.repetition_penalty 1.2" in unsupported_reason(SearchConfig(decoding=later))
    engine = make_engines()[1]
    with pytest.raises(UnsupportedError, match="repetition_penalty"):
        engine.search([[5, EOS_ID]], SearchConfig(decoding=later))


def test_a_beam_of_more_hypotheses_than_there_are_tokens_is_refused():
    both = make_engines(is_shared=False)  # 19 letters
    check_equal(both, draw_sources(0, 5), config_of(beam_size=19, num_hypotheses=19))
    config = config_of(beam_size=20)
    with pytest.raises(UnsupportedError, match="beam_size 20 is more than the target's 19 tokens"):
        both[1].search([[5, EOS_ID]], config)
    with pytest.raises(UnsupportedError, match="beam_size 19 is more than the target's 18 tokens"):
        both[1].search(
            [[5, EOS_ID]],
            SearchConfig(decoding=config_of(beam_size=19).decoding, forbidden_ids=(5,)),
        )


def test_without_a_gpu_that_it_can_use_auto_computes_on_the_cpu_and_says_so(monkeypatch, caplog):
    def make(device):
        return CTranslate2Engine(model, tokenizer, copy_weights(network), device=device)

    model, tokenizer, network = make_model()
    expected = make("cpu").search([[5, EOS_ID]], config_of())
    with pytest.raises(UnsupportedError, match="--device cuda: CTranslate2 finds no GPU"):
        make("cuda")
    # As with a GPU whose driver or libraries are not those that it needs.
    monkeypatch.setattr("ctranslate2.get_cuda_device_count", lambda: 1)
    with pytest.raises(UnsupportedError, match=r"libcublas\.so\.12 in LD_LIBRARY_PATH"):
        make("cuda")
    assert not caplog.messages
    assert make("auto").search([[5, EOS_ID]], config_of()) == expected
    [message] = caplog.messages
    assert "using the CPU" in message
    assert "CUDA driver version is insufficient" in message


def test_an_error_while_it_computes_is_one_message():
    engine = make_engines()[1]
    engine.search([[5, EOS_ID]], config_of())
    engine._num_positions = 1 << 20  # of which it has 4,096
    with pytest.raises(UnsupportedError, match=r"--device cpu: CTranslate2 failed \(No position"):
        engine.search([[5] * 5000 + [EOS_ID]], config_of())
    with pytest.raises(UnsupportedError, match="CTranslate2 failed"):
        engine.score([[5] * 5000 + [EOS_ID]], [[6]], config_of())


def test_prefixes_and_alignments_are_refused():
    engine = make_engines()[1]
    with pytest.raises(UnsupportedError, match="prefix"):
        engine.search([[5, EOS_ID]], config_of(), [[6]])
    with pytest.raises(UnsupportedError, match="alignment"):
        engine.score([[5, EOS_ID]], [[6]], config_of(alignment=True))


def test_rows_beside_one_with_a_prefix_have_the_outputs_that_they_have_alone():
    model, tokenizer, network = make_model()
    slow = TorchEngine([network], "cpu")
    fast = CTranslate2Engine(
        model, tokenizer, copy_weights(network),
        device="cpu", threads=1, quantization="int8", load_fallback=lambda: slow,
    )  # fmt: skip
    sources, config = draw_sources(1, 4), config_of()
    found = fast.search(sources, config, [[], [6], [], [7, 8]])
    assert found[::2] == fast.search(sources[::2], config)
    assert found[1::2] == slow.search(sources[1::2], config, [[6], [7, 8]])
    assert found[0] != slow.search(sources[:1], config)[0]


def test_where_no_token_may_be_left_pytorch_searches():
    slow, _ = make_engines(is_shared=False)  # 19 letters
    config = config_of(60, no_repeat_ngram=1, min_length=30)
    assert "no_repeat_ngram with a minimum length" in unsupported_reason(config)
    [[best]] = slow.search([[5, EOS_ID]], config)
    assert len(best.ids) == len(set(best.ids)) == 19
    assert best.is_complete


def test_learned_positions_truncate_an_output_where_pytorch_does():
    both = make_engines(positions="learned", max_positions=9)
    sources = [ids[:8] for ids in draw_sources(1)]
    check_equal(both, sources, config_of(40))
    with pytest.raises(DragomanError, match="10 tokens is longer than the 9 learned positions"):
        both[1].search([[5] * 9 + [EOS_ID]], config_of())


def test_sources_and_outputs_beyond_the_first_positions_are_computed(monkeypatch):
    monkeypatch.setattr("dragoman.engines.ctranslate2_engine._FIRST_POSITIONS", 16)
    engines = make_engines()
    sources = draw_sources(2)
    assert max(map(len, sources)) > 32
    check_equal(engines, [[5, EOS_ID]], config_of(8))
    check_equal(engines, sources, config_of())
    targets = [[6] * 70] * 2
    expected, found = (engine.score(sources[:2], targets, config_of()) for engine in engines)
    assert [h.score for h in found] == pytest.approx([h.score for h in expected], rel=1e-4)
