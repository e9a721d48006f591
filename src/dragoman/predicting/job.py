"""A prediction from an input to an output: by windows of rows, and on again after any death."""

import hashlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from dragoman.configuration import flatten_settings
from dragoman.errors import DragomanError
from dragoman.predicting.journal import Journal, Place
from dragoman.predicting.layouts import Layout, RowWriter, find_layout, find_packer
from dragoman.predicting.progress import Progress
from dragoman.prediction import Prediction
from dragoman.predictor import Predictor, make_windows
from dragoman.settings import DecodingSettings
from dragoman.text.bundle import fingerprint
from dragoman.text.pairs import BadRow, FilePosition, Source, list_source_columns, read_sources

_NAMED_ROWS = 5  # rows of a kind that are named in the report

Row = Source | BadRow


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be predicted, and where it is written.

    Args:
        input: A file of sources; None: standard input.
        output: The file to write; None: standard output.
        is_forced: Rows are pairs, whose targets are scored.
        prefix: Column of what the output begins with; "": none.
        restarts: What was interrupted is begun anew.
    """

    input: Path | None = None
    output: Path | None = None
    layout: Layout = "text"
    is_forced: bool = False
    prefix: str = ""
    restarts: bool = False


@dataclass
class Report:
    """What is to be told of the rows: by fault, how many, and the first few lines."""

    counts: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[int]] = field(default_factory=dict)

    def add(self, row: Row, prediction: Prediction | None, *, is_text: bool) -> None:
        """Take note of what is wrong with a row or its output."""
        for fault in _find_faults(row, prediction, is_text=is_text):
            self.counts[fault] = self.counts.get(fault, 0) + 1
            lines = self.lines.setdefault(fault, [])
            if len(lines) < _NAMED_ROWS:
                lines.append(row.line)

    def __iter__(self) -> Iterator[str]:
        for fault, count in self.counts.items():
            named = ", ".join(map(str, self.lines[fault]))
            yield f"{count:,} rows {fault}: line {named}{', …' if count > _NAMED_ROWS else ''}"


def run_job(model: Predictor, job: Job) -> Report:
    """Predict every row of the input, in their order, and return what is to be told of them.

    Memory does not grow with the input. A file is written under another name until it is whole;
    killed at any moment, the same job goes on where it was, and the file becomes what it would
    have been.

    Raises:
        DragomanError: The input, the output, or what was begun of it cannot serve.
    """
    if job.output is None or (job.output.exists() and not job.output.is_file()):
        return _stream(model, job)
    journal = Journal(job.output, _describe_job(model, job))
    with _lock(journal, job.output), Progress() as progress:
        if job.restarts:
            journal.discard()
        try:
            return _write_file(model, job, journal, journal.read(), progress)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                f"stopped; the same command goes on after row {journal.read().rows:,}"
            ) from stop


def choose_layout(output: Path | None, *, is_jsonl: bool) -> Layout:
    """Return the layout of an output, by its name unless JSON is asked for."""
    if is_jsonl:
        return "jsonl"
    return "text" if output is None else find_layout(output)


def _stream(model: Predictor, job: Job) -> Report:
    """Write to standard output, or to what is no file, as the rows come."""
    report, writer = Report(), _make_writer(model, job)
    with _open_stream(job.output) as output:
        output.write(writer.header())
        for window in make_windows(_read_rows(model, job)):
            for row, best_first in model.predict_window(window, is_forced=job.is_forced):
                report.add(row, next(iter(best_first), None), is_text=job.layout == "text")
                output.write(writer.write(row, best_first))
            output.flush()
    return report


def _write_file(
    model: Predictor, job: Job, journal: Journal, place: Place, progress: Progress
) -> Report:
    assert job.output is not None
    report = Report(
        {fault: count for fault, (count, *_) in place.faults.items()},
        {fault: lines for fault, (_, *lines) in place.faults.items()},
    )
    pack, writer, position = find_packer(job.output), _make_writer(model, job), FilePosition()
    digest = hashlib.blake2b(digest_size=16)
    rows = _read_rows(model, job, position)
    _skip(rows, place, digest, job.output)
    if place.rows:
        print(f"dragoman: goes on after row {place.rows:,}", file=sys.stderr)
        progress.begin(place.rows, position.fraction(place.rows))
    try:
        with journal.partial.open("r+b" if place.rows else "wb") as file:
            file.seek(place.size_bytes)
            file.truncate()
            if not place.rows:
                file.write(pack(writer.header().encode()))
            for window in make_windows(rows, place.rows):
                texts = []
                for row, best_first in model.predict_window(window, is_forced=job.is_forced):
                    report.add(row, next(iter(best_first), None), is_text=job.layout == "text")
                    texts.append(writer.write(row, best_first))
                file.write(pack("".join(texts).encode()))
                _update(digest, window)
                place = _mark(file, journal, place.rows + len(window), digest, report)
                progress.update(place.rows, position.fraction(place.rows))
            _sync(file)
        journal.finish()
    except OSError as error:
        raise DragomanError(
            f"--output {job.output}: cannot be written: {error.strerror}"
        ) from error
    finally:
        if not place.rows:  # there is nothing to go on from
            journal.discard()
    return report


def _mark(
    file: IO[bytes], journal: Journal, num_rows: int, digest: "hashlib.blake2b", report: Report
) -> Place:
    """Put what was written on the disk, and record the place after `num_rows`."""
    _sync(file)
    place = Place(
        rows=num_rows,
        size_bytes=file.tell(),
        digest=digest.hexdigest(),
        faults={fault: [count, *report.lines[fault]] for fault, count in report.counts.items()},
    )
    journal.write(place)
    return place


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _read_rows(model: Predictor, job: Job, position: FilePosition | None = None) -> Iterator[Row]:
    return read_sources(
        sys.stdin.buffer if job.input is None else job.input,
        model.settings.data,
        has_target=job.is_forced,
        prefix=job.prefix,
        with_columns=job.layout != "text",
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


def _make_writer(model: Predictor, job: Job) -> RowWriter:
    columns: tuple[str, ...] = ()
    if job.layout in ("csv", "tsv"):
        if job.input is None:
            raise DragomanError(
                f"--output {job.output}: a table has the columns of its input; give that by "
                "--input, or write .jsonl"
            )
        columns = list_source_columns(job.input, model.settings.data)
    return RowWriter(
        layout=job.layout,
        decoding=model.settings.decoding,
        columns=columns,
        is_forced=job.is_forced,
    )


def _describe_job(model: Predictor, job: Job) -> dict[str, object]:
    """Return all that the outputs depend on, but the input."""
    settings = flatten_settings(model.settings)
    return {
        "dragoman": version("dragoman"),
        "model": model.fingerprints(),
        "--engine": model.engine.name,
        "--force-target": job.is_forced,
        "--prefix": job.prefix,
        "layout": job.layout,
        "files of the constraint": _list_constraint_files(model.settings.decoding),
        **{name: settings[name] for name in settings if name.startswith(("data.", "decoding."))},
    }


def _list_constraint_files(decoding: DecodingSettings) -> list[str]:
    """Return what tells the files that constrain the outputs from others."""
    schema = "" if decoding.json_schema.lstrip().startswith("{") else decoding.json_schema
    names = (decoding.choices, schema, decoding.grammar)
    return [fingerprint(Path(name)) for name in names if name and Path(name).is_file()]


@contextmanager
def _lock(journal: Journal, output: Path) -> Iterator[None]:
    """Keep others from writing the same file; the lock of a dead process holds nobody up."""
    lock = FileLock(journal.lock, timeout=0)
    try:
        output.parent.stat()  # the lock would make it
        lock.acquire()
    except Timeout as error:
        raise DragomanError(
            f"--output {output}: another process is writing this file; wait for it, or choose "
            "another --output"
        ) from error
    except OSError as error:
        raise DragomanError(f"--output {output}: cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
        journal.lock.unlink(missing_ok=True)


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


def _find_faults(row: Row, prediction: Prediction | None, *, is_text: bool) -> list[str]:
    """Return what is to be said of a row, for its report on standard error."""
    if prediction is None:
        return [f"without an output ({row.reason if isinstance(row, BadRow) else ''})"]
    faults = []
    if not prediction.is_complete:
        faults.append("cut at their longest length (raise decoding.max_length_extra)")
    if prediction.num_unknown:
        faults.append("with tokens that the model has never seen")
    if is_text and ("\n" in prediction.text or "\r" in prediction.text):
        faults.append("with a line break in the output, written as a space (--jsonl keeps it)")
    return faults
