"""The layout of the package: who may import whom, and what is loaded when."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import pytest

import dragoman

PACKAGE = Path(dragoman.__file__).parent
# Each row imports only itself and the rows above it.
ROWS = [
    {"errors", "characters"},
    {
        "settings",
        "configuration",
        "cli_options",
    },
    {"storage", "records", "grounding"},
    {"reading", "tokenizers", "model_folder"},
    {"presets"},
    {"data"},
    {"model"},
    {"decoding"},
    {"evaluation"},
    {"inspection"},
    {"reporting"},
    {"engines"},
    {"predictor"},
    {"serving"},
    {"training"},
    {"commands"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
# One way upwards, and why: Transformer.generate and score are short ways to the search on it.
SEARCHES = ("search_config", "search", "hypothesis")
ALLOWED = {("model/transformer.py", f"dragoman.decoding.{name}") for name in SEARCHES}


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    return names


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


FILES = sorted(p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_imports_only_from_the_rows_above_it(file):
    row_of = {part: i for i, row in enumerate(ROWS) for part in row}
    part = file.parts[0].removesuffix(".py")
    assert part in row_of, f"{part} has no row: give it one in this test"
    for module in imports_of(PACKAGE / file):
        if module.startswith("dragoman") and (str(file), module) not in ALLOWED:
            assert row_of[part_of(module)] <= row_of[part], f"{file} imports {module}"


@pytest.mark.parametrize(
    "folder",
    ["reading", "tokenizers", "model_folder", "evaluation", "inspection", "reporting", "serving"],
)
def test_what_looks_at_data_and_outputs_needs_no_torch(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert not roots & {"torch", "lightning", "torchmetrics"}, path


def test_lightning_lives_in_training_only():
    for file in FILES:
        if file.parts[0] not in {"training", "commands"}:
            roots = {name.split(".")[0] for name in imports_of(PACKAGE / file)}
            assert not roots & {"lightning", "torchmetrics"}, file


@pytest.mark.parametrize("file", [f for f in FILES if f.name == "__init__.py"], ids=str)
def test_each_init_but_the_roots_is_empty(file):
    assert len(file.parts) == 1 or (PACKAGE / file).read_text() == ""


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import dragoman",
        "import dragoman.cli; dragoman.cli_options.build_parser(dragoman.cli.COMMANDS)[1]['fit'].format_help()",
        "import dragoman; dragoman.Settings; dragoman.read_pairs; dragoman.Tokenizer",
        "import dragoman.model_folder.folder",
        "import dragoman.training.run_context; dragoman.training.run_context.StartTimer()",
    ],
)
def test_neither_torch_nor_lightning_is_loaded_by(code):
    assert not loaded_after(code) & {"torch", "lightning", "torchmetrics"}


def test_predicting_does_not_load_lightning():
    assert "lightning" not in loaded_after("import dragoman; dragoman.Predictor")


def test_predicting_with_an_export_loads_neither_torch_nor_lightning(trained):
    code = f"import dragoman; assert dragoman.load({str(trained[0])!r}).predict(['abc']) == ['ABC']"
    assert not loaded_after(code) & {"torch", "lightning", "torchmetrics"}
    words = ["predict", str(trained[0]), "--output", str(trained[0].with_name("out.jsonl"))]
    code = f"import io, sys; sys.stdin = io.TextIOWrapper(io.BytesIO(b'abc\\n'))\nfrom dragoman.cli import main\nassert main({words!r}) == 0"
    assert not loaded_after(code) & {"torch", "lightning", "torchmetrics"}


def test_every_module_loads_without_what_only_posix_has():
    """As on Windows, so far as it can be had here."""
    script = """
import importlib, os, pathlib, signal, sys
import torch, lightning, ctranslate2, matplotlib, uvicorn, fastapi  # others' own use of POSIX
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("fork", "register_at_fork", "sched_getaffinity", "sysconf", "getuid", "getpgid"):
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "pthread_sigmask"):
    delattr(signal, name)
for file in sorted(pathlib.Path(sys.argv[1]).rglob("*.py")):
    parts = file.relative_to(sys.argv[1]).with_suffix("").parts
    if parts[-1] not in ("__init__", "__main__", "pytorch_decode"):
        importlib.import_module(".".join(("dragoman", *parts)))
"""
    command = [sys.executable, "-c", script, str(PACKAGE)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_every_public_name_is_there_and_told_of():
    for name in dragoman.__all__:
        assert getattr(dragoman, name).__doc__, name
    assert {name for name in dir(dragoman) if not name.startswith("_")} == {*dragoman.__all__}
    assert dragoman.__version__ == version("dragoman")
    assert (PACKAGE / "py.typed").is_file()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        dragoman.fitt  # noqa: B018


def test_every_pinned_version_has_hashes_and_every_dependency_a_pin():
    """Else: python3 dev.py lock"""

    def read_pins(name):
        text = (Path(__file__).parent.parent / name).read_text(encoding="utf-8")
        found = re.findall(
            r"^([\w.-]+)==([^\s;]+)(.*(?:\n +--hash=sha256:[0-9a-f]{64}.*)*)", text, re.M
        )
        return {re.sub("[-_.]+", "-", one).lower(): rest for one, *rest in found}

    pins, locked = read_pins("constraints.txt"), read_pins("hashes.txt")
    assert all("--hash" in rest for _, rest in locked.values())
    assert {name: version for name, (version, _) in pins.items()}.items() <= {
        name: version for name, (version, _) in locked.items()
    }.items()
    project = tomllib.loads(
        (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    for line in [*project["dependencies"], *chain(*project["optional-dependencies"].values())]:
        name = re.match(r"[\w.-]+", line)[0].lower()
        assert name in {*locked, "dragoman"}, line
