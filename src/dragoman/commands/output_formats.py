"""Formats of predictions: a row becomes a line of text, a JSON object, or a row of a table."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow

from dragoman.evaluation.confidence import round_confidence
from dragoman.predictor import Prediction
from dragoman.reading.pairs import InvalidRow, Source
from dragoman.settings import DecodingSettings
from dragoman.tokenizers.tokenizer import find_free_name

Layout = Literal["text", "jsonl", "csv", "tsv"]
_BY_SUFFIX: dict[str, Layout] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
}
_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    # Each chunk is compressed alone; their concatenation is a valid file. No timestamps.
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
}


def find_layout(path: Path) -> Layout:
    """Return the layout for the name of a file."""
    bare = path.with_suffix("") if path.suffix.lower() in _PACKERS else path
    return _BY_SUFFIX.get(bare.suffix.lower(), "text")


def find_packer(path: Path) -> Callable[[bytes], bytes]:
    """Return the function that compresses a chunk of the file `path`, by its name."""
    return _PACKERS.get(path.suffix.lower(), lambda data: data)


@dataclass(frozen=True, kw_only=True)
class RowWriter:
    """Formats rows.

    Args:
        columns: Names of the input's columns, for a table.
        scores_targets: The outputs were given: a line of text is their log-probability.
    """

    layout: Layout
    decoding: DecodingSettings
    columns: tuple[str, ...] = ()
    scores_targets: bool = False

    def header(self) -> str:
        """Return the line before the first row, or ""."""
        if self.layout not in ("csv", "tsv"):
            return ""
        taken = {*self.columns}
        return self._join(
            [*self.columns, *(find_free_name(name, taken) for name in _TABLE_COLUMNS)]
        )

    def write(
        self, row: Source | InvalidRow, best_first: Sequence[Prediction]
    ) -> tuple[str, Sequence[str]]:
        """Return the text of a row, with its line end, and messages about what the layout lost.

        An invalid row has no outputs.
        """
        if self.layout == "jsonl":
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

    def _write_object(self, row: Source | InvalidRow, best_first: Sequence[Prediction]) -> str:
        content: dict[str, object] = {}
        if isinstance(row, InvalidRow):
            content = {"text": "", "error": row.reason}
        elif best_first:
            content = self._describe(best_first[0])
            content["num_unknown"] = best_first[0].num_unknown
            if self.decoding.alignment:
                content["source_tokens"] = best_first[0].source_tokens
            if self.decoding.num_hypotheses > 1:
                content["hypotheses"] = [self._describe(one) for one in best_first]
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
        values: dict[str, object] = json.loads(row.columns) if row.columns else {}
        cells: list[object] = [values.get(name, "") for name in self.columns]
        cells.append(row.line)
        if best_first:
            best = best_first[0]
            confidence = round_confidence(best.confidence)
            cells += [best.text, round(best.score, 6), confidence]
            cells += [str(best.is_complete).lower(), ""]
        else:
            cells += ["", "", "", "", row.reason if isinstance(row, InvalidRow) else ""]
        texts = [one if isinstance(one, str) else json.dumps(one) for one in cells]
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


_TABLE_COLUMNS = ("line", "prediction", "score", "confidence", "is_complete", "error")
_BROKEN_LINE = "with a line break in the output, written as a space (--jsonl keeps it)"
_BROKEN_CELL = "with a tab or a line break in a cell, written as a space (.csv keeps it)"
_NO_COLUMN = "with fields that the first row lacks, left out of the table (.jsonl keeps them)"


def _flatten(text: str) -> str:
    return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")


def _flatten_cell(text: str) -> str:
    return _flatten(text).replace("\t", " ")
