"""Set up a virtual environment in this checkout, then run the demo, the tests, ....

    python3 dev.py demo     train on written dates of several languages, and use the model
    python3 dev.py test     run the linter, the type checker and the tests
    python3 dev.py slow     run the slow tests: clusters, several ranks, kills
    python3 dev.py docs     build the documentation in site/
    python3 dev.py audit    look up known vulnerabilities of the versions in hashes.txt
    python3 dev.py lock     write hashes.txt anew, from constraints.txt and pyproject.toml

Needs Python 3.11 or newer, pip and the package registry. Running it again installs nothing twice.
Each file that pip installs must have a hash of hashes.txt. The environment is in `.venv`; remove
that folder to start from scratch. The exit code is 0 only if every step passed.
"""

import hashlib
import os
import re
import subprocess
import sys
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
HASHES = ROOT / "hashes.txt"
STEPS = {
    "demo": [["-m", "dragoman", "demo"]],
    "test": [
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "mypy"],
        ["-m", "pytest"],
    ],
    "slow": [["-m", "pytest", "-m", "slow"]],
    "docs": [["-m", "mkdocs", "build", "--strict"]],
    # Strict: else a package that cannot be looked up passes.
    "audit": [["-m", "pip_audit", "--strict", "--require-hashes", "--disable-pip", "-r", "hashes.txt"]],
    "lock": [
        ["-m", "uv", "pip", "compile", "pyproject.toml", "--all-extras", "--universal", "--no-config",
         "--system-certs", "--python-version", "3.11", "-c", "constraints.txt", "--generate-hashes",
         "--no-header", "--no-annotate", "--quiet", "--output-file", "hashes.txt"],
    ],
}  # fmt: skip
EXTRAS = {
    "demo": "demo",
    "test": "dev",
    "slow": "dev",
    "docs": "docs",
    "audit": "supply",
    "lock": "supply",
}
# torch without CUDA (Linux, x86-64, Python 3.11): not on PyPI; taken where pip is set up to find it.
TORCH_CPU = """torch==2.13.0+cpu \\
    --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
"""


def main() -> int:
    """Run all steps of the one argument, and print how each ended; return 1 if one failed."""
    if sys.version_info < (3, 11):
        print(f"dragoman needs Python 3.11 or newer; this is {sys.version.split()[0]}")
        return 2
    if len(sys.argv) != 2 or sys.argv[1] not in STEPS:
        print(__doc__)
        return 2
    name = sys.argv[1]
    try:
        install(EXTRAS[name])
    except subprocess.CalledProcessError as error:
        say(f"FAILED: pip could not install (exit code {error.returncode}); see its message above")
        return 1
    outcomes = []
    for words in STEPS[name]:
        command = " ".join(["python", *words])
        say(command)
        start_s = time.monotonic()
        code = subprocess.run([PYTHON, *words], cwd=ROOT, check=False).returncode
        outcome = "passed" if code == 0 else f"FAILED (exit code {code})"
        outcomes.append(f"{outcome} in {time.monotonic() - start_s:.0f} s: {command}")
    has_failed = any(outcome.startswith("FAILED") for outcome in outcomes)
    say("\n   ".join([*outcomes, "FAILED" if has_failed else "all passed"]))
    return int(has_failed)


def install(extra: str) -> None:
    """Install dragoman with `extra`, from files with the hashes of hashes.txt, unless it is done."""
    inputs = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "hashes.txt"))
    wanted = hashlib.sha256(inputs).hexdigest()
    done = VENV / f"installed-{extra}"
    if done.exists() and done.read_text() == wanted:
        return
    if not (BIN / "pip").exists() and not (BIN / "pip.exe").exists():
        say(f"make a virtual environment in {VENV}")
        venv.create(VENV, with_pip=True, clear=True)
    say(f"install dragoman[{extra}] into it, from files with the hashes of hashes.txt (minutes)")
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    # The pip that comes with Python 3.11 takes no hashes from constraints.
    newer = re.search(r"^pip==(.*\n)+?(?=\S)", HASHES.read_text(), re.MULTILINE)
    assert newer is not None
    for text, must in ((newer.group(), True), (TORCH_CPU, False)):
        (VENV / "first.txt").write_text(text)
        first = ["--no-deps", "--require-hashes", "-r", VENV / "first.txt"]
        subprocess.run([*pip, *first], check=must, stderr=None if must else subprocess.DEVNULL)
    wheels = [*list_requirements(extra), "hatchling", "editables"]
    subprocess.run([*pip, "-c", HASHES, *wheels], cwd=ROOT, check=True)
    editable = ["--no-deps", "--no-build-isolation", "-e", "."]
    subprocess.run([*pip, *editable], cwd=ROOT, check=True)
    done.write_text(wanted)


def list_requirements(extra: str) -> list[str]:
    """Return the requirements of dragoman and of `extra`, and of the extras that it names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, extras = [*project["dependencies"]], [extra]
    for name in extras:  # it grows
        for requirement in project["optional-dependencies"][name]:
            own = re.fullmatch(r"dragoman\[(.*)\]", requirement)
            extras += own[1].split(",") if own else []
            found += [] if own else [requirement]
    return found


def say(what: str) -> None:
    """Print the next step."""
    print(f"\n== {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
