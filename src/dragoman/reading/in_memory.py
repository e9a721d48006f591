"""Pairs that a Python caller holds: rows or a table, written to a file that is read like any other."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from dragoman.errors import DataError, shorten
from dragoman.reading.pairs import Pair
from dragoman.reading.row_errors import IN_MEMORY
from dragoman.reading.tables import dump_value
from dragoman.reading.url_files import is_url

Pairs = str | Path | Iterable[Any] | Mapping[str, Any]
"""A file of pairs, its URL, or two parallel text files; or rows (source, target), or as dicts; or a table: a
dict of columns, a DataFrame (pandas, polars), or anything else that Arrow reads. A target may be a
record, as a dict."""


@contextmanager
def as_files(pairs: Pairs) -> Iterator[list[str | Path]]:
    """Give the files and URLs of `pairs`; those in memory are in a temporary one, until the end.

    Messages and records call it `IN_MEMORY`. Rows without names are a file without a header.

    Raises: DataError, when they are neither files, nor rows, nor a table.
    """
    try:
        files_or_table = _find_files_or_table(pairs)
    except (TypeError, ValueError, pa.ArrowException) as error:
        reason = shorten(str(error).partition("\n")[0], 200)
        raise DataError(
            "pairs: expected a file, two parallel text files, rows (source, target), or a table such "
            f"as a DataFrame, found {type(pairs).__name__}: {reason}"
        ) from error
    if isinstance(files_or_table, list):
        yield files_or_table
        return
    with tempfile.TemporaryDirectory(prefix="dragoman-") as folder:
        import pyarrow.parquet  # on demand: it takes 0.1 s

        path = Path(folder) / f"{IN_MEMORY}.parquet"
        pyarrow.parquet.write_table(files_or_table, path)
        yield [path]


def _find_files_or_table(pairs: Pairs) -> list[str | Path] | pa.Table:
    if isinstance(pairs, str | Path):
        return [pairs if is_url(pairs) else Path(pairs)]
    if isinstance(pairs, Mapping):
        table = pa.table(
            {
                name: [*map(_to_json, column)] if isinstance(column, list) else column
                for name, column in pairs.items()
            }
        )
    elif any(hasattr(pairs, name) for name in ("__arrow_c_stream__", "columns")):
        table = pa.table(pairs)  # pandas adds the index of shuffled or filtered rows
        table = table.drop_columns(
            [n for n in table.column_names if n.startswith("__index_level_")]
        )
    else:
        rows = list(pairs)
        if all(isinstance(row, str | os.PathLike) for row in rows):
            return [row if is_url(row) else Path(row) for row in rows]
        rows = list(_name_columns(rows))
        names = dict.fromkeys(name for row in rows for name in row)
        table = pa.table({name: [_to_json(row.get(name)) for row in rows] for name in names})
    if table.column_names == [str(place) for place in range(table.num_columns)]:  # no names
        table = table.rename_columns([str(1 + place) for place in range(table.num_columns)])
    return table


def _to_json(value: object) -> object:
    """Return a record as JSON: a table's column would give all of them the same fields."""
    return dump_value(value) if isinstance(value, dict) else value


def _name_columns(rows: list[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield rows as dicts, by the names of their columns; those of (source, target) are positions."""
    for place, row in enumerate(rows):
        if isinstance(row, Mapping):
            yield row
            continue
        sides = row[:2] if isinstance(row, Pair) and not row.features else row
        if (
            not isinstance(sides, list | tuple)
            or len(sides) != 2
            or not isinstance(sides[0], str)
            or not isinstance(sides[1], str | dict)
        ):
            raise TypeError(
                f"pairs[{place}] is {shorten(repr(row))}; give (source, target), two strings, or a "
                "dict as the target, and with features a dict of the columns"
            )
        yield {"1": sides[0], "2": sides[1]}
