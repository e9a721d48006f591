"""Contenders, each in a process of its own that stays alive and takes its turns over a pipe.

Own processes, so that threads, allocators and peak memories do not mix. They stay, so that a round
holds one turn of each, close in time and already warm: its ratios are of one state of the machine.
Nothing heavy is imported here: the process that keeps the rounds must stay small, for on Linux the
peak memory of a child starts from its parent's.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Protocol, TypeVar

_END_S = 20.0  # that a process has to end by itself
_PAUSE_S = 0.5  # before a turn: threads that have nothing to do spin for a while (OpenMP: 0.2 s)


class Titled(Protocol):
    """What says which contender is meant."""

    @property
    def title(self) -> str:
        """As it is spoken of."""
        ...


Entry = TypeVar("Entry", bound=Titled)


@dataclass(frozen=True, kw_only=True)
class Absent:
    """Why a contender cannot take part, or go on."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Runner(Generic[Entry]):
    """A contender in its process."""

    entry: Entry
    connection: Connection
    loaded: Any  # what it said when it was ready
    load_s: float  # until then, from the start of the process: Python, imports and all

    def take_turn(self, question: object) -> Any:  # noqa: ANN401 (each benchmark has its own)
        """Return the answer to `question`, which is the turn."""
        time.sleep(_PAUSE_S)
        self.connection.send(question)
        answer = _receive(self.connection, self.entry)
        if isinstance(answer, Absent):
            raise SystemExit(f"{self.entry.title}: {answer.reason}")
        return answer


@contextmanager
def start(
    entries: Sequence[Entry], serve: Callable[[Connection, Entry, Any], None], given: object
) -> Iterator[tuple[list[Runner[Entry]], dict[Entry, str]]]:
    """Give the contenders, loaded one after another, and why others are absent; end them behind.

    Args:
        serve: What each process calls, with `given`: it sends one message when it is ready, or
            `Absent`; then it answers every question that `await_question` returns.
    """
    context = get_context("spawn")
    processes: list[tuple[SpawnProcess, Connection]] = []
    runners: list[Runner[Entry]] = []
    absent: dict[Entry, str] = {}
    try:
        for entry in entries:
            say(f"load {entry.title}")
            started_at = time.perf_counter()
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, entry, given), daemon=True)
            process.start()
            processes.append((process, ours))
            theirs.close()
            loaded = _receive(ours, entry)
            load_s = time.perf_counter() - started_at
            if isinstance(loaded, Absent):
                absent[entry] = loaded.reason
                continue
            runners.append(Runner(entry=entry, connection=ours, loaded=loaded, load_s=load_s))
        yield runners, absent
    finally:
        for _, connection in processes:
            connection.close()
        for process, _ in processes:
            process.join(_END_S)
            # Not terminate: a trainer takes that for a wish.
            process.kill()
            process.join()


def await_question(connection: Connection) -> Any:  # noqa: ANN401 (each benchmark has its own)
    """Return the next question, in the process of a contender, or end it: there will be none."""
    try:
        return connection.recv()
    except EOFError:
        raise SystemExit from None


def say(what: str) -> None:
    """Tell how far it is, on stderr."""
    print(what, file=sys.stderr, flush=True)


def _receive(connection: Connection, entry: Titled) -> object:
    try:
        return connection.recv()
    except EOFError:
        raise SystemExit(f"{entry.title}: its process has ended; its message is above") from None
