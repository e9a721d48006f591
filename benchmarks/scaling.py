"""Measures how dragoman's training goes with width, vocabulary, length, pairs, and ranks: prints tables.

python benchmarks/scaling.py                                 # all points: long, and large files
python benchmarks/scaling.py --only d_model "pairs 10000"    # an axis, a point
python benchmarks/scaling.py --plan 100000000                # the plan of an epoch of so many pairs

Each point trains as `fit` does, in a process of its own (see contenders.py), for some seconds, on
invented pairs. All but its own value is: d_model 256 in heads of 64, feed-forward 4 d_model, 3 + 3
layers, 8,000 pieces, 30,000 pairs of 5 to 24 words, 4,096 target tokens an update. Along vocabulary
and length a token is a word. Along pairs the start is measured twice: the second time another
process starts on the same pairs, as after an interrupt.

Three axes share the same cores among processes, which take turns with one process alone: ranks (1, 2
and 4) train, each with its part of a batch; preparation (1 and 2) reads pairs and makes ids; parts (1
and 2) predict, each its part of the sources, which are then joined. What they lose to one process is
the cost of their exchanges and of smaller parts; what they gain is where it does not use all cores.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from contenders import say, start
from decoding_model import train_model
from invented_pairs import Language, invent_pairs, write_pairs
from machine import OtherProcesses, describe_machine
from tables import table
from training_contender import Entry, Loaded, Turn, serve
from training_task import Sizes, Task, count_flops

from dragoman.data.dataset import EncodedPairs
from dragoman.data.preparation import IDS_SCHEMA, ROWS_PER_CHUNK
from dragoman.data.sampler import plan_batches
from dragoman.training.logs import read_curves

_SENTENCES = Language()
_HEAD = 64  # width of an attention head
_PACKAGES = ("dragoman", "torch", "lightning", "tokenizers", "ctranslate2")
_NUM_PAIRS = 30_000


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value on one axis; the rest is what all points share."""

    axis: str
    value: int
    d_model: int = 256
    tokenizer: Literal["bpe", "symbols"] = "bpe"
    num_pairs: int = _NUM_PAIRS
    language: Language = _SENTENCES

    @property
    def title(self) -> str:
        """As it is spoken of."""
        return f"{self.axis} {self.value}"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was measured at a point."""

    first: Loaded
    first_s: float  # from the start of the process to the end of the first step
    second: Loaded | None  # none where it was not measured
    second_s: float
    turns: list[Turn]
    flops: float  # of a target token with its source


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Work that processes share, in some ways; the first way is one process alone."""

    unit: str
    ways: dict[str, Callable[[], float]]  # by the processes: gives the speed of a turn, in `unit`
    time: str  # what takes `amount / speed`
    amount: float


