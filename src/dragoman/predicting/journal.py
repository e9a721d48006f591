"""Where an interrupted prediction stands, so that the same command goes on there.

Beside the file `out.jsonl` that is to be written lie, until it is whole, `.out.jsonl.partial` (what
is written of it), `.out.jsonl.journal` (how far that is to be trusted) and `.out.jsonl.lock`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dragoman.errors import DragomanError

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Place:
    """How far a prediction has come: at the end of a window."""

    rows: int = 0
    """Of the input."""
    size_bytes: int = 0
    """Of the partial file."""
    digest: str = ""
    """Of these rows of the input."""
    faults: dict[str, list[int]] = field(default_factory=dict)
    """For the report: what was told of rows; the number of them, then the first few lines."""


class Journal:
    """The journal of one output file.

    Args:
        job: What the outputs depend on but the input: model, settings, engine, by name.
    """

    def __init__(self, output: Path, job: Mapping[str, Any]) -> None:
        self.partial = output.with_name(f".{output.name}.partial")
        self.lock = output.with_name(f".{output.name}.lock")
        self._path = output.with_name(f".{output.name}.journal")
        self._output = output
        self._job: dict[str, Any] = json.loads(json.dumps(job))  # as it is read again

    def read(self) -> Place:
        """Return where the prediction stands: at the beginning, if none was interrupted.

        Raises:
            DragomanError: It was begun with another model, engine or other settings.
        """
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            size = self.partial.stat().st_size
        except FileNotFoundError:
            return Place()
        except (OSError, ValueError) as error:
            raise DragomanError(f"{self._path}: cannot be read: {error}; {_ANEW}") from error
        if content.get("version") != _VERSION:
            raise DragomanError(f"{self._path}: of another version of dragoman; {_ANEW}")
        begun: dict[str, Any] = content["job"]
        if changed := [name for name in self._job if begun.get(name) != self._job[name]]:
            name = changed[0]
            raise DragomanError(
                f"{self._output}: a prediction that was interrupted has begun this file with "
                f"{name} {begun.get(name)!r}, now it is {self._job[name]!r}: give the same, or "
                "begin anew with --restart"
            )
        place = Place(**content["place"])
        if size < place.size_bytes:
            raise DragomanError(f"{self.partial}: it has lost its end; {_ANEW}")
        return place

    def write(self, place: Place) -> None:
        """Record that the prediction has come to `place`; the partial file must be on the disk."""
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        content = {"version": _VERSION, "job": self._job, "place": asdict(place)}
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)

    def discard(self) -> None:
        """Forget what was begun."""
        self._path.unlink(missing_ok=True)
        self.partial.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the partial file the name of the output."""
        self.partial.replace(self._output)
        self._path.unlink(missing_ok=True)


_ANEW = "begin anew with --restart"
