"""The engine by onnxruntime: what it refuses, what it loads, and what its batches change."""

import json
import subprocess
import sys

import pytest
import torch

from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.engine import Task
from dragoman.engines.onnx_engine import OnnxEngine
from dragoman.engines.onnx_export import write_model
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import DataError, ModelFolderError, SettingsError
from dragoman.model.transformer import Transformer
from dragoman.settings import DecodingSettings

EOS = 2


def make_engines(folder, **options):
    """A random model, by PyTorch and by ONNX."""
    torch.manual_seed(0)
    network = Transformer(30, 32, 4, 2, 64, **options).eval()
    head = network.target_embedding if network.output is None else network.output
    torch.nn.init.normal_(head.weight, std=0.5)  # decided: no near ties
    if network.output is not None:
        torch.nn.init.constant_(network.output.bias[EOS], -100.0)  # it never ends by itself
    folder.mkdir()
    about = {"weights": "", **write_model(network, folder)}
    (folder / "export.json").write_text(json.dumps(about))
    return TorchEngine([network], "cpu"), OnnxEngine(folder, threads=1)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    return make_engines(tmp_path_factory.mktemp("exported") / "onnx")


def draw_sources(seed, count=12):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [[*torch.randint(4, 30, (n,), generator=generator).tolist(), EOS] for n in lengths]


def config_of(limit=12, **values):
    return SearchConfig(
        decoding=DecodingSettings(max_length_ratio=0.5, max_length_extra=limit, **values)
    )


def outputs(engine, sources, config):
    return [(one.ids, one.is_complete) for [one] in engine.search(sources, config)]


@pytest.mark.parametrize("batch_tokens", [1, 64, 8192])
def test_the_batch_changes_no_output_and_no_score(engines, batch_tokens):
    sources, config = draw_sources(0, 30), config_of(batch_tokens=batch_tokens)
    assert outputs(engines[1], sources, config) == outputs(engines[0], sources, config_of())
    targets = [ids[:-1] for ids in draw_sources(1, 30)]
    found, alone = (engines[1].score(sources, targets, p) for p in (config, config_of()))
    for one, other in zip(found, alone, strict=True):
        assert one.ids == other.ids
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def test_no_sources_give_no_outputs(engines):
    assert engines[1].search([], config_of()) == []
    assert engines[1].score([], [], config_of()) == []


def test_a_source_without_a_token_is_searched(engines):
    [[found]] = engines[1].search([[]], config_of())
    [[padded], _] = engines[1].search([[], [4, 5, EOS]], config_of())
    assert found.ids == padded.ids
    assert found.score == pytest.approx(padded.score, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"method": "sampling"}, "greedy"),
        ({"beam_size": 4}, "greedy"),
        ({"no_repeat_ngram": 2}, "no_repeat_ngram"),
        ({"min_length": 2}, "min_length"),
        ({"min_length_ratio": 0.5}, "min_length_ratio"),
        ({"alignment": True}, "alignment"),
    ],
)
def test_what_it_cannot_do_it_names(engines, values, told):
    engine = engines[1]
    assert told in engine.find_obstacle(Task(config=config_of(**values)))
    assert engine.find_obstacle(Task(config=config_of(), longest_source=100_000)) == ""
    assert "prefix" in engine.find_obstacle(Task(config=config_of(), has_prefixes=True))
    forbidding = SearchConfig(decoding=DecodingSettings(), forbidden_ids=(5,))
    assert "forbidden_tokens" in engine.find_obstacle(Task(config=forbidding))


def test_learned_positions_cut_an_output_where_pytorch_does(tmp_path):
    both = make_engines(tmp_path / "onnx", positions="learned", max_seq_len=9, tie_embeddings=False)
    sources = [ids[:8] for ids in draw_sources(1)]
    expected, found = (outputs(engine, sources, config_of(40)) for engine in both)
    assert found == expected
    assert {(len(ids), is_complete) for ids, is_complete in found} == {(9, False)}


def test_more_tokens_than_learned_positions_are_refused_before_it_runs(tmp_path):
    _, engine = make_engines(tmp_path / "onnx", positions="learned", max_seq_len=9)
    assert engine.find_obstacle(Task(config=config_of(40), longest_source=9)) == ""
    assert "9 learned positions" in engine.find_obstacle(
        Task(config=config_of(), longest_source=10)
    )
    assert "9 learned positions" in engine.find_obstacle(
        Task(config=config_of(), longest_target=10)
    )
    with pytest.raises(DataError, match="sequence of 10 tokens"):
        engine.search([[5] * 10], config_of())
    with pytest.raises(DataError, match="sequence of 11 tokens"):
        engine.score([[5, EOS]], [[5] * 10], config_of())


def test_an_export_that_is_not_whole_or_not_ours_is_refused(tmp_path):
    folder = tmp_path / "onnx"
    with pytest.raises(ModelFolderError, match=r"dragoman export .* --to onnx"):
        OnnxEngine(folder)
    make_engines(folder)
    for device in ("cuda", "tpu"):
        with pytest.raises(SettingsError, match=f"--device {device}"):
            OnnxEngine(folder, device=device)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ModelFolderError, match="from other weights"):
        OnnxEngine(folder)
    (tmp_path / "model.safetensors").unlink()
    for name, content in (
        ("export.json", "[]"),
        ("export.json", "{"),
        ("encoder.onnx", "cut short"),
        ("decoder_step.onnx", ""),
    ):
        before = (folder / name).read_bytes()
        (folder / name).write_text(content)
        with pytest.raises(ModelFolderError, match=name):
            OnnxEngine(folder)
        (folder / name).write_bytes(before)


def test_it_loads_neither_pytorch_nor_ctranslate2_nor_lightning(engines, tmp_path):
    folder = tmp_path / "onnx"
    make_engines(folder)
    code = f"""
import sys
from pathlib import Path
from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.onnx_engine import OnnxEngine
from dragoman.settings import DecodingSettings
engine, config = OnnxEngine(Path({str(folder)!r})), SearchConfig(decoding=DecodingSettings())
engine.search([[4, 5, 2]], config)
engine.score([[4, 5, 2]], [[6]], config)
print({{name.partition(".")[0] for name in sys.modules}} & {{"torch", "ctranslate2", "lightning", "onnx"}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("missing", "call"),
    [
        (("onnx", "onnxruntime"), "from dragoman.engines.onnx_export import export_onnx as call"),
        (("onnxruntime",), "from dragoman.engines.onnx_engine import OnnxEngine as call"),
    ],
)
def test_a_missing_package_is_named_with_what_brings_it(tmp_path, missing, call):
    code = f"""
import sys
sys.modules.update(dict.fromkeys({missing}))
from pathlib import Path
from dragoman.errors import SettingsError
{call}
try:
    call(Path({str(tmp_path)!r}))
except SettingsError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert " and ".join(missing) in done.stdout
    assert "pip install" in done.stdout
