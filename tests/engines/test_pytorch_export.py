"""A script of PyTorch alone loads the exported weights and decodes as we do."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dragoman
from dragoman.commands.export import PytorchModel, write_pytorch
from dragoman.decoding.search import search
from dragoman.decoding.search_config import SearchConfig
from dragoman.settings import DecodingSettings
from exported import OPTIONS, draw_sources, make_model, name_option

BANNED = ("dragoman", "lightning", "ctranslate2", "tokenizers", "torchmetrics")


@pytest.mark.parametrize("option", OPTIONS, ids=name_option)
def test_the_script_gives_our_outputs_and_scores(option, tmp_path):
    model, _, network = make_model(**option)
    write_pytorch(network, model, tmp_path)
    sources, script = draw_sources(5, count=4), PytorchModel(tmp_path)
    config = SearchConfig(decoding=DecodingSettings(max_length_ratio=0.1, max_length_extra=9))
    for source, [found] in zip(sources, script.search(sources, config), strict=True):
        [[expected]] = search([network], torch.tensor([source]), config)
        assert (found.ids, found.is_complete) == (expected.ids, expected.is_complete)
        assert found.score == pytest.approx(expected.score, abs=1e-3)
    lines = (tmp_path / "decode.py").read_text().splitlines()
    assert not any("[" in line and line.strip().startswith("#") for line in lines)  # no marks
    assert ("class _Rotary(nn.MultiheadAttention):" in "".join(lines)) == (
        model.positions == "rotary"
    )


def test_an_output_that_does_not_end_has_the_learned_positions(tmp_path):
    model, _, network = make_model(positions="learned", max_positions=16, tie_embeddings=False)
    with torch.no_grad():
        network.output.bias[2] = -99.0
    write_pytorch(network, model, tmp_path)
    assert len(PytorchModel(tmp_path)._script["decode"]([5, 2])) == 16


def test_sinusoidal_positions_have_no_end_and_odd_widths(tmp_path):
    model, _, network = make_model(d_model=9, nhead=3)
    write_pytorch(network, model, tmp_path)
    [scored] = PytorchModel(tmp_path).score(
        [[5] * 1500 + [2]], [(5, 6)], SearchConfig(decoding=DecodingSettings())
    )
    [expected] = network.score(torch.tensor([[5] * 1500 + [2]]), torch.tensor([[1, 5, 6, 2]]))
    assert scored.score == pytest.approx(expected.score, abs=1e-3)


def test_an_exported_model_decodes_where_nothing_of_ours_is_installed(trained, tmp_path):
    folder = Path(shutil.copytree(trained[0], tmp_path / "model"))
    check = dragoman.export(folder, "pytorch")
    assert check.is_equal
    assert check.largest_difference < 1e-3
    ids = trained[1].tokenizer.encode_sources(["head"], [()])[0][:-1]
    start = "import runpy, sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in BANNED)
    run = f"sys.argv = ['decode.py', *{list(map(str, ids))}]\nrunpy.run_path('decode.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", start + run],
        cwd=folder / "pytorch", env={}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    *output, end = map(int, done.stdout.split())
    assert [*map(trained[1].tokenizer.decode_target, [output])] == ["HEAD"]
    assert end == 2
    modes = {path.stat().st_mode & 0o777 for path in (folder / "pytorch").iterdir()}
    assert len(modes) == 1
