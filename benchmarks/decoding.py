"""Compares ways to decode with one trained model, in turns, in one run: prints tables and bars.

python benchmarks/decoding.py                               # on a model that it trains first
python benchmarks/decoding.py --model FOLDER --sources FILE

Each contender has a process of its own, which stays alive and takes its turns over a pipe: see
contenders.py. Started anew in each round, they would be loaded between turns, and the ratios would
be further apart than what they compare.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from contenders import Runner, say, start
from decoding_contender import Entry, Turn, serve
from decoding_model import export_model, keep_ended, read_sources, train_model, write_invented_pairs
from decoding_report import BATCHES, LIST, SINGLE, Report, Turns, count_tokens
from machine import OtherProcesses, describe_machine

_BATCH = 64
_BEAM_SIZE = 5
_WARM_UP_CALLS = 3
_PACKAGES = ("dragoman", "torch", "ctranslate2", "transformers", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How sentences are given to the contenders."""

    name: str
    batch: int  # sentences a call; 0: all in one
    rows: int
    rows_slow: int  # for slow contenders; 0: they take no part

    def make_calls(self, sources: Sequence[str], entry: Entry) -> list[list[str]]:
        """Return the calls of a turn."""
        rows = list(sources[: self.rows_slow if entry.is_slow else self.rows])
        size = self.batch or max(1, len(rows))
        return [rows[i : i + size] for i in range(0, len(rows), size)]


def main() -> None:
    """Make what is missing, let the contenders take their turns, print what it measured."""
    arguments = _parse()
    # Read by OpenMP and by the tokenizers when a process starts.
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
    path, sources_path = _prepare(arguments)
    facts = {
        **describe_machine(_PACKAGES),
        "model": str(path),
        "its export against PyTorch": export_model(path),
        "arguments": " ".join(sys.argv[1:]) or "none",
        "device": f"{arguments.device}, {arguments.threads} threads",
    }
    sources = read_sources(sources_path)
    ended = keep_ended(sources, path, arguments.threads)
    facts["sources"] = (
        f"{sources_path}, in an order by chance: the {len(ended)} of {len(sources)} whose greedy "
        "output ends by itself"
    )
    entries = list_entries(arguments.device, arguments.threads)
    entries = [entry for entry in entries if re.search(arguments.only, entry.title)]
    others = OtherProcesses()
    with start(entries, serve, path) as (runners, absent):
        turns = take_turns(runners, ended, make_modes(arguments, len(ended)), arguments.rounds)
        busy = others.describe()
    report = Report(
        turns=turns,
        tokens=count_tokens(turns, path),
        load_s={runner.entry: runner.load_s for runner in runners},
        absent=absent,
        facts={**facts, "other processes": busy},
    )
    print(report.describe())
    if arguments.json is not None:
        arguments.json.write_text(report.to_json(), encoding="utf-8")


def make_modes(arguments: argparse.Namespace, num_sources: int) -> list[Mode]:
    """Return how sentences are given, with the numbers of rows that there are."""
    rows = min(arguments.rows, num_sources)
    slow, single = min(arguments.rows_slow, rows), min(arguments.rows_single, rows)
    return [
        Mode(name=BATCHES, batch=_BATCH, rows=rows, rows_slow=slow),
        Mode(name=LIST, batch=0, rows=rows, rows_slow=0),
        Mode(name=SINGLE, batch=1, rows=single, rows_slow=single),
    ]


def list_entries(device: str, threads: int) -> list[Entry]:
    """Return the contenders, in the order of their turns."""
    layouts = [(1, threads)] if device == "cuda" or threads == 1 else [(1, threads), (threads, 1)]
    by_hand = [
        Entry(
            kind="ctranslate2",
            name=f"CTranslate2 {compute_type}, {replicas} x {each}",
            device=device,
            threads=each,
            replicas=replicas,
            compute_type=compute_type,
        )
        for compute_type in ("float32", "float16" if device == "cuda" else "int8")
        for replicas, each in layouts
    ]
    loops = [
        Entry(kind="usual", name="usual loop", device=device, threads=threads),
        Entry(kind="usual-lean", name="usual loop, last logits", device=device, threads=threads),
    ]
    others = [
        Entry(kind="torch", name="dragoman torch", device=device, threads=threads),
        Entry(kind="transformers", name="Hugging Face", device=device, threads=threads),
        Entry(kind="predict", name="dragoman predict", device=device, threads=threads),
        *by_hand,
    ]
    return [*loops, *others, *(replace(entry, beam_size=_BEAM_SIZE) for entry in others)]


def take_turns(
    runners: Sequence[Runner[Entry]],
    sources: Sequence[str],
    modes: Sequence[Mode],
    num_rounds: int,
) -> Turns:
    """Return the turns of each contender by mode, one a round; what warms them up is left out."""
    turns: Turns = {}
    for number in range(num_rounds + 1):
        for mode in modes:
            for runner in runners:
                calls = mode.make_calls(sources, runner.entry)
                if not calls:
                    continue
                turn = runner.take_turn(calls if number else calls[:_WARM_UP_CALLS])
                assert isinstance(turn, Turn)
                if number:
                    turns.setdefault((mode.name, runner.entry), []).append(turn)
                    took = f"{turn.total_s:.1f} s"
                    say(f"round {number} of {num_rounds}, {mode.name}: {runner.entry.title} {took}")
    return turns


def _prepare(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Return the model folder and the file of sources; trains the model if there is none."""
    if arguments.model is not None:
        return arguments.model, arguments.sources
    pairs, sources = arguments.train, arguments.sources
    if pairs is None:
        pairs, invented = write_invented_pairs(arguments.folder)
        sources = sources or invented
    folder = arguments.folder / f"model-of-{pairs.name.partition('.')[0]}"
    train_model(pairs, folder, arguments.threads)
    return folder, sources


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="model folder, as fit writes")
    parser.add_argument(
        "--sources", type=Path, metavar="FILE",
        help="one source a line, or a TSV whose first column they are (default: invented ones)",
    )  # fmt: skip
    parser.add_argument(
        "--train", type=Path, metavar="PAIRS",
        help="train a model of 3 + 3 layers of width 256 on these pairs (default: invented ones)",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "dragoman-decoding",
        help="where it is trained; one that is there is taken (default: %(default)s)",
    )  # fmt: skip
    numbers = (
        ("--rows", 640, "sources, in batches and as one list"),
        ("--rows-slow", 256, "sources for the slow: the usual loop and Hugging Face"),
        ("--rows-single", 100, "sources that are given one by one"),
        ("--rounds", 3, "turns of each contender"),
        ("--threads", len(os.sched_getaffinity(0)), "processor threads of each contender"),
    )
    for name, default, meaning in numbers:
        parser.add_argument(name, type=int, default=default, help=f"{meaning} (default: {default})")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", metavar="REGEX", help="contenders whose name matches")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to it too")
    arguments = parser.parse_args()
    if arguments.sources is None and (arguments.model or arguments.train):
        parser.error("--sources: give the sources of the model, such as held-out ones")
    return arguments


if __name__ == "__main__":
    main()
