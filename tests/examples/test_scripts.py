"""The scripts and the notebook of examples/ run, shortened, as a user would run them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dragoman
from conftest import quiet_console
from dragoman.commands import demo

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str, *words: object, folder: Path) -> str:
    found = subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, words)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize(
    ("script", "words", "shown"),
    [("lightning/train.py", [1], "] -> ["), ("own_data/train.py", [300], "abc -> cba\n")],
)
def test_a_training_script_runs(script, words, shown, tmp_path):
    assert shown in run(script, *words, folder=tmp_path)


def test_attention_is_drawn(trained, tmp_path):
    assert "abc -> ABC" in run("attention/plot.py", trained[0], "abc", folder=tmp_path)
    svg = (tmp_path / "attention.svg").read_text()
    assert "<svg" in svg
    assert all(f">{letter}</text>" in svg for letter in "abcABC")


def test_the_cells_of_the_notebook_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "NUM_ROWS", {"train": 300, "valid": 60, "test": 60})
    short = demo.SETTINGS | {"training": {"max_steps": 3, "valid_every": 3, "batch_tokens": 256}}
    short |= {"evaluation": {"report": "none"}, "optimization": {"warmup_steps": 0}}
    monkeypatch.setattr(demo, "SETTINGS", short)
    train = dragoman.fit
    monkeypatch.setattr(
        dragoman, "fit", lambda *a, **k: train(*a, console=quiet_console(), **k), raising=False
    )
    notebook = json.loads((EXAMPLES / "notebook/dates.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert capsys.readouterr().out.count("->") == 3


def test_each_example_is_short_and_says_what_it_is():
    scripts = [*EXAMPLES.glob("*/*.py"), *EXAMPLES.glob("*/*.sh")]
    assert len(scripts) >= 5
    for script in scripts:
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 60, script
        assert (script.parent / "README.md").is_file()
