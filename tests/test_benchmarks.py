"""The benchmarks: those with peers without the peers, that of a GPU on the CPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PEERS = BENCHMARKS / "peers"


@pytest.fixture
def run(monkeypatch) -> ModuleType:
    return load("run", monkeypatch)


@pytest.fixture
def task(monkeypatch) -> ModuleType:
    return load("task", monkeypatch)


def load(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path = PEERS) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location(f"{folder.name}_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_all_peers_get_the_same_tokens(run, tmp_path):
    for part in run.PARTS:
        (tmp_path / f"{part}.tsv").write_text("un œuf\tœ̃ n œ f\tignored\n", encoding="utf-8")
    parts = {part: tmp_path / f"{part}.tsv" for part in run.PARTS}
    run.write_task(tmp_path, parts, "symbols")
    assert run.read_lines(tmp_path / "test.source") == ["u n ▁ œ u f"]
    assert run.read_lines(tmp_path / "test.target") == ["œ̃ n œ f"]
    run.write_task(tmp_path, parts, "characters")
    assert run.read_lines(tmp_path / "valid.target") == ["œ ̃ ▁ n ▁ œ ▁ f"]
    parts["valid"].write_text("a\tb\nc\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"valid\.tsv:2: .*a tab"):
        run.write_task(tmp_path, parts, "symbols")


def test_a_score_is_that_of_the_checkpoint_which_is_best_on_valid(run, tmp_path):
    (tmp_path / "valid.target").write_text("a\nb\n", encoding="utf-8")
    (tmp_path / "test.target").write_text("c d\ne\nf\ng\n", encoding="utf-8")
    outputs = [
        (1.0, ["", "", "", "", "", ""]),
        (2.0, ["a", "b", " c  d ", "e", "f", "x"]),  # spaces between tokens do not matter
        (3.0, ["a", "x", "c d", "e", "f", "g"]),  # better on test, but not on valid
    ]
    assert run.choose_best(outputs, tmp_path) == [(1.0, 0.0), (2.0, 75.0), (3.0, 75.0)]
    with pytest.raises(SystemExit, match="5 outputs"):
        run.choose_best([(1.0, ["a"] * 7)], tmp_path)


def test_the_figure_names_every_contender(run):
    titles = [run.OURS, *(peer.title for peer in run.PEERS)]
    curves = {title: [(1.0, 10.0), (2.0, 20.0 + len(title))] for title in titles}
    texts = "".join(ElementTree.fromstring(run.draw(curves)).itertext())
    assert all(title in texts for title in [*titles, "minutes"])
    assert all(f"| {title}" in run.describe(curves) for title in titles)


@pytest.mark.parametrize(("kind", "save"), [("ckpt", torch.save), ("safetensors", save_file)])
def test_an_incomplete_checkpoint_is_left_out(task, tmp_path, kind, save):
    save({"weights": torch.zeros(100)}, tmp_path / f"0.{kind}")
    whole = (tmp_path / f"0.{kind}").read_bytes()
    for step in range(1, 9):
        (tmp_path / f"{step}.{kind}").write_bytes(whole)
    for step in range(9):
        os.utime(tmp_path / f"{step}.{kind}", (step, step))
    chosen = task.choose(tmp_path.iterdir())
    assert len(chosen) == 5
    assert chosen[-1] == tmp_path / f"8.{kind}"
    for size in (0, 4, 20, len(whole) - 1):
        chosen[-1].write_bytes(whole[:size])
        os.utime(chosen[-1], (8, 8))
        assert task.choose(tmp_path.iterdir())[-1] == tmp_path / f"7.{kind}"
        assert task.choose([chosen[-1]]) == []


@pytest.mark.slow
@pytest.mark.timeout(600)  # 40 s of processor time
def test_the_benchmark_of_a_gpu_runs_on_the_cpu(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--smoke", "--json", tmp_path / "found.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["parts"]) == ["model", "tests", "training, 8 M", "decoding"]
    verdicts = {bar["claim"].partition(":")[0]: bar["verdict"] for bar in found["bars"][:1]}
    assert verdicts == {"8 M parameters": "not measured"}  # the usual loop takes no part
    assert "| dragoman torch" in done.stdout


def test_a_part_that_fails_or_takes_too_long_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    parts = load("parts", monkeypatch, BENCHMARKS)
    commands = {
        "wrong": ("intervals.py", "--trials", "none"),
        "slow": ("-m", "timeit", "-n", "1", "-r", "1", "import time; time.sleep(100)"),
        "right": ("intervals.py", "--trials", "2", "--sizes", "50"),
    }
    outcomes = parts.run_all(
        (
            parts.Part(name=name, command=command, limit_s=1 if name == "slow" else 200)
            for name, command in commands.items()
        ),
        tmp_path,
    )
    assert "exit code 2: " in outcomes["wrong"].reason
    assert "--trials: invalid int value" in outcomes["wrong"].reason
    assert outcomes["slow"].reason == "not done within 1 s"
    assert outcomes["right"].reason == ""
    [table] = outcomes["right"].content["tables"]
    assert outcomes["right"].content["rows"][0]["population"] == "few rows wrong"
    assert "| few rows wrong" in table


def test_only_the_tables_of_a_benchmark_are_replaced(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = load("all", monkeypatch, BENCHMARKS)
    text = (BENCHMARKS / "README.md").read_text()
    for part in module.list_parts(Path("folder"))[1:]:
        replaced = module.replace_tables(text, part.name, "| new |")
        old = module.replace_tables(text, part.name, "")
        assert replaced.replace("| new |", "") == old
        lost = set(text.splitlines()) - set(replaced.splitlines())
        assert replaced.count("<!-- end -->") == text.count("<!-- end -->")
        block = text.partition(f"<!-- short: {part.name} -->")[2].partition("<!-- end -->")[0]
        assert lost <= set(block.splitlines())
    assert sum(part.limit_s for part in module.list_parts(Path("folder"))) <= 15 * 60
    for damaged in (
        "none",
        "<!-- short: a -->\n",
        "<!-- short: a -->\n<!-- short: b -->\n<!-- end -->",
    ):
        with pytest.raises(SystemExit, match="expected <!-- short: a --> once"):
            module.replace_tables(damaged, "a", "")


def test_a_table_of_a_recipe_names_the_commit_of_every_run(monkeypatch, tmp_path):
    recipes = load("run", monkeypatch, BENCHMARKS.parent / "recipes")
    monkeypatch.setattr(recipes, "HERE", tmp_path)
    recipe = recipes.Recipe(name="r", title="R", score="chrf", sets={"a": "a"}, published={})
    for page in (tmp_path / "README.md", tmp_path / "r" / "README.md"):
        page.parent.mkdir(exist_ok=True)
        page.write_text("<!-- table -->\n<!-- end -->\n")
    (tmp_path / "r" / "recipe.yaml").write_text(
        "{title: R, score: chrf, sets: {a: a}, published: {}}"
    )
    sizes = {
        "low": None,
        "high": None,
        "rows": 9,
        "steps": 9,
        "peak_memory_mib": 1,
        "parameters": 1,
    }
    for seed, commit in ((1, "old"), (2, "new"), (1, "new")):  # the last: complete already
        made = {"date": "2026-11-30", "commit": commit, "processor": "CPU", "minutes": 1.5}
        one = recipes.Result(set="a", seed=seed, valid=50.0, value=50.0, **sizes, **made)
        recipes.keep(recipe, one)
    table = (tmp_path / "README.md").read_text()
    assert "2026-11-30, commit new, CPU; 2026-11-30, commit old, CPU" in table
