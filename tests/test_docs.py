"""Each bash, console and Python block of README.md and docs/ runs; output that is shown is compared.

`fit` gets the options of SHORT at its end, so that it trains for seconds. A page's blocks run in order, in
a folder with the files that the pages name.
"""

import contextlib
import doctest
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

import dragoman
from conftest import quiet_console
from dragoman.cli import main
from dragoman.commands import demo
from dragoman.configuration import as_settings, flatten_settings, merge_settings
from dragoman.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORT = [
    "--model.d_model", "32", "--model.dim_feedforward", "64", "--model.num_encoder_layers", "1",
    "--model.num_decoder_layers", "1", "--training.max_steps", "4", "--training.valid_rows", "10",
    "--training.valid_every", "4", "--optimization.warmup_steps", "0",
    "--decoding.max_length", "12", "--evaluation.report", "none",
]  # fmt: skip
ELSEWHERE = ("pip ", "python3 dev.py ")  # run by .ci/release and .ci/run: they need the registry


def read_blocks(page: Path) -> list[tuple[str, str]]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_command(line: str, capsys, *, is_error_shown: bool = False) -> str:
    """Run a command, a `dragoman` alone in this process, and return what it prints."""
    words = shlex.split(line, comments=True)
    if line.startswith(ELSEWHERE):
        return ""
    if words[0] != "dragoman" or "|" in words:
        found = subprocess.run(["bash", "-euo", "pipefail", "-c", line], capture_output=True, text=True, check=False)  # fmt: skip
        assert found.returncode == 0, found.stderr
        return found.stdout + found.stderr
    files = {sign: words[words.index(sign) + 1] for sign in "<>" if sign in words}
    words = words[1 : min([words.index(sign) for sign in files], default=None)]
    if words[0] == "fit":
        is_new = not {"--resume", "--overwrite"} & {*words}
        words += [*SHORT, *["--overwrite"] * is_new]
    if words[0] == "tune":
        words += [*SHORT, "--trials", "1"]
    if words[0] == "learning-curve":
        words += [*SHORT, "--seeds", "1"]
    with contextlib.ExitStack() as stack:
        if "<" in files:
            stdin = stack.enter_context(Path(files["<"]).open(encoding="utf-8"))
            stack.enter_context(pytest.MonkeyPatch.context()).setattr(sys, "stdin", stdin)
        code = main(words)
    shown = capsys.readouterr()
    assert code == 0 or (code == 2 and is_error_shown), shown.err
    if ">" in files:
        Path(files[">"]).write_text(shown.out, encoding="utf-8")
    return shown.out + shown.err


def run_console(block: str, capsys) -> None:
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, wanted = part.partition("\n")
        got = run_command(command, capsys, is_error_shown=wanted.startswith("dragoman: "))
        is_shown = doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS)
        assert is_shown, f"$ {command}\n{got}\n--- but the page shows\n{wanted}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name: dates as people write them, and a model of them."""
    folder = tmp_path_factory.mktemp("files")
    forms, days = demo.read_forms(), demo.split_days()
    for name, split, rows in (("pairs", "train", 200), ("dev", "valid", 30), ("test", "test", 30)):
        pairs = list(demo.make_rows(forms, days[split], rows, Random(name)))
        (folder / f"{name}.tsv").write_text("".join(pairs), encoding="utf-8")
    sources = "".join(pair.partition("\t")[0] + "\n" for pair in pairs)
    (folder / "sources.txt").write_text(sources, encoding="utf-8")
    words = "".join(f"{'abcdef'[i % 6 :]}{i},en,{'k a t' if i % 2 else 'S a'}\n" for i in range(60))
    (folder / "words.csv").write_text("word,language,phones\n" + words, encoding="utf-8")
    for name in ("model", "smaller"):
        settings = dragoman.read_settings(None, SHORT)
        dragoman.fit(folder / "pairs.tsv", folder / name, settings, console=quiet_console())
    return folder


@pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor is True"
)  # torch's, of a stock nn.Transformer
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(shutil.copytree(files, tmp_path / "files"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    train = dragoman.fit

    def fit_shortly(pairs, out, settings=None, **options):
        short = flatten_settings(dragoman.read_settings(None, SHORT))
        settings = merge_settings(as_settings(settings), short, overrule=True)
        return train(pairs, out, settings, console=quiet_console(), **options)

    monkeypatch.setattr(dragoman, "fit", fit_shortly, raising=False)
    names: dict[str, object] = {"__name__": page.stem}
    for language, block in read_blocks(page):
        if language == "python":
            exec(compile(block, str(page), "exec"), names)
        elif language == "console":
            run_console(block, capsys)
        elif language == "bash":
            for line in block.splitlines():
                run_command(line, capsys)
        else:
            assert language in ("text", "yaml", "json"), f"a block without a language: {block}"


def test_every_setting_and_page_that_is_named_exists():
    known = {*flatten_settings(Settings()), *Settings.model_fields}
    known |= {name.rpartition(".")[0] for name in known}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        sections = "|".join(
            name for name in Settings.model_fields if name not in ("preset", "quality")
        )
        for name in re.findall(rf"`(?:--)?((?:{sections})\.(?!safetensors|json)\w[\w.]*)", text):
            assert name.rstrip(".") in known, f"{page.name}: there is no setting {name}"
        for link in re.findall(r"\]\(([\w/.-]+)(?:#[\w-]+)?\)", text):
            assert (page.parent / link).exists(), f"{page.name}: there is no {link}"


def test_what_the_site_adds_to_pages_is_there():
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    added = {
        page.stem: hooks["on_page_markdown"](page.read_text(encoding="utf-8")) for page in PAGES[1:]
    }
    assert not [page for page, text in added.items() if "<!--" in text]
    assert all(f"`{name}`" in added["settings"] for name in flatten_settings(Settings()))
    assert added["masks"].count("<svg") == 6
    assert "| seeds |" in added["recipes"]
    assert "pip install" in added["ship"]
