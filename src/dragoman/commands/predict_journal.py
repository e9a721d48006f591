"""Where an interrupted prediction stands, so that the same command goes on there.

Beside the file `out.jsonl` that is to be written lie, until it is whole, `.out.jsonl.partial` (what
is written of it), `.out.jsonl.journal` (how far that is to be trusted) and `.out.jsonl.lock`. A
second file, for the rest of the rows, has a partial file and a lock beside it too.

Several files cannot be renamed at once. So the journal says first that all are whole: whoever finds
it after a death only gives the names that are still missing. The main file comes last: where it is,
all is done.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dragoman.errors import DragomanError

_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Place:
    """How far a prediction has come: at the end of a window."""

    rows: int = 0
    """Of the input."""
    sizes_bytes: list[int] = field(default_factory=list)
    """Of the partial files."""
    digest: str = ""
    """Of these rows of the input."""
    faults: dict[str, list[int]] = field(default_factory=dict)
    """For the report: what was told of rows; the number of them, then the first few lines."""
    rows_by_file: list[int] = field(default_factory=list)
    """For the report."""
    is_whole: bool = False
    """These rows are all, and the files have no more to get but their names."""


class Journal:
    """The journal of one output: its main file, and others that are written with it.

    Args:
        job: What the outputs depend on but the input: model, settings, engine, by name.
    """

    def __init__(self, outputs: Sequence[Path], job: Mapping[str, Any]) -> None:
        main = outputs[0]
        self.partials = [_name_partial(output, main) for output in outputs]
        self._path = main.with_name(f".{main.name}.journal")
        self._outputs = list(outputs)
        self._job: dict[str, Any] = json.loads(json.dumps(job))  # as it is read again

    def read(self) -> Place:
        """Return where the prediction stands: at the beginning, if none was interrupted.

        Raises:
            DragomanError: It was begun with another model, engine or other settings.
        """
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Place()
        except (OSError, ValueError) as error:
            raise DragomanError(f"{self._path}: cannot be read: {error}; {_ANEW}") from error
        if content.get("version") != _VERSION:
            raise DragomanError(f"{self._path}: of another version of dragoman; {_ANEW}")
        place, begun = Place(**content["place"]), content["job"]
        changed = [name for name in self._job if begun.get(name) != self._job[name]]
        has_main = self.partials[0].exists()  # the last that gets its name
        if not has_main and (changed or not place.is_whole):
            return Place()  # what was begun is gone, or has long had its names
        if changed:
            name = changed[0]
            raise DragomanError(
                f"{self._outputs[0]}: a prediction that was interrupted has begun this file with "
                f"{name} {begun.get(name)!r}, now it is {self._job[name]!r}: give the same, or "
                "begin anew with --restart"
            )
        if place.is_whole:
            return place
        if not all(partial.exists() for partial in self.partials):
            return Place()
        self._check_sizes(place)
        return place

    def write(self, place: Place) -> None:
        """Record that the prediction has come to `place`; the partial files must be on the disk."""
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        content = {"version": _VERSION, "job": self._job, "place": asdict(place)}
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)

    def discard(self) -> None:
        """Forget what was begun."""
        for path in (self._path, *self.partials):
            path.unlink(missing_ok=True)

    def finish(self, place: Place) -> None:
        """Give the partial files, which are whole at `place`, the names of the outputs."""
        self.write(replace(place, is_whole=True))
        for partial, output in reversed(list(zip(self.partials, self._outputs, strict=True))):
            if partial.exists():  # else it has its name already
                partial.replace(output)
        self._path.unlink(missing_ok=True)

    def _check_sizes(self, place: Place) -> None:
        for partial, size in zip(self.partials, place.sizes_bytes, strict=True):
            if partial.stat().st_size < size:
                raise DragomanError(f"{partial}: it has lost its end; {_ANEW}")


def _name_partial(output: Path, main: Path) -> Path:
    """Return the partial file of `output`; of one that is not `main`, no other prediction's."""
    if output == main:
        return output.with_name(f".{output.name}.partial")
    way = os.path.relpath(main, output.parent)  # the same when both are moved
    digest = hashlib.blake2b(os.fsencode(way), digest_size=4).hexdigest()
    return output.with_name(f".{output.name}.partial-{digest}")


_ANEW = "begin anew with --restart"
