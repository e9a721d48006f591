"""Measures how fast pairs are read and made into ids, and in how much memory: prints a table.

python benchmarks/reading.py --pairs 5000000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from machine import find_peak_mib
from tables import show

_CHUNK_ROWS = 100_000
_SYLLABLES = [c + v for c in "bcdfghklmnprstvz" for v in ("a", "e", "i", "o", "u", "ä", "ou", "ai")]


def main() -> None:
    """Write the pairs, read them in a process of their own, print what it measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5_000_000, help="rows (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="where to write them (default: a temporary one)"
    )
    parser.add_argument("--read", type=Path, metavar="FILE", help="only read FILE")
    parser.add_argument("--prepare", type=Path, metavar="FILE", help="only make ids of FILE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to it too")
    parser.add_argument(
        "--processes", type=int, default=0, help="those that make ids (default: one for each core)"
    )
    arguments = parser.parse_args()
    tasks = (read, arguments.read), (prepare, arguments.prepare, arguments.processes)
    for task, path, *options in tasks:
        if path is not None:
            print(json.dumps(measure(task, path, *options), indent=2))
            return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "pairs.tsv"
        write_pairs(path, arguments.pairs)
        # This process must stay small: on Linux a child's peak memory starts from its parent's.
        environment = os.environ | {"XDG_CACHE_HOME": folder}  # nothing is prepared there yet
        found = list[dict[str, str]]()
        for option in ("--read", "--prepare"):
            command = [sys.executable, __file__, option, str(path)]
            command += ["--processes", str(arguments.processes)]
            done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE)
            found.append({name: str(one) for name, one in json.loads(done.stdout).items()})
    show(list(found[0]), [list(one.values()) for one in found], arguments.json)


def write_pairs(path: Path, num_pairs: int) -> None:
    """Write a TSV of invented words and their syllables, always the same ones."""
    generator = Random(1)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for start in range(0, num_pairs, _CHUNK_ROWS):
            num_rows = min(_CHUNK_ROWS, num_pairs - start)
            numbers = generator.randbytes(5 * num_rows)
            file.writelines(_make_row(numbers[5 * i : 5 * i + 5]) for i in range(num_rows))


def measure(task: Callable[..., int], path: Path, *options: int) -> dict[str, str | float | int]:
    """Return the rows that `task` made of `path`, rows a second, the peak memory of this process."""
    started_at = time.perf_counter()
    num_rows = task(path, *options)
    elapsed_s = time.perf_counter() - started_at
    return {
        "task": task.__name__,
        "rows": num_rows,
        "file_mib": round(path.stat().st_size / 2**20, 1),
        "elapsed_s": round(elapsed_s, 2),
        "rows_per_s": round(num_rows / elapsed_s),
        "peak_memory_mib": round(find_peak_mib(), 1),
    }


def read(path: Path) -> int:
    """Read the pairs; return their number."""
    from dragoman.reading.pairs import read_pairs
    from dragoman.settings import DataSettings

    return sum(1 for _ in read_pairs([path], DataSettings()))


def prepare(path: Path, num_processes: int) -> int:
    """Do all that `fit` does before it trains: statistics, tokenizer, ids; return the rows of ids."""
    from dragoman import PairDataModule

    data = PairDataModule(path, {"data.processes": num_processes})
    data.prepare_data()
    data.setup("fit")
    return sum(data.num_rows.values())


def _make_row(numbers: bytes) -> str:
    syllables = [_SYLLABLES[number % len(_SYLLABLES)] for number in numbers]
    return f"{''.join(syllables)}\t{' '.join(syllables)}\n"


if __name__ == "__main__":
    main()
