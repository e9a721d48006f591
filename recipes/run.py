"""Train a recipe's data sets with each seed, score them, and write the rows of its table.

    python recipes/run.py g2p_cmudict --data DATA --seeds 3

Each run is one `dragoman fit`, resumed if it was interrupted. Scores come from its metrics.json, and
go into results.json of the recipe and the tables of its README: no number is typed by hand.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import yaml

import dragoman

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "benchmarks"))

from machine import describe_machine  # noqa: E402

_PRECISIONS = (0.9, 0.95)  # of those for which `fit` looks for a threshold
_TABLE = re.compile(r"(<!-- table -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What recipe.yaml says."""

    name: str
    title: str
    score: str  # a name in metrics.json, such as word_error_rate
    sets: dict[str, str]  # by name, a folder below --data with train, valid and test
    published: dict[str, dict[str, float]]  # by system, then by set
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # by set: not the defaults

    @classmethod
    def read(cls, name: str) -> "Recipe":
        """Read the recipe in the folder `name`."""
        content = yaml.safe_load((HERE / name / "recipe.yaml").read_text(encoding="utf-8"))
        return cls(name=name, **content)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One trained model, on the test pairs."""

    set: str
    seed: int
    valid: float  # on the validation pairs, for choices
    value: float  # of what `predict` gives: with memory, where `fit` keeps one
    low: float | None  # of the interval over rows
    high: float | None
    rows: int
    steps: int
    minutes: float
    peak_memory_mib: float
    parameters: int
    date: str
    commit: str
    processor: str
    alone: float | None = None  # of the model without its memory; None: it has none
    records: dict[str, Any] | None = None  # of outputs that are records: see `measure_records`


def main() -> None:
    """Run the recipes that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = sorted(path.parent.name for path in HERE.glob("*/recipe.yaml"))
    parser.add_argument("recipe", choices=names)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--sets", nargs="+", help="only these sets of the recipe")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1")
    parser.add_argument("--out", type=Path, default=Path("recipes-out"), help="where models go")
    arguments = parser.parse_args()
    recipe = Recipe.read(arguments.recipe)
    for seed in range(1, arguments.seeds + 1):
        for name, folder in recipe.sets.items():
            if arguments.sets is None or name in arguments.sets:
                out = arguments.out / recipe.name / f"{name}-{seed}"
                keep(recipe, train(recipe, name, arguments.data / folder, seed, out))


def train(recipe: Recipe, name: str, data: Path, seed: int, out: Path) -> Result:
    """Train one model, and return its score on the test pairs."""
    train, valid, test = (
        str(next(data.glob(f"{part}.tsv*"))) for part in ("train", "valid", "test")
    )
    settings = {**recipe.settings.get(name, {}), "training.seed": seed}
    options = [f"--{key}={value}" for key, value in settings.items()]
    out.parent.mkdir(parents=True, exist_ok=True)
    command = ["fit", train, "--valid", valid, "--test", test, "--out", str(out), *options]
    subprocess.run([sys.executable, "-m", "dragoman", *command, "--resume", "auto"], check=True)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    with_memory = metrics.get("memory", {}).get("scores", {})
    valid_scores, scores = ({**metrics, **with_memory}[split] for split in ("valid", "test"))
    low, high = scores["intervals"][recipe.score] or (None, None)
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return Result(
        set=name,
        seed=seed,
        valid=valid_scores[recipe.score],
        value=scores[recipe.score],
        low=low,
        high=high,
        rows=scores["rows"],
        steps=metrics["num_steps"],
        minutes=metrics["minutes"],
        peak_memory_mib=metrics["peak_memory_mib"],
        parameters=metrics["num_parameters"],
        date=date.today().isoformat(),
        commit=subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip(),
        processor=describe_machine([])["processor"],
        alone=metrics["test"][recipe.score] if "test" in with_memory else None,
        records=measure_records(out, test, metrics) if "ungrounded" in metrics["test"] else None,
    )


