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

import dragoman
from conftest import BOS, PAD, pad_right, random_ids
from dragoman.decoding.ensemble import mask_tokens
from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.onnx_export import OnnxModel, write_onnx
from dragoman.engines.torch_engine import TorchEngine
from dragoman.settings import DecodingSettings
from exported import SOME_OPTIONS, draw_sources, make_model, name_option

pytestmark = pytest.mark.usefixtures("no_shape_checks")
CLOSE = 1e-4
WORDS = ["abc", "head", "gabfeh", "hge", "bade"]


class Exported:
    """The graphs of a network, run by onnxruntime alone, and the network."""

    def __init__(self, network, folder):
        folder.mkdir()
        about = write_onnx(network, folder)
        (folder / "export.json").write_text(json.dumps(about))
        self.network, self.folder = network, folder
        self.encoder, self.step = (
            onnxruntime.InferenceSession(folder / name)
            for name in ("encoder.onnx", "decoder_step.onnx")
        )

    def score(self, source_ids, target_ids):
        """The log-probabilities (B, T, V) of the token after each of `target_ids`."""
        names = [value.name for value in self.encoder.get_outputs()]
        encoded = self.encoder.run(None, {"source_ids": source_ids.numpy()})
        source = dict(zip(names, encoded, strict=True))
        empty = np.zeros((len(source_ids), 0, 2 * self.network.d_model), np.float32)
        names = [v.name for v in self.step.get_inputs() if v.name.startswith("target_")]
        cache, found = dict.fromkeys(names, empty), []
        for ids in target_ids.T.numpy():
            log_probs, *grown = self.step.run(None, {"ids": ids, **source, **cache})
            cache = dict(zip(names, grown, strict=True))
            found.append(log_probs)
        return torch.from_numpy(np.stack(found, axis=1))


@pytest.fixture(scope="module", params=SOME_OPTIONS, ids=name_option)
def exported(request, tmp_path_factory, no_shape_checks):
    return Exported(make_model(**request.param)[2], tmp_path_factory.mktemp("exported") / "onnx")


def make_targets(rows, length, vocab_size=23, seed=1):
    ids = random_ids(rows, length, vocab_size, seed=seed)
    return torch.cat((torch.full((rows, 1), BOS), ids), dim=1)


@torch.no_grad()
def expect(network, source_ids, target_ids):
    return mask_tokens(network(source_ids, target_ids), network.never_emitted).log_softmax(-1)


def check(exported, source_ids, target_ids):
    found, expected = (
        exported.score(source_ids, target_ids),
        expect(exported.network, source_ids, target_ids),
    )
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0.0)
    return found


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
    check(exported, random_ids(rows, length, 30), make_targets(rows, 8))


def test_padding_changes_no_output(exported):
    source_ids, target_ids = random_ids(3, 5, 30), make_targets(3, 6)
    source_ids[0, 2:] = PAD
    found = check(exported, source_ids, target_ids)
    longer = exported.score(pad_right(source_ids, 4), target_ids)
    torch.testing.assert_close(found, longer, atol=1e-5, rtol=0.0)


def test_the_neighbours_of_a_row_change_no_output(exported):
    source_ids, target_ids = random_ids(7, 5, 30), make_targets(7, 6)
    together = exported.score(source_ids, target_ids)
    alone = [exported.score(source_ids[i : i + 1], target_ids[i : i + 1]) for i in range(7)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0.0)


def test_a_source_of_only_padding_makes_no_nan(exported):
    source_ids, target_ids = random_ids(2, 4, 30), make_targets(2, 5)
    source_ids[1] = PAD
    assert not check(exported, source_ids, target_ids).isnan().any()


