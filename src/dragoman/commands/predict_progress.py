"""How fast a long prediction goes, and how long it will still take: on standard error."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_QUIET_S = 2.0  # a prediction that is done sooner says nothing
_LINE_EVERY_S = 60.0  # where standard error is no terminal


class Progress:
    """Shows the progress of a prediction; a bar on a terminal, now and then a line elsewhere."""

    def __init__(self) -> None:
        self._started_at = self._told_at = time.monotonic()
        self._first_rows, self._first_fraction = 0, 0.0
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, num_rows: int, fraction: float | None) -> None:
        """Take note of what an earlier process has done."""
        self._first_rows, self._first_fraction = num_rows, fraction or 0.0

    def update(self, num_rows: int, fraction: float | None) -> None:
        """Show that `num_rows` are done, `fraction` of all (None: unknown)."""
        now = time.monotonic()
        if now - self._started_at < _QUIET_S:
            return
        told = self._describe(num_rows, fraction, now - self._started_at)
        if sys.stderr.isatty():
            self._show(told, fraction)
        elif now - self._told_at >= _LINE_EVERY_S:
            self._told_at = now
            print(f"dragoman: {told}", file=sys.stderr, flush=True)

    def _describe(self, num_rows: int, fraction: float | None, elapsed_s: float) -> str:
        told = f"{num_rows:,} rows, {(num_rows - self._first_rows) / elapsed_s:,.0f} rows/s"
        if fraction is None or fraction <= self._first_fraction:
            return told
        left_s = elapsed_s * (1.0 - fraction) / (fraction - self._first_fraction)
        return f"{told}, {format_seconds(left_s)} left"

    def _show(self, told: str, fraction: float | None) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("predicting"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(told, total=None if fraction is None else 1.0)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, description=told, completed=fraction or 0.0)


def format_seconds(seconds: float) -> str:
    """Return a time for people: "45 s", "3 min", "2 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