def measure_records(out: Path, test: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of the values on the test pairs: invented ones, confidence by field.

    Invented values stand nowhere in their source, not even nearly. They are counted again, and the
    fields scored again, with decoding.require_grounding near, which leaves such values out.
    """
    alone = {"require_grounding": "near", "memory": "none"}  # as metrics.json scores it
    grounded = dragoman.evaluate(out, test, {"decoding": alone})
    return {
        "invented": metrics["test"]["ungrounded"],
        "field_f1": metrics["test"]["field_f1"],
        "grounded_invented": grounded.scores["ungrounded"],
        "grounded_field_f1": grounded.scores["field_f1"],
        "fields": metrics["fields"]["test"],
    }


def keep(recipe: Recipe, result: Result) -> None:
    """Add `result` to results.json, in the place of an older one, and rewrite the tables.

    The same run, which was complete already, stays as it was: it is not of today's commit.
    """
    path = HERE / recipe.name / "results.json"
    found = read_results(recipe)
    old = found.get((result.set, result.seed))
    if old is None or (old.value, old.minutes) != (result.value, result.minutes):
        found[result.set, result.seed] = result
    results = [asdict(found[key]) for key in sorted(found)]
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    replace_table(HERE / recipe.name / "README.md", tabulate(recipe))
    recipes = [Recipe.read(path.parent.name) for path in sorted(HERE.glob("*/results.json"))]
    replace_table(
        HERE / "README.md", "\n\n".join(f"**{r.title}**\n\n{tabulate(r)}" for r in recipes)
    )


def read_results(recipe: Recipe) -> dict[tuple[str, int], Result]:
    """Return the results of the recipe by set and seed."""
    path = HERE / recipe.name / "results.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {(one["set"], one["seed"]): Result(**one) for one in stored}


def tabulate(recipe: Recipe) -> str:
    """Return the table of a recipe: each set beside what is published, then their mean."""
    by_set: dict[str, list[Result]] = {}
    for result in read_results(recipe).values():
        by_set.setdefault(result.set, []).append(result)
    systems = list(recipe.published)
    lines = [
        [
            "set",
            f"{recipe.score} here",
            "interval of a run",
            "seeds",
            "steps",
            "minutes",
            "MiB",
            *systems,
        ]
    ]
    for name, results in by_set.items():
        values = [result.value for result in results]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        first = results[0]
        interval = "" if first.low is None else f"{first.low:.2f} to {first.high:.2f}"
        lines.append(
            [
                name,
                f"**{statistics.mean(values):.2f}**{spread}"
                + ("" if first.alone is None else f" ({first.alone:.2f} without memory)"),
                interval,
                str(len(values)),
                f"{first.steps:,}",
                f"{statistics.mean(result.minutes for result in results):.1f}",
                f"{max(result.peak_memory_mib for result in results):,.0f}",
                *(str(recipe.published[system].get(name, "")) for system in systems),
            ]
        )
    if len(by_set) == len(recipe.sets) > 1:
        mean = statistics.mean(statistics.mean(r.value for r in one) for one in by_set.values())
        lines.append(["mean", f"**{mean:.2f}**", "", "", "", "", ""])
        lines[-1] += [str(recipe.published[system].get("mean", "")) for system in systems]
    rows = [f"| {' | '.join(line)} |" for line in lines]
    made = sorted({(r.date, r.commit, r.processor) for one in by_set.values() for r in one})
    rows.insert(1, "|" + "-|" * len(lines[0]))
    rows += ["", "; ".join(f"{date}, commit {commit}, {name}" for date, commit, name in made)]
    return "\n".join(rows + tabulate_records([one[0] for one in by_set.values()]))


def tabulate_records(results: Sequence[Result]) -> list[str]:
    """Return the lines of two tables, from the first seed of each set; none without records."""
    invented, kept = list[str](), list[str]()
    for result in results:
        if (found := result.records) is None:
            continue
        invented.append(
            f"| {result.set} | {found['invented']:.2f} | {found['field_f1']:.2f} | "
            f"{found['grounded_invented']:.2f} | {found['grounded_field_f1']:.2f} |"
        )
        for row in found["fields"]:
            cells = [result.set, row["field"] or "others", f"{row['values']:,}"]
            cells.append(f"{row['right']:.1%}")
            for precision in _PRECISIONS:
                at = next((t for t in row["thresholds"] if t["precision"] == precision), None)
                low, high = at["interval"] if at else (0.0, 0.0)
                cells.append(
                    f"{at['coverage']:.0%} kept, {at['exact']:.1%} right [{low:.1%}, {high:.1%}]"
                    if at
                    else "no threshold promises it"
                )
            kept.append(f"| {' | '.join(cells)} |")
    if not invented:
        return []
    heads = [
        "set",
        "invented values, %",
        "field F1",
        "invented, `require_grounding near`",
        "field F1",
    ]
    fields = ["set", "field", "values", "right", *(f"promised {p:.0%}" for p in _PRECISIONS)]
    return [
        *("", "Values that do not stand in their source, seed 1:", ""),
        *(f"| {' | '.join(heads)} |", "|" + "-|" * len(heads), *invented),
        *("", "Values that are kept above the confidence that promises a precision, seed 1:", ""),
        *(f"| {' | '.join(fields)} |", "|" + "-|" * len(fields), *kept),
    ]


def replace_table(path: Path, table: str) -> None:
    """Write `table` between the marks in the file."""
    text = path.read_text(encoding="utf-8")
    path.write_text(
        _TABLE.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
