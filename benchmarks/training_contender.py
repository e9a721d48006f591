"""A contender of training.py, in its process: a trainer that runs, and is held between updates.

Nothing heavy is imported here: see contenders.py.
"""

import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from contenders import Absent, await_question
from machine import find_peak_mib
from training_task import Lengths, Task

if TYPE_CHECKING:
    from torch import Tensor

_WARM_UP_UPDATES = 1  # at the start of a turn, not counted: it wakes threads and fills caches


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Which contender, in which number format, on what."""

    kind: Literal["dragoman", "usual", "hugging-face", "products"]
    name: str  # as in the tables
    device: str
    precision: str = "auto"  # "auto", "32-true", "bf16-mixed": Lightning's names
    implementation: str = "fused"  # of dragoman
    is_compiled: bool = False

    @property
    def title(self) -> str:
        """As it is spoken of."""
        return self.name


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a contender says after its first step."""

    phases_s: dict[str, float]  # what its process did until then, in order
    num_parameters: int
    vocab_size: int
    lengths: Lengths  # of the pairs of an epoch
    precision: str
    batch: str  # how large, in words
    peak_mib: float


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The tokens of a batch, and the places for them, padding included.

    Tokens are numbers, or tensors that are not waited for.
    """

    target: "int | Tensor"  # labels: the end counted, begin not
    target_places: int
    source: "int | Tensor"
    source_places: int


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a contender did in a turn."""

    updates: int
    seconds: float
    target: int  # tokens, as in `Counts`
    target_places: int
    source: int
    source_places: int
    peak_mib: float
    gpu_peak_mib: float  # that PyTorch held; 0 without a GPU

    @property
    def rate(self) -> float:
        """Target tokens a second."""
        return self.target / self.seconds


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the products alone reached in a turn."""

    rate: float  # target tokens a second, if training were these products and nothing else
    gflops: float  # a second, of the model's products
    square_gflops: float  # a second, of a large square product


class Pacer:
    """Holds a loop between two updates until its next turn, and counts what it does in one.

    The loop calls `count` for each batch and `end_update` behind each update. A turn is a number of
    seconds, asked for over the pipe; it ends with an update. Its time is from the end of the update
    before, hence from the fetch of the first batch on, to the end of the last.
    """

    def __init__(self, connection: Connection, device: str) -> None:
        self._connection, self._device = connection, device
        self._clock_s = time.perf_counter()
        self._phases_s: dict[str, float] = {}
        self._introduction: Callable[[dict[str, float]], Loaded] | None = None
        self._turn_s = 0.0
        self._is_warming_up = True
        self._began_at_s = self._clock_s
        self._updates = self._target_places = self._source_places = 0
        self._target: int | Tensor = 0
        self._source: int | Tensor = 0

    def finish(self, phase: str) -> None:
        """Note that `phase`, of what comes before the first step, ends now."""
        now = time.perf_counter()
        self._phases_s[phase] = now - self._clock_s
        self._clock_s = now

    def introduce(
        self,
        *,
        num_parameters: int,
        vocab_size: int,
        lengths: Lengths,
        precision: str,
        batch: str,
    ) -> None:
        """Say what is trained; it is told when the first step is done."""
        self._introduction = lambda phases_s: Loaded(
            phases_s=phases_s,
            num_parameters=num_parameters,
            vocab_size=vocab_size,
            lengths=lengths,
            precision=precision,
            batch=batch,
            peak_mib=find_peak_mib(),
        )

    def count(self, counts: Counts) -> None:
        """Add a batch to what the turn has done."""
        self._target = self._target + counts.target
        self._source = self._source + counts.source
        self._target_places += counts.target_places
        self._source_places += counts.source_places

    def end_update(self) -> None:
        """Note that an update is done; returns when the loop shall go on."""
        if self._introduction is not None:
            self._synchronize()
            self.finish("first step")
            self._connection.send(self._introduction(self._phases_s))
            self._introduction = None
            self._wait()
            return
        self._updates += 1
        if self._is_warming_up:
            if self._updates >= _WARM_UP_UPDATES:
                self._synchronize()
                self._begin(is_warming_up=False)
        elif time.perf_counter() - self._began_at_s >= self._turn_s:
            self._connection.send(self._make_turn())
            self._wait()

    def _wait(self) -> None:
        self._turn_s = await_question(self._connection)
        self._begin(is_warming_up=True)

    def _begin(self, *, is_warming_up: bool) -> None:
        self._is_warming_up = is_warming_up
        self._updates = self._target_places = self._source_places = 0
        self._target = self._source = 0
        self._began_at_s = time.perf_counter()

    def _make_turn(self) -> Turn:
        self._synchronize()
        seconds = time.perf_counter() - self._began_at_s
        return Turn(
            updates=self._updates,
            seconds=seconds,
            target=int(self._target),
            target_places=self._target_places,
            source=int(self._source),
            source_places=self._source_places,
            peak_mib=find_peak_mib(),
            gpu_peak_mib=self._find_gpu_peak(),
        )

    def _synchronize(self) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()

    def _find_gpu_peak(self) -> float:
        if self._device != "cuda":
            return 0.0
        import torch

        return torch.cuda.max_memory_allocated() / 2**20


def serve(connection: Connection, entry: Entry, task: Task) -> None:
    """Train until there is no more turn to wait for; what is printed goes into a file."""
    folder = task.folder / re.sub(r"\W+", "-", entry.name)
    folder.mkdir(parents=True, exist_ok=True)
    _print_into(folder / "printed.txt")
    # A run finds nothing that another has prepared, and leaves nothing where a user's would look.
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        _train(connection, entry, task, folder)
    except Exception as error:
        traceback.print_exc()
        connection.send(Absent(reason=f"{type(error).__name__}: {error}"))


def _train(connection: Connection, entry: Entry, task: Task, folder: Path) -> None:
    if entry.kind == "products":
        from training_products import time_products

        time_products(connection, entry, task)
        return
    pacer = Pacer(connection, entry.device)
    if entry.kind == "dragoman":
        from training_dragoman import train
    elif entry.kind == "usual":
        from training_usual import train
    else:
        from training_hugging_face import train
    train(entry, task, folder, pacer)


def _print_into(path: Path) -> None:
    """Let all that this process prints go into `path`: progress bars are drawn, and not seen."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)
