"""Quality against time: dragoman, yoyodyne, JoeyNMT, eole and Transformers, trained on the same pairs.

    python benchmarks/peers/run.py PAIRS --valid V --test T --minutes 10 [--target characters]

What is compared, and how: benchmarks/README.md. Peers come from the registry, into environments of
their own below --folder, where runs are kept too: one that is there is not made again.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from machine import OtherProcesses, describe_machine
from tables import table

from dragoman.evaluation.metrics import make_exact_match
from dragoman.reporting.charts import draw_curves

HERE = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"
PARTS, SIDES = ("train", "valid", "test"), ("source", "target")

Curve = list[tuple[float, float]]
"""Minutes, and exact match on the test rows in percent."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A peer, and what it takes to install it."""

    title: str
    script: str
    packages: tuple[str, ...]
    removed: tuple[str, ...] = ()


PEERS = (
    # It never uses them, but importing those of the registry fails beside a torch for the CPU.
    Peer(title="yoyodyne", script="run_yoyodyne.py", packages=("yoyodyne==0.5.27",), removed=("torchvision", "torchaudio")),
    # importlib_metadata and aiohttp are imported, but not among their requirements.
    Peer(title="JoeyNMT", script="run_joeynmt.py", packages=("joeynmt==2.3.0", "importlib_metadata")),
    Peer(title="eole", script="run_eole.py", packages=("eole==0.6.4", "aiohttp")),
    Peer(title="Transformers", script="run_hugging_face.py", packages=("transformers[torch]==5.23.0",)),
)  # fmt: skip
OURS = "dragoman"


def main() -> None:
    """Install, train, decode and score what is missing; print the table, draw the figure."""
    titles = [OURS, *(peer.title for peer in PEERS)]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("train", type=Path, metavar="PAIRS", help="TSV: source, target")
    parser.add_argument("--valid", type=Path, required=True, help="pairs that choose checkpoints")
    parser.add_argument("--test", type=Path, required=True, help="pairs for the scores")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each (default: 10)")
    parser.add_argument(
        "--target", choices=("symbols", "characters"), default="symbols",
        help="tokens of targets: symbols between spaces (default) or characters, as sources",
    )  # fmt: skip
    parser.add_argument("--cores", type=int, default=2, help="contenders at a time (default: 2)")
    parser.add_argument("--only", nargs="+", choices=titles, default=titles, metavar="NAME")
    parser.add_argument(
        "--folder", type=Path, default=Path.home() / ".cache/dragoman-peers",
        help="where environments and runs are kept (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the curves to it")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw them into it, as SVG")
    given = parser.parse_args()
    peers = [peer for peer in PEERS if peer.title in given.only]
    for peer in peers:
        install(peer, given.folder / "environments" / peer.title)
    runs = (
        given.folder.resolve() / "runs" / f"{given.train.resolve().parent.name}-{given.minutes:g}"
    )
    parts = {part: getattr(given, part).resolve() for part in PARTS}
    write_task(runs / "task", parts, given.target)
    cores = sorted(os.sched_getaffinity(0))[: given.cores]
    # A process inherits the core of the thread that starts it.
    with ThreadPoolExecutor(
        len(cores), initializer=lambda: os.sched_setaffinity(0, {cores.pop()})
    ) as pool:
        waiting = {}
        if OURS in given.only:  # first: it takes longest
            waiting[OURS] = pool.submit(run_ours, runs, parts, given.target, given.minutes)
        for peer in peers:
            python = given.folder.absolute() / "environments" / peer.title / "bin/python"
            waiting[peer.title] = pool.submit(run_peer, peer, python, runs, given.minutes)
        curves = {title: future.result() for title, future in waiting.items()}
    about = {
        **describe_machine(["torch", "dragoman"]),
        "pairs": str(given.train),
        "minutes": given.minutes,
    }
    print(json.dumps(about, indent=1), describe(curves), sep="\n")
    if given.json is not None:
        found = json.dumps({**about, "curves": curves}, indent=1)
        given.json.write_text(f"{found}\n", encoding="utf-8")
    if given.figure is not None:
        given.figure.write_text(draw(curves), encoding="utf-8")


def install(peer: Peer, folder: Path) -> None:
    """Make the environment of a peer, unless it is there and complete."""
    if (folder / "done").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin/pip"), "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", TORCH, *peer.packages], check=True)
    if peer.removed:
        subprocess.run([*pip, "uninstall", "--yes", *peer.removed], check=True)
    (folder / "done").touch()


def write_task(task: Path, parts: dict[str, Path], target: str) -> None:
    """Write the rows of train, valid and test as all peers get them: tokens separated by spaces."""
    task.mkdir(parents=True, exist_ok=True)
    for part, path in parts.items():
        rows = [line.split("\t")[:2] for line in read_lines(path)]
        for number, row in enumerate(rows, 1):
            if len(row) < 2 or not all(row):
                raise SystemExit(
                    f"{path}:{number}: {row}, but a source, a tab and a target are needed"
                )
        columns = zip(*rows, strict=True)
        for side, kind, texts in zip(SIDES, ("characters", target), columns, strict=True):
            text = "".join(f"{split(text, kind)}\n" for text in texts)
            (task / f"{part}.{side}").write_text(text, encoding="utf-8")


def split(text: str, kind: str) -> str:
    """Return the tokens of a text with spaces between them; where they are characters, ▁ is a space."""
    return text if kind == "symbols" else " ".join(text.replace(" ", "▁"))


