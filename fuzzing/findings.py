"""What the fuzzers have in common: a finding is kept with its input, told once, and passed by."""

import hashlib
import sys
import time
import traceback
from pathlib import Path

_LONGEST_S = 5.0


class Findings:
    """Keeps the smallest input of each kind of finding in a folder, so that a run need not stop.

    A kind is the exception and the innermost lines of it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, int] = {}

    def add(self, data: bytes, error: BaseException) -> None:
        """Keep `data`, which made `error`; a kind that was seen is told only if it is smaller."""
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[::-1])
        kind = f"{type(error).__name__} at {places}"
        if len(data) >= self._sizes.get(kind, sys.maxsize):
            return
        is_new = kind not in self._sizes
        self._sizes[kind] = len(data)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / hashlib.sha256(kind.encode()).hexdigest()[:12]
        path.write_bytes(data)
        told = f"FINDING {kind}: {str(error)[:300]!r}; {len(data)} bytes in {path}"
        print(told if is_new else f"SMALLER {kind}: {len(data)} bytes", file=sys.stderr, flush=True)

    def watch(self, data: bytes, began: float) -> None:
        """Keep `data` if more than five seconds have passed since `began`, by time.monotonic."""
        passed_s = time.monotonic() - began
        if passed_s > _LONGEST_S:
            self.add(data, TimeoutError(f"it took {passed_s:.0f} s"))
