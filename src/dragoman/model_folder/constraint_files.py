"""The files of decoding constraints, kept in the model folder.

`decoding.choices`, `decoding.json_schema` and `decoding.grammar` may name a file. A model folder
holds a copy of it under a fixed name. A folder whose settings name any other file is refused: it
could be made to read private files of its user.
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


def list_constraint_files(decoding: DecodingSettings) -> dict[str, str]:
    """Return the settings of `CONSTRAINT_FILES` that name a file, with its name."""
    named = {setting: getattr(decoding, setting) for setting in CONSTRAINT_FILES}
    schema = decoding.json_schema.strip()
    if schema.startswith("{") or schema in ("", "true", "false"):
        del named["json_schema"]
    return {setting: name for setting, name in named.items() if name}


def find_constraint_errors(settings: Settings) -> list[str]:
    """Return an error for each constraint file that cannot be copied into a model folder."""
    errors = []
    for setting, name in list_constraint_files(settings.decoding).items():
        try:
            check_file(Path(name))
        except DataError as error:
            errors.append(f"decoding.{setting}: {error}")
    return errors


def keep_constraint_files(folder: Path, settings: Settings) -> Settings:
    """Copy the files that `settings.decoding` names to `folder`; return settings that name these."""
    kept = {}
    for setting, given in list_constraint_files(settings.decoding).items():
        name = CONSTRAINT_FILES[setting]
        try:
            with open_text_file(Path(given)) as source, (folder / name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
        except (DataError, OSError) as error:
            raise ModelFolderError(
                f"decoding.{setting}: the file cannot be kept with the model: {error}"
            ) from error
        kept[setting] = name
    return _with_decoding(settings, kept)


def find_constraint_files(folder: Path, settings: Settings) -> Settings:
    """Return the `settings` of the model folder `folder` with full paths of its constraint files.

    Raises: ModelFolderError, when they name a file outside the folder, or it is missing.
    """
    found = {}
    for setting, given in list_constraint_files(settings.decoding).items():
        name = CONSTRAINT_FILES[setting]
        if given != name:
            raise ModelFolderError(
                f"{folder}: decoding.{setting} names the file {shorten(given)}, and a model may "
                f"only read files in its folder; copy it to {folder / name} and write {name} in config.yaml"
            )
        if not (folder / name).is_file():
            raise ModelFolderError(
                f"{folder / name}: missing, and decoding.{setting} names it; copy the folder again"
            )
        found[setting] = str(folder / name)
    return _with_decoding(settings, found)


def _with_decoding(settings: Settings, values: dict[str, str]) -> Settings:
    decoding: DecodingSettings = settings.decoding.model_copy(update=values)
    return settings.model_copy(update={"decoding": decoding})
