"""What people see: standard output and error without control characters of data; notebooks."""

import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from dragoman.characters import escape_controls


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
