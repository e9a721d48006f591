"""Formats of predictions: a row becomes a line of text, a JSON object, or a row of a table.

Parquet is written from the JSON objects, once all are there: rows cannot be added to a Parquet file.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from dragoman.characters import find_surrogate
from dragoman.errors import DragomanError
from dragoman.evaluation.confidence import FieldValue, round_confidence
from dragoman.predictor import Prediction
from dragoman.reading.pairs import InvalidRow, Source
from dragoman.settings import DecodingSettings
from dragoman.tokenizers.tokenizer import find_free_name

Layout = Literal["text", "jsonl", "csv", "tsv", "parquet"]
_BY_SUFFIX: dict[str, Layout] = {f".{layout}": layout for layout in get_args(Layout)[1:]}
_BY_SUFFIX[".ndjson"] = "jsonl"
# Names of formats that are not written; any other name is a file of lines (.txt, .out, .de).
_OTHER_FORMATS = re.compile(
    r"\.(json|xlsx?|xlsm|ods|arrow|feather|ipc|orc|avro|pq|pkl|pickle|npy|npz|h5|hdf5|db|sqlite3?|xml"
    r"|tmx|xliff|xlf|html?|ya?ml|docx?|odt|rtf|pdf|zip|bz2|xz|lzma|lz4|br|7z|rar|tar|tgz)"
)
_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    # Each chunk is compressed alone; their concatenation is a valid file. No timestamps.
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def find_layout(path: Path) -> Layout:
    """Return the layout for the name of a file.

    Raises: DragomanError, when it is the name of a format that is not written.
    """
    is_packed = path.suffix.lower() in _PACKERS
    suffix = (path.with_suffix("") if is_packed else path).suffix.lower()
    layout = _BY_SUFFIX.get(suffix, "text")
    if _OTHER_FORMATS.fullmatch(suffix) or (layout == "parquet" and is_packed):
        raise DragomanError(
            f"{path}: {''.join(path.suffixes[-1 - is_packed :])} is not written; name it .parquet, or "
            ".jsonl, .csv, .tsv or .txt, also with .gz or .zst"
        )
    return layout


def find_packer(path: Path) -> Callable[[bytes], bytes]:
    """Return the function that compresses a chunk of the file `path`, by its name."""
    return _PACKERS.get(path.suffix.lower(), lambda data: data)


@dataclass(frozen=True, kw_only=True)
class RowWriter:
    """Formats rows.

    Args:
        columns: Names of the input's columns, for a table.
        scores_targets: The outputs were given: a line of text is their log-probability.
        lists_values: Values of records are rows, too: see `write_value`.
    """

    layout: Layout
    decoding: DecodingSettings
    columns: tuple[str, ...] = ()
    scores_targets: bool = False
    lists_values: bool = False

    def header(self) -> str:
        """Return the line before the first row, or ""."""
        if self.layout not in ("csv", "tsv"):
            return ""
        taken = {*self.columns}
        names = (*_TABLE_COLUMNS, *(("field", "value") if self.lists_values else ()))
        return self._join([*self.columns, *(find_free_name(name, taken) for name in names)])

    def write(
        self, row: Source | InvalidRow, best_first: Sequence[Prediction]
    ) -> tuple[str, Sequence[str]]:
        """Return the text of a row, with its line end, and messages about what the layout lost.

        An invalid row has no outputs.
        """
        if self.layout in ("jsonl", "parquet"):
            return self._write_object(row, best_first), ()
        if self.layout != "text":
            return self._write_cells(row, best_first)
        if not best_first:
            return "\n", ()
        if self.scores_targets:
            return f"{best_first[0].score:.6f}\n", ()
        text = best_first[0].marked(self.decoding.truncation_mark)
        flat = _flatten(text)
        return f"{flat}\n", () if flat == text else (_BROKEN_LINE,)

    def write_value(self, row: Source | InvalidRow, value: FieldValue) -> tuple[str, Sequence[str]]:
        """Return the text of a value that was left out of its record, and messages: as `write`."""
        content = describe_field(value)
        if self.layout in ("jsonl", "parquet"):
            return self._write_json(row, content), ()
        return self._fill(row, ["", "", content["confidence"], "", "", value.field, value.value])

    def _write_object(self, row: Source | InvalidRow, best_first: Sequence[Prediction]) -> str:
        content: dict[str, object] = {}
        if isinstance(row, InvalidRow):
            content = {"text": "", "error": row.reason}
        elif best_first:
            content = self._describe(best_first[0])
            if best_first[0].record_format:
                content["fields"] = [describe_field(one) for one in best_first[0].fields]
            content["num_unknown"] = best_first[0].num_unknown
            if best_first[0].memory_row:
                content |= {"from": "memory", "row": best_first[0].memory_row}
            shown = json.loads(row.columns).values() if row.columns else ()
            if best_first[0].record_format and best_first[0].source not in shown:
                content["source"] = best_first[0].source  # in which the spans are: without its tags
            if best_first[0].is_malformed:
                content["error"] = NOT_A_RECORD
            if self.decoding.alignment:
                content["source_tokens"] = best_first[0].source_tokens
            if self.decoding.num_hypotheses > 1:
                content["hypotheses"] = [self._describe(one) for one in best_first]
        return self._write_json(row, content)

    def _write_json(self, row: Source | InvalidRow, content: dict[str, object]) -> str:
        start = f'{{"line": {row.line}'
        if row.columns:  # JSON already, passed through unchanged
            start += f', "input": {row.columns}'
        return f"{start}, {json.dumps(content, ensure_ascii=False)[1:]}\n"

    def _describe(self, prediction: Prediction) -> dict[str, object]:
        content: dict[str, object] = {
            "text": prediction.text,
            "score": round(prediction.score, 6),
            "confidence": round_confidence(prediction.confidence),
            "normalized_score": round(prediction.normalized_score, 6),
            "is_complete": prediction.is_complete,
        }
        if prediction.record_format:
            content["spans"] = [span._asdict() for span in prediction.spans]
        if prediction.record_format == "json" and self.layout == "jsonl":
            # Not in Parquet: a column has one type.
            content["record"] = prediction.record
        if prediction.log_probs:
            content["tokens"] = prediction.tokens
            content["log_probs"] = [round(value, 6) for value in prediction.log_probs]
        if prediction.alignment:
            content["alignment"] = [
                [round(weight, 4) for weight in weights] for weights in prediction.alignment
            ]
        return content

    def _write_cells(
        self, row: Source | InvalidRow, best_first: Sequence[Prediction]
    ) -> tuple[str, Sequence[str]]:
        cells: list[object] = ["", "", "", "", row.reason if isinstance(row, InvalidRow) else ""]
        if best_first:
            best = best_first[0]
            confidence = round_confidence(best.confidence)
            cells = [best.text, round(best.score, 6), confidence]
            cells += [str(best.is_complete).lower(), NOT_A_RECORD if best.is_malformed else ""]
        return self._fill(row, [*cells, "", ""] if self.lists_values else cells)

    def _fill(self, row: Source | InvalidRow, cells: Sequence[object]) -> tuple[str, Sequence[str]]:
        """Return the row of a table, the columns of the input first, and what the table lost."""
        values: dict[str, object] = json.loads(row.columns) if row.columns else {}
        given = [values.get(name, "") for name in self.columns]
        texts = [_as_text(one) for one in (*given, row.line, *cells)]
        losses = []
        if not values.keys() <= {*self.columns}:  # JSON objects may have different fields
            losses.append(_NO_COLUMN)
        if self.layout == "tsv" and any(_flatten_cell(text) != text for text in texts):
            losses.append(_BROKEN_CELL)
        return self._join(texts), losses

    def _join(self, cells: Sequence[str]) -> str:
        if self.layout == "tsv":
            return "\t".join(map(_flatten_cell, cells)) + "\n"
        text = io.StringIO()
        # With this line end, cells with \r or with \n are quoted.
        csv.writer(text, lineterminator="\r\n").writerow(cells)
        return text.getvalue().removesuffix("\r\n") + "\n"


def describe_field(value: FieldValue) -> dict[str, object]:
    """Return a value of a record as it is written and shown."""
    return {
        "field": value.field,
        "value": value.value,
        "confidence": round_confidence(value.confidence),
    }


def write_parquet(lines: Path, path: Path) -> None:
    """Write the JSON objects of a `RowWriter` as a Parquet table, with the columns of the input first.

    Such a column is of numbers or booleans if all its values are, else of text, as in a CSV file.
    """
    import pyarrow.parquet  # on demand: it takes 0.1 s

    kinds: dict[str, set[type]] = {}  # of the input's columns
    found = {*_TABLE_COLUMNS}
    for values, ours in _read_objects(lines):
        found |= ours.keys()
        for name, value in values.items():
            is_huge = isinstance(value, int) and value.bit_length() > 63
            kinds.setdefault(name, set()).add(str if is_huge else type(value))
    types = {name: _find_type(kinds[name] - {type(None)}) for name in kinds}
    taken = {*types}
    names = {field.name: find_free_name(field.name, taken) for field in _FIELDS}
    fields = [field.with_name(names[field.name]) for field in _FIELDS if field.name in found]
    schema = pa.schema([*types.items(), *fields])
    rows = (
        {
            **{
                name: _CASTS[types[name]](value)
                for name, value in values.items()
                if value is not None
            },
            **{names[name]: value for name, value in ours.items()},
        }
        for values, ours in _read_objects(lines)
    )
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while chunk := list(islice(rows, _ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(chunk, schema))


def _read_objects(lines: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the columns of the input, and those of the prediction, of each row."""
    with lines.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            ours = json.loads(line)
            values = ours.pop("input", {})
            ours["prediction"] = ours.pop("text", None)  # a value has none
            yield values, ours


