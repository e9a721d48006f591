"""A prediction from an input to an output: by windows of rows, and on again after any death."""

import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from dragoman.commands.output_formats import RowWriter, find_packer
from dragoman.commands.predict_job import Job, check_rest, describe_job
from dragoman.commands.predict_journal import Journal, Place
from dragoman.commands.predict_locking import lock_files
from dragoman.commands.predict_progress import Progress
from dragoman.commands.predict_report import Report, Row
from dragoman.errors import DragomanError
from dragoman.predictor import Predictor, make_windows
from dragoman.reading.pairs import FilePosition, list_source_columns, read_sources


def run_job(model: Predictor, job: Job) -> Report:
    """Predict every row of the input, in their order, and return what is to be told of them.

    Memory does not grow with the input. Files are written under other names until they are whole;
    killed at any moment, the same job goes on where it was, and the files become what they would
    have been. Only what goes to standard output, and the rest beside it, begins anew.

    Raises:
        DragomanError: The input, the output, or what was begun of it cannot serve.
    """
    check_rest(job)
    if job.output is None or (job.output.exists() and not job.output.is_file()):
        return _stream(model, job)
    journal = Journal(list(job.files.values()), describe_job(model, job))
    with lock_files(job.files), Progress() as progress:
        if job.restarts:
            journal.discard()
        try:
            return _write_files(model, job, journal, journal.read(), progress)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                f"stopped; the same command goes on after row {journal.read().rows:,}"
            ) from stop


def _stream(model: Predictor, job: Job) -> Report:
    """Write to standard output, or to what is no file, as the rows come."""
    report, writers = _make_report(job, Place()), _make_writers(model, job)
    with ExitStack() as stack:
        output = stack.enter_context(_open_stream(job.output))
        writes: list[Callable[[str], object]] = [output.write]
        if job.rest is not None:
            stack.enter_context(lock_files({"--low-confidence-output": job.rest.path}))
            writes.append(stack.enter_context(_open_whole(job.rest.path)))
        for write, writer in zip(writes, writers, strict=True):
            write(writer.header())
        for window in make_windows(_read_rows(model, job)):
            for write, text in zip(
                writes, _predict(model, job, window, writers, report), strict=True
            ):
                write(text)
            output.flush()
    return report


def _write_files(
    model: Predictor, job: Job, journal: Journal, place: Place, progress: Progress
) -> Report:
    assert job.output is not None
    report, position = _make_report(job, place), FilePosition()
    writers = _make_writers(model, job)
    packs = [find_packer(path) for path in job.files.values()]
    digest = hashlib.blake2b(digest_size=16)
    rows = _read_rows(model, job, position)
    if not (place.is_whole and _replaces_input(job)):
        _skip(rows, place, digest, job.output)
    try:
        if place.is_whole:
            if not _replaces_input(job):
                _check_end(rows, place, job.output)
            print(f"dragoman: all {place.rows:,} rows were done already", file=sys.stderr)
            journal.finish(place)
            return report
        if place.rows:
            print(f"dragoman: goes on after row {place.rows:,}", file=sys.stderr)
            progress.begin(place.rows, position.fraction(place.rows))
        with ExitStack() as stack:
            mode = "r+b" if place.rows else "wb"
            files = [stack.enter_context(partial.open(mode)) for partial in journal.partials]
            for i, (file, pack, writer) in enumerate(zip(files, packs, writers, strict=True)):
                file.seek(place.sizes_bytes[i] if place.rows else 0)
                file.truncate()
                if not place.rows:
                    file.write(pack(writer.header().encode()))
            for window in make_windows(rows, place.rows):
                texts = _predict(model, job, window, writers, report)
                for file, pack, text in zip(files, packs, texts, strict=True):
                    file.write(pack(text.encode()) if text else b"")
                _update(digest, window)
                place = _mark(files, journal, place.rows + len(window), digest, report)
                progress.update(place.rows, position.fraction(place.rows))
            _sync(files)
        journal.finish(place)
    except BrokenPipeError:  # of standard error: no reader is left
        raise
    except OSError as error:
        named = ", ".join(f"{option} {path}" for option, path in job.files.items())
        raise DragomanError(f"{named}: cannot be written: {error.strerror}") from error
    finally:
        if not place.rows:  # there is nothing to go on from
            journal.discard()
    return report


