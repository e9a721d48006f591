"""Rows of an evaluation: a source with its references and the output of a system; kept as JSONL."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from dragoman.characters import find_surrogate
from dragoman.errors import DataError, shorten
from dragoman.evaluation.confidence import round_confidence
from dragoman.grounding import Span
from dragoman.reading.pairs import (
    SUFFIXES,
    InvalidRow,
    Pair,
    list_source_columns,
    read_sources,
)
from dragoman.reading.row_errors import name_file
from dragoman.reading.text_files import open_text_file, read_blocks, strip_packing
from dragoman.settings import DataSettings, Settings, UnicodeForm
from dragoman.storage import describe_first, is_same_file

_OUTPUT_NAMES = ("text", "hypothesis", "target", "reference")  # in JSONL of predict and evaluate
_REFERENCE_NAMES = ("target", "reference")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One source with all its references, and the output of a model."""

    source: str
    references: Annotated[tuple[str, ...], Field(min_length=1)]
    hypothesis: str
    features: tuple[str, ...] = ()
    line: Annotated[int, Field(ge=0)] = 0  # of the first pair with this source, from 1; 0: unknown
    file: str = ""
    is_complete: bool = True  # the output ended by itself: it was not truncated
    score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Log-probability of the output, in nats."""
    confidence: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Calibrated probability that the output is exactly right."""
    emitted: str = ""
    """The output before values were left out (decoding.require_grounding); "": none was."""
    memory_row: str = ""
    """The training pair whose target the output is (decoding.memory); "": the model wrote it."""
    spans: tuple[Span, ...] = ()
    """Where the values of a record stand, of a model that points to them; (): to be searched."""

    @property
    def is_exact(self) -> bool:
        """Whether the output is one of the references."""
        return self.hypothesis in self.references


_ROW = TypeAdapter(Row)


def as_outputs(pairs: Iterable[Pair], form: UnicodeForm) -> Iterator[Pair]:
    """Yield `pairs` with targets as a model of this form writes them: composed, unless it is none."""
    for pair in pairs:
        yield pair if form == "none" else pair._replace(target=normalize("NFC", pair.target))


def group_references(pairs: Iterable[Pair], settings: Settings | None = None) -> list[Row]:
    """Return rows with empty hypotheses, in the order of `pairs`; `settings` are the model's.

    A word list has a source several times because it has several right targets: they are the
    references of one row, in first-seen order. Running text, such as tokens, has whole pairs
    several times: each is a row, as published scores count them. `evaluation.repeated_sources` says
    which; auto: the latter, if more pairs repeat an earlier one than give a source another target.
    """
    settings = settings or Settings()
    repeated = settings.evaluation.repeated_sources
    every = list(as_outputs(pairs, settings.tokenizer.target.unicode_form))
    found = dict[tuple[tuple[str, ...], str], tuple[Pair, dict[str, None]]]()
    for pair in every:
        _, references = found.setdefault((pair.features, pair.source), (pair, {}))
        references[pair.target] = None
    num_different = sum(len(references) for _, references in found.values())
    num_equal, num_others = len(every) - num_different, num_different - len(found)
    chosen = [(pair, tuple(references)) for pair, references in found.values()]
    if repeated == "rows" or (repeated == "auto" and num_equal > num_others):
        chosen = [(pair, (pair.target,)) for pair in every]
    return [
        Row(
            source=pair.source,
            features=pair.features,
            references=references,
            hypothesis="",
            line=pair.line,
            file=pair.file,
        )
        for pair, references in chosen
    ]


