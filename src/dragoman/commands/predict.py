"""`dragoman predict`: from an input to one or two outputs, in windows of rows; resumes after a crash.

While `out.jsonl` is written, these files lie beside it: `.out.jsonl.partial` (the rows so far),
`.out.jsonl.journal` (how many rows and bytes are safe on the disk) and `.out.jsonl.lock`. After a
crash, the same command cuts the partial file to that size, skips the rows that are done, and writes
the others. The low-confidence output has a partial file and a lock too. At the end the partial files
are renamed, the main one last; then the journal goes. The partial file of a .parquet has JSON lines.

Part K of N of a job predicts each N-th window, from the K-th. Every part reads all rows, so that no
part needs to know their number, and so that its digest is that of the whole input. It writes
`out.jsonl.part-K-of-N`, and keeps its journal beside it, by which `dragoman join` copies the windows.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, cast

from filelock import Timeout
from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from dragoman.characters import write_data
from dragoman.commands.output_formats import (
    Layout,
    RowWriter,
    find_layout,
    find_packer,
    write_parquet,
)
from dragoman.configuration import flatten_settings
from dragoman.errors import DragomanError, shorten
from dragoman.evaluation.confidence import FieldValue, round_confidence
from dragoman.predictor import Predictor, make_windows
from dragoman.reading.pairs import (
    FilePosition,
    InvalidRow,
    Source,
    list_source_columns,
    read_sources,
)
from dragoman.settings import DecodingSettings
from dragoman.storage import hold_lock, is_same_file, sha256, staged_file

if TYPE_CHECKING:
    from rich.progress import Progress

Row = Source | InvalidRow

_REMEDY = "start over with --restart"
NAMED_ROWS = 5  # rows of a kind that the report names
_MOST_KINDS = 20  # then further features share one
_QUIET_S = 2.0  # shorter predictions show no progress
_LINE_EVERY_S = 60.0  # progress lines, where standard error is not a terminal


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to predict, and where to write it.

    Args:
        input: A file of sources, or its URL; None: standard input.
        output: None: standard output.
        low_confidence_output: File for the rows with a confidence below `min_confidence`, outputs
            that are truncated or malformed, and invalid rows; of outputs that are records, for the
            values below it, which are left out of their records. None: all goes to `output`.
        is_jsonl: Write JSON lines to standard output, and to files whose names say no format.
        scores_targets: The rows are pairs; score their targets.
        prefix: Column with the start of each output; "": none.
        restart: Discard an interrupted prediction of the same output.
        part: K and N, to predict part K of N; None: all rows.
    """

    input: str | Path | None = None
    output: Path | None = None
    low_confidence_output: Path | None = None
    min_confidence: float = 0.0
    is_jsonl: bool = False
    scores_targets: bool = False
    prefix: str = ""
    restart: bool = False
    part: tuple[int, int] | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The files to write, by option, the main one first; without standard output."""
        named = {"--output": self.output, "--low-confidence-output": self.low_confidence_output}
        return {option: path for option, path in named.items() if path is not None}

    @property
    def written_files(self) -> dict[str, Path]:
        """The files that this job writes: `files`, or those of its part."""
        if self.part is None:
            return self.files
        return {option: name_part(path, *self.part) for option, path in self.files.items()}

    @property
    def layouts(self) -> list[Layout]:
        """The layout of each output, the main one first."""
        by_name = [find_layout(path) for path in self.files.values()]
        default: Layout = "jsonl" if self.is_jsonl else "text"
        found = [default if layout == "text" else layout for layout in by_name]
        return found if self.output is not None else [default, *found]

    @property
    def names(self) -> list[str]:
        """The outputs, as typed, for messages, the main one first."""
        named = [f"{option} {path}" for option, path in self.files.items()]
        return named if self.output is not None else ["standard output", *named]


def name_part(path: Path, number: int, count: int) -> Path:
    """Return the file of part `number` of `count` of the output `path`."""
    return path.with_name(f"{path.name}.part-{number}-of-{count}")


def run_job(model: Predictor, job: Job, *, lock_s: float = 0.0) -> list[str]:
    """Predict every row of the input, in order, and return lines for the user: see `State.report`.

    Memory does not grow with the input. The files get their names when they are complete. After a
    crash, the same job resumes and the files become the same as without it; only standard output,
    and a low-confidence output beside it, start over.

    Args:
        lock_s: How long to wait for another process that writes the same files.

    Raises:
        DragomanError: The input, an output, or an interrupted prediction of it is unsuitable.
    """
    _check_job(model, job)
    try:
        if job.output is None or (job.output.exists() and not job.output.is_file()):
            return _stream(model, job).report(job)
        with lock_files(job.written_files, lock_s):
            return _write_files(model, job).report(job)
    except BrokenPipeError:  # nobody reads standard output or standard error any more
        raise
    except OSError as error:
        names = ", ".join(job.names)
        raise DragomanError(f"{names}: cannot be written: {error.strerror}") from error


def _check_job(model: Predictor, job: Job) -> None:
    """Refuse outputs that would replace the input or each other, or lose what is asked for."""
    layouts, low = job.layouts, job.low_confidence_output
    if job.part is not None and job.output is None:
        raise DragomanError("--part: give --output, the file that `dragoman join` is to write")
    if job.is_jsonl and layouts[0] != "jsonl":
        raise DragomanError(f"--jsonl: --output {job.output} says {layouts[0]}; leave one out")
    for option, path in job.files.items():
        if is_same_file(path, None if job.input is None else Path(job.input)):
            raise DragomanError(f"{option} {path}: this is the input too; give another name")
        is_device = path.exists() and not path.is_file()
        may_be_device = option == "--output" and find_layout(path) != "parquet" and not job.part
        if is_device and not may_be_device:
            raise DragomanError(f"{option} {path}: it is not a file; give another name")
    is_given_twice = low and job.output and job.output.resolve() == low.resolve()
    if is_given_twice or (low and job.output and is_same_file(low, job.output)):
        raise DragomanError(f"--low-confidence-output {low}: this is the --output too")
    if low is not None and "text" in layouts:
        raise DragomanError(
            f"{job.names[layouts.index('text')]}: lines of text do not say to which rows they belong "
            "when other rows are in another file; name it .jsonl, .parquet, .csv or .tsv, or give "
            "--jsonl"
        )
    decoding, default = model.settings.decoding, DecodingSettings()
    for name in ("num_hypotheses", "token_scores", "alignment"):
        is_scored = job.scores_targets and name == "num_hypotheses"  # the output is given: one
        if is_scored or (value := getattr(decoding, name)) == getattr(default, name):
            continue
        for place, layout in zip(job.names, layouts, strict=True):
            if layout not in ("jsonl", "parquet"):
                raise DragomanError(
                    f"{place}: {'lines of text' if layout == 'text' else layout.upper()} cannot "
                    f"hold what decoding.{name} {str(value).lower()} gives; write .jsonl or "
                    f".parquet, or give --jsonl, or --decoding.{name} "
                    f"{str(getattr(default, name)).lower()}"
                )


@dataclass(kw_only=True)
class State:
    """How far a prediction has come, and what the user should know of these rows."""

    rows: NonNegativeInt = 0  # of the input
    sizes_bytes: list[NonNegativeInt] = field(default_factory=list)  # of the partial files
    digest: str = ""  # of these rows of the input
    windows: NonNegativeInt = 0  # that these rows are
    ends_bytes: list[list[NonNegativeInt]] = field(default_factory=list)
    """Of a part: the sizes of its files after the header, and after each of its windows."""
    is_complete: bool = False
    row_errors: dict[str, list[int]] = field(default_factory=dict)  # kind: count, first lines
    rows_by_file: list[int] = field(default_factory=lambda: [0, 0])  # high, low confidence
    from_memory: NonNegativeInt = 0  # rows: decoding.memory
    values_left_out: NonNegativeInt = 0  # of records: decoding.require_grounding
    num_values: NonNegativeInt = 0  # of the records
    unsure_values: dict[str, int] = field(default_factory=dict)  # left out of them, by field

    def report(self, job: Job) -> list[str]:
        """Return the lines for the user."""
        lines = []
        for kind, (count, *named) in self.row_errors.items():
            more = ", …" if count > NAMED_ROWS else ""
            lines.append(f"{count:,} rows {kind}: line {', '.join(map(str, named))}{more}")
        if self.from_memory:
            lines.append(f"{self.from_memory:,} rows answered from the training pairs (--memory none: "
                         "by the model)")  # fmt: skip
        if self.values_left_out:
            lines.append(
                f"{self.values_left_out:,} values left out: they do not stand in the source"
            )
        if job.low_confidence_output is not None:
            names = (job.output or "standard output", job.low_confidence_output)
            total = sum(self.rows_by_file)
            lines.append(
                f"of {total:,} rows "
                + ", ".join(
                    f"{count:,} ({count / max(1, total):.1%}) in {name}"
                    for name, count in zip(names, self.rows_by_file, strict=True)
                )
            )
        if self.num_values:
            by_field = ", ".join(f"{name} {n:,}" for name, n in sorted(self.unsure_values.items()))
            lines.append(
                f"of {self.num_values:,} values {sum(self.unsure_values.values()):,} are left out of "
                f"their records, and listed in {job.low_confidence_output}"
                + (f": {shorten(by_field, 200)}" if by_field else "")
            )
        return lines


# ------------------------------------------------------------------ to standard output


def _stream(model: Predictor, job: Job) -> State:
    """Write to standard output, or to a pipe or device, as the rows come."""
    state, writers, low = State(), _make_writers(model, job), job.low_confidence_output
    with ExitStack() as stack:
        output: IO[str] = sys.stdout
        writes: list[Callable[[str], object]] = [write_data]
        if job.output is not None:
            output = stack.enter_context(
                job.output.open("w", encoding="utf-8", errors="backslashreplace")
            )
            writes = [output.write]
        if low is not None:
            stack.enter_context(lock_files({"--low-confidence-output": low}))
            partial, pack = stack.enter_context(staged_file(low)), find_packer(low)
            file = stack.enter_context(partial.open("wb"))
            file.write(pack(b""))
            writes.append(lambda text: file.write(_encode(text, pack)))
        for write, writer in zip(writes, writers, strict=True):
            write(writer.header())
        rows = _read_rows(model, job)
        is_typed = job.input is None and sys.stdin.isatty()
        for window in ([row] for row in rows) if is_typed else make_windows(rows):
            texts = _predict(model, job, window, writers, state)
            for write, text in zip(writes, texts, strict=True):
                write(text)
            output.flush()
        if low is not None and find_layout(low) == "parquet":
            file.close()
            with staged_file(partial) as complete:
                write_parquet(partial, complete)
    return state


# ------------------------------------------------------------------ to files


def _write_files(model: Predictor, job: Job) -> State:
    assert job.output is not None
    written = list(job.written_files.values())
    journal = Journal(written, _describe_job(model, job), is_part=job.part is not None)
    number, count = job.part or (1, 1)
    if job.restart:
        journal.discard()
    state, is_complete = journal.read()
    position, writers = FilePosition(), _make_writers(model, job)
    packs = [find_packer(path) for path in job.files.values()]
    digest = hashlib.blake2b(digest_size=16)
    try:
        rows = _read_rows(model, job, position)
        num_skipped = _update_digest(digest, islice(rows, state.rows))
        if state.rows and (num_skipped < state.rows or digest.hexdigest() != state.digest):
            raise DragomanError(
                f"{job.output}: its prediction was interrupted after row {state.rows:,}, and these "
                f"rows of the input are no longer the same: give the same input, or {_REMEDY}"
            )
        if is_complete:
            if next(rows, None) is not None:
                raise DragomanError(
                    f"{job.output}: all {state.rows:,} rows of the input were done, and now it has "
                    f"more: give the same input, or {_REMEDY}"
                )
            print(f"dragoman: all {state.rows:,} rows were done already", file=sys.stderr)
            journal.finish(state)
            return state
        if state.rows:
            print(f"dragoman: resuming after row {state.rows:,}", file=sys.stderr)
        with ExitStack() as stack:
            progress = ProgressDisplay(sum(state.rows_by_file), position.fraction(state.rows))
            stack.callback(progress.stop)
            files = [
                stack.enter_context(partial.open("r+b" if state.rows else "wb"))
                for partial in journal.partials
            ]
            for i, (file, pack, writer) in enumerate(zip(files, packs, writers, strict=True)):
                file.seek(state.sizes_bytes[i] if state.rows else 0)
                file.truncate()
                if not state.rows and number == 1:
                    file.write(pack(writer.header().encode()))
            if job.part and not state.rows:
                state.ends_bytes = [[file.tell() for file in files]]
            num_rows = state.rows
            for index, window in enumerate(make_windows(rows, state.rows), state.windows):
                num_rows += len(window)
                if index % count != number - 1:  # another part predicts it
                    _update_digest(digest, window)
                    continue
                texts = _predict(model, job, window, writers, state)
                for file, pack, text in zip(files, packs, texts, strict=True):
                    file.write(_encode(text, pack))
                _sync(files)
                _update_digest(digest, window)
                state.rows, state.windows = num_rows, index + 1
                state.sizes_bytes = [file.tell() for file in files]
                if job.part:
                    state.ends_bytes.append(state.sizes_bytes)
                state.digest = digest.hexdigest()
                journal.write(state)
                progress.update(sum(state.rows_by_file), position.fraction(state.rows))
            _sync(files)
            state.rows, state.digest, state.is_complete = num_rows, digest.hexdigest(), True
            state.sizes_bytes = [file.tell() for file in files]
        journal.finish(state)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            f"stopped; the same command resumes after row {state.rows:,}"
        ) from stop
    finally:
        if not state.rows and not state.is_complete:  # nothing to resume from
            journal.discard()
    return state


def _encode(text: str, pack: Callable[[bytes], bytes]) -> bytes:
    return pack(text.encode(errors="backslashreplace")) if text else b""


def _update_digest(digest: "hashlib.blake2b", rows: Iterable[Row]) -> int:
    """Add rows to the digest, and return their number."""
    count = 0
    for row in rows:
        digest.update(repr(tuple(row)).encode("utf-8", errors="surrogatepass"))
        count += 1
    return count


def _describe_job(model: Predictor, job: Job) -> dict[str, object]:
    """Return everything that the outputs depend on, except the input."""
    settings, low = flatten_settings(model.settings), job.low_confidence_output
    constraints = map(Path, model.settings.decoding.constraint_files.values())
    assert job.output is not None
    return {
        "dragoman": version("dragoman"),
        "model": model.weights_sha256(),
        "--engine": model.engine.name,
        "--quantization": model.engine.quantization,
        "--score": job.scores_targets,
        "--prefix": job.prefix,
        "layout": job.layouts,
        "--low-confidence-output": low and os.path.relpath(low, job.output.parent),
        "--min-confidence": low and job.min_confidence,
        "temperature of the calibration": model.temperature,
        "temperatures of fields": {
            name: model.find_field_temperature(name)
            for one in model.calibrations
            if one.records is not None
            for name in ("", *one.records.fields)
        },
        "files of the constraint": [sha256(path) for path in constraints if path.is_file()],
        **{name: settings[name] for name in settings if name.startswith(("data.", "decoding."))},
    }


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a journal says."""

    version: Literal[3]
    job: dict[str, Any]
    state: State


