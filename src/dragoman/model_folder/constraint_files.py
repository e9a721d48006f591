"""The files that the outputs of a model must match, kept in its folder.

`decoding.choices`, `decoding.json_schema` and `decoding.grammar` name a file of their writer's. In a
model folder they stand for a copy in it, under one name each; a folder that names another file could
have been made to read what is no business of its maker's, and is refused.
"""

import shutil
from pathlib import Path

from dragoman.errors import DataError, ModelFolderError, shorten
from dragoman.reading.text_files import check_file, open_text_file
from dragoman.settings import DecodingSettings, Settings

CONSTRAINT_FILES = {
    "choices": "choices.txt",
    "json_schema": "schema.json",
    "grammar": "grammar.lark",
}


def names_file(setting: str, value: str) -> bool:
    """Return whether the value of one of `CONSTRAINT_FILES` is the name of a file."""
    if setting == "json_schema":
        return not (value.strip().startswith("{") or value.strip() in ("", "true", "false"))
    return bool(value)


def find_constraint_faults(settings: Settings) -> list[str]:
    """Return which of the files that `settings.decoding` names cannot be kept with a model."""
    faults = []
    for setting in CONSTRAINT_FILES:
        value = getattr(settings.decoding, setting)
        if names_file(setting, value):
            try:
                check_file(Path(value))
            except DataError as error:
                faults.append(f"decoding.{setting}: {error}")
    return faults


def keep_constraint_files(folder: Path, settings: Settings) -> Settings:
    """Copy the files that `settings.decoding` names to `folder`; return settings that name these.

    Raises:
        ModelFolderError: One cannot be copied.
    """
    kept = {}
    for setting, name in CONSTRAINT_FILES.items():
        value = getattr(settings.decoding, setting)
        if not names_file(setting, value):
            continue
        try:
            with open_text_file(Path(value)) as source, (folder / name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
        except (DataError, OSError) as error:
            raise ModelFolderError(
                f"decoding.{setting}: the file cannot be kept with the model: {error}"
            ) from error
        kept[setting] = name
    return _with_decoding(settings, kept)


def find_constraint_files(folder: Path, settings: Settings) -> Settings:
    """Return `settings`, as they stand in `folder`, with the places of the files that they name.

    Raises:
        ModelFolderError: They name another one than that in the folder, or it is no plain file.
    """
    found = {}
    for setting, name in CONSTRAINT_FILES.items():
        value = getattr(settings.decoding, setting)
        if not names_file(setting, value):
            continue
        if value != name:
            raise ModelFolderError(
                f"{folder}: decoding.{setting} names the file {shorten(value)}, and a model reads "
                f"none but its own; copy it to {folder / name} and write {name} in config.yaml"
            )
        if not (folder / name).is_file():
            raise ModelFolderError(
                f"{folder / name}: missing, and decoding.{setting} names it; copy the folder again"
            )
        found[setting] = str(folder / name)
    return _with_decoding(settings, found)


def _with_decoding(settings: Settings, values: dict[str, str]) -> Settings:
    if not values:
        return settings
    decoding: DecodingSettings = settings.decoding.model_copy(update=values)
    return settings.model_copy(update={"decoding": decoding})
