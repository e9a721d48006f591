"""Measures how well wrong targets are found: plants them in the demo's dates; prints a table.

python benchmarks/doubtful_targets.py [--rows 3000] [--wrong 150] [--seeds 3]

Half of the wrong targets are those of other rows, half are 1 to 40 days off. The models are trained on
these rows, as those of a user would be. A way of ranking is judged by the wrong targets among its first
rows, as many as were planted.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from random import Random

from tables import show

import dragoman
from dragoman.commands.demo import write_date_pairs
from dragoman.model_folder.folder import list_models

SETTINGS = {
    "model": {
        "d_model": 64,
        "num_encoder_layers": 2,
        "num_decoder_layers": 1,
        "dim_feedforward": 256,
        "dropout": 0.1,
    },
    "optimization": {"learning_rate": 0.002, "warmup_steps": 100},
    "training": {
        "batch_tokens": 1024,
        "max_steps": 800,
        "valid_every": 400,
        "valid_rows": 200,
        "patience": 0,
    },
}


def plant(path: Path, num_rows: int, num_wrong: int) -> set[int]:
    """Cut the file of pairs to its first rows, make some targets wrong, and return their lines."""
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()[:num_rows]]
    chance, targets = Random(1), [target for _, target in rows]
    wrong = chance.sample(range(len(rows)), num_wrong)
    for number, i in enumerate(wrong):
        while rows[i][1] == targets[i]:
            if number % 2:
                days = chance.choice([-1, 1]) * chance.randint(1, 40)
                rows[i][1] = str(date.fromisoformat(targets[i]) + timedelta(days=days))
            else:
                rows[i][1] = chance.choice(targets)
    path.write_text("".join(f"{source}\t{target}\n" for source, target in rows), "utf-8")
    return {i + 1 for i in wrong}


def rank(pairs: Path, model: Path) -> list[int]:
    """Return the lines of the doubtful targets, the most doubtful first."""
    return [one.line for one in dragoman.inspect(pairs, model=model).suspects]


def rank_by_agreement(pairs: Path, model: Path, lines: Sequence[int]) -> list[int]:
    """Return the lines with those first on which the most seeds write one and the same other output."""
    rows = [line.split("\t") for line in pairs.read_text("utf-8").splitlines()]
    outputs = [dragoman.predict(one, [row[0] for row in rows]) for one in list_models(model)]
    others = [
        Counter(one for one in found if one != row[1])
        for row, *found in zip(rows, *outputs, strict=True)
    ]
    return sorted(lines, key=lambda line: -max(others[line - 1].values(), default=0))


def main() -> None:
    """Train, rank, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 3000), ("wrong", 150), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to it too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        pairs, model = write_date_pairs(Path(name)).train, Path(name) / "model"
        wrong = plant(pairs, arguments.rows, arguments.wrong)
        dragoman.fit(pairs, model, SETTINGS, seeds=arguments.seeds)
        lines = rank(pairs, model)
        ways = {
            "the ensemble's log-odds, dragoman's": lines,
            "agreement of the seeds, then these": rank_by_agreement(pairs, model, lines),
            **{f"log-odds of {one.name}": rank(pairs, one) for one in list_models(model)},
        }
        found = [
            (way, str(len(wrong.intersection(one[: len(wrong)])))) for way, one in ways.items()
        ]
    show(["way", f"wrong targets among the first {arguments.wrong}"], found, arguments.json)


if __name__ == "__main__":
    main()
