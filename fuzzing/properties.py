"""Runs the property tests of the readers, tokenizers and settings over and over, on fresh examples.

    python fuzzing/properties.py MINUTES [TESTS ...]

Prints how many examples were tried; stops at the first round in which a test fails, with its seed.
"""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_TESTS = ("tests/reading", "tests/tokenizers", "tests/model_folder", "tests/test_configuration.py")
_COUNTS = re.compile(r"(\d+) passing, (\d+) failing, and (\d+) invalid test cases")


def run_round(seed: int, tests: Sequence[str]) -> tuple[int, str]:
    """Return how many examples a run of all property tests tried, and its output if one failed."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-m", "hypothesis"]
    command += ["--hypothesis-show-statistics", f"--hypothesis-seed={seed}", *tests]
    finished = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    counts = _COUNTS.findall(finished.stdout)
    tried = sum(int(passing) + int(failing) for passing, failing, _ in counts)
    return tried, finished.stdout + finished.stderr if finished.returncode else ""


def main(minutes: float, tests: Sequence[str]) -> int:
    """Run rounds until the time is over or a test fails; return the exit code."""
    began, total, seed = time.monotonic(), 0, int(time.time())
    while (passed_s := time.monotonic() - began) < minutes * 60:
        tried, failure = run_round(seed, tests)
        total += tried
        passed_min = (time.monotonic() - began) / 60
        print(f"{total:,} examples in {passed_min:.1f} minutes", flush=True)
        if failure:
            print(f"{failure}\na test failed with --hypothesis-seed={seed}")
            return 1
        seed += 1
    print(f"Done {total:,} examples in {passed_s / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:] or _TESTS))