_JOURNAL = TypeAdapter(Content)


def read_journal(path: Path) -> Content:
    """Return what a journal says.

    Raises:
        FileNotFoundError: There is none.
        DragomanError: It is damaged, or of another version.
    """
    try:
        return _JOURNAL.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        is_foreign = isinstance(error, ValidationError)
        reason = "not a journal of this version" if is_foreign else f"cannot be read: {error}"
        raise DragomanError(f"{path}: {reason}; {_REMEDY}") from error


class Journal:
    """The state of an interrupted prediction, in a file beside its main output.

    Args:
        outputs: The files to write, the main one first.
        job: Everything that they depend on except the input, by name.
        is_part: They are a part of the outputs: written in place, and the journal stays.
    """

    def __init__(
        self, outputs: Sequence[Path], job: Mapping[str, Any], *, is_part: bool = False
    ) -> None:
        main = outputs[0]
        self._path = main.with_name(f"{'' if is_part else '.'}{main.name}.journal")
        self._is_part = is_part
        self._outputs = list(outputs)
        self._job: dict[str, Any] = json.loads(json.dumps(job))  # as it is read back
        self.partials = list(outputs)
        if not is_part:  # predictions of different outputs may share a low-confidence output
            lows = [low.with_name(f".{low.name}.{main.name}.partial") for low in outputs[1:]]
            self.partials = [main.with_name(f".{main.name}.partial"), *lows]

    def read(self) -> tuple[State, bool]:
        """Return the state of an interrupted prediction, or the initial one; and "all is done".

        All rows are done if a file has got its name already.

        Raises:
            DragomanError: It was started with another model, engine or other settings, or its
                partial files are damaged.
        """
        try:
            stored = read_journal(self._path)
        except FileNotFoundError:
            return State(), False
        state, started = stored.state, stored.job
        changed = [name for name in self._job if started.get(name) != self._job[name]]
        is_there = [partial.exists() for partial in self.partials]
        if not is_there[0] and (changed or not self._outputs[0].exists()):
            return State(), False  # the main file is renamed last: the prediction had ended
        if changed:
            name = changed[0]
            raise DragomanError(
                f"{self._outputs[0]}: an interrupted prediction started this file with {name} "
                f"{started.get(name)!r}, now it is {self._job[name]!r}: give the same, or {_REMEDY}"
            )
        if len(state.sizes_bytes) != len(self._outputs):
            raise DragomanError(f"{self._path}: not a journal of these files; {_REMEDY}")
        for partial, output, size in zip(
            self.partials, self._outputs, state.sizes_bytes, strict=True
        ):
            if not partial.exists() and not output.exists():
                return State(), False
            if partial.exists() and partial.stat().st_size < size:
                raise DragomanError(f"{partial}: it is shorter than it was; {_REMEDY}")
        return state, state.is_complete or not all(is_there)

    def write(self, state: State) -> None:
        """Record `state`; what it says of the partial files must be on the disk."""
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        content = asdict(Content(version=3, job=self._job, state=state))
        with temporary.open("wb") as file:
            file.write(json.dumps(content).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)

    def discard(self) -> None:
        """Remove the journal and the partial files."""
        for path in (self._path, *self.partials):
            path.unlink(missing_ok=True)

    def finish(self, state: State) -> None:
        """Rename the partial files, which are complete, to the outputs, the main one last.

        A part has its name already: its journal says that it is complete.
        """
        if self._is_part:
            self.write(state)
            return
        for partial, output in reversed(list(zip(self.partials, self._outputs, strict=True))):
            if not partial.exists():  # it was renamed before a crash
                continue
            if find_layout(output) == "parquet":
                with staged_file(output) as complete:
                    write_parquet(partial, complete)
                partial.unlink()
            else:
                partial.replace(output)
        self._path.unlink(missing_ok=True)


