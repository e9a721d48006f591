"""Text of users made safe to look at: nothing hidden, nothing that leaves its place, nothing endless."""

import unicodedata
from collections.abc import Iterator

from markupsafe import Markup, escape

from dragoman.characters import JOINERS, is_hidden

LONGEST = 300  # characters of a text that are shown where it stands beside others

_NAMED = {"\n": "↵", "\t": "⇥"}


def show_text(text: str, longest: int = LONGEST) -> Markup:
    """Return `text` as HTML: escaped, alone in its direction, what is unseen written as its code.

    A control, format or private character, and half of a surrogate pair, becomes a small "U+202E";
    a line break "↵". Of more than `longest` characters the rest is counted. Empty text says so.
    """
    if not text:
        return Markup('<i class="empty">empty</i>')
    left = len(text) - longest
    rest = Markup('<i class="empty"> … {} more characters</i>').format(f"{left:,}")
    shown = mark_unseen(text[:longest])
    return Markup('<bdi class="text" translate="no">{}</bdi>{}').format(
        shown, rest if left > 0 else ""
    )


def mark_unseen(text: str, *, shows_spaces: bool = False) -> Markup:
    """Return `text` as HTML, escaped, with a code in the place of each character that is not seen."""
    parts = []
    for character in text:
        if shows_spaces and character == " ":
            parts.append(Markup('<span class="space">␣</span>'))
        elif character in _NAMED:
            parts.append(Markup('<span class="code">{}</span><wbr>').format(_NAMED[character]))
        elif _is_unseen(character):
            parts.append(Markup('<span class="code">U+{:04X}</span>').format(ord(character)))
        else:
            parts.append(escape(character))
    return Markup("").join(parts)


def write_plain(text: str, longest: int) -> str:
    """Return `text` without markup, as for a label of a chart: unseen characters as codes.

    It is cut where it gets wider than `longest` Latin letters.
    """
    if not text:
        return "∅"
    shown, width = "", 0.0
    for place, character in enumerate(text):
        code = f"U+{ord(character):04X}" if _is_unseen(character) else character
        code = _NAMED.get(character, code)
        width += measure_width(code)
        if width > longest or place >= 4 * longest:  # marks on letters have no width
            return f"{shown}…"
        shown += code
    return shown


def cut_clusters(text: str) -> list[str]:
    """Return the characters of `text` as people see them: a letter with its accents is one.

    Joined, they are the text. Near the grapheme clusters of Unicode, by general category alone.
    """
    return list(_join_clusters(text))


def measure_width(text: str) -> float:
    """Return about how wide `text` is, in Latin letters: Chinese characters and emoji count two."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    flat = sum(_is_attached(character) for character in text)
    return float(len(text) + wide - flat)


def _join_clusters(text: str) -> Iterator[str]:
    cluster = ""
    for character in text:
        if cluster and (_is_attached(character) or cluster.endswith("\u200d")):
            cluster += character
            continue
        if cluster:
            yield cluster
        cluster = character
    if cluster:
        yield cluster


def _is_attached(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Me", "Mc") or character in JOINERS


def _is_unseen(character: str) -> bool:
    return is_hidden(character) and character not in JOINERS
