"""What a character is: hidden, a command to a terminal, half of one; and what people see of a text."""

import io
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from typing import Any, Final, TextIO, cast

JOINERS: Final = "\u200c\u200d"
"""Hidden, but part of the spelling of many scripts, and of emoji."""
# Format characters that are visible: signs around numbers, and of prosody.
_VISIBLE_FORMATS = (
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\u180e\U000110bd\U000110cd"
)
_MUSIC_AND_HIEROGLYPHS = ("\U00013430", "\U0001d17a")

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed


def escape_controls(text: str) -> str:
    """Return `text` with its control characters, which command a terminal, in the form \\u001b."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


SIGNS: Final = {"\n": "↵", "\t": "⇥"}
"""Shown for a line break and a tab."""


@cache
def is_hidden(character: str) -> bool:
    """Whether a reader cannot see this character, or sees a plain space.

    Control, format and private characters, surrogates, noncharacters, and all separators but the
    space are hidden. Unassigned characters are not: they may be newer than this Python.
    """
    category = unicodedata.category(character)
    if category == "Cf":
        first, last = _MUSIC_AND_HIEROGLYPHS
        return character not in _VISIBLE_FORMATS and not first <= character <= last
    if category == "Cn":
        return 0xFDD0 <= ord(character) <= 0xFDEF or ord(character) & 0xFFFE == 0xFFFE
    return category in ("Cc", "Co", "Cs", "Zl", "Zp", "Zs") and character != " "


def find_surrogate(text: str) -> int | None:
    """Return the place of the first lone surrogate, half of a character; None: there is none.

    JSON can spell a lone surrogate (\\ud800), but UTF-8 cannot encode it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


class PrintedStream:
    """A stream for people: control characters of data are shown, and do not command the terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream
        """Where rich writes its own sequences; `TextConsole` escapes its text."""

    def write(self, text: str) -> int:
        """Write `text`, with its control characters escaped."""
        return self.rich_proxied_file.write(escape_controls(text))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.rich_proxied_file, name)


@contextmanager
def printed_streams() -> Iterator[None]:
    """Let `print` reach any terminal: what its encoding lacks is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    out, err = (cast(TextIO, PrintedStream(one)) for one in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        yield


def html_table(rows: Iterable[tuple[str, object]]) -> str:
    """Return a table for a notebook: a name and a value a row."""
    from markupsafe import Markup  # on demand

    line = Markup("<tr><th>{}</th><td>{}</td></tr>")
    lines = (line.format(name, escape_controls(str(value))) for name, value in rows)
    return f"<table>{''.join(lines)}</table>"


def write_data(text: str) -> None:
    """Write to standard output for a program: exactly, in UTF-8. On a terminal, for people."""
    if sys.stdout.isatty():
        sys.stdout.write(text)
    else:
        sys.stdout.buffer.write(text.encode(errors="backslashreplace"))