@contextmanager
def lock_files(files: Mapping[str, Path], timeout_s: float = 0.0) -> Iterator[None]:
    """Keep other processes from writing `files`, given by option; a dead process holds no lock."""
    with ExitStack() as stack:
        for option, path in files.items():
            try:
                path.parent.stat()  # the lock would create it
                stack.enter_context(hold_lock(path.with_name(f".{path.name}.lock"), timeout_s))
            except Timeout as error:
                raise DragomanError(
                    f"{option} {path}: another process is writing this file; wait for it, or "
                    f"choose another {option}"
                ) from error
            except OSError as error:
                message = f"{option} {path}: cannot be written: {error.strerror}"
                raise DragomanError(message) from error
        yield


def _sync(files: Iterable[IO[bytes]]) -> None:
    for file in files:
        file.flush()
        os.fsync(file.fileno())


# ------------------------------------------------------------------ rows


def _read_rows(model: Predictor, job: Job, position: FilePosition | None = None) -> Iterator[Row]:
    source: BinaryIO | str | Path = job.input or sys.stdin.buffer
    if job.input is None and sys.stdin.isatty():
        source = cast(BinaryIO, _Prompt())
    return read_sources(
        source,
        model.settings.data,
        labels=model.feature_labels,
        has_target=job.scores_targets,
        prefix=job.prefix,
        with_columns=job.layouts[0] != "text",  # then no output is text
        position=position,
        report=lambda line: print(f"dragoman: {line}", file=sys.stderr),
    )


