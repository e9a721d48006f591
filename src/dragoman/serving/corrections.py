"""Corrections of outputs, in a TSV that `dragoman fit` reads."""

import os
from collections.abc import Collection
from pathlib import Path
from threading import Lock

from dragoman.errors import SettingsError
from dragoman.predictor import Predictor
from dragoman.reading.pairs import write_target
from dragoman.reading.row_errors import RowError, find_side_error, find_value_error
from dragoman.serving.messages import CorrectionRequest, RequestError, make_row


class Corrections:
    """The file; its columns are named as in the training data of the models.

    Raises:
        SettingsError: The models have different columns, the file has others, or it cannot be
            written.
    """

    def __init__(self, path: Path, models: Collection[Predictor]) -> None:
        self._path, self._lock = path, Lock()
        columns = {_name_columns(one) for one in models}
        if len(columns) > 1:
            raise SettingsError(
                "--corrections: the models have different columns; serve them apart"
            )
        self._names = names = columns.pop()
        if positions := [name for name in names if name.isdecimal()]:
            raise SettingsError(
                f"--corrections: the model was trained on column {positions[0]}, without a name; "
                "corrections need the names of columns"
            )
        head = "\t".join(names)
        try:
            with path.open("ab+") as file:
                file.seek(0)
                found = file.readline().decode("utf-8-sig", "replace").strip()
                if not found:
                    file.write(f"{head}\n".encode())
                elif found != head:
                    raise SettingsError(
                        f"--corrections {path}:1: other columns than {', '.join(names)}, which the "
                        "models have; give another file"
                    )
                else:
                    file.seek(-1, os.SEEK_END)
                    if file.read() != b"\n":  # a last row that was cut, or typed
                        file.write(b"\n")
        except OSError as error:
            raise SettingsError(
                f"--corrections {path}: cannot be written: {error.strerror}"
            ) from error

    def add(self, asked: CorrectionRequest, model: Predictor) -> None:
        """Append a row.

        Raises:
            RequestError: A side is empty, too long or no text, or the features do not fit.
        """
        if _name_columns(model) != self._names:  # it was replaced
            raise RequestError.invalid("model", "its columns have changed: start the server again")
        make_row(asked.source, asked.features, model, "source", "features")
        error = find_value_error("", 0, "the target", asked.target)
        error = error or find_side_error(
            "", 0, "target", asked.target, model.settings.data.max_characters
        )
        if error is None and model.settings.data.records == "json":
            written = write_target("", 0, asked.target, model.settings.data)
            error = written if isinstance(written, RowError) else None
        if error is not None:
            raise RequestError.invalid("target", error.detail)
        cells = {"source": asked.source, "target": asked.target}
        cells |= {f"features[{i}]": value for i, value in enumerate(asked.features)}
        for where, text in cells.items():
            if {*"\t\r\n"} & {*text}:
                raise RequestError.invalid(where, "a tab or a line break has no place in a TSV")
        row = "\t".join(cells.values()) + "\n"
        if '""' in row and any(text.startswith('"') for text in cells.values()):
            message = 'a text that begins with ", and "" in the row, would be read as quoted cells'
            raise RequestError.invalid("source", message)
        with self._lock, self._path.open("ab") as file:  # one write, so that no row is cut
            file.write(row.encode())


def _name_columns(model: Predictor) -> tuple[str, ...]:
    """Return the names of the columns of a file that the model's settings of data read."""
    data = model.settings.data
    source = "source" if data.source == "auto" else data.source
    target = "target" if data.target == "auto" else data.target
    return (source, target, *model.feature_labels)
