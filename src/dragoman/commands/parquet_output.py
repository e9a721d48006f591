"""Predictions as a Parquet table, from the JSON objects of `output_formats.py`. It needs pyarrow."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from dragoman.commands.output_formats import TABLE_COLUMNS, write_cell
from dragoman.tokenizers.tokenizer import find_free_name


def write_parquet(lines: Path, path: Path) -> None:
    """Write the JSON objects of a `RowWriter` as a Parquet table, with the columns of the input first.

    Such a column is of numbers or booleans if all its values are, else of text, as in a CSV file.
    """
    kinds: dict[str, set[type]] = {}  # of the input's columns
    found = {*TABLE_COLUMNS}
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


_ROWS_PER_GROUP = 65_536
_CASTS: dict[pa.DataType, Callable[[Any], object]] = {
    pa.string(): write_cell,
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
