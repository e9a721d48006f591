"""How often each source token stood in the training pairs: what a model has seen seldom, or never."""

import json
from collections.abc import Sequence
from pathlib import Path

from dragoman.errors import ModelFolderError

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
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_BYTES + 1)
        if len(text) > _LARGEST_BYTES:
            raise ValueError(f"it has more than {_LARGEST_BYTES >> 20} MiB")
        content = json.loads(text)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path}: the counts cannot be read: {error}") from error
    counts = content.get("source") if isinstance(content, dict) else None
    if (
        not isinstance(counts, list)
        or len(counts) > _MOST
        or not all(type(count) is int and 0 <= count < 2**63 for count in counts)
    ):
        raise ModelFolderError(f"{path}: expected the counts of the source's tokens, from 0")
    return tuple(counts)
