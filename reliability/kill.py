"""Kill a training at random moments, many times, and see that nothing was lost but time.

    python reliability/kill.py [--kills 100] [--seed 1]

One run, killed (SIGKILL) again and again and gone on with by the same command, until it has trained
to its end; then the next. After each death: the newest checkpoint is whole, the best one is there
whenever it was, no more than `checkpoint_every` updates are lost, and the next start sweeps every
temporary file. At the end of each run: the weights are those of a run that nobody killed, bit by
bit.
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

EVERY = 5  # updates from one checkpoint to the next
WORDS = [
    "--preset", "tiny", "--model.d_model", "64", "--model.dim_feedforward", "128",
    "--training.max_steps", "240", "--training.valid_every", "20", "--training.patience", "0",
    "--training.checkpoint_every", str(EVERY), "--training.batch_tokens", "256",
    "--training.accumulate", "2", "--training.loggers", "none",
    "--evaluation.report", "none", "--data.cache", "none", "--optimization.warmup_steps", "10",
]  # fmt: skip

# The command line, that besides writes down how many updates it has made.
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
    """Kill, look, go on; return 0 if nothing was ever lost."""
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
            pairs.with_name("updates").write_text("0")
            while found["kills"] < typed.kills:
                before = look(out)
                process = start(pairs, out)
                if not wait_randomly(process, out, chance):
                    break  # it has ended by itself
                process.kill()
                process.wait()
                found["kills"] += 1
                check(pairs, out, before, found)
            if start(pairs, out).wait() != 0:
                found["FAILED: did not go on to its end"] += 1
            check_end(out, whole, found)
            found["runs"] += 1
            print(dict(found), flush=True)
            shutil.rmtree(out.parent)
    failures = {told: count for told, count in found.items() if told.startswith("FAILED")}
    print(f"{found['kills']} kills over {found['runs']} runs: {failures or 'nothing was lost'}")
    return 1 if failures else 0


def start(pairs: Path, out: Path) -> subprocess.Popen[bytes]:
    """Begin the run, or go on with it, by one and the same command."""
    command = [sys.executable, "-c", CHILD, pairs.with_name("updates"), "fit", pairs, "--out", out]
    return subprocess.Popen(
        [*map(str, command), "--resume", "auto", *WORDS],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_randomly(process: subprocess.Popen[bytes], out: Path, chance: random.Random) -> bool:
    """Wait: mostly for a moment of the training, now and then of the start or the end; still alive?"""
    if chance.random() < 0.8:
        begun, seen = time.monotonic(), newest_step(out)
        while process.poll() is None and newest_step(out) == seen and time.monotonic() < begun + 60:
            time.sleep(0.005)
        time.sleep(chance.expovariate(1 / 0.7))
    else:
        time.sleep(chance.uniform(0.0, 8.0))
    return process.poll() is None


def look(out: Path) -> tuple[int, bool]:
    """Return the updates that are safe, and whether there is a best checkpoint."""
    return newest_step(out), (checkpoints_of(out) / BEST).is_file()


def check(pairs: Path, out: Path, before: tuple[int, bool], found: Counter[str]) -> None:
    """Count what a death has done."""
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
    lost = int(pairs.with_name("updates").read_bytes() or b"0") - now
    if lost > EVERY:
        found[f"FAILED: {lost} updates lost"] += 1
    found["updates lost at the most"] = max(found["updates lost at the most"], lost)
    temporary = [*out.parent.glob(".*[!k]"), *checkpoints_of(out).glob(".*")]  # but the .lock
    found["deaths that left temporary files"] += bool(temporary)
    found["deaths while checkpoints were there"] += now > 0
    found["deaths in or after the scoring"] += now == 240


def check_end(out: Path, whole: Mapping[str, NDArray[np.float32]], found: Counter[str]) -> None:
    """Count what is not as it would be, had nobody killed the run."""
    weights = load_file(out / "model.safetensors")
    if not all((weights[name] == array).all() for name, array in whole.items()):
        found["FAILED: other weights than without a death"] += 1
    names = {path.name for path in out.parent.iterdir()}
    if names != {out.name, f"{out.name}.training"}:
        found[f"FAILED: left lying about: {sorted(names)}"] += 1
    if list(checkpoints_of(out).glob(".*")):
        found["FAILED: temporary files among the checkpoints"] += 1


def checkpoints_of(out: Path) -> Path:
    """Return the folder of the checkpoints."""
    return out.with_name(f"{out.name}.training") / "checkpoints"


def newest_step(out: Path) -> int:
    """Return the updates of the newest checkpoint, by its name; 0: there is none."""
    steps = [int(path.stem[5:]) for path in checkpoints_of(out).glob("step-*.ckpt")]
    return max(steps, default=0)


def write_pairs(path: Path) -> Path:
    """Write words and the same in capitals."""
    chance = random.Random(0)
    words = {"".join(chance.choices("abcdefgh", k=chance.randint(3, 7))) for _ in range(1200)}
    path.write_text("".join(f"{word}\t{word.upper()}\n" for word in sorted(words)))
    return path


if __name__ == "__main__":
    sys.exit(main())