def _find_type(kinds: set[type]) -> pa.DataType:
    """Return the type of a column with values of these `kinds`."""
    if kinds == {bool}:
        return pa.bool_()
    if kinds and kinds <= {int, float}:
        return pa.float64() if float in kinds else pa.int64()
    return pa.string()


def _as_text(value: object) -> str:
    if value is None:  # as it is read
        return ""
    is_text = isinstance(value, str) and find_surrogate(value) is None
    return str(value) if is_text else json.dumps(value)


_ROWS_PER_GROUP = 65_536
_CASTS: dict[pa.DataType, Callable[[Any], object]] = {
    pa.string(): _as_text,
    pa.float64(): float,
    pa.int64(): int,
    pa.bool_(): bool,
}
_TEXTS, _NUMBERS = pa.list_(pa.string()), pa.list_(pa.float64())
_SPAN = {"field": pa.string(), "value": pa.string(), "start": pa.int64(), "end": pa.int64()}
_OUTPUT = {
    "score": pa.float64(),
    "confidence": pa.float64(),
    "normalized_score": pa.float64(),
    "is_complete": pa.bool_(),
    "spans": pa.list_(pa.struct({**_SPAN, "kind": pa.string()})),
    "tokens": _TEXTS,
    "log_probs": _NUMBERS,
    "alignment": pa.list_(_NUMBERS),
}
_FIELDS = pa.schema(
    {
        "line": pa.int64(),
        "prediction": pa.string(),
        **_OUTPUT,
        "error": pa.string(),
        "field": pa.string(),
        "value": pa.string(),
        "fields": pa.list_(
            pa.struct({"field": pa.string(), "value": pa.string(), "confidence": pa.float64()})
        ),
        "num_unknown": pa.int64(),
        "source": pa.string(),
        "source_tokens": _TEXTS,
        "from": pa.string(),
        "row": pa.string(),
        "hypotheses": pa.list_(pa.struct({"text": pa.string(), **_OUTPUT})),
    }
)
_TABLE_COLUMNS = ("line", "prediction", "score", "confidence", "is_complete", "error")
NOT_A_RECORD = "the output is not a JSON object"
_BROKEN_LINE = "with a line break in the output, written as a space (--jsonl keeps it)"
_BROKEN_CELL = "with a tab or a line break in a cell, written as a space (.csv keeps it)"
_NO_COLUMN = "with fields that the first row lacks, left out of the table (.jsonl keeps them)"


def _flatten(text: str) -> str:
    return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")


def _flatten_cell(text: str) -> str:
    return _flatten(text).replace("\t", " ")
