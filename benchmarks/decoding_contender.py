"""A contender of decoding.py, in its process: loaded, then called and timed.

It makes texts of texts in three parts, which are timed apart: encode, search, decode. Nothing heavy
is imported here: see contenders.py.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from contenders import Absent, await_question
from machine import find_peak_mib

from dragoman.errors import DragomanError

_WARM_UP_S, _WARM_UP_ROWS = 0.3, 8

Sources = TypeVar("Sources")
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Which contender, with what search, on which threads."""

    kind: Literal["usual", "usual-lean", "torch", "ctranslate2", "predict", "transformers"]
    name: str  # as in the tables, without the search
    device: str
    threads: int  # of a replica
    beam_size: int = 1
    replicas: int = 1  # of CTranslate2
    compute_type: str = "float32"  # of CTranslate2

    @property
    def search(self) -> str:
        """As in the tables."""
        return "greedy" if self.beam_size == 1 else f"beam {self.beam_size}"

    @property
    def title(self) -> str:
        """As it is spoken of."""
        return f"{self.name}, {self.search}"

    @property
    def is_slow(self) -> bool:
        """Whether it takes fewer sentences. These are those that make no batches of their own."""
        return self.kind in ("usual", "usual-lean", "transformers")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a contender did with its calls: the seconds of each, by part, and the texts of all."""

    encode_s: list[float]
    search_s: list[float]
    decode_s: list[float]
    texts: list[str]
    peak_mib: float

    @property
    def call_s(self) -> list[float]:
        """Seconds of each call, from text to text."""
        return [
            sum(parts) for parts in zip(self.encode_s, self.search_s, self.decode_s, strict=True)
        ]

    @property
    def total_s(self) -> float:
        """Seconds of the turn, from text to text."""
        return sum(self.call_s)


class Contender(Protocol[Sources, Found]):
    """Texts in, texts out."""

    def encode(self, texts: Sequence[str]) -> Sources:
        """Return the texts as `search` takes them."""
        ...

    def search(self, sources: Sources) -> Found:
        """Return what was found, as `decode` takes it."""
        ...

    def decode(self, found: Found) -> list[str]:
        """Return the texts of what was found."""
        ...


def serve(connection: Connection, entry: Entry, path: Path) -> None:
    """Load the contender, say so, then answer lists of calls with turns."""
    try:
        contender = _load(entry, path)
        if entry.device == "cuda":  # only now does CTranslate2 open the libraries of the GPU
            take_turn(contender, [["a"]])
    except (ImportError, RuntimeError, DragomanError) as error:
        connection.send(Absent(reason=str(error)))
        return
    connection.send("loaded")
    while True:
        connection.send(take_turn(contender, await_question(connection)))


def take_turn(contender: Contender[Any, Any], calls: Sequence[Sequence[str]]) -> Turn:
    """Return how long each call took, and what all gave; what warms up is left out."""
    clock = time.perf_counter
    _warm_up(contender, calls[0][:_WARM_UP_ROWS])
    encode_s, search_s, decode_s, outputs = [], [], [], []
    for texts in calls:
        started_at = clock()
        sources = contender.encode(texts)
        encoded_at = clock()
        found = contender.search(sources)
        found_at = clock()
        outputs += contender.decode(found)
        encode_s.append(encoded_at - started_at)
        search_s.append(found_at - encoded_at)
        decode_s.append(clock() - found_at)
    return Turn(
        encode_s=encode_s,
        search_s=search_s,
        decode_s=decode_s,
        texts=outputs,
        peak_mib=find_peak_mib(),
    )


def _warm_up(contender: Contender[Any, Any], texts: Sequence[str]) -> None:
    """Wake the threads, and bring back into the caches what the turns of others have put out."""
    until = time.perf_counter() + _WARM_UP_S
    while time.perf_counter() < until:
        contender.decode(contender.search(contender.encode(texts)))


def _load(entry: Entry, path: Path) -> Contender[Any, Any]:
    import decoding_ways as ways

    if entry.kind == "ctranslate2":
        return ways.CTranslate2(entry, path)
    if entry.kind == "predict":
        return ways.Predict(entry, path)
    if entry.kind == "torch":
        return ways.TorchEngine(entry, path)
    if entry.kind == "transformers":
        return ways.HuggingFace(entry, path)
    return ways.UsualLoop(entry, path)