def test_searches_and_scores_are_pytorchs(exported):
    sources, targets = draw_sources(3), [ids[:i] for i, ids in enumerate(draw_sources(4))]
    targets = [[i % 20 for i in ids if i % 20 > 2] for ids in targets]
    positions = exported.network.longest_target
    engines = TorchEngine([exported.network], "cpu"), OnnxModel(exported.folder, positions)
    expected, found = (engine.search(sources, config_of()) for engine in engines)
    for [one], [other] in zip(expected, found, strict=True):
        assert (one.ids, one.is_complete) == (other.ids, other.is_complete)
        assert one.score == pytest.approx(other.score, abs=1e-3)
        assert one.normalized_score == pytest.approx(other.normalized_score, abs=1e-3)
    expected, found = (engine.score(sources, targets, config_of()) for engine in engines)
    for one, other in zip(expected, found, strict=True):
        assert one.ids == other.ids
        assert one.log_probs == pytest.approx(other.log_probs, abs=CLOSE)


def test_the_graphs_are_valid_and_their_sizes_are_free(exported):
    for name, session in (("encoder", exported.encoder), ("decoder_step", exported.step)):
        onnx.checker.check_model(exported.folder / f"{name}.onnx", full_check=True)
        for value in session.get_inputs():
            assert value.shape[0] == "rows"
            lengths = value.shape[1:2] if value.name != "source_mask" else value.shape[3:]
            assert lengths in ([], ["source"], ["target"])


def test_sinusoidal_positions_have_no_end(tmp_path):
    network = make_model(num_encoder_layers=1, num_decoder_layers=1)[2]
    exported = Exported(network, tmp_path / "onnx")
    source_ids, target_ids = random_ids(1, 5000, 30), make_targets(1, 3)
    found = exported.score(source_ids, target_ids)
    torch.testing.assert_close(found, expect(network, source_ids, target_ids), atol=1e-3, rtol=0.0)


def test_an_odd_width_is_exported(tmp_path):
    network = make_model(d_model=9, nhead=3)[2]
    check(Exported(network, tmp_path / "onnx"), random_ids(2, 5, 30), make_targets(2, 4))


def test_exporting_does_not_change_the_network(tmp_path):
    network = make_model()[2]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    Exported(network, tmp_path / "onnx")
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory, no_shape_checks):
    """A copy of the trained model: other tests look at what is in the first."""
    copy = Path(shutil.copytree(trained[0], tmp_path_factory.mktemp("copy") / "model"))
    check = dragoman.export(copy, "onnx")
    assert check.is_equal
    assert check.rows > 0
    assert check.largest_difference < 1e-3
    return copy


def test_a_trained_model_is_exported(folder):
    assert {path.name for path in (folder / "onnx").iterdir()} == {
        "README.md", "decoder_step.onnx", "encoder.onnx", "export.json",
    }  # fmt: skip
    assert json.loads((folder / "onnx" / "export.json").read_text())["check"]["is_equal"]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_outputs_that_end_and_outputs_that_are_truncated_are_pytorchs(folder, trained):
    engines = trained[1].engine, OnnxModel(folder / "onnx")
    sources = trained[1].tokenizer.encode_sources(WORDS, [()] * len(WORDS))
    config = SearchConfig(decoding=DecodingSettings(max_length_ratio=0.0, max_length_extra=5))
    expected, found = (engine.search(sources, config) for engine in engines)
    assert [(one.ids, one.is_complete) for [one] in found] == [
        (one.ids, one.is_complete) for [one] in expected
    ]
    assert {one.is_complete for [one] in found} == {True, False}


def test_the_loop_in_the_readme_gives_pytorchs_outputs(folder, trained):
    sources = trained[1].tokenizer.encode_sources(WORDS, [()] * len(WORDS))
    code = read_loop(folder / "onnx").partition("if __name__")[0]
    found = run_alone(
        f"{code}\nprint(json.dumps([decode(source) for source in {sources}]))", folder / "onnx"
    )
    expected = trained[1].engine.search(sources, SearchConfig(decoding=DecodingSettings()))
    assert found == [list(one.ids) for [one] in expected]
    assert [*map(trained[1].tokenizer.decode_target, found)] == [word.upper() for word in WORDS]


@pytest.mark.parametrize(
    "options", [{}, {"positions": "learned", "max_positions": 9}, {"positions": "rotary"}], ids=str
)
def test_the_loop_in_the_readme_runs(tmp_path, options):
    exported = Exported(make_model(**options)[2], tmp_path / "onnx")
    assert isinstance(run_alone(read_loop(exported.folder), exported.folder), list)
