"""Console, timer and signal handler of a run. Imports nothing heavy: the timer starts first."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import IO, TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from dragoman.characters import escape_controls

if TYPE_CHECKING:
    from dragoman.training.graceful_stop import SignalHandler
    from dragoman.training.ranks import Ranks


LINE_EVERY_S = 30.0  # longest silence of a run where its output is no terminal


class TextConsole(Console):
    """A console on which control characters of texts are shown, and do not command the terminal."""

    @property
    def file(self) -> IO[str]:
        """Where to write: under the streams of `characters`, also while a bar has put its own there."""
        file = super().file
        return getattr(file, "rich_proxied_file", file)

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Yield the segments; only those of rich itself have control characters."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else escape_controls(segment.text)
            yield segment._replace(text=text)


def print_plain(console: Console, message: str) -> None:
    """Print a message as it is: without markup, colours and line breaks of rich."""
    console.print(message, highlight=False, soft_wrap=True, markup=False)


class StartTimer:
    """Measures the seconds of each phase from the start to the first step.

    `age_s`: how long ago the start was.
    """

    def __init__(self, age_s: float = 0.0) -> None:
        self.started_s = self._marked_s = time.monotonic() - age_s
        self.phases: dict[str, float] = {}

    @classmethod
    def since_process_start(cls) -> "StartTimer":
        """Return a timer that began with this process; with now, if the system is not Linux."""
        try:
            after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
            started_s = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22, since the boot
            return cls(max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s))
        except (OSError, ValueError, IndexError, AttributeError):
            return cls()

    def mark(self, phase: str) -> None:
        """End the phase that began with the last mark."""
        now_s = time.monotonic()
        self.phases[phase] = self.phases.get(phase, 0.0) + now_s - self._marked_s
        self._marked_s = now_s

    @property
    def total_s(self) -> float:
        """Seconds from the start to the last mark."""
        return self._marked_s - self.started_s

    def report(self) -> str:
        """Return the phases as a table."""
        width = max(map(len, self.phases), default=0)
        lines = [f"first step after {self.total_s:.1f} s"]
        lines += [f"  {phase:<{width}}  {spent:6.2f} s" for phase, spent in self.phases.items()]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Console, timer, signal handler and ranks of a run."""

    console: Console
    timer: StartTimer
    signals: "SignalHandler"
    ranks: "Ranks"

    @contextmanager
    def working(self, phase: str) -> Iterator[None]:
        """Report `phase`, and while it lasts, its time: a bar on a terminal, else a line now and then."""
        self.report(phase)
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            with Progress(
                *columns, console=self.console, refresh_per_second=2, transient=True
            ) as bar:
                bar.add_task(phase, total=None)
                yield
            return
        ended, started_s = Event(), time.monotonic()

        def report_time() -> None:
            with suppress(OSError, SystemExit):  # rich raises SystemExit where nobody reads
                while not ended.wait(LINE_EVERY_S):
                    elapsed = timedelta(seconds=round(time.monotonic() - started_s))
                    self.report(f"{phase}: {elapsed} so far")

        thread = Thread(target=report_time, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def report(self, message: str) -> None:
        """Print a message as it is."""
        print_plain(self.console, message)