def _predict(
    model: Predictor, job: Job, window: Sequence[Row], writers: Sequence[RowWriter], report: Report
) -> list[str]:
    """Return what each file gets of the rows of a window."""
    texts: list[list[str]] = [[] for _ in writers]
    for row, best_first in model.predict_window(window, is_forced=job.is_forced):
        best = next(iter(best_first), None)
        place = int(job.rest is not None and job.rest.takes(best))
        text, losses = writers[place].write(row, best_first)
        report.add(row, best, place, losses)
        texts[place].append(text)
    return ["".join(parts) for parts in texts]


def _replaces_input(job: Job) -> bool:
    """Return whether the input has the name of an output, and so may be one by now."""
    return job.input is not None and any(
        path.exists() and path.samefile(job.input) for path in job.files.values()
    )


def _check_end(rows: Iterator[Row], place: Place, output: Path) -> None:
    if next(rows, None) is not None:
        raise DragomanError(
            f"{output}: all {place.rows:,} rows of the input were done, and now it has more: give "
            "the same input, or begin anew with --restart"
        )


def _make_report(job: Job, place: Place) -> Report:
    """Return a report that knows what was told up to `place`."""
    names = [str(path) for path in job.files.values()]
    names = names if job.output is not None else ["standard output", *names]
    return Report(
        {fault: count for fault, (count, *_) in place.faults.items()},
        {fault: lines for fault, (_, *lines) in place.faults.items()},
        names,
        list(place.rows_by_file) or [0] * len(job.layouts),
    )


def _mark(
    files: Sequence[IO[bytes]],
    journal: Journal,
    num_rows: int,
    digest: "hashlib.blake2b",
    report: Report,
) -> Place:
    """Put what was written on the disk, and record the place after `num_rows`."""
    _sync(files)
    place = Place(
        rows=num_rows,
        sizes_bytes=[file.tell() for file in files],
        digest=digest.hexdigest(),
        faults={fault: [count, *report.lines[fault]] for fault, count in report.counts.items()},
        rows_by_file=list(report.rows_by_file),
    )
    journal.write(place)
    return place


def _sync(files: Iterable[IO[bytes]]) -> None:
    for file in files:
        file.flush()
        os.fsync(file.fileno())


def _read_rows(model: Predictor, job: Job, position: FilePosition | None = None) -> Iterator[Row]:
    return read_sources(
        sys.stdin.buffer if job.input is None else job.input,
        model.settings.data,
        has_target=job.is_forced,
        prefix=job.prefix,
        with_columns=job.layout != "text",  # then that of the rest is none either
        position=position,
    )


def _skip(rows: Iterator[Row], place: Place, digest: "hashlib.blake2b", output: Path) -> None:
    """Pass over the rows that are done.

    Raises:
        DragomanError: They are not the rows that were predicted.
    """
    count = _update(digest, islice(rows, place.rows))
    if place.rows and (count < place.rows or digest.hexdigest() != place.digest):
        raise DragomanError(
            f"{output}: a prediction of this file was interrupted after row {place.rows:,}, and "
            "these rows of the input are no longer the same: give the same input, or begin anew "
            "with --restart"
        )


def _update(digest: "hashlib.blake2b", rows: Iterable[Row]) -> int:
    """Take rows into the digest, and return their number."""
    count = 0
    for row in rows:
        digest.update(repr(tuple(row)).encode("utf-8", errors="surrogatepass"))
        count += 1
    return count


def _make_writers(model: Predictor, job: Job) -> list[RowWriter]:
    columns: tuple[str, ...] = ()
    if {"csv", "tsv"} & set(job.layouts):
        if job.input is None:
            named = ", ".join(f"{option} {path}" for option, path in job.files.items())
            raise DragomanError(
                f"{named}: a table has the columns of its input; give that by --input, or write "
                ".jsonl"
            )
        columns = list_source_columns(job.input, model.settings.data)
    return [
        RowWriter(
            layout=layout,
            decoding=model.settings.decoding,
            columns=columns,
            is_forced=job.is_forced,
        )
        for layout in job.layouts
    ]


@contextmanager
def _open_stream(path: Path | None) -> Iterator[IO[str]]:
    if path is not None:
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(encoding="utf-8")
    yield sys.stdout
    sys.stdout.flush()


@contextmanager
def _open_whole(path: Path) -> Iterator[Callable[[str], object]]:
    """Give what writes to the file `path`, which gets its name when it is whole."""
    partial, pack = path.with_name(f".{path.name}.tmp-{os.getpid()}"), find_packer(path)
    try:
        with partial.open("wb") as file:
            file.write(pack(b""))
            yield lambda text: file.write(pack(text.encode()) if text else b"")
            _sync([file])
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
