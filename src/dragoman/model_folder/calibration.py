"""The file of a model folder that makes its log-probabilities confidences: read with checks.

    {"version": 1, "temperature": 1.73, "rows": 450, "pairs": ["valid.tsv"],
     "decoding": {...}, "thresholds": [{"precision": 0.95, "threshold": 0.71, ...}]}

Whatever is in it is checked before it is used: it may have come from anywhere.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dragoman.configuration import flatten_settings, update_stored
from dragoman.errors import ModelFolderError
from dragoman.model_folder.constraint_files import CONSTRAINT_FILES, names_file
from dragoman.settings import DecodingSettings
from dragoman.storage import read_bytes, staged_file
from dragoman.versions import tell_later

CALIBRATION = "calibration.json"
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0
_MAX_BYTES = 1 << 20
# They say how an output is written down, not which one is chosen.
_WRITING = {"num_hypotheses", "token_scores", "alignment", "batch_tokens", "truncation_mark"}

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Threshold(_Checked):
    """Where to part the outputs that are kept from the rest, for a wanted precision."""

    precision: Share
    """Part of the kept rows that is to be exact."""
    threshold: Share
    """Rows of this confidence and more are kept."""
    coverage: Share
    """Part of the rows that is kept, where it was measured."""
    exact: Share
    """Part of the kept rows that is exact, where it was measured."""


class StoredCalibration(_Checked):
    """What a model folder keeps of a calibration."""

    version: Literal[1] = 1
    temperature: Annotated[float, Field(ge=LOWEST_TEMPERATURE, le=HIGHEST_TEMPERATURE)]
    rows: Annotated[int, Field(ge=0, le=10**12)]
    """Rows that it was made from."""
    pairs: Annotated[tuple[Annotated[str, Field(max_length=4096)], ...], Field(max_length=100)]
    """What these rows were, for people: files, and the part of them."""
    decoding: DecodingSettings
    """How the outputs were made: for others it is a guess."""
    thresholds: Annotated[tuple[Threshold, ...], Field(max_length=100)] = ()
    """For people: what may be given as --min-confidence."""

    @field_validator("decoding", mode="before")
    @classmethod
    def _update(cls, value: object) -> object:
        return update_stored(value, "decoding.") if isinstance(value, dict) else value


def read_calibration(folder: Path) -> StoredCalibration | None:
    """Return the calibration of the model folder `folder`; None: it has none.

    Raises:
        ModelFolderError: The file cannot be read, or is not what `write_calibration` writes.
    """
    path = folder / CALIBRATION
    if not path.exists():
        return None
    content = read_bytes(path, _MAX_BYTES)
    try:
        return StoredCalibration.model_validate_json(content)
    except ValidationError as error:
        named = re.search(rb'"version": ?(\d{1,6})\b', content)
        if named and int(named[1]) > 1:
            raise ModelFolderError(
                f"{path}: its version: {tell_later(int(named[1]), 1)}; or {_REMEDY}"
            ) from error
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))[:100] or "the file"
        raise ModelFolderError(
            f"{path}: no calibration of this version: {where}: {first['msg'][:200]}; {_REMEDY}"
        ) from error


def write_calibration(folder: Path, calibration: StoredCalibration) -> None:
    """Write the calibration into `folder`: under another name, then renamed.

    Raises:
        ModelFolderError: It cannot be written; what was there is as it was.
    """
    path = folder / CALIBRATION
    try:
        with staged_file(path) as partial:
            partial.write_text(calibration.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be written: {error.strerror}") from error


def find_differences(calibration: StoredCalibration, decoding: DecodingSettings) -> list[str]:
    """Return the settings by which outputs are now made otherwise than those it was made from."""
    made, now = (
        {name: _name_alike(name, value) for name, value in flatten_settings(one).items()}
        for one in (calibration.decoding, decoding)
    )
    return [
        f"decoding.{name} {now[name]!r}, not {made[name]!r}"
        for name in now
        if name not in _WRITING and now[name] != made[name]
    ]


def _name_alike(name: str, value: Any) -> Any:  # noqa: ANN401
    """Return a value to compare: of a file, its name, for a model folder may have been moved."""
    if name in CONSTRAINT_FILES and names_file(name, value):
        return Path(value).name
    return value


_REMEDY = "take it away, and make it anew with `dragoman evaluate MODEL PAIRS --calibrate`"
