"""Kill a training at random moments, many times, and check that only time is lost.

    python reliability/kill.py [--kills 100] [--seed 1]

One run is killed (SIGKILL) again and again and resumed by the same command until it is complete;
then the next. After each kill: every checkpoint can be read, the best one is still there, at most
`checkpoint_every` steps are lost, and the next start removes every temporary file. At the end of
each run: the weights are bit-identical to those of an uninterrupted run.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from dragoman.errors import CheckpointError
from dragoman.training.checkpoints import BEST, list_checkpoints, read_checkpoint

EVERY = 5  # steps between two checkpoints
WORDS = [
    "--preset", "tiny", "--model.d_model", "64", "--model.dim_feedforward", "128",
    "--training.max_steps", "240", "--training.valid_every", "20", "--training.patience", "0",
    "--training.checkpoint_every", str(EVERY), "--training.batch_tokens", "256",
    "--training.accumulate", "2", "--training.loggers", "none",
    "--evaluation.report", "none", "--data.cache", "none", "--optimization.warmup_steps", "10",
]  # fmt: skip

# The command line; it also writes the number of its steps to a file.
CHILD = """
import os, sys
from dragoman.cli import main
from dragoman.training.module import TransformerTraining
file = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT)
plain = TransformerTraining.training_step
def step(module, batch, batch_idx):
    os.pwrite(file, b"%9d" % module.trainer.global_step, 0)
    return plain(module, batch, batch_idx)
TransformerTraining.training_step = step
sys.exit(main())
"""


def main() -> int:
    """Kill, check, resume; return 0 if nothing was ever lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    typed = parser.parse_args()
    chance, found = random.Random(typed.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = write_pairs(folder / "pairs.tsv")
        start(pairs, folder / "whole").wait()
        whole = load_file(folder / "whole" / "model.safetensors")
        while found["kills"] < typed.kills:
            out = folder / "runs" / f"{found['runs']}"
            out.parent.mkdir(exist_ok=True)
            pairs.with_name("steps").write_text("0")
            while found["kills"] < typed.kills:
                before = look(out)
                process = start(pairs, out)
                if not wait_randomly(process, out, chance):
                    break  # it has finished
                process.kill()
                process.wait()
                found["kills"] += 1
                check(pairs, out, before, found)
            if start(pairs, out).wait() != 0:
                found["FAILED: did not resume to its end"] += 1
            check_end(out, whole, found)
            found["runs"] += 1
            print(dict(found), flush=True)
            shutil.rmtree(out.parent)
    failures = {name: count for name, count in found.items() if name.startswith("FAILED")}
    print(f"{found['kills']} kills over {found['runs']} runs: {failures or 'nothing was lost'}")
    return 1 if failures else 0


def start(pairs: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start or resume the run: the same command."""
    command = [sys.executable, "-c", CHILD, pairs.with_name("steps"), "fit", pairs, "--out", out]
    return subprocess.Popen(
        [*map(str, command), "--resume", "auto", *WORDS],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_randomly(process: subprocess.Popen[bytes], out: Path, chance: random.Random) -> bool:
    """Wait for a random moment, mostly of the training; return whether the process is alive."""
    if chance.random() < 0.8:
        begun, seen = time.monotonic(), newest_step(out)
        while process.poll() is None and newest_step(out) == seen and time.monotonic() < begun + 60:
            time.sleep(0.005)
        time.sleep(chance.expovariate(1 / 0.7))
    else:
        time.sleep(chance.uniform(0.0, 8.0))
    return process.poll() is None


def look(out: Path) -> tuple[int, bool]:
    """Return the step of the newest checkpoint, and whether there is a best one."""
    return newest_step(out), (checkpoints_of(out) / BEST).is_file()


def check(pairs: Path, out: Path, before: tuple[int, bool], found: Counter[str]) -> None:
    """Count the effects of a kill."""
    step, had_best = before
    for path in list_checkpoints(checkpoints_of(out)):
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            found[f"FAILED: an unreadable checkpoint: {error}"] += 1
    now = newest_step(out)
    if now < step:
        found["FAILED: the newest checkpoint is older than before"] += 1
    if had_best and not (checkpoints_of(out) / BEST).is_file():
        found["FAILED: the best checkpoint is gone"] += 1
    lost = int(pairs.with_name("steps").read_bytes() or b"0") - now
    if lost > EVERY:
        found[f"FAILED: {lost} steps lost"] += 1
    found["most steps lost"] = max(found["most steps lost"], lost)
    temporary = [*out.parent.glob(".*[!k]"), *checkpoints_of(out).glob(".*")]  # but the .lock
    found["kills that left temporary files"] += bool(temporary)
    found["kills with checkpoints"] += now > 0
    found["kills while or after scoring"] += now == 240


def check_end(out: Path, whole: Mapping[str, NDArray[np.float32]], found: Counter[str]) -> None:
    """Count differences from an uninterrupted run."""
    weights = load_file(out / "model.safetensors")
    if not all((weights[name] == array).all() for name, array in whole.items()):
        found["FAILED: weights differ from an uninterrupted run"] += 1
    names = {path.name for path in out.parent.iterdir()}
    if names != {out.name, f"{out.name}.training"}:
        found[f"FAILED: files left behind: {sorted(names)}"] += 1
    if list(checkpoints_of(out).glob(".*")):
        found["FAILED: temporary files among the checkpoints"] += 1


def checkpoints_of(out: Path) -> Path:
    """Return the folder of the checkpoints."""
    return out.with_name(f"{out.name}.training") / "checkpoints"


def newest_step(out: Path) -> int:
    """Return the step of the newest checkpoint, by its name; 0 without one."""
    steps = [int(path.stem[5:]) for path in checkpoints_of(out).glob("step-*.ckpt")]
    return max(steps, default=0)


def write_pairs(path: Path) -> Path:
    """Write words with their capitals."""
    chance = random.Random(0)
    words = {"".join(chance.choices("abcdefgh", k=chance.randint(3, 7))) for _ in range(1200)}
    path.write_text("".join(f"{word}\t{word.upper()}\n" for word in sorted(words)))
    return path


if __name__ == "__main__":
    sys.exit(main())