class _Prompt:
    """Standard input, typed at a terminal: a prompt before each line."""

    def __init__(self) -> None:
        end = "Ctrl-Z and Enter" if os.name == "nt" else "Ctrl-D"
        print(f"dragoman: type a source and Enter; {end} ends", file=sys.stderr)

    def read(self, size: int) -> bytes:
        """Return the next line; b"" at the end."""
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline()
        if not line:
            print(file=sys.stderr)
        return line


def _make_writers(model: Predictor, job: Job) -> list[RowWriter]:
    columns: tuple[str, ...] = ()
    if {"csv", "tsv"} & set(job.layouts):
        if job.input is None:
            raise DragomanError(
                f"{', '.join(job.names)}: a table has the columns of its input; give the input by "
                "--input, or write .jsonl"
            )
        columns = list_source_columns(job.input, model.settings.data)
    return [
        RowWriter(
            layout=layout,
            decoding=model.settings.decoding,
            columns=columns,
            scores_targets=job.scores_targets,
            lists_values=place > 0 and model.record_format is not None,
        )
        for place, layout in enumerate(job.layouts)
    ]


def _predict(
    model: Predictor, job: Job, window: Sequence[Row], writers: Sequence[RowWriter], state: State
) -> list[str]:
    """Return the text that each output gets of the rows of a window; count them in `state`.

    Of a record, values with a confidence below `job.min_confidence` are left out, as rows of their own.
    """
    texts: list[list[str]] = [[] for _ in writers]
    is_grounded = model.settings.decoding.require_grounding != "none" and not job.scores_targets
    by_value = job.low_confidence_output is not None and not job.scores_targets
    for row, best_first in model.predict_window(window, scores_targets=job.scores_targets):
        best = next(iter(best_first), None)
        unsure: list[FieldValue] = []
        is_malformed = best is not None and best.is_malformed
        if by_value and best and best.is_complete and best.is_record and not is_malformed:
            is_low, values = False, best.fields
            state.num_values += len(values)
            unsure = [
                one for one in values if round_confidence(one.confidence) < job.min_confidence
            ]
            if unsure:
                best = best.without(unsure)
                best_first = [best, *best_first[1:]]
        else:
            is_low = job.low_confidence_output is not None and (
                best is None
                or not best.is_complete
                or is_malformed
                or round_confidence(best.confidence) < job.min_confidence
            )
        text, losses = writers[int(is_low)].write(row, best_first)
        texts[int(is_low)].append(text)
        state.rows_by_file[int(is_low)] += 1
        kinds = list(losses)
        for value in unsure:
            text, losses = writers[1].write_value(row, value)
            texts[1].append(text)
            kinds += [loss for loss in losses if loss not in kinds]
            count = state.unsure_values.get(value.field, 0)
            state.unsure_values[value.field] = count + 1
        if best is None:
            kinds.append(f"without an output ({row.reason if isinstance(row, InvalidRow) else ''})")
        elif not best.is_complete and model.config.constraint is not None:
            kinds.append(
                "without a complete output that the constraint allows (change it or the prefix, or "
                "raise decoding.max_length_extra)"
            )
        elif not best.is_complete:
            kinds.append("truncated at the maximum length (raise decoding.max_length_extra)")
        state.from_memory += best is not None and bool(best.memory_row)
        if best is not None and best.num_left_out:
            state.values_left_out += best.num_left_out
            kinds.append("without values that do not stand in the source")
        if is_grounded and best is not None and not best.is_record:
            kinds.append("whose output is no record, so that no value of it was checked")
        elif is_malformed:
            kinds.append("whose output is not a JSON object")
        unknown = model.find_unknown(row.features) if isinstance(row, Source) else []
        for symbol in unknown:
            is_listed = len(state.row_errors) < _MOST_KINDS
            named = f"the feature {shorten(symbol)}" if is_listed else "other features"
            kinds.append(f"with {named}, which the model has never seen")
        if best is not None and best.num_unknown > len(unknown):
            kinds.append("with tokens that the model has never seen")
        for kind in kinds:
            counted = state.row_errors.setdefault(kind, [0])
            counted[0] += 1
            if len(counted) <= NAMED_ROWS:
                counted.append(row.line)
    return ["".join(parts) for parts in texts]


