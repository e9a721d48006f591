"""Runs a short form of each benchmark, in 15 minutes, and writes its tables into README.md.

python benchmarks/all.py                                 # takes the machine for itself
python benchmarks/all.py --only intervals reading        # some of them

Each is a process with a time limit; one that fails or takes longer is named, keeps its old tables, and
the others go on. All JSON goes into one file. The comparison with peers is not among them: it installs
them, and trains each for minutes.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from machine import OtherProcesses, describe_machine
from parts import FOLDER, Part, run_all
from tables import table

_PACKAGES = ("dragoman", "torch", "lightning", "transformers", "ctranslate2")
_DEMO = "demo"  # trains the model that others measure


def main() -> None:
    """Run the benchmarks, then rewrite their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [part.name for part in list_parts(Path()) if part.name != _DEMO]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME",
                        help=", ".join(names))  # fmt: skip
    parser.add_argument("--patience", type=float, default=1.0, metavar="FACTOR",
                        help="on all time limits, for a busy machine (default: 1)")  # fmt: skip
    parser.add_argument(
        "--readme", type=Path, default=FOLDER / "README.md", help="what is rewritten"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to it")
    arguments = parser.parse_args()
    text = arguments.readme.read_text("utf-8")
    for name in arguments.only:  # now, and not after the measurements
        replace_tables(text, name, "")
    others = OtherProcesses()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        parts = [part for part in list_parts(folder) if part.name in arguments.only]
        if any(str(folder / _DEMO) in word for part in parts for word in part.command):
            parts.insert(0, list_parts(folder)[0])
        outcomes = run_all(
            (replace(one, limit_s=one.limit_s * arguments.patience) for one in parts), folder
        )
        facts = {**describe_machine(_PACKAGES), "other processes": others.describe()}
    for part in parts:
        content = outcomes[part.name].content
        if content is None:
            continue
        command = " ".join(part.command).replace(str(folder), "FOLDER")
        told = f"{facts['date, commit']}, {facts['processor']}; other processes: "
        told += f"{facts['other processes']}; `{command}`, {outcomes[part.name].seconds:.0f} s:"
        tables = content.get("tables") or [describe_scaling(content)]
        text = replace_tables(text, part.name, "\n\n".join([told, *tables]))
    arguments.readme.write_text(text, encoding="utf-8")
    if arguments.json is not None:
        found = {"facts": facts, "parts": {name: vars(one) for name, one in outcomes.items()}}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    failed = [f"{name}: {one.reason}" for name, one in outcomes.items() if one.reason]
    print("\n".join([*failed, *map(str, facts.values())]))
    sys.exit(1 if failed else 0)


def list_parts(folder: Path) -> list[Part]:
    """Return the short forms; their limits are 15 minutes in all."""
    model, pairs = str(folder / _DEMO / "model"), folder / _DEMO / "pairs"
    test = str(pairs / "test.tsv")
    few = ("--rounds", "2", "--turn-s", "3")
    some = ("--only", "^dragoman$|loop fp32|Face fp32|products")
    few_rows = ("--rows", "128", "--rows-slow", "64", "--rows-single", "10", "--rounds", "2")
    curve = (
        *("--preset", "tiny", "--training.max_steps", "100", "--training.valid_every", "50"),
        *("--training.batch_tokens", "1024", "--evaluation.report", "none"),
    )
    return [
        Part(name=_DEMO, command=("-m", "dragoman", "demo", str(folder / _DEMO)), limit_s=180),
        Part(name="reading", command=("reading.py", "--pairs", "300000"), limit_s=30),
        Part(name="training", command=("training.py", *few, *some), limit_s=180),
        Part(
            name="scaling",
            command=("scaling.py", *few, "--only", "d_model 128", "d_model 512", "length 300"),
            limit_s=110,
        ),
        Part(
            name="curves",
            command=(
                *("curves.py", str(pairs / "train.tsv"), "--seeds", "2"),
                *("--folder", str(folder / "curves")),
            ),
            options=("--", *curve),
            limit_s=100,
        ),
        Part(
            name="decoding",
            command=("decoding.py", "--model", model, "--sources", test, *few_rows),
            limit_s=130,
        ),
        Part(
            name="serving",
            command=("serving.py", model, test, "--rounds", "2", "--rows", "1000"),
            limit_s=30,
        ),
        Part(name="intervals", command=("intervals.py", "--trials", "40"), limit_s=30),
        Part(name="calibration", command=("calibration.py", model), limit_s=10),
        Part(
            name="doubtful_targets",
            command=("doubtful_targets.py", "--rows", "1000", "--wrong", "50", "--seeds", "2"),
            limit_s=100,
        ),
    ]


def replace_tables(text: str, name: str, tables: str) -> str:
    """Return `text` with `tables` between the marker of the benchmark and the next end.

    Raises: SystemExit, when the markers are not there, or another begins before the end.
    """
    begin, end = f"<!-- short: {name} -->\n", "<!-- end -->"
    before, found, rest = text.partition(begin)
    old, is_closed, after = rest.partition(end)
    if not found or not is_closed or "<!-- short: " in old or begin in after:
        raise SystemExit(f"README: expected {begin.strip()} once, and {end} after its tables")
    return f"{before}{begin}{tables}\n{end}{after}"


def describe_scaling(content: Mapping[str, Any]) -> str:
    """Return the table of what scaling.py measured."""
    rows = []
    for one in content["measured"]:
        rate = median(turn["target"] / turn["seconds"] for turn in one["turns"])
        parameters = one["first"]["num_parameters"]
        gflops = one["flops"] * rate / 1e9
        rows.append([one["title"], f"{parameters:,}", f"{rate:,.0f}", f"{gflops:,.0f}"])
    return table(["point", "parameters", "target tokens/s", "GFLOP/s"], rows)


if __name__ == "__main__":
    main()
