"""What a run speaks to, and is timed and stopped by."""

from dataclasses import dataclass

from rich.console import Console

from dragoman.training.graceful_stop import SignalHandler
from dragoman.training.startup import StartClock


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The terminal, the clock and the signals of a run."""

    console: Console
    clock: StartClock
    watch: SignalHandler

    def tell(self, line: str) -> None:
        """Write a line for people, as it is."""
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)