class ProgressDisplay:
    """Speed and remaining time, on standard error: a bar on a terminal, else a line a minute.

    Args:
        num_rows: Rows that an earlier process did.
        fraction: The fraction of the input that they are; None: unknown.
    """

    def __init__(self, num_rows: int = 0, fraction: float | None = None) -> None:
        self._start_s = self._last_line_s = time.monotonic()
        self._first_rows, self._first_fraction = num_rows, fraction or 0.0
        self._bar: Progress | None = None

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def update(self, num_rows: int, fraction: float | None) -> None:
        """Show that `num_rows` are done, `fraction` of all (None: unknown)."""
        now_s = time.monotonic()
        elapsed_s = now_s - self._start_s
        if elapsed_s < _QUIET_S:
            return
        message = f"{num_rows:,} rows, {(num_rows - self._first_rows) / elapsed_s:,.0f} rows/s"
        if fraction is not None and fraction > self._first_fraction:
            left_s = elapsed_s * (1.0 - fraction) / (fraction - self._first_fraction)
            message += f", {timedelta(seconds=round(left_s))} left"
        if sys.stderr.isatty():
            if self._bar is None:
                from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

                from dragoman.training.run_context import TextConsole

                columns = (TextColumn("predicting"), BarColumn(), TaskProgressColumn())
                text = TextColumn("{task.description}")
                self._bar = Progress(
                    *columns, text, console=TextConsole(stderr=True), transient=True
                )
                self._bar.add_task(message, total=None if fraction is None else 1.0)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], description=message, completed=fraction or 0.0)
        elif now_s - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = now_s
            print(f"dragoman: {message}", file=sys.stderr, flush=True)
