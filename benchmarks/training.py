"""Compares ways to train one model on the same pairs, in turns, in one run: prints tables and bars.

python benchmarks/training.py                     # on invented pairs
python benchmarks/training.py --data PAIRS        # on yours, as `dragoman fit` takes them

Each contender is a real trainer that runs, in a process of its own (see contenders.py), and is held
between two updates until its next turn: a number of seconds, which end with an update. All train a
Transformer of the same sizes on the same ids, made by dragoman's tokenizer; dragoman itself starts
from the file. An update has about the same number of target tokens with all.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from contenders import Runner, say, start
from invented_pairs import Language, write_pairs
from machine import OtherProcesses, describe_machine
from training_contender import Entry, Loaded, Rates, Turn, serve
from training_report import Report
from training_task import Lengths, Sizes, Task, count_flops

_NUM_PAIRS = 30_000
_PACKAGES = ("dragoman", "torch", "lightning", "transformers", "accelerate", "tokenizers")


def main() -> None:
    """Make the ids, let the contenders take their turns, print what it measured."""
    arguments = _parse()
    # Read by OpenMP and by the tokenizers when a process starts.
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    with tempfile.TemporaryDirectory(dir=arguments.folder, ignore_cleanup_errors=True) as folder:
        report = measure(arguments, Path(folder))
    print(report.describe())
    if arguments.json is not None:
        arguments.json.write_text(report.to_json(), encoding="utf-8")


def measure(arguments: argparse.Namespace, folder: Path) -> Report:
    """Return what was measured; all files are made in `folder`."""
    task = make_task(arguments, folder)
    vocab_size, lengths = make_ids(task)
    entries = [
        entry for entry in list_entries(arguments.device) if re.search(arguments.only, entry.title)
    ]
    others = OtherProcesses()
    with start(entries, serve, task) as (runners, absent):
        check_ids(runners, lengths)
        turns, limits = take_turns(runners, arguments.turn_s, arguments.rounds)
        busy = others.describe()
    facts = {
        **describe_machine(_PACKAGES),
        "device": f"{_find_device(arguments.device)}, {arguments.threads} threads",
        "arguments": " ".join(sys.argv[1:]) or "none",
        "pairs": f"{task.data if arguments.data else 'invented'}: {lengths.num_pairs:,} to train on, "
        f"{lengths.source / lengths.num_pairs:.1f} source and "
        f"{lengths.target / lengths.num_pairs:.1f} target tokens on average, their ends counted; "
        f"a vocabulary of {vocab_size:,}",
        "work": f"{count_flops(task.sizes, vocab_size, lengths) / 1e6:,.1f} MFLOP a target token "
        "with its source",
        "other processes": busy,
    }
    trained = [runner for runner in runners if isinstance(runner.loaded, Loaded)]
    return Report(
        turns=turns,
        limits=limits,
        loaded={runner.entry: runner.loaded for runner in trained},
        load_s={runner.entry: runner.load_s for runner in trained},
        absent=absent,
        flops=count_flops(task.sizes, vocab_size, lengths),
        facts=facts,
    )


def make_task(arguments: argparse.Namespace, folder: Path) -> Task:
    """Return what is trained; invents the pairs where none are given."""
    data = arguments.data
    if data is None:
        data = folder / "pairs.tsv"
        write_pairs(data, _NUM_PAIRS, Language())
    return Task(
        data=data.resolve(),
        ids=folder / "ids.npz",
        folder=folder,
        sizes=Sizes(
            d_model=arguments.d_model,
            nhead=arguments.nhead,
            num_layers=arguments.num_layers,
            dim_feedforward=arguments.dim_feedforward,
        ),
        tokens=arguments.tokens,
        vocab_size=arguments.vocab_size,
    )


def make_ids(task: Task) -> tuple[int, Lengths]:
    """Write the ids, in a process of their own; return the vocabulary's size and the lengths."""
    from training_ids import write_ids

    say("make the ids")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(write_ids, task).result()


def list_entries(device: str) -> list[Entry]:
    """Return the contenders, in the order of their turns."""
    precisions = (("fp32", "32-true"), ("bf16", "bf16-mixed"))
    usual = [
        Entry(kind="usual", name=f"usual loop {name}", device=device, precision=precision)
        for name, precision in precisions
    ]
    if device == "cuda":
        usual += [
            Entry(
                kind="usual",
                name=f"usual loop {name} compiled",
                device=device,
                precision=precision,
                is_compiled=True,
            )
            for name, precision in precisions
        ]
    return [
        Entry(kind="dragoman", name="dragoman", device=device),
        *usual,
        *(
            Entry(
                kind="hugging-face", name=f"Hugging Face {name}", device=device, precision=precision
            )
            for name, precision in precisions
        ),
        Entry(kind="dragoman", name="dragoman fp32", device=device, precision="32-true"),
        Entry(
            kind="dragoman", name="dragoman reference", device=device, implementation="reference"
        ),
        *(
            Entry(kind="products", name=f"products {name}", device=device, precision=precision)
            for name, precision in precisions
        ),
    ]


def check_ids(runners: Sequence[Runner[Entry]], lengths: Lengths) -> None:
    """Raise SystemExit unless all train on the same numbers of tokens."""
    for runner in runners:
        if isinstance(runner.loaded, Loaded) and runner.loaded.lengths != lengths:
            raise SystemExit(
                f"{runner.entry.title}: an epoch is {runner.loaded.lengths}, and not {lengths} as "
                "with the others"
            )


def take_turns(
    runners: Sequence[Runner[Entry]], turn_s: float, num_rounds: int
) -> tuple[dict[Entry, list[Turn]], dict[Entry, list[Rates]]]:
    """Return the turns of the trainers and of the products, one a round; the first is left out."""
    turns: dict[Entry, list[Turn]] = {}
    limits: dict[Entry, list[Rates]] = {}
    for number in range(num_rounds + 1):
        for runner in runners:
            turn = runner.take_turn(turn_s)
            say(f"round {number} of {num_rounds}: {runner.entry.title} {turn.rate:,.0f} tokens/s")
            if number == 0:
                continue
            if isinstance(turn, Turn):
                turns.setdefault(runner.entry, []).append(turn)
            else:
                limits.setdefault(runner.entry, []).append(turn)
    return turns, limits


def _find_device(device: str) -> str:
    """Return the device in words; a GPU's name is asked for in a process of its own."""
    if device == "cpu":
        return device
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_name_gpu).result()


def _name_gpu() -> str:
    import torch

    return torch.cuda.get_device_name()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, metavar="PAIRS", help="any file that fit takes (default: invented)"
    )
    parser.add_argument(
        "--folder", type=Path, help="where temporary files are made (default: the system's place)"
    )
    numbers = (
        ("--tokens", 4096, "target tokens an update"),
        ("--d-model", 256, "width of the model"),
        ("--nhead", 4, "attention heads"),
        ("--num-layers", 3, "layers of the encoder, and of the decoder"),
        ("--dim-feedforward", 1024, "width of the feed-forward layers"),
        ("--vocab-size", 8000, "pieces of the shared vocabulary"),
        ("--rounds", 5, "turns of each contender, the first, which warms up, not counted"),
        ("--threads", len(os.sched_getaffinity(0)), "processor threads of each contender"),
    )
    for name, default, meaning in numbers:
        parser.add_argument(name, type=int, default=default, help=f"{meaning} (default: {default})")
    parser.add_argument(
        "--turn-s", type=float, default=15.0, help="seconds of a turn (default: %(default)s)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", metavar="REGEX", help="contenders whose name matches")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to it too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