def run_peer(peer: Peer, python: Path, runs: Path, minutes: float) -> Curve:
    """Return the curve of a peer: train it for the minutes, then decode with its checkpoints."""
    own, task = runs / peer.title, runs / "task"
    command = [str(python), str(HERE / peer.script)]
    if not (own / "started").exists():
        shutil.rmtree(own, ignore_errors=True)  # of a run that failed
        own.mkdir()
        started_s = time.time()
        call([*command, "train", str(task), str(own)], own, "train", limit_s=60 * minutes)
        (own / "started").write_text(str(started_s), encoding="utf-8")
    if not (own / "decoded").exists():
        call([*command, "decode", str(task), str(own)], own, "decode")
        (own / "decoded").touch()
    started_s = float((own / "started").read_text(encoding="utf-8"))
    outputs = {float(path.stem): read_lines(path) for path in (own / "outputs").glob("*.txt")}
    return choose_best([((at - started_s) / 60, outputs[at]) for at in sorted(outputs)], task)


def run_ours(runs: Path, parts: dict[str, Path], target: str, minutes: float) -> Curve:
    """Return the curve of dragoman: a training for a quarter, half and all of the minutes."""
    dragoman, found = [sys.executable, "-m", "dragoman"], []
    for share in (0.25, 0.5, 1.0):
        own = runs / f"{OURS}-{share:g}"
        if not (own / "seconds").exists():
            own.mkdir(exist_ok=True)
            data = [parts["train"], "--valid", parts["valid"], "--test", parts["test"]]
            limit = [
                "--max-time",
                f"{60 * minutes * share:.0f}s",
                "--decoding.beam_size",
                "1",
                "--overwrite",
            ]
            started_s = time.time()
            call([*dragoman, "fit", *map(str, data), *limit], own, "train")
            seconds = time.time() - started_s
            held_out = [line for part in PARTS[1:] for line in read_lines(parts[part])]
            text = "".join(line.partition("\t")[0] + "\n" for line in held_out)
            (own / "sources.txt").write_text(text, encoding="utf-8")
            call(
                [
                    *dragoman,
                    "predict",
                    "model",
                    "--input",
                    "sources.txt",
                    "--output",
                    "outputs.txt",
                ],
                own,
                "decode",
            )
            (own / "seconds").write_text(str(seconds), encoding="utf-8")
        seconds = float((own / "seconds").read_text(encoding="utf-8"))
        found.append(
            (seconds / 60, [split(line, target) for line in read_lines(own / "outputs.txt")])
        )
    return choose_best(found, runs / "task")


def call(command: Sequence[str], own: Path, what: str, *, limit_s: float | None = None) -> None:
    """Run a command in its folder, one thread for each library; end it after the seconds, if any."""
    print(f"{own.name}: {what}", file=sys.stderr, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    others = OtherProcesses()
    with (own / f"{what}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=own, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
            is_expected = not code and limit_s is None
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # loaders and the like too
            code, is_expected = process.wait(), True
    print(f"{own.name}: other processes: {others.describe()}", file=sys.stderr, flush=True)
    if not is_expected:
        raise SystemExit(f"{own.name}: {what} ended by itself, code {code}: see {own / what}.log")


def choose_best(outputs: Sequence[tuple[float, Sequence[str]]], task: Path) -> Curve:
    """Return minutes and test scores: each that of the outputs with the best score on valid until then."""
    references = [read_lines(task / f"{part}.target") for part in ("valid", "test")]
    cut, curve, best = len(references[0]), [], (-1.0, 0.0)
    for minutes, rows in outputs:
        scores = score(rows[:cut], references[0]), score(rows[cut:], references[1])
        best = scores if scores[0] > best[0] else best
        curve.append((round(minutes, 2), best[1]))
    return curve


def score(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Return the percentage of outputs that are their reference, spaces between tokens aside."""
    if len(outputs) != len(references):
        raise SystemExit(f"{len(outputs)} outputs, but {len(references)} references")
    metric = make_exact_match()
    statistics = metric.count_rows(
        [" ".join(row.split()) for row in outputs], [[row] for row in references]
    )
    return round(float(metric.from_sums(statistics.sum(axis=0))), 2)


def describe(curves: dict[str, Curve]) -> str:
    """Return a table: a row for each contender."""
    rows = [
        [
            title,
            ", ".join(f"{value:.1f} ({minutes:.1f})" for minutes, value in curve)
            or "no checkpoint yet",
        ]
        for title, curve in curves.items()
    ]
    return table(["contender", "exact match on test, percent (after minutes)"], rows)


def draw(curves: dict[str, Curve]) -> str:
    """Return the figure as SVG that stands alone, readable on light and dark pages."""
    chart = draw_curves(
        "peers",
        "Quality against time",
        {title: curve for title, curve in curves.items() if curve},
        unit="exact match, percent",
        over="minutes",
        is_percent=True,
    )
    style = "<style>text{fill:#333!important}@media(prefers-color-scheme:dark){text{fill:#ddd!important}}</style>"
    svg = re.search(r"<svg.*</svg>", chart.drawing, re.DOTALL)
    assert svg is not None
    return re.sub(r"(<svg[^>]*>)", lambda found: f"{found[1]}{style}", svg[0], count=1) + "\n"


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file."""
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


if __name__ == "__main__":
    main()
