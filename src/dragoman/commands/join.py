"""`dragoman join`: the parts of a prediction -> its outputs, byte for byte those of one process.

Parts are made of windows of rows: window i of the input is in part i mod N. Each part's journal says
where its windows end, and with which input, model and settings it was made.
"""

import glob
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from dragoman.commands.output_formats import find_layout, write_parquet
from dragoman.commands.predict import (
    NAMED_ROWS,
    Content,
    Job,
    State,
    lock_files,
    name_part,
    read_journal,
)
from dragoman.errors import DragomanError
from dragoman.storage import explain_failed_write, staged_file


def join(output: Path, count: int | None = None) -> list[str]:
    """Write `output`, and the low-confidence output, from their parts; return lines for the user.

    The parts are removed once the outputs are on the disk.

    Args:
        output: The main output.
        count: Number of parts; None: of those that lie beside `output`.

    Raises:
        DragomanError: A part is missing, unfinished, damaged, or of another input, model or
            setting than the others; or an output cannot be written.
    """
    count = count or _count_parts(output)
    parts = _read_parts(output, count)
    low = parts[0].job["--low-confidence-output"]
    job = Job(output=output, low_confidence_output=output.parent / low if low else None)
    files = [
        [name_part(path, k, count) for k in range(1, count + 1)] for path in job.files.values()
    ]
    for place, paths in enumerate(files):
        for path, part in zip(paths, parts, strict=True):
            size = part.state.sizes_bytes[place]
            found = path.stat().st_size if path.exists() else 0
            if found != size:
                raise DragomanError(
                    f"{path}: {found:,} bytes, and its journal says {size:,}: copy it again, or "
                    "predict this part again, with --restart"
                )
    with lock_files(job.files), ExitStack() as stack:
        for place, path in enumerate(job.files.values()):
            stack.enter_context(explain_failed_write(path, DragomanError))
            joined = stack.enter_context(staged_file(path))  # the last one is renamed first
            with joined.open("wb") as file:
                _copy(
                    files[place],
                    [[ends[place] for ends in one.state.ends_bytes] for one in parts],
                    file,
                )
            if find_layout(path) == "parquet":
                with staged_file(joined) as complete:
                    write_parquet(joined, complete)
    for path in (path for paths in files for path in paths):
        path.unlink()
    for path in files[0]:
        path.with_name(f"{path.name}.journal").unlink()
    return _add([one.state for one in parts]).report(job)


def _count_parts(output: Path) -> int:
    """Return N of the parts K of N that lie beside `output`."""
    name = re.compile(rf"{re.escape(output.name)}\.part-\d+-of-(\d+)\.journal")
    beside = output.parent.glob(f"{glob.escape(output.name)}.part-*")
    counts = sorted({int(found[1]) for one in beside if (found := name.fullmatch(one.name))})
    if not counts:
        raise DragomanError(
            f"{output}: no part of it is beside it; write them by `dragoman predict MODEL --input "
            f"FILE --output {output} --part 1/8` to 8/8"
        )
    if len(counts) > 1:
        raise DragomanError(
            f"{output}: there are parts of {' and of '.join(map(str, counts))} beside it; remove those "
            "that are not to be joined"
        )
    return counts[0]


def _read_parts(output: Path, count: int) -> list[Content]:
    """Return what the journals of all parts say."""
    found: dict[int, Content] = {}
    faults = []
    for number in range(1, count + 1):
        path = name_part(output, number, count)
        try:
            found[number] = part = read_journal(path.with_name(f"{path.name}.journal"))
        except FileNotFoundError:
            faults.append(f"part {number}/{count} is missing")
            continue
        if not part.state.is_complete:
            faults.append(f"part {number}/{count} is unfinished, at row {part.state.rows:,}")
    if faults:
        raise DragomanError(
            f"{output}: {', '.join(faults)}: run its `dragoman predict ... --part` to the end, or "
            "copy both of its files here"
        )
    first = found[1]
    for number, part in found.items():
        for name in first.job:
            if part.job.get(name) != first.job[name]:
                raise DragomanError(
                    f"{output}: part {number}/{count} was predicted with {name} "
                    f"{part.job.get(name)!r}, part 1/{count} with {first.job[name]!r}: predict one of "
                    "them again, with --restart"
                )
        if (part.state.rows, part.state.digest) != (first.state.rows, first.state.digest):
            raise DragomanError(
                f"{output}: part {number}/{count} is of another input ({part.state.rows:,} rows) than "
                f"part 1/{count} ({first.state.rows:,} rows): predict one of them again, with --restart"
            )
    return list(found.values())


def _copy(paths: Sequence[Path], ends_bytes: Sequence[Sequence[int]], output: IO[bytes]) -> None:
    """Write the header, and then the windows of all parts by turns."""
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in paths]
        for i in range(max(map(len, ends_bytes))):
            for file, ends in zip(files, ends_bytes, strict=True):
                if i < len(ends):
                    output.write(file.read(ends[i] - file.tell()))


def _add(states: Sequence[State]) -> State:
    """Return what the user should know of the rows of all parts."""
    total = State(
        rows_by_file=[sum(one) for one in zip(*(s.rows_by_file for s in states), strict=True)]
    )
    for state in states:
        total.from_memory += state.from_memory
        total.values_left_out += state.values_left_out
        total.num_values += state.num_values
        total.unsure_values = Counter(total.unsure_values) + Counter(state.unsure_values)
        for kind, (count, *lines) in state.row_errors.items():
            before, *named = total.row_errors.get(kind, [0])
            total.row_errors[kind] = [before + count, *sorted([*named, *lines])[:NAMED_ROWS]]
    total.row_errors = dict(sorted(total.row_errors.items(), key=lambda one: one[1][1]))
    return total
