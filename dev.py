"""Set up a virtual environment in this checkout, then run the demo or the tests.

    python3 dev.py demo     train on written dates of several languages, and use the model
    python3 dev.py test     run the linter, the type checker and the tests

Needs Python 3.11 or newer, pip and the package registry. Running it again installs nothing twice.
The environment is in `.venv`; remove that folder to start from scratch.
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
    "demo": [["examples/dates/demo.py"]],
    "test": [
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "mypy"],
        ["-m", "pytest"],
    ],
}


def main() -> int:
    """Run the steps of the one argument; return the exit code of the first that fails."""
    if sys.version_info < (3, 11):
        print(f"dragoman needs Python 3.11 or newer; this is {sys.version.split()[0]}")
        return 2
    if len(sys.argv) != 2 or sys.argv[1] not in STEPS:
        print(__doc__)
        return 2
    install("demo" if sys.argv[1] == "demo" else "dev")
    for command in STEPS[sys.argv[1]]:
        say(" ".join(["python", *command]))
        code = subprocess.run([PYTHON, *command], cwd=ROOT, check=False).returncode
        if code:
            return code
    return 0


def install(extra: str) -> None:
    """Install dragoman with `extra`, at the versions of constraints.txt, unless it is installed."""
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
    """Print the next step."""
    print(f"\n== {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
