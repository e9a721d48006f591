"""The four ids that mean the same in every vocabulary, and that no text is encoded to.

UNKNOWN_ID alone may stand for a piece of text: a symbol that the vocabulary does not hold.
"""

from collections.abc import Container
from typing import Final

PAD_ID: Final = 0
BOS_ID: Final = 1
EOS_ID: Final = 2
UNKNOWN_ID: Final = 3
FIRST_TEXT_ID: Final = 4

SPECIAL_NAMES: Final = ("<pad>", "<s>", "</s>", "<unk>")


def find_free_name(name: str, taken: Container[str]) -> str:
    """Return `name`, in as many angle brackets as it takes to be none of `taken`."""
    while name in taken:
        name = f"<{name}>"
    return name
