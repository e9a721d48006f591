"""What `export.json` tells an engine of the exported model beside it, and whether it is still valid."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dragoman.errors import ModelFolderError
from dragoman.text.bundle import WEIGHTS, fingerprint

EXPORT = "export.json"  # what was exported, and how it compared with PyTorch


def read_export(
    folder: Path, name: str, files: Sequence[str], keys: Sequence[str]
) -> dict[str, Any]:
    """Return the content of `export.json` in `folder`, an export to `name`; it holds `keys`.

    Raises:
        ModelFolderError: One of `files` is missing, or the export is not whole, or older than the
            weights in the model folder around it.
    """
    again = f"`dragoman export {folder.parent} --to {name}`"
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise ModelFolderError(
            f"{folder}: there is no exported model ({missing[0]}); write it with {again}"
        )
    path = folder / EXPORT
    try:
        about: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path}: cannot be read: {error}; write it with {again}") from error
    expected = {"weights", *keys}
    if not isinstance(about, dict) or not about.keys() >= expected:
        raise ModelFolderError(
            f"{path}: expected {', '.join(sorted(expected))}; write it again with {again}"
        )
    weights = folder.parent / WEIGHTS
    if weights.is_file() and about["weights"] != fingerprint(weights):
        raise ModelFolderError(
            f"{folder}: it was exported from other weights than {weights}; write it again with "
            f"{again}, or take --engine torch"
        )
    return about
