"""What `export.json` tells an engine of the exported model beside it, and whether it is still valid."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dragoman.errors import ModelFolderError, shorten
from dragoman.model_folder.folder import WEIGHTS
from dragoman.model_folder.folder_files import FolderFile, check_folder, parse_json, read_file
from dragoman.versions import tell_later

EXPORT = "export.json"  # what was exported, and how it compared with PyTorch
FORMAT = 1
"""Of an export; raised where a program written for it would break."""

_LARGEST_BYTES = 1 << 24
_LARGEST_WEIGHTS_BYTES = 1 << 35
_LARGEST_VOCABULARY_BYTES = 1 << 28


def read_export(
    folder: Path, name: str, files: Sequence[str], parts: Mapping[str, Callable[[Any], bool]]
) -> dict[str, Any]:
    """Return the content of `export.json` in `folder`, an export to `name`; it holds `parts`.

    Args:
        files: Those that there must be, as plain files.
        parts: By name, whether a value may be one.

    Raises:
        ModelFolderError: One of `files` is missing, or the export is not whole, of a later version,
            or older than the weights in the model folder around it.
    """
    again = f"`dragoman export {folder.parent} --to {name}`"
    check_folder(folder)
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise ModelFolderError(
            f"{folder}: there is no exported model ({missing[0]}); write it with {again}"
        )
    path = folder / EXPORT
    content = read_file(path, _LARGEST_BYTES)
    try:
        about: object = parse_json(content, 10_000)
    except ValueError as error:
        raise ModelFolderError(f"{path}: cannot be read: {error}; write it with {again}") from error
    if isinstance(about, dict) and (found := about.get("format", FORMAT)) != FORMAT:
        if type(found) is int and found > FORMAT:
            raise ModelFolderError(f"{path}: {tell_later(shorten(str(found)), FORMAT)}")
        raise ModelFolderError(f"{path}: its format is none; write it again with {again}")
    expected = {"weights", *parts}
    if not isinstance(about, dict) or not about.keys() >= expected:
        raise ModelFolderError(
            f"{path}: expected {', '.join(sorted(expected))}; write it again with {again}"
        )
    for part, is_right in parts.items():
        if not is_right(about[part]):
            raise ModelFolderError(
                f"{path}: {part} is {shorten(repr(about[part]))}; write it again with {again}"
            )
    weights = folder.parent / WEIGHTS
    if weights.is_file() and (
        about["weights"] != FolderFile(weights, _LARGEST_WEIGHTS_BYTES).fingerprint
    ):
        raise ModelFolderError(
            f"{folder}: it was exported from other weights than {weights}; write it again with "
            f"{again}, or take --engine torch"
        )
    return about


def read_names(path: Path) -> tuple[bytes, list[str]]:
    """Return a file of the names of tokens, in the order of their ids, and these.

    Raises:
        ModelFolderError: It cannot be read, or two tokens have one name.
    """
    content = read_file(path, _LARGEST_VOCABULARY_BYTES)
    try:
        names: object = parse_json(content, 10_000_000)
    except ValueError as error:
        raise ModelFolderError(
            f"{path}: cannot be read: {error}; export the model again"
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelFolderError(f"{path}: expected a list of tokens; export the model again")
    if len(set(names)) != len(names):
        raise ModelFolderError(f"{path}: two tokens have one name; export the model again")
    return content, names


def is_size(value: object) -> bool:
    """Return whether `value` is a number of positions, heads or the like."""
    return type(value) is int and 1 <= value < 1 << 31


def is_id(value: object) -> bool:
    """Return whether `value` may be the id of a token."""
    return type(value) is int and 0 <= value < 1 << 31