def write_rows(
    path: Path, rows: Sequence[Row], scores: Mapping[str, NDArray[np.float64]] | None = None
) -> None:
    """Write a JSON object per line: the row, `exact_match`, and its `scores` by name."""
    scores = scores or {}
    with path.open("w", encoding="utf-8", errors="replace") as file:  # names of files: any bytes
        for place, row in enumerate(rows):
            content: dict[str, Any] = {
                "line": row.line,
                "file": row.file,
                "source": row.source,
                "features": row.features,
                "references": row.references,
                "hypothesis": row.hypothesis,
                "is_complete": row.is_complete,
                "score": None if row.score is None else round(row.score, 6),
                "confidence": None if row.confidence is None else round_confidence(row.confidence),
                "exact_match": row.is_exact,
                **{name: round(float(values[place]), 4) for name, values in scores.items()},
                **({"emitted": row.emitted} if row.emitted else {}),
                **({"memory_row": row.memory_row} if row.memory_row else {}),
                **({"spans": row.spans} if row.spans else {}),
            }
            file.write(json.dumps(content, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file that `write_rows` wrote.

    Raises: DataError, when it cannot be read, or a line is not a row; names the line.
    """
    rows = []
    for place, line in _read_lines(path, is_jsonl=True):
        try:
            rows.append(_ROW.validate_json(line, strict=True))
        except ValidationError as error:
            raise DataError(
                f"{place}: {describe_first(error)}; give rows as evaluate writes them"
            ) from error
    if not rows:
        raise DataError(f"{path}: the file has no rows")
    return rows


def read_outputs(
    hypotheses: Path, references: Sequence[Path], sources: Path | None = None
) -> list[Row]:
    """Return a row for each line of `hypotheses`, with the same line of each of `references`.

    A file that ends in .jsonl, .ndjson or .json holds a JSON object per line, as `predict` and
    `evaluate` write them: its "text", "hypothesis" or "target" is read, of references "target",
    "reference" or "text", and "source" in a file of sources. Of a table (.csv, .tsv, .parquet) it is
    the column "prediction", of references "target", "reference" or "prediction". A file may hold
    outputs beside their references. Empty lines in the second and further files of references are
    no references.

    Raises:
        DataError: A file cannot be read, has an invalid line, or a different number of lines.
    """
    found = _read_texts(hypotheses, _OUTPUT_NAMES, ("prediction",))
    outputs, are_complete = [text for text, _ in found], [is_complete for _, is_complete in found]
    references_of = []
    for path in references:
        is_own = is_same_file(path, hypotheses)  # its outputs are no references
        names, columns = (() if is_own else (one,) for one in ("text", "prediction"))
        read = _read_texts(path, (*_REFERENCE_NAMES, *names), (*_REFERENCE_NAMES, *columns))
        references_of.append([text for text, _ in read])
    first, *others = references_of
    files = [(hypotheses, outputs), *zip(references, references_of, strict=True)]
    texts = [""] * len(outputs)
    if sources is not None:
        texts = [text for text, _ in _read_texts(sources, ("source",), ("source",))]
        files.append((sources, texts))
    for path, lines in files:
        if len(lines) != len(outputs):
            raise DataError(
                f"{name_file(path)}: {len(lines):,} lines, but {name_file(hypotheses)} has "
                f"{len(outputs):,}; line N of each file belongs to the same row"
            )
    if not outputs:
        raise DataError(f"{name_file(hypotheses)}: the file is empty")
    return [
        Row(
            source=texts[place],
            references=(first[place], *(lines[place] for lines in others if lines[place])),
            hypothesis=output,
            is_complete=are_complete[place],
            line=place + 1,
            file=name_file(references[0]),
        )
        for place, output in enumerate(outputs)
    ]


def _read_texts(path: Path, names: Sequence[str], columns: Sequence[str]) -> list[tuple[str, bool]]:
    """Return the lines of a file, and whether each is complete, as far as the file says it.

    Of a file of JSON objects, it is the text under one of `names` in each line; of a table, one of `columns`.
    """
    layout = SUFFIXES.get(strip_packing(path).suffix.lower())
    if layout in ("csv", "tsv", "parquet", "arrow"):
        return _read_column(path, columns)
    texts = []
    for place, line in _read_lines(path, is_jsonl=layout == "jsonl"):
        if layout != "jsonl":
            texts.append((line, True))
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not valid JSON: {error}") from error
        given = content if isinstance(content, dict) else {}
        text = next((given[name] for name in names if name in given), None)
        if not isinstance(text, str):
            raise DataError(f"{place}: expected an object with the text under {' or '.join(names)}")
        if find_surrogate(text) is not None:
            raise DataError(f"{place}: the text has a lone surrogate (\\ud800 to \\udfff)")
        texts.append((text, given.get("is_complete") is not False))
    return texts


def _read_column(path: Path, columns: Sequence[str]) -> list[tuple[str, bool]]:
    """Return the texts in the first of `columns` that a table has, and whether each is complete."""
    data, name = DataSettings(header="yes"), name_file(path)
    header = list_source_columns(path, data)
    column = next((one for one in columns if one in header), None)
    if column is None:
        raise DataError(
            f"{name}: its first line names no column {' or '.join(columns)}, but "
            f"{shorten(', '.join(map(repr, header)))}; name it so, or give a file of lines (.txt)"
        )
    column, is_complete = (_find_last_name(one, header) for one in (column, "is_complete"))
    data, texts = data.model_copy(update={"source": column}), []
    for row in read_sources(path, data, with_columns=True):
        if not row.columns:
            assert isinstance(row, InvalidRow)
            raise DataError(f"{name}:{row.line}: {row.reason}")
        cells = json.loads(row.columns)
        text = "" if cells[column] is None else str(cells[column])
        texts.append((text, cells.get(is_complete) not in ("false", False)))
    return texts


def _find_last_name(name: str, header: Sequence[str]) -> str:
    """Return the name that `predict` gives a column beside those of its input: `find_free_name`."""
    while f"<{name}>" in header:
        name = f"<{name}>"
    return name


def _read_lines(path: Path, *, is_jsonl: bool) -> Iterator[tuple[str, str]]:
    """Yield each line with its place, "file:line"."""
    with open_text_file(path) as stream:
        name = name_file(path)
        for block in read_blocks(stream, name, drops_blank_end=is_jsonl):
            for number, line in enumerate(block.lines, start=block.first):
                if not block.is_clean and (at := find_surrogate(line)) is not None:
                    raise DataError(f"{name}:{number}: byte at character {at + 1} is not UTF-8")
                yield f"{name}:{number}", line
