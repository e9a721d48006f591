"""Rows of an evaluation: a source with its references, and what a model made of it; kept as JSONL."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman.characters import find_surrogate
from dragoman.errors import DataError
from dragoman.evaluation.confidence import round_confidence
from dragoman.reading.row_errors import find_line_error
from dragoman.reading.text_files import open_text_file, read_blocks

_MOST_ROWS = 5_000_000  # that are held in memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One source with all its references, and the output of a model."""

    source: str
    references: tuple[str, ...]
    hypothesis: str
    features: tuple[str, ...] = ()
    line: int = 0  # of the first pair with this source, from 1; 0: not known
    file: str = ""
    is_complete: bool = True  # the output ended by itself
    score: float | None = None  # log-probability of the output, in nats
    confidence: float | None = None  # calibrated probability that the output is exactly right

    @property
    def is_exact(self) -> bool:
        """Whether the output is one of the references."""
        return self.hypothesis in self.references


def write_rows(
    path: Path, rows: Sequence[Row], scores: Mapping[str, NDArray[np.float64]] | None = None
) -> None:
    """Write an object a line: the row, `exact_match`, and its own `scores` by name."""
    scores = scores or {}
    with path.open("w", encoding="utf-8") as file:
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
            }
            file.write(json.dumps(content, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file that `write_rows` wrote.

    Raises:
        DataError: It cannot be read, or a line is no such row; names it.
    """
    rows: list[Row] = []
    with open_text_file(path) as stream:
        for block in read_blocks(stream, str(path), drops_blank_end=True):
            for number, text in enumerate(block.lines, start=block.first):
                if not block.is_clean and (fault := find_line_error(str(path), number, text)):
                    raise DataError(f"{path}:{number}: {fault.detail}")
                rows.append(_parse(text, f"{path}:{number}"))
            if len(rows) > _MOST_ROWS:
                raise DataError(f"{path}: more than {_MOST_ROWS:,} rows")
    if not rows:
        raise DataError(f"{path}: there is no row in the file")
    return rows


def _parse(text: str, place: str) -> Row:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from error
    number = (int, float, type(None))
    kinds: dict[str, tuple[type, ...]] = {
        "source": (str,), "references": (list,), "hypothesis": (str,), "features": (list,),
        "line": (int,), "file": (str,), "is_complete": (bool,), "score": number,
        "confidence": number,
    }  # fmt: skip
    if not isinstance(content, dict):
        raise DataError(f"{place}: expected an object, found {type(content).__name__}")
    values = {name: content[name] for name in kinds if name in content}
    for name in ("source", "references", "hypothesis"):
        if name not in values:
            raise DataError(f"{place}: {name!r} is missing; give rows as evaluate writes them")
    for name, value in values.items():
        if type(value) not in kinds[name]:  # exactly: True is no number
            raise DataError(f"{place}: {name!r} is {type(value).__name__}")
    for name in ("references", "features"):
        values[name] = tuple(values.get(name, ()))
        if not all(isinstance(one, str) for one in values[name]):
            raise DataError(f"{place}: {name!r} holds what is not text")
    if not values["references"]:
        raise DataError(f"{place}: 'references' is empty; a row needs one")
    if not all(_is_finite(values.get(name) or 0.0) for name in ("score", "confidence")):
        raise DataError(f"{place}: a score or a confidence is no finite number")
    if values.get("line", 0) < 0:
        raise DataError(f"{place}: 'line' is {values['line']}, and lines are counted from 1")
    if not 0 <= (values.get("confidence") or 0.0) <= 1:
        raise DataError(f"{place}: 'confidence' is {values['confidence']}, not from 0 to 1")
    if "\\u" in text and find_surrogate(json.dumps(values, ensure_ascii=False)) is not None:
        raise DataError(f"{place}: it holds a lone surrogate, which is no text")
    return Row(**values)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
