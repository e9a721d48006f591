"""Compare validation curves of the fused code with those of the reference in float32.

python benchmarks/curves.py PAIRS [PAIRS ...] [-- OPTION ...]

`dragoman fit` trains on each data set with both implementations and several seeds; all other
settings are equal, except the precision. "fused" is the default; "reference" is torch's own modules
in float32. The table of each set shows the difference of the means and its standard error over the
seeds.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from tables import table

WAYS = {
    "fused": [],
    "reference": ["--training.implementation", "reference", "--training.precision", "32-true"],
}
SCORES = ("valid_loss", "valid_token_error_rate")

Curve = dict[int, float]
"""A score by update."""


def main() -> None:
    """Train what is missing, print a table for each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+", type=Path, help="files that fit takes")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each way (default: 3)")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "dragoman-curves",
        help="where runs are kept; one that is there is not made again (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all curves to it too")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, options = parser.parse_args(sys.argv[1:cut]), sys.argv[cut + 1 :]
    tables = list[str]()
    found: dict[str, dict[str, list[dict[str, Curve]]]] = {}
    for pairs in arguments.pairs:
        name = f"{pairs.parent.name}/{pairs.name}"
        found[name] = {
            way: [
                train(pairs, arguments.folder / f"{name.replace('/', '-')}-{way}-{seed}",
                      [*options, *extra, "--training.seed", str(seed)])
                for seed in range(1, arguments.seeds + 1)
            ]
            for way, extra in WAYS.items()
        }  # fmt: skip
        tables.append(describe(name, found[name]))
        print(tables[-1], flush=True)
    if arguments.json is not None:
        content = {"measured": found, "tables": tables}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def train(pairs: Path, out: Path, options: list[str]) -> dict[str, Curve]:
    """Return the curves of a run of `fit`, which is made unless its log is there and whole."""
    done, log = out.with_name(f"{out.name}.done"), Path(f"{out}.training/logs/metrics.csv")
    if not done.is_file():
        print(f"fit {out.name}", file=sys.stderr, flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "dragoman", "fit", str(pairs), "--out", str(out)]
        subprocess.run(
            [*command, "--overwrite", *options],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ,
        )
        done.touch()
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        score: {int(row["step"]) + 1: float(row[score]) for row in rows if row.get(score)}
        for score in SCORES
    }


def describe(name: str, runs: dict[str, list[dict[str, Curve]]]) -> str:
    """Return a table: a row an update, for each score the means, and their difference."""
    parts = [f"**{name}**"]
    for score in SCORES:
        rows = []
        steps = set.intersection(*(set(run[score]) for of_way in runs.values() for run in of_way))
        for step in sorted(steps):
            fused, reference = ([run[score][step] for run in runs[way]] for way in WAYS)
            error = ((stdev(fused) ** 2 + stdev(reference) ** 2) / len(fused)) ** 0.5
            rows.append(
                [
                    f"{step:,}",
                    f"{mean(fused):.4g} ({min(fused):.4g}-{max(fused):.4g})",
                    f"{mean(reference):.4g} ({min(reference):.4g}-{max(reference):.4g})",
                    f"{mean(fused) - mean(reference):+.3g}",
                    f"{error:.2g}",
                ]
            )
        heads = ["update", f"{score}, fused", "reference in fp32", "difference", "its error"]
        parts.append(table(heads, rows))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
