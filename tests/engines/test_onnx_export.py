"""The exported graphs compute what the reference model computes, and a loop of numpy runs them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from conftest import BOS, EOS, OPTIONS, PAD, pad_right, random_ids
from dragoman.decoding.ensemble import mask_tokens
from dragoman.decoding.search_config import SearchConfig
from dragoman.engines import onnx_graph
from dragoman.engines.onnx_engine import DECODER_STEP, ENCODER, OnnxEngine
from dragoman.engines.onnx_export import export_onnx, write_model
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import ModelFolderError
from dragoman.model import inference
from dragoman.model.inference import DecoderCache, LayerCache, prepare
from dragoman.model.transformer import Transformer
from dragoman.settings import DecodingSettings

CLOSE = 1e-4
WORDS = ["abc", "head", "gabfeh", "hge", "bade"]


def make_network(vocab_size=30, d_model=32, nhead=4, **options):
    """A random model whose biases and norms are not as they begin."""
    torch.manual_seed(0)
    network = Transformer(vocab_size, d_model, nhead, 2, 64, num_decoder_layers=3, **options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn(parameter.shape)
        head = network.target_embedding if network.output is None else network.output
        torch.nn.init.normal_(head.weight, std=0.5)  # decided: no near ties
    return network


class Exported:
    """The graphs of a network, run by onnxruntime alone, and the network."""

    def __init__(self, network, folder):
        folder.mkdir()
        about = write_model(network, folder)
        (folder / "export.json").write_text(json.dumps({"weights": "", **about}))
        self.network, self.folder = network, folder
        self.encoder, self.step = (
            onnxruntime.InferenceSession(folder / name) for name in (ENCODER, DECODER_STEP)
        )

    def encode(self, source_ids):
        names = [value.name for value in self.encoder.get_outputs()]
        return dict(
            zip(names, self.encoder.run(None, {"source_ids": source_ids.numpy()}), strict=True)
        )

    def force(self, source_ids, target_ids):
        """The log-probabilities (B, T, V) of the token after each of `target_ids`."""
        network, source = self.network, self.encode(source_ids)
        names = [v.name for v in self.step.get_inputs() if v.name.startswith("target_")]
        shape = (len(source_ids), network.nhead, 0, network.d_model // network.nhead)
        cache = {name: np.zeros(shape, np.float32) for name in names}
        found = []
        for ids in target_ids.T.numpy():
            log_probs, *grown = self.step.run(None, {"ids": ids, **source, **cache})
            cache = dict(zip(names, grown, strict=True))
            found.append(log_probs)
        return torch.from_numpy(np.stack(found, axis=1))


@pytest.fixture(scope="module", params=OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def exported(request, tmp_path_factory):
    return Exported(make_network(**request.param), tmp_path_factory.mktemp("exported") / "onnx")


def make_targets(rows, length, vocab_size=23, seed=1):
    ids = random_ids(rows, length, vocab_size, seed=seed)
    return torch.cat((torch.full((rows, 1), BOS), ids), dim=1)


@torch.no_grad()
def expect(network, source_ids, target_ids):
    logits = mask_tokens(network(source_ids, target_ids), (PAD, BOS))
    return logits.log_softmax(-1)


def draw_sources(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [[*torch.randint(4, 23, (n,), generator=generator).tolist(), EOS] for n in lengths]


def config_of(limit=12):
    return SearchConfig(decoding=DecodingSettings(max_length_ratio=0.5, max_length_extra=limit))


def read_loop(folder):
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code


def run_alone(code, folder):
    """What a program prints that can import neither PyTorch nor anything else of ours."""
    banned = ("torch", "ctranslate2", "lightning", "dragoman", "onnx")
    start = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in banned)
    done = subprocess.run(
        [sys.executable, "-c", start + code], cwd=folder, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (7, 9), (2, 2)])
def test_each_step_gives_what_the_reference_gives(exported, rows, length):
    source_ids, target_ids = random_ids(rows, length, 30), make_targets(rows, 8)
    found = exported.force(source_ids, target_ids)
    torch.testing.assert_close(
        found, expect(exported.network, source_ids, target_ids), atol=CLOSE, rtol=0.0
    )


def test_padding_changes_no_output(exported):
    source_ids, target_ids = random_ids(3, 5, 30), make_targets(3, 6)
    source_ids[0, 2:] = PAD
    found = exported.force(source_ids, target_ids)
    longer = exported.force(pad_right(source_ids, 4), target_ids)
    torch.testing.assert_close(found, longer, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(
        found, expect(exported.network, source_ids, target_ids), atol=CLOSE, rtol=0.0
    )


def test_the_neighbours_of_a_row_change_no_output(exported):
    source_ids, target_ids = random_ids(7, 5, 30), make_targets(7, 6)
    together = exported.force(source_ids, target_ids)
    alone = [exported.force(source_ids[i : i + 1], target_ids[i : i + 1]) for i in range(7)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0.0)


def test_a_source_of_padding_alone_makes_no_nan(exported):
    source_ids, target_ids = random_ids(2, 4, 30), make_targets(2, 5)
    source_ids[1] = PAD
    found = exported.force(source_ids, target_ids)
    assert not found.isnan().any()
    torch.testing.assert_close(
        found, expect(exported.network, source_ids, target_ids), atol=CLOSE, rtol=0.0
    )


def test_greedy_outputs_are_pytorchs(exported):
    sources = draw_sources(20)
    engines = TorchEngine([exported.network], "cpu"), OnnxEngine(exported.folder, threads=1)
    expected, found = (engine.search(sources, config_of()) for engine in engines)
    for [one], [other] in zip(expected, found, strict=True):
        assert (one.ids, one.is_complete) == (other.ids, other.is_complete)
        assert one.score == pytest.approx(other.score, abs=1e-3)
        assert one.normalized_score == pytest.approx(other.normalized_score, abs=1e-3)


def test_given_targets_have_pytorchs_probabilities(exported):
    sources, targets = draw_sources(9), [ids[:i] for i, ids in enumerate(draw_sources(9, seed=1))]
    engines = TorchEngine([exported.network], "cpu"), OnnxEngine(exported.folder, threads=1)
    expected, found = (engine.score(sources, targets, config_of()) for engine in engines)
    for one, other in zip(expected, found, strict=True):
        assert one.ids == other.ids
        assert one.log_probs == pytest.approx(other.log_probs, abs=CLOSE)
        assert one.score == pytest.approx(other.score, abs=1e-3)


def test_the_graphs_are_valid_and_as_export_json_tells(exported):
    about = json.loads((exported.folder / "export.json").read_text())
    for name, session in (("encoder", exported.encoder), ("decoder_step", exported.step)):
        onnx.checker.check_model(exported.folder / about[name]["file"], full_check=True)
        assert list(about[name]["inputs"]) == [value.name for value in session.get_inputs()]
        assert list(about[name]["outputs"]) == [value.name for value in session.get_outputs()]
    assert about["encoder"]["inputs"] == {"source_ids": "int64 (rows, source)"}
    assert about["decoder_step"]["outputs"]["log_probs"].startswith("float32 (rows, ")


def test_sinusoidal_positions_have_no_end(tmp_path):
    exported = Exported(make_network(), tmp_path / "onnx")
    network, length = exported.network, 20_000
    shape = (1, network.nhead, length, 8)
    past = [torch.randn(shape) for _ in range(6)]
    source_ids, ids = random_ids(1, 1500, 30), torch.tensor([7])
    with torch.no_grad():
        prepared = prepare(network)
        start = inference.start(prepared, network.encode(source_ids))
        joined = [part.transpose(1, 2).flatten(2) for part in past]  # (B, H, P, Dh) -> (B, P, D)
        layers = tuple(
            LayerCache(target=torch.cat(joined[2 * i : 2 * i + 2], dim=-1), source=layer.source)
            for i, layer in enumerate(start.layers)
        )
        cache = DecoderCache(layers=layers, may_attend=start.may_attend, length=length)
        expected = mask_tokens(inference.step(prepared, ids, cache)[0], (PAD, BOS)).log_softmax(-1)
    names = [v.name for v in exported.step.get_inputs() if v.name.startswith("target_")]
    kept = {name: value.numpy() for name, value in zip(names, past, strict=True)}
    inputs = {"ids": ids.numpy(), **exported.encode(source_ids), **kept}
    found = torch.from_numpy(exported.step.run(None, inputs)[0])
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0.0)


def test_an_odd_width_is_exported(tmp_path):
    exported = Exported(make_network(d_model=9, nhead=3), tmp_path / "onnx")
    source_ids, target_ids = random_ids(2, 5, 30), make_targets(2, 4)
    torch.testing.assert_close(
        exported.force(source_ids, target_ids),
        expect(exported.network, source_ids, target_ids),
        atol=CLOSE,
        rtol=0.0,
    )


def test_parameters_that_no_file_can_hold_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "_LARGEST_FILE_BYTES", 50_000)
    exported = Exported(make_network(), tmp_path / "onnx")
    assert (tmp_path / "onnx" / "encoder.onnx.data").stat().st_size > 50_000
    assert (tmp_path / "onnx" / "encoder.onnx").stat().st_size < 50_000
    source_ids, target_ids = random_ids(2, 5, 30), make_targets(2, 4)
    torch.testing.assert_close(
        exported.force(source_ids, target_ids),
        expect(exported.network, source_ids, target_ids),
        atol=CLOSE,
        rtol=0.0,
    )


def test_an_activation_without_an_operator_is_refused_by_name(tmp_path):
    network = make_network()
    network.transformer.decoder.layers[1].activation = torch.nn.functional.silu
    with pytest.raises(ModelFolderError, match="silu"):
        write_model(network, tmp_path)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """A copy of the trained model: other tests look at what is in the first."""
    return Path(shutil.copytree(trained[0], tmp_path_factory.mktemp("copy") / "model"))


def test_a_trained_model_is_exported_and_says_the_same(folder):
    check = export_onnx(folder)
    assert check.is_equal
    assert check.rows > 0
    assert check.largest_difference < 1e-3
    assert {path.name for path in (folder / "onnx").iterdir()} == {
        "README.md", "decoder_step.onnx", "encoder.onnx", "export.json",
    }  # fmt: skip
    assert json.loads((folder / "onnx" / "export.json").read_text())["check"] == check.to_dict()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert export_onnx(folder).is_equal  # again, over the first


def test_outputs_that_end_and_outputs_that_are_cut_are_pytorchs(folder, trained):
    export_onnx(folder)
    engines = trained[1].engine, OnnxEngine(folder / "onnx", threads=1)
    sources = trained[1].tokenizer.encode_sources(WORDS, [()] * len(WORDS))
    config = SearchConfig(decoding=DecodingSettings(max_length_ratio=0.0, max_length_extra=5))
    expected, found = (engine.search(sources, config) for engine in engines)
    assert [(one.ids, one.is_complete) for [one] in found] == [
        (one.ids, one.is_complete) for [one] in expected
    ]
    assert {one.is_complete for [one] in found} == {True, False}


def test_the_loop_in_the_readme_says_what_pytorch_says(folder, trained):
    export_onnx(folder)
    sources = trained[1].tokenizer.encode_sources(WORDS, [()] * len(WORDS))
    code = read_loop(folder / "onnx").partition("if __name__")[0]
    found = run_alone(f"{code}\nprint(json.dumps(decode({sources})))", folder / "onnx")
    expected = trained[1].engine.search(sources, SearchConfig(decoding=DecodingSettings()))
    assert found == [list(one.ids) for [one] in expected]
    assert trained[1].tokenizer.decode_targets(found) == [word.upper() for word in WORDS]


@pytest.mark.parametrize("options", [{}, {"positions": "learned", "max_seq_len": 9}], ids=str)
def test_the_loop_in_the_readme_runs_as_it_stands(tmp_path, options):
    exported = Exported(make_network(**options), tmp_path / "onnx")
    answers = run_alone(read_loop(exported.folder), exported.folder)
    assert len(answers) == 2
