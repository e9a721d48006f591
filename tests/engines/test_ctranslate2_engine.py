"""CTranslate2 = PyTorch: the same tokens, the same n-best lists, the same scores."""

import json
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import OPTIONS
from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.ctranslate2_engine import CTranslate2Engine
from dragoman.engines.ctranslate2_export import write_model
from dragoman.engines.engine import Task
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import ModelFolderError, SettingsError
from dragoman.model.transformer import Transformer
from dragoman.settings import DecodingSettings, SideSettings
from dragoman.tokenizers.pair_tokenizer import PairTokenizer
from dragoman.tokenizers.tokenizer import EOS_ID, Tokenizer

CLOSE = 2e-3  # nats, over a whole output
TIE = 1e-4


def make_engines(folder, **options):
    """A decided random model, by PyTorch and by CTranslate2."""
    torch.manual_seed(options.pop("seed", 0))
    network = Transformer(30, 32, 4, 2, 64, num_decoder_layers=3, **options).eval()
    for parameter in network.parameters():
        if parameter.dim() == 1:  # biases and norms that are not as they begin
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
    head = network.target_embedding if network.output is None else network.output
    torch.nn.init.normal_(head.weight, std=0.5)
    side = SideSettings(kind="characters")
    source = Tokenizer.train([string.ascii_lowercase], side)
    is_shared = options.get("target_vocab_size") is None
    target = source if is_shared else Tokenizer.train([string.ascii_uppercase[:19]], side)
    tokenizer = PairTokenizer(source=source, target=target, features={})
    assert tokenizer.target_vocab_size == network.target_vocab_size
    folder.mkdir()
    told = write_model(network, tokenizer, folder)
    (folder / "export.json").write_text(json.dumps({"weights": "", **told}))
    return TorchEngine([network], "cpu"), CTranslate2Engine(folder, device="cpu", threads=2)


@pytest.fixture(scope="module", params=OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def engines(request, tmp_path_factory):
    return make_engines(tmp_path_factory.mktemp("exported") / "ctranslate2", **request.param)


def draw_sources(seed, count=12):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [[*torch.randint(3, 30, (n,), generator=generator).tolist(), EOS_ID] for n in lengths]


def config_of(limit=12, **values):
    return SearchConfig(
        decoding=DecodingSettings(max_length_ratio=0.5, max_length_extra=limit, **values)
    )


def check_equal(engines, sources, config):
    """The same lists: where two outputs stand at one rank, they are equally good."""
    expected, found = (engine.search(sources, config) for engine in engines)
    for ours, theirs in zip(expected, found, strict=True):
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=CLOSE)
        for one, other in zip(ours, theirs, strict=True):
            assert one.normalized_score == pytest.approx(other.normalized_score, abs=CLOSE)
            if (one.ids, one.is_complete) != (other.ids, other.is_complete):
                assert one.normalized_score == pytest.approx(other.normalized_score, abs=TIE)


@pytest.mark.parametrize("seed", range(2))
def test_greedy_outputs_are_the_same(engines, seed):
    check_equal(engines, draw_sources(seed), config_of())


@settings(max_examples=6, deadline=None, derandomize=True)  # near ties are rare, not absent
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
            {"forbidden": (5, 6)},
        ]
    ),
)
def test_beams_give_the_same_lists(engines, seed, beam, penalty, rules):
    rules = dict(rules)
    forbidden = rules.pop("forbidden", ())
    decoding = config_of(beam_size=beam, num_hypotheses=beam, length_penalty=penalty, **rules)
    check_equal(
        engines,
        draw_sources(seed, 5),
        SearchConfig(decoding=decoding.decoding, forbidden_ids=forbidden),
    )


def test_given_targets_have_the_same_probabilities(engines):
    sources = draw_sources(3)
    targets = [ids[:-1][: 3 + i] for i, ids in enumerate(draw_sources(4))]
    targets[0] = []
    targets = [[i % 20 for i in ids if i % 20 > 2] for ids in targets]
    expected, found = (engine.score(sources, targets, config_of()) for engine in engines)
    for ours, theirs in zip(expected, found, strict=True):
        assert ours.ids == theirs.ids
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=CLOSE)
        assert ours.score == pytest.approx(theirs.score, abs=CLOSE)


def test_a_source_of_nothing_but_its_end_is_searched_too(engines):
    check_equal(engines, [[EOS_ID], [7, 8, EOS_ID]], config_of())


def test_no_sources_give_no_outputs(engines):
    assert engines[1].search([], config_of()) == []
    assert engines[1].score([], [], config_of()) == []


def test_the_number_of_threads_and_the_batch_change_no_output(engines):
    sources = draw_sources(7, 40)
    together = engines[1].search(sources, config_of(batch_tokens=64))
    one_thread = CTranslate2Engine(engines[1]._folder, device="cpu", threads=1)
    alone = [one_thread.search([ids], config_of())[0] for ids in sources]
    for found in (alone, one_thread.search(sources, config_of())):
        assert [[h.ids for h in row] for row in found] == [[h.ids for h in r] for r in together]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"method": "sampling"}, "method sampling"),
        ({"method": "diverse", "beam_size": 4}, "method diverse"),
        ({"beam_size": 4, "stop": "exact"}, "stop exact"),
        ({"beam_size": 4, "length_norm": "wu"}, "length_norm wu"),
        ({"alignment": True}, "alignment"),
    ],
)
def test_what_it_cannot_do_it_names(tmp_path, values, told):
    _, engine = make_engines(tmp_path / "ctranslate2")
    assert told in engine.find_obstacle(Task(config=config_of(**values)))
    assert engine.find_obstacle(Task(config=config_of())) == ""
    assert "prefix" in engine.find_obstacle(Task(config=config_of(), has_prefixes=True))
    assert "4096 positions" in engine.find_obstacle(Task(config=config_of(), longest_source=5000))


def test_learned_positions_cut_an_output_where_pytorch_does(tmp_path):
    both = make_engines(tmp_path / "ctranslate2", positions="learned", max_seq_len=9)
    sources = [ids[:8] for ids in draw_sources(1)]
    check_equal(both, sources, config_of(40))
    assert both[1].find_obstacle(Task(config=config_of(40), longest_source=9)) == ""
    assert "9 positions" in both[1].find_obstacle(Task(config=config_of(40), longest_source=10))


def test_an_export_that_is_not_whole_or_not_ours_is_refused(tmp_path):
    folder = tmp_path / "ctranslate2"
    with pytest.raises(ModelFolderError, match=r"dragoman export .* --to ctranslate2"):
        CTranslate2Engine(folder)
    make_engines(folder)
    with pytest.raises(SettingsError, match="--device tpu"):
        CTranslate2Engine(folder, device="tpu")
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ModelFolderError, match="from other weights"):
        CTranslate2Engine(folder)
    (tmp_path / "model.safetensors").unlink()
    for name, content in (
        ("source_vocabulary.json", '["a", 3]'),
        ("target_vocabulary.json", "{}"),
        ("export.json", "[]"),
        ("export.json", "{"),
    ):
        path = folder / name
        before = path.read_text()
        path.write_text(content)
        with pytest.raises(ModelFolderError, match=name):
            CTranslate2Engine(folder)
        path.write_text(before)