def main() -> None:
    """Measure point by point; print the tables."""
    arguments = _parse()
    if arguments.plan:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            print(measure_plan(arguments.plan, Path(name) / "train.arrow"))
        return
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    others, found = OtherProcesses(), dict[Point, Found]()
    for point in list_points():
        if arguments.only and not {point.axis, point.title} & set(arguments.only):
            continue
        with tempfile.TemporaryDirectory(dir=arguments.folder, ignore_cleanup_errors=True) as name:
            found[point] = measure(point, arguments, Path(name))
    shared = {}
    for axis, prepare in _SHARED.items():
        if arguments.only and axis not in arguments.only:
            continue
        with tempfile.TemporaryDirectory(dir=arguments.folder, ignore_cleanup_errors=True) as name:
            shared[axis] = measure_sharing(axis, prepare(arguments, Path(name)), arguments)
    facts = {
        **describe_machine(_PACKAGES),
        "device": f"{arguments.device}, {arguments.threads} threads",
        "arguments": " ".join(sys.argv[1:]) or "none",
        "other processes": others.describe(),
    }
    print("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    if found:
        print(f"\n{describe(found)}")
    for text, _ in shared.values():
        print(f"\n{text}")
    if arguments.json is not None:
        content = {"facts": facts, "measured": [_to_dict(*each) for each in found.items()]}
        content |= {axis: rates for axis, (_, rates) in shared.items()}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def list_points() -> list[Point]:
    """Return all points, axis by axis."""
    return [
        *(Point(axis="d_model", value=n, d_model=n) for n in (128, 256, 512, 1024)),
        *(
            Point(
                axis="vocabulary",
                value=n,
                tokenizer="symbols",
                language=Language(num_words=n // 2),  # of each side; the vocabulary is shared
            )
            for n in (100, 1000, 8000, 32_000)
        ),
        *(
            Point(
                axis="length",
                value=n,
                tokenizer="symbols",
                num_pairs=min(_NUM_PAIRS, 1_000_000 // n),
                language=Language(shortest=n, longest=n),
            )
            for n in (10, 30, 100, 300, 1000)
        ),
        *(Point(axis="pairs", value=10**n, num_pairs=10**n) for n in (4, 5, 6, 7)),
    ]


def measure(point: Point, arguments: argparse.Namespace, folder: Path) -> Found:
    """Return what was found at `point`; all files are made in `folder`."""
    data = folder / "pairs.tsv"
    say(f"{point.title}: write {point.num_pairs:,} pairs")
    write_pairs(data, point.num_pairs, point.language)
    sizes = Sizes(
        d_model=point.d_model, nhead=point.d_model // _HEAD, dim_feedforward=4 * point.d_model
    )
    task = Task(
        data=data,
        ids=folder / "none",  # dragoman makes its own
        folder=folder,
        sizes=sizes,
        tokens=arguments.tokens,
        tokenizer=point.tokenizer,
    )
    entry = Entry(kind="dragoman", name=point.title, device=arguments.device)
    first, first_s, turns = _train(entry, task, arguments.rounds, arguments.turn_s)
    second, second_s = None, 0.0
    if point.axis == "pairs":
        second, second_s, _ = _train(entry, task, 0, 0.0)
    return Found(
        first=first,
        first_s=first_s,
        second=second,
        second_s=second_s,
        turns=turns,
        flops=count_flops(sizes, first.vocab_size, first.lengths),
    )


def describe(found: dict[Point, Found]) -> str:
    """Return the table."""
    heads = ["point", "pairs", "vocabulary", "parameters", "target tokens a pair"]
    heads += ["target tokens/s", "GFLOP/s", "padding", "peak memory, MiB", "on the GPU"]
    heads += ["s to the first step", "of it data", "second start", "of it data"]
    rows = []
    for point, one in found.items():
        target = sum(turn.target for turn in one.turns)
        places = sum(turn.target_places for turn in one.turns)
        rate = median(turn.rate for turn in one.turns)
        gpu = max(turn.gpu_peak_mib for turn in one.turns)
        rows.append(
            [
                point.title,
                f"{one.first.lengths.num_pairs:,}",
                f"{one.first.vocab_size:,}",
                f"{one.first.num_parameters:,}",
                f"{one.first.lengths.target / one.first.lengths.num_pairs:.1f}",
                f"{rate:,.0f}",
                f"{one.flops * rate / 1e9:,.1f}",
                f"{100 * (1 - target / places):.1f}%",
                f"{max(turn.peak_mib for turn in one.turns):,.0f}",
                f"{gpu:,.0f}" if gpu else "",
                f"{one.first_s:.1f}",
                f"{one.first.phases_s['data']:.1f}",
                f"{one.second_s:.1f}" if one.second else "",
                f"{one.second.phases_s['data']:.1f}" if one.second else "",
            ]
        )
    return table(heads, rows)


def measure_sharing(
    axis: str, sharing: Sharing, arguments: argparse.Namespace
) -> tuple[str, dict[str, list[float]]]:
    """Return the table, and the speeds of each way; a ratio compares two turns of the same round."""
    rates: dict[str, list[float]] = {name: [] for name in sharing.ways}
    for round_ in range(arguments.rounds):
        for name, run in sharing.ways.items():
            say(f"{axis} {name}, round {round_ + 1}")
            rates[name].append(run())
    alone, rows = next(iter(rates.values())), []
    for name, found in rates.items():
        ratios = [one / other for one, other in zip(found, alone, strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        elapsed = sharing.amount / median(found)
        rows.append([name, f"{median(found):,.0f}", spread, f"{elapsed:,.3g}"])
    return table([axis, sharing.unit, "of one process", sharing.time], rows), rates


def share_training(arguments: argparse.Namespace, folder: Path) -> Sharing:
    """Return training by ranks, all on this machine."""
    pairs, out, steps = folder / "pairs.tsv", folder / "model", str(arguments.steps)
    write_pairs(pairs, _NUM_PAIRS, _SENTENCES)
    options = [
        *("--model.d_model", "256", "--model.nhead", "4", "--model.dim_feedforward", "1024"),
        *("--training.batch_tokens", str(arguments.tokens), "--training.max_steps", steps),
        *("--training.valid_every", steps, "--training.valid_rows", "1"),
        *("--optimization.warmup_steps", "1", "--evaluation.report", "none"),
        *("--data.valid_fraction", "0.001", "--data.cache", str(folder / "cache")),
        *("--training.accelerator", arguments.device, "--overwrite"),
    ]

    def train(count: int, strategy: str = "auto") -> float:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        _start(
            arguments.threads // count,
            *(launcher if count > 1 else []),
            *("-m", "dragoman", "fit", pairs, "--out", out, *options),
            *("--training.strategy", strategy),
        )()
        curve = read_curves(out.with_name("model.training"))["tokens_per_s"]
        return median(rate for _, rate in curve[len(curve) // 4 :])

    ways = {"1": partial(train, 1), "1, by DDP": partial(train, 1, "ddp")}
    ways |= {str(count): partial(train, count) for count in (2, 4)}
    return Sharing(
        unit="target tokens/s",
        ways=ways,
        time=f"ms a step of {arguments.tokens:,} tokens",
        amount=1e3 * arguments.tokens,
    )


def share_preparation(arguments: argparse.Namespace, folder: Path) -> Sharing:
    """Return the preparation of pairs by processes: text, statistics, tokenizer, ids."""
    pairs = folder / "pairs.tsv"
    say(f"write {arguments.prepared_pairs:,} pairs")
    write_pairs(pairs, arguments.prepared_pairs, _SENTENCES)

    def prepare(count: int) -> float:
        # As many threads as processes: what a process has to itself is its own choice.
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            threads = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")
            own = {name: value for name, value in os.environ.items() if name not in threads}
            script = Path(__file__).with_name("reading.py")
            found = subprocess.run(
                [sys.executable, script, "--prepare", pairs, "--processes", str(count)],
                env={**own, "XDG_CACHE_HOME": cache},
                check=True,
                stdout=subprocess.PIPE,
            )
        return float(json.loads(found.stdout)["rows_per_s"])

    return Sharing(
        unit="pairs/s",
        ways={str(count): partial(prepare, count) for count in (1, 2)},
        time=f"s for {arguments.prepared_pairs:,} pairs",
        amount=arguments.prepared_pairs,
    )


def share_prediction(arguments: argparse.Namespace, folder: Path) -> Sharing:
    """Return prediction by parts; the time is that of the whole commands, with their start."""
    pairs, sources, model = folder / "pairs.tsv", folder / "sources.txt", arguments.model
    invented = invent_pairs(_NUM_PAIRS + arguments.rows, _SENTENCES)
    with pairs.open("w", encoding="utf-8") as file:
        file.writelines(f"{one}\t{other}\n" for one, other in islice(invented, _NUM_PAIRS))
    with sources.open("w", encoding="utf-8") as file:
        file.writelines(f"{source}\n" for source, _ in invented)
    if model is None:
        model = folder / "model"
        train_model(pairs, model, arguments.threads)
    outputs = set[bytes]()

    def predict(count: int, *, by_parts: bool) -> float:
        output, started_s = folder / "outputs.txt", time.perf_counter()
        command = ["-m", "dragoman", "predict", model, "--input", sources, "--output", output]
        threads = max(1, arguments.threads // count)
        command += ["--threads", str(threads), "--restart"]
        parts = [["--part", f"{part}/{count}"] if by_parts else [] for part in range(1, count + 1)]
        for wait in [_start(threads, *command, *part) for part in parts]:
            wait()
        if by_parts:
            _start(threads, "-m", "dragoman", "join", output)()
        elapsed_s = time.perf_counter() - started_s
        outputs.add(output.read_bytes())
        if len(outputs) > 1:
            raise SystemExit(f"parts {count}: other outputs than before")
        return float(arguments.rows / elapsed_s)

    return Sharing(
        unit="sentences/s",
        ways={
            "1": partial(predict, 1, by_parts=False),
            "1, as a part": partial(predict, 1, by_parts=True),
            "2": partial(predict, 2, by_parts=True),
        },
        time=f"s for {arguments.rows:,} sentences",
        amount=arguments.rows,
    )


_SHARED = {
    "ranks": share_training,
    "preparation": share_preparation,
    "parts": share_prediction,
}


def measure_plan(num_pairs: int, path: Path) -> str:
    """Return what it takes to open the ids of so many pairs, and to plan an epoch; writes them to `path`.

    A side has 10 ids a row on average: the file has 96 bytes a pair.
    """
    random = np.random.default_rng(0)
    with pa.ipc.new_file(str(path), IDS_SCHEMA) as writer:
        for start in range(0, num_pairs, ROWS_PER_CHUNK):
            count = min(ROWS_PER_CHUNK, num_pairs - start)
            sides = []
            for _ in range(2):
                offsets = np.append(0, (random.poisson(8, count) + 2).cumsum()).astype(np.int32)
                ids = pa.array(np.full(offsets[-1], 3, np.int32))
                sides.append(pa.ListArray.from_arrays(pa.array(offsets), ids))
            lines = pa.array(np.arange(start, start + count))
            writer.write_batch(pa.record_batch([*sides, lines], schema=IDS_SCHEMA))
    memory = [_read_memory_mib()]
    times = [(time.perf_counter(), time.process_time())]
    pairs = EncodedPairs(path)
    memory.append(_read_memory_mib())
    times.append((time.perf_counter(), time.process_time()))
    plan = plan_batches(pairs, 4096, micro_batch_tokens=1024, seed=1, epoch=0)
    memory.append(_read_memory_mib())
    times.append((time.perf_counter(), time.process_time()))
    (open_s, open_cpu_s), (plan_s, plan_cpu_s) = (np.subtract(b, a) for a, b in pairwise(times))
    return (
        f"{num_pairs:,} pairs, {path.stat().st_size / 2**20:,.0f} MiB of ids, {len(plan):,} batches\n"
        f"opened in {open_s:.1f} s ({open_cpu_s:.1f} s of a core): {memory[1] - memory[0]:,.0f} MiB of memory\n"
        f"planned in {plan_s:.1f} s ({plan_cpu_s:.1f} s of a core): {memory[2] - memory[1]:,.0f} MiB more\n"
        f"peak: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB, pages of the file included"
    )


def _read_memory_mib() -> float:
    """Return the memory of this process that is no page of a file."""
    [line] = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) / 2**10


def _start(threads: int, *words: str | Path) -> Callable[[], None]:
    """Start Python with so many threads (at least 1); return what waits for its end."""
    process = subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": str(max(1, threads))},
        stderr=subprocess.PIPE,
        text=True,
    )

    def wait() -> None:
        _, messages = process.communicate()
        if process.returncode:
            raise SystemExit(f"{' '.join(map(str, words))}: {messages}")

    return wait


def _train(
    entry: Entry, task: Task, num_rounds: int, turn_s: float
) -> tuple[Loaded, float, list[Turn]]:
    """Return what it said when its first step was done, the seconds until then, and its turns."""
    with start([entry], serve, task) as (runners, absent):
        if absent:
            raise SystemExit(f"{entry.title}: {absent[entry]}")
        [runner] = runners
        turns: Sequence[Turn] = [
            runner.take_turn(turn_s) for _ in range(num_rounds + 1 if num_rounds else 0)
        ]
    return runner.loaded, runner.load_s, list(turns[1:])


def _to_dict(point: Point, found: Found) -> dict[str, Any]:
    return {"title": point.title, **asdict(point), **asdict(found)}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="POINT",
        help='axes (d_model, vocabulary, length, pairs, ranks, preparation, parts) and points ("length 100"); default: all',
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, help="where temporary files are made (default: the system's place)"
    )
    numbers = (
        ("--plan", 0, "pairs whose epoch is planned, instead of all points"),
        ("--tokens", 4096, "target tokens an update"),
        ("--rounds", 3, "turns at each point; one before them, which warms up, is not counted"),
        ("--steps", 200, "steps of each run along ranks"),
        ("--prepared-pairs", 1_000_000, "pairs along preparation"),
        ("--rows", 20_000, "sentences along parts"),
        ("--threads", len(os.sched_getaffinity(0)), "processor threads"),
    )
    for name, default, meaning in numbers:
        parser.add_argument(name, type=int, default=default, help=f"{meaning} (default: {default})")
    parser.add_argument(
        "--turn-s", type=float, default=5.0, help="seconds of a turn (default: %(default)s)"
    )
    parser.add_argument(
        "--model",
        type=Path,
        help="model folder for parts (default: one is trained, in six minutes)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to it too")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    return arguments


if __name__ == "__main__":
    main()
