"""Formats of predictions: a row becomes a line of text, a JSON object, or a row of a table.

Parquet is written from the JSON objects, once all are there: rows cannot be added to such a file.
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
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from dragoman.characters import find_surrogate
from dragoman.errors import DragomanError
from dragoman.evaluation.confidence import FieldValue, round_confidence
from dragoman.predictor import NOT_A_RECORD, Prediction
from dragoman.reading.pairs import InvalidRow, Source
from dragoman.settings import DecodingSettings
from dragoman.tokenizers.tokenizer import find_free_name

if TYPE_CHECKING:
    import pyarrow as pa

Layout = Literal["text", "jsonl", "csv", "tsv", "parquet"]
_BY_SUFFIX: dict[str, Layout] = {f".{layout}": layout for layout in get_args(Layout)[1:]}
_BY_SUFFIX[".ndjson"] = "jsonl"
# Names of formats that are not written; any other name is a file of lines (.txt, .out, .de).
_OTHER_FORMATS = re.compile(
    r"\.(json|xlsx?|xlsm|ods|arrow|feather|ipc|orc|avro|pq|pkl|pickle|npy|npz|h5|hdf5|db|sqlite3?|xml"
    r"|tmx|xliff|xlf|html?|ya?ml|docx?|odt|rtf|pdf|zip|bz2|xz|lzma|lz4|br|7z|rar|tar|tgz)"
)
_ROWS_PER_GROUP = 65_536  # of Parquet


def find_layout(path: Path) -> Layout:
    """Return the layout for the name of a file.

    Raises: DragomanError, when it is the name of a format that is not written.
    """
    is_packed = path.suffix.lower() in (".gz", ".zst")
    suffix = (path.with_suffix("") if is_packed else path).suffix.lower()
    layout = _BY_SUFFIX.get(suffix, "text")
    if _OTHER_FORMATS.fullmatch(suffix) or (layout == "parquet" and is_packed):
        raise DragomanError(
            f"{path}: {''.join(path.suffixes[-1 - is_packed :])} is not written; name it .parquet, or "
            ".jsonl, .csv, .tsv or .txt, also with .gz or .zst"
        )
    if layout == "parquet":
        import pyarrow  # noqa: F401  # if there is none, it is said before the work
    return layout


def find_packer(path: Path) -> Callable[[bytes], bytes]:
    """Return the function that compresses a chunk of the file `path`, by its name.

    Each chunk is compressed alone, without a timestamp; their concatenation is a valid file.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return lambda data: gzip.compress(data, mtime=0)
    if suffix == ".zst":
        import pyarrow  # on demand: a light installation has none

        return lambda data: cast(bytes, pyarrow.compress(data, codec="zstd", asbytes=True))
    return lambda data: data


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
        names = (*TABLE_COLUMNS, *(("field", "value") if self.lists_values else ()))
        return self.join([*self.columns, *(find_free_name(name, taken) for name in names)])

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
        text = json.dumps(content, ensure_ascii=False)[1:]
        if (
            self.layout == "parquet"
        ):  # which has no half of a surrogate pair, from an escape in JSON
            text = text.encode(errors="replace").decode()
        return f"{start}, {text}\n"

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
        texts = [write_cell(one) for one in (*given, row.line, *cells)]
        losses = []
        if not values.keys() <= {*self.columns}:  # JSON objects may have different fields
            losses.append(_NO_COLUMN)
        if self.layout == "tsv" and any(_flatten_cell(text) != text for text in texts):
            losses.append(_BROKEN_CELL)
        return self.join(texts), losses

    def join(self, cells: Sequence[str]) -> str:
        """Return a line of a table, with its line end."""
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


def write_cell(value: object) -> str:
    """Return a value of the input as the text of a cell."""
    if value is None:  # as it is read
        return ""
    is_text = isinstance(value, str) and find_surrogate(value) is None
    return str(value) if is_text else json.dumps(value)


def write_parquet(lines: Path, path: Path) -> None:
    """Write the JSON objects of a `RowWriter` as a Parquet table, with the columns of the input first.

    Such a column is of numbers or booleans if all its values are, else of text, as in a CSV file.
    """
    import pyarrow as pa  # on demand: a light installation has none
    from pyarrow.parquet import ParquetWriter

    kinds: dict[str, set[type]] = {}  # of the input's columns
    found = {*TABLE_COLUMNS}
    for values, ours in _read_objects(lines):
        found |= ours.keys()
        for name, value in values.items():
            is_huge = isinstance(value, int) and value.bit_length() > 63
            kinds.setdefault(name, set()).add(str if is_huge else type(value))
    casts = {name: _find_cast(kinds[name] - {type(None)}) for name in kinds}
    taken, ours_of = {*casts}, _list_parquet_fields()
    names = {name: find_free_name(name, taken) for name in ours_of}
    fields = [(names[name], kind) for name, kind in ours_of.items() if name in found]
    schema = pa.schema([*((name, kind) for name, (_, kind) in casts.items()), *fields])
    rows = (
        {
            **{name: casts[name][0](value) for name, value in values.items() if value is not None},
            **{names[name]: value for name, value in ours.items()},
        }
        for values, ours in _read_objects(lines)
    )
    with ParquetWriter(path, schema) as writer:
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


def _find_cast(kinds: set[type]) -> "tuple[Callable[[Any], object], pa.DataType]":
    """Return what makes a cell of a value, and the type, of a column with values of these `kinds`."""
    import pyarrow as pa

    if kinds == {bool}:
        return bool, pa.bool_()
    if kinds and kinds <= {int, float}:
        return (float, pa.float64()) if float in kinds else (int, pa.int64())
    return write_cell, pa.string()


def _list_parquet_fields() -> "dict[str, pa.DataType]":
    """Return the types of the columns of predictions, by name."""
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    span = {"field": text, "value": text, "start": whole, "end": whole, "kind": text}
    output = {
        **dict.fromkeys(("score", "confidence", "normalized_score"), number),
        "is_complete": pa.bool_(),
        "spans": pa.list_(pa.struct(span)),
        "tokens": pa.list_(text),
        "log_probs": pa.list_(number),
        "alignment": pa.list_(pa.list_(number)),
    }
    return {
        "line": whole,
        "prediction": text,
        **output,
        "error": text,
        "field": text,
        "value": text,
        "fields": pa.list_(pa.struct({"field": text, "value": text, "confidence": number})),
        "num_unknown": whole,
        "source": text,
        "source_tokens": pa.list_(text),
        "from": text,
        "row": text,
        "hypotheses": pa.list_(pa.struct({"text": text, **output})),
    }


TABLE_COLUMNS = ("line", "prediction", "score", "confidence", "is_complete", "error")
_BROKEN_LINE = "with a line break in the output, written as a space (--jsonl keeps it)"
_BROKEN_CELL = "with a tab or a line break in a cell, written as a space (.csv keeps it)"
_NO_COLUMN = "with fields that the first row lacks, left out of the table (.jsonl keeps them)"


def _flatten(text: str) -> str:
    return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")


def _flatten_cell(text: str) -> str:
    return _flatten(text).replace("\t", " ")
