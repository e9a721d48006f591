"""Measures whether the layouts of threads that the engines find by themselves are the best ones.

python benchmarks/threads.py --json FILE

Models of several sizes with random weights search with outputs of a fixed length. Each engine takes
turns with its own choice and with each fixed layout; a ratio compares two turns of one round.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from contenders import say
from invented_pairs import Language, invent_pairs
from machine import OtherProcesses, describe_machine
from tables import Bar, spread, table

_SIZES = {"1 M": (128, 2, 1000), "8 M": (256, 3, 8000), "60 M": (512, 6, 16_000)}
_ENGINES = ("CTranslate2", "PyTorch")
_SENTENCES, _BEAMS = (1, 8, 64, 1000), (1, 5)
_OUTPUT_TOKENS = {1: 24, 8: 24, 64: 24, 1000: 4}  # by sentences
_UNTIL_CHOSEN = 8  # calls of an engine
_ALLOWED = 0.9  # of the speed of the best fixed layout
_REST_S = 0.3  # before a turn: the threads of the one before wait for work, on a core, for 0.2 s

Search = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The seconds of a call in each round, by layout: "own" is the engine's choice."""

    model: str
    engine: str
    sentences: int
    beam_size: int
    seconds: dict[str, list[float]]

    @property
    def ratios(self) -> list[float]:
        """The speed of the engine's choice, in each round, to the best of the fixed layouts."""
        fixed = [times for name, times in self.seconds.items() if name != "own"]
        best = min(fixed, key=median)
        return [theirs / ours for theirs, ours in zip(best, self.seconds["own"], strict=True)]


def main() -> None:
    """Measure, print a table and the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=_SIZES, default=list(_SIZES))
    parser.add_argument("--sentences", nargs="+", type=int, choices=_SENTENCES, default=_SENTENCES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn-s", type=float, default=0.5, help="calls are repeated as long")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    others, found = OtherProcesses(), list[Found]()
    for model in arguments.models:
        for engine in _ENGINES:  # in a process of its own: their threads would disturb the other's
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                work = (model, engine, arguments.sentences, arguments.rounds, arguments.turn_s)
                found += pool.apply(measure, work)
            say(f"{engine}, {model}: done")
    heads = ["model", "engine", "sentences", "beam", "layout: ms a call", "own choice"]
    rows = [
        [
            one.model,
            one.engine,
            str(one.sentences),
            str(one.beam_size),
            ", ".join(f"{name}: {1e3 * median(s):.3g}" for name, s in one.seconds.items()),
            spread(one.ratios),
        ]
        for one in found
    ]
    bars = [
        Bar(
            claim=f"{one.engine}, {one.model}, {one.sentences} sentences, beam {one.beam_size}: "
            f"{_ALLOWED} times the best fixed layout",
            least=_ALLOWED,
            ratios=one.ratios,
        )
        for one in found
    ]
    missed = [str(bar) for bar in bars if bar.verdict != "met"]
    met = f"bar: {len(bars) - len(missed)} of {len(bars)} are met"
    facts = describe_machine(("dragoman", "torch", "ctranslate2"))
    facts["other processes"] = others.describe()
    print(table(heads, rows), *missed, met, *facts.values(), sep="\n")
    if arguments.json is not None:
        content = {"facts": facts, "tables": [table(heads, rows)], "bars": [*missed, met]}
        content["measured"] = [asdict(one) for one in found]
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def measure(
    model: str, engine: str, sentences: Sequence[int], rounds: int, turn_s: float
) -> list[Found]:
    """Return what the engine needs for each number of sentences and each beam."""
    searches = _load(model, engine)
    found = []
    for count in sentences:
        for beam_size in _BEAMS:
            ways = {name: search(count, beam_size) for name, search in searches.items()}
            for name, way in ways.items():
                for _ in range(_UNTIL_CHOSEN if name == "own" else 1):
                    way()
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    time.sleep(_REST_S)
                    seconds[name].append(_time(way, turn_s))
            found.append(
                Found(
                    model=model,
                    engine=engine,
                    sentences=count,
                    beam_size=beam_size,
                    seconds=seconds,
                )
            )
    return found


def _time(way: Search, turn_s: float) -> float:
    """Return the seconds of a call: the mean over a turn."""
    started_s, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - started_s < turn_s:
        way()
        count += 1
    return (time.perf_counter() - started_s) / count


def _load(model: str, engine: str) -> dict[str, Callable[[int, int], Search]]:
    """Return the ways to search, by layout: from a number of sentences and a beam to a call."""
    import torch

    from dragoman.decoding.search_config import resolve_search
    from dragoman.engines.ctranslate2_engine import CTranslate2Engine, count_cores
    from dragoman.engines.engine import Engine, ThreadRace
    from dragoman.engines.torch_engine import TorchEngine
    from dragoman.model.building import build_network, copy_weights
    from dragoman.reading.pairs import Pair
    from dragoman.settings import DecodingSettings, ModelSettings, TokenizerSettings
    from dragoman.tokenizers.tokenizer import PairTokenizer

    class Fixed(CTranslate2Engine):
        """One with a fixed number of replicas."""

        replicas = 1

        def _get_race(self, num_rows: int, beam_size: int) -> ThreadRace:
            return ThreadRace((self.replicas,))

    d_model, num_layers, vocab_size = _SIZES[model]
    texts = list(islice(invent_pairs(5000, Language(longest=12)), 5000))
    side = {"kind": "bpe", "vocab_size": vocab_size}
    tokenizer = PairTokenizer.train(
        [Pair(*pair, features=(), line=i, file="") for i, pair in enumerate(texts, 1)],
        TokenizerSettings.model_validate({"source": side, "target": side, "shared": True}),
    )
    sizes = ModelSettings(
        d_model=d_model,
        nhead=d_model // 64,
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers,
        dim_feedforward=4 * d_model,
        positions="rotary",
        tie_embeddings=True,
    )
    torch.manual_seed(1)
    network, cores = build_network(sizes, tokenizer).eval(), count_cores()
    sources = tokenizer.encode_sources([source for source, _ in texts[:1000]], [()] * 1000)

    def search_by(searcher: Engine, threads: int | None = None) -> Callable[[int, int], Search]:
        def prepare(count: int, beam_size: int) -> Search:
            length = _OUTPUT_TOKENS[count]
            decoding = DecodingSettings(
                beam_size=beam_size, min_length=length, max_length=length, max_length_extra=length
            )
            config = resolve_search(decoding, tokenizer)

            def run() -> None:
                torch.set_num_threads(threads or cores)
                searcher.search(sources[:count], config)

            return run

        return prepare

    if engine == "PyTorch":
        fixed = TorchEngine([network], "cpu")
        raced = TorchEngine([network], "cpu", races_threads=True)
        ways = {f"{n} threads": search_by(fixed, n) for n in sorted({1, cores})}
        return {**ways, "own": search_by(raced)}
    weights, layouts = copy_weights(network), {}
    for replicas in sorted({1, cores}):
        one = Fixed(sizes, tokenizer, weights, device="cpu")
        one.replicas = replicas
        layouts[f"{replicas} x {cores // replicas}"] = search_by(one)
    return {**layouts, "own": search_by(CTranslate2Engine(sizes, tokenizer, weights, device="cpu"))}


if __name__ == "__main__":
    main()
