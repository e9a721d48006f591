"""What is to be told of the rows of a prediction: on standard error, when it is done."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dragoman.predictor import Prediction
from dragoman.reading.pairs import InvalidRow, Source

_NAMED_ROWS = 5  # rows of a kind that are named

Row = Source | InvalidRow


@dataclass
class Report:
    """The rows by fault, how many, and the first few lines; and how many went to which file."""

    counts: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[int]] = field(default_factory=dict)
    files: Sequence[str] = ()
    rows_by_file: list[int] = field(default_factory=list)

    def add(
        self, row: Row, prediction: Prediction | None, place: int, losses: Sequence[str]
    ) -> None:
        """Take note of a row, of what is wrong with it or its output, and of its file.

        Args:
            losses: What its file has no room for.
        """
        self.rows_by_file[place] += 1
        for fault in (*_find_faults(row, prediction), *losses):
            self.counts[fault] = self.counts.get(fault, 0) + 1
            lines = self.lines.setdefault(fault, [])
            if len(lines) < _NAMED_ROWS:
                lines.append(row.line)

    def __iter__(self) -> Iterator[str]:
        for fault, count in self.counts.items():
            named = ", ".join(map(str, self.lines[fault]))
            yield f"{count:,} rows {fault}: line {named}{', …' if count > _NAMED_ROWS else ''}"
        if len(self.files) > 1:
            total = sum(self.rows_by_file)
            yield f"of {total:,} rows " + ", ".join(
                f"{count:,} ({count / max(1, total):.1%}) in {name}"
                for name, count in zip(self.files, self.rows_by_file, strict=True)
            )


def _find_faults(row: Row, prediction: Prediction | None) -> list[str]:
    if prediction is None:
        return [f"without an output ({row.reason if isinstance(row, InvalidRow) else ''})"]
    faults = []
    if not prediction.is_complete:
        faults.append("cut at their longest length (raise decoding.max_length_extra)")
    if prediction.num_unknown:
        faults.append("with tokens that the model has never seen")
    return faults
