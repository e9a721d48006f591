"""What to tell of a file that a later version of dragoman wrote than the one that reads it."""

import re
from importlib.metadata import version


def tell_later(found: object, known: int) -> str:
    """Return why a file of format `found` cannot be read where `known` is the latest one known."""
    return (
        f"its format is {found}, and this dragoman ({version('dragoman')}) reads none after {known}: "
        "a later version wrote it; upgrade with `pip install --upgrade dragoman`"
    )


def is_later(written_by: str) -> bool:
    """Return whether version `written_by` of dragoman, such as "0.2.0", came after this one.

    What is no version came from no later one.
    """
    found, own = _parse(written_by), _parse(version("dragoman"))
    return found is not None and own is not None and found > own


def _parse(text: str) -> tuple[int, ...] | None:
    match = re.match(r"(\d{1,6})(?:\.(\d{1,6}))?(?:\.(\d{1,6}))?", text)
    return match and tuple(int(part or 0) for part in match.groups())
