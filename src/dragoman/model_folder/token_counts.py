"""How often each source token stood in the training pairs: what a model has seen seldom, or never."""

import json
from collections.abc import Sequence
from pathlib import Path

from dragoman.errors import ModelFolderError
from dragoman.model_folder.folder_files import parse_json, read_optional_file

TOKEN_COUNTS = "token_counts.json"
_LARGEST_BYTES = 1 << 25
_MOST = 10_000_000  # tokens: no vocabulary has so many


def write_token_counts(folder: Path, counts: Sequence[int]) -> None:
    """Write the number of times of each source id, from 0, into the folder of a model."""
    text = json.dumps({"source": list(counts)}, separators=(",", ":"))
    (folder / TOKEN_COUNTS).write_text(text + "\n", encoding="utf-8")


def read_token_counts(folder: Path) -> tuple[int, ...]:
    """Return what `write_token_counts` wrote; nothing, where a folder has no such file.

    Raises:
        ModelFolderError: The file is not what it should be.
    """
    path = folder / TOKEN_COUNTS
    text = read_optional_file(path, _LARGEST_BYTES)
    if text is None:
        return ()
    try:
        content = parse_json(text, most_lists=2)
    except ValueError as error:
        raise ModelFolderError(f"{path}: the counts cannot be read: {error}") from error
    counts = content.get("source") if isinstance(content, dict) else None
    if (
        not isinstance(counts, list)
        or len(counts) > _MOST
        or not all(type(count) is int and 0 <= count < 2**63 for count in counts)
    ):
        raise ModelFolderError(f"{path}: expected the counts of the source's tokens, from 0")
    return tuple(counts)
