"""The calibration of a model: it turns log-probabilities into confidences.

{"version": 2, "temperature": 1.73, "rows": 450, "pairs": ["valid.tsv"],
 "decoding": {...}, "thresholds": [{"precision": 0.95, "threshold": 0.71, ...}],
 "records": {"fields": {"total": {"temperature": 0.9, ...}}, "others": {...}}}

Version 1 has no "records".
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dragoman.configuration import flatten_settings, update_stored
from dragoman.errors import ModelFolderError, later_format_reason
from dragoman.settings import DecodingSettings
from dragoman.storage import describe_first, explain_failed_write, read_bytes, staged_file

CALIBRATION = "calibration.json"
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0
# They say how an output is shown, not which one is chosen.
_WRITING = {
    "num_hypotheses",
    "token_scores",
    "alignment",
    "batch_tokens",
    "truncation_mark",
    "records",
    "memory",  # confidence is that of the model's own outputs
}

Temperature = Annotated[float, Field(ge=LOWEST_TEMPERATURE, le=HIGHEST_TEMPERATURE)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Threshold(_Checked):
    """The lowest confidence of outputs to accept, for a wanted precision."""

    precision: Share
    """Wanted fraction of exact outputs among the accepted rows."""
    threshold: Share
    """Rows of this confidence or more are accepted."""
    coverage: Share
    """Fraction of the rows that is accepted, as measured."""
    exact: Share
    """Fraction of exact outputs among the accepted rows, as measured."""


class StoredField(_Checked):
    """The calibration of the values of a field."""

    temperature: Temperature
    values: Annotated[int, Field(ge=0)]
    """Number of values that it was fitted on."""
    thresholds: tuple[Threshold, ...] = ()
    """Of its values, not of rows."""


class StoredFields(_Checked):
    """The calibration of outputs that are records, by field."""

    fields: dict[str, StoredField] = {}
    others: StoredField
    """Fitted on all values, for the fields that have none of their own."""

    def find(self, field: str) -> StoredField:
        """Return the calibration for the values of `field`."""
        return self.fields.get(field, self.others)


class StoredCalibration(_Checked):
    """What a model folder keeps of a calibration."""

    version: Literal[1, 2] = 2
    temperature: Temperature
    rows: Annotated[int, Field(ge=0)]
    """Number of rows that it was fitted on."""
    pairs: tuple[str, ...]
    """Files of these rows, for people to read."""
    decoding: DecodingSettings
    """Decoding settings of the outputs; for other settings the confidences may be off."""
    thresholds: tuple[Threshold, ...] = ()
    """Useful values of --min-confidence, for people to read."""
    records: StoredFields | None = None
    """None: the outputs are no records."""

    @field_validator("decoding", mode="before")
    @classmethod
    def _update(cls, value: object) -> object:
        return update_stored(value, "decoding.") if isinstance(value, dict) else value


def read_calibration(folder: Path) -> StoredCalibration | None:
    """Return the calibration in the model folder `folder`; None if it has none.

    Raises: ModelFolderError, when the file cannot be read, or is not a calibration.
    """
    path = folder / CALIBRATION
    if not path.exists():
        return None
    content = read_bytes(path)
    try:
        return StoredCalibration.model_validate_json(content)
    except ValidationError as error:
        reason = f"not a valid calibration: {describe_first(error)}; {_REMEDY}"
        named = re.search(rb'"version": ?(\d{1,6})\b', content)
        if named and int(named[1]) > 2:
            reason = f"its version: {later_format_reason(int(named[1]), 2)}; or {_REMEDY}"
        raise ModelFolderError(f"{path}: {reason}") from error


def write_calibration(folder: Path, calibration: StoredCalibration) -> None:
    """Write the calibration into `folder`, atomically.

    Raises: ModelFolderError, when it cannot be written; an earlier one is unchanged.
    """
    path = folder / CALIBRATION
    with explain_failed_write(path, ModelFolderError), staged_file(path) as temporary:
        temporary.write_text(calibration.model_dump_json(indent=2) + "\n", encoding="utf-8")


def find_differences(calibration: StoredCalibration, decoding: DecodingSettings) -> list[str]:
    """Return the decoding settings that differ from those of the calibration."""
    made, now = (
        flatten_settings(one)  # only the names of files count: a model folder may be moved
        | {setting: Path(name).name for setting, name in one.constraint_files.items()}
        for one in (calibration.decoding, decoding)
    )
    return [
        f"decoding.{name} {now[name]!r}, not {made[name]!r}"
        for name in now
        if name not in _WRITING and now[name] != made[name]
    ]


_REMEDY = "delete it, and calibrate again with `dragoman evaluate MODEL PAIRS --calibrate`"
