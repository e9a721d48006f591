"""Control, zero-width and other hidden characters, where they have no business."""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from dragoman.characters import JOINERS, is_hidden
from dragoman.inspection.characters import find_script
from dragoman.inspection.finding import MOST_EXAMPLES, Finding, count_share, show_row
from dragoman.inspection.rows import SplitRows

if TYPE_CHECKING:
    from dragoman.inspection.profile import Profile

# Scripts that do not join their letters by zero-width characters; the others may.
_UNJOINED = {"Latn", "Grek", "Cyrl", "Armn", "Geor", "Hani", "Hira", "Kana", "Hang"}
# Scripts written without spaces, where a zero-width space is a place to break the line.
_UNSPACED = {"Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Java", "Bali", "Lana", "Tale", "Talu"}
_DIRECTIONS = {*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}  # fmt: skip
_TAGS = range(0xE0020, 0xE0080)  # after a black flag: the flag of a region


def find_hidden(
    splits: Mapping[str, SplitRows], profiles: Mapping[str, "Profile"], flag: int
) -> Iterator[Finding]:
    """Find rows with hidden characters on either side; `flag` marks those that may have one."""
    for rows in splits.values():
        found: dict[int, str] = {}
        for profile in profiles.values():
            texts = rows.side(profile.side)
            for i in profile.find(rows.name, flag):
                other = rows.sources[i] + rows.targets[i]
                if characters := list_hidden(texts[i], other):
                    found.setdefault(int(i), characters[0])
        if found:
            names = Counter(found.values()).most_common(3)
            told = ", ".join(f"{_name(character)} in {count:,}" for character, count in names)
            yield Finding(
                kind="hidden_characters",
                title=f"hidden characters in {rows.shown}",
                severity="warning",
                count=len(found),
                told=f"{count_share(len(found), len(rows))} of {rows.shown} have control or "
                f"zero-width characters that nobody sees: {told}",
                remedy="take them out of the files, here and in what will be predicted: a model "
                "takes them for text",
                examples=tuple(
                    show_row(rows, i, at=found[i]) for i in sorted(found)[:MOST_EXAMPLES]
                ),
            )


def list_hidden(text: str, whole: str) -> list[str]:
    """Return the hidden characters of `text` that are out of place, in their order.

    Joiners in scripts that join, and in emoji, direction marks where `whole` has text from right to
    left, and line breaks in a field are in place.
    """
    return [
        character
        for i, character in enumerate(text)
        if is_suspect(character) and not _is_in_place(text, i, whole)
    ]


def is_suspect(character: str) -> bool:
    """Whether a character is hidden, and may be out of place."""
    return (
        is_hidden(character) and character not in "\t\n" and unicodedata.category(character) != "Zs"
    )


def _is_in_place(text: str, i: int, whole: str) -> bool:
    character = text[i]
    if character == "\r":
        return text[i + 1 : i + 2] == "\n"
    if character in JOINERS:
        return _joins(text, i)
    if character == "\u200b":
        return any(find_script(letter) in _UNSPACED for letter in text)
    if character in _DIRECTIONS:
        return any(map(_goes_left, set(whole) - _DIRECTIONS))
    if ord(character) in _TAGS:
        return text[:i].rstrip("".join(map(chr, _TAGS))).endswith("\U0001f3f4")
    # A private character is in place where both sides have it.
    is_private = unicodedata.category(character) == "Co"
    return is_private and whole.count(character) > text.count(character)


def _joins(text: str, i: int) -> bool:
    before = text[:i].rstrip("\ufe0f" + "".join(map(chr, range(0x1F3FB, 0x1F400))))
    if before and unicodedata.category(before[-1]) in ("So", "Cn"):  # emoji
        return True
    script = next((find_script(letter) for letter in reversed(before) if find_script(letter)), "")
    return script not in _UNJOINED and bool(script)


def _goes_left(character: str) -> bool:
    return unicodedata.bidirectional(character) in ("R", "AL", "AN")


def _name(character: str) -> str:
    name = unicodedata.name(character, "").lower()
    return f"U+{ord(character):04X}{name and f' {name}'}"
