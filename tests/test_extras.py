"""Without the packages of the extras: what works, and what says which extra to install."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
# Modules of the packages that only extras name, so far as dragoman imports them by itself.
MODULES = ("torch", "lightning", "torchmetrics", "jaxtyping", "pyarrow", "sacrebleu", "matplotlib",
           "jinja2", "markupsafe", "ftfy", "babel", "llguidance", "onnx", "onnxruntime", "fastapi",
           "uvicorn", "tensorboard", "ray", "fsspec")  # fmt: skip
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


def run(code: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python without the packages of the extras."""
    script = WITHOUT.replace("MODULES", repr(MODULES)) + code
    return subprocess.run(
        [sys.executable, "-c", script], input=given, capture_output=True, text=True, check=False
    )


def command(*words: object, given: str = "") -> subprocess.CompletedProcess[str]:
    words = [*map(str, words)]
    return run(f"from dragoman.cli import main; sys.exit(main({words!r}))", given)


def test_the_blocked_modules_are_those_of_extras_only():
    base = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]}
    assert not base & {*MODULES}
    train = {re.match(r"[\w-]+", line)[0] for line in PROJECT["optional-dependencies"]["train"]}
    assert train <= {*MODULES}


def test_predicting_needs_no_extra(trained, tmp_path):
    (tmp_path / "in.tsv").write_text("source\nabc\n")
    found = command("predict", trained[0], "--decoding.beam_size", 3, given="abc\n")
    assert (found.stdout, found.returncode) == ("ABC\n", 0), found.stderr
    files = ["--input", tmp_path / "in.tsv", "--output", tmp_path / "out.jsonl.gz"]
    assert command("predict", trained[0], *files).returncode == 0
    code = f"import dragoman; print(dragoman.load({str(trained[0])!r}).predict(['abc']))"
    assert run(code).stdout == "['ABC']\n"


@pytest.mark.parametrize(
    ("words", "name", "extra"),
    [
        (["fit", "PAIRS"], r"\w+", "train"),
        (["evaluate", "MODEL", "PAIRS"], r"\w+", "train"),
        (["predict", "MODEL", "--engine", "torch"], "torch", "train"),
        (["predict", "MODEL", "--decoding.method", "sampling"], "torch", "train"),
        (["predict", "MODEL", "--decoding.regex", "[A-Z]+"], "llguidance", "guided"),
        (["predict", "MODEL", "--output", "OUT.parquet"], "pyarrow", "train"),
        (["predict", "MODEL", "--output", "OUT.jsonl.zst"], "pyarrow", "train"),
        (["export", "MODEL"], r"\w+", "train"),
        (["serve", "MODEL"], "uvicorn", "serve"),
        (["predict", "MODEL", "--input", "memory://x.tsv"], "fsspec", "fsspec"),
        (
            [
                "predict",
                "MODEL",
                "--input",
                "PAIRS",
                "--output",
                "OUT",
                "--on",
                "ray",
                "--workers",
                "2",
            ],
            "ray",
            "ray",
        ),
        (["demo", "OUT"], "babel", "demo"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else None,
)
def test_whatever_needs_an_extra_names_it(words, name, extra, trained, tmp_path):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("abc\tABC\n" * 30)
    places = {"MODEL": str(trained[0]), "PAIRS": str(pairs)}
    words = [places.get(word, word.replace("OUT", str(tmp_path / "out"))) for word in words]
    found = command(*words, given="abc\n")
    assert found.returncode == 2, found.stderr
    expected = rf'({name}), which is not installed: pip install "dragoman\[{extra}\]"\n$'
    assert re.search(expected, found.stderr), found.stderr
    assert "Traceback" not in found.stderr


def test_a_function_that_needs_an_extra_names_it_too():
    found = run("import dragoman\ntry: dragoman.fit\nexcept dragoman.DragomanError as e: print(e)")
    assert 'which is not installed: pip install "dragoman[train]"' in found.stdout, found.stderr


def test_the_installed_metadata_names_the_extras_of_pyproject():
    """Messages read it: after a change of pyproject.toml, install the checkout again."""
    lines = json.dumps(requires("dragoman"))
    for name in PROJECT["optional-dependencies"]:
        assert re.search(rf"extra == '{name}'", lines), name


def test_doctor_names_what_is_missing():
    found = command("doctor")
    assert found.returncode == 0, found.stderr
    assert "dragoman" in found.stdout.splitlines()[0]
    assert "CTranslate2: " in found.stdout
    assert "PyTorch: " not in found.stdout
