"""Set up a virtual environment of this checkout's own, then run the demo, the tests, or the checks.

    python3 dev.py demo     train on written dates of several languages, and use the model
    python3 dev.py test     run the linter, the type checker and the tests

Needs Python 3.11 or newer, pip, and the package registry; nothing else. Can be run again: what is
installed already stays. The environment is in `.venv`; remove that folder to start afresh.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STEPS = {
    "demo": [["dragoman", "demo"]],
    "test": [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["pytest"],
    ],
}


def main() -> int:
    """Do what the one argument names; return the exit code of the first step that fails."""
    if sys.version_info < (3, 11):
        print(f"dragoman needs Python 3.11 or newer; this is {sys.version.split()[0]}")
        return 2
    if len(sys.argv) != 2 or sys.argv[1] not in STEPS:
        print(__doc__)
        return 2
    install("demo" if sys.argv[1] == "demo" else "dev")
    for command in STEPS[sys.argv[1]]:
        say(" ".join(command))
        code = subprocess.run([PYTHON, "-m", *command], cwd=ROOT, check=False).returncode
        if code:
            return code
    return 0


def install(extra: str) -> None:
    """Install dragoman with `extra`, at the versions of constraints.txt, unless that was done."""
    wanted = hashlib.sha256(
        (ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()
    ).hexdigest()
    done = VENV / f"installed-{extra}"
    if done.exists() and done.read_text() == wanted:
        return
    if not (BIN / "pip").exists() and not (BIN / "pip.exe").exists():
        say(f"make a virtual environment in {VENV}")
        venv.create(VENV, with_pip=True, clear=True)
    say(f"install dragoman[{extra}] into it, at the versions of constraints.txt (minutes)")
    # By the environment, not by -c alone: so it holds for the build's own environment too.
    # An address, because pip splits a path at its spaces.
    environment = os.environ | {"PIP_CONSTRAINT": (ROOT / "constraints.txt").as_uri()}
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "-e", f".[{extra}]"], cwd=ROOT, check=True, env=environment)
    done.write_text(wanted)


def say(what: str) -> None:
    """Print the step that comes."""
    print(f"\n== {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
