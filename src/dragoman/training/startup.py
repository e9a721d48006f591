"""How long a run takes to its first step, phase by phase."""

import os
import time
from pathlib import Path


class StartClock:
    """Takes the seconds of each phase from the start to the first step.

    Args:
        age_s: How long ago the start was.
    """

    def __init__(self, age_s: float = 0.0) -> None:
        self._begun_s = self._marked_s = time.monotonic() - age_s
        self.phases: dict[str, float] = {}

    @classmethod
    def since_process_start(cls) -> "StartClock":
        """Return a clock that began with this process, or, where the system does not tell, now."""
        return cls(_process_age_s())

    def mark(self, phase: str) -> None:
        """Say that what was done since the last mark was `phase`."""
        now_s = time.monotonic()
        self.phases[phase] = self.phases.get(phase, 0.0) + now_s - self._marked_s
        self._marked_s = now_s

    @property
    def total_s(self) -> float:
        """Seconds from the start to the last mark."""
        return self._marked_s - self._begun_s

    def report(self) -> str:
        """Return the phases as a table, for people."""
        width = max(map(len, self.phases), default=0)
        lines = [f"first step after {self.total_s:.1f} s"]
        lines += [f"  {phase:<{width}}  {spent:6.2f} s" for phase, spent in self.phases.items()]
        return "\n".join(lines)


def _process_age_s() -> float:
    """Return how long ago this process was started; 0.0 where the system does not tell (Linux does)."""
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22, since the boot
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
