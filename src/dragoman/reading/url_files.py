"""Files on object stores, by their URLs: copied to this machine, then read like any other file."""

import glob
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from dragoman.errors import DataError, DragomanError, name_extra, shorten

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_URL = re.compile(r"[a-z][a-z0-9+.-]+(::[a-z0-9+.-]+)*://", re.IGNORECASE)  # also zip://a::s3://b
_FOLDER = "dragoman-url-"
_LONGEST = 200  # characters of a file name; systems take 255
_copies: dict[str, tuple[dict[str, Any], Path]] = {}  # by URL: what its file was, and the copy


def is_url(name: object) -> bool:
    """Return whether `name` is a URL, such as s3://bucket/pairs.tsv."""
    return isinstance(name, str) and _URL.match(name) is not None


def find_file(name: str | Path) -> Path:
    """Return the file with this name; of a URL, see `copy_files`, the copy.

    Raises: DataError, when it is no name, such as a list of texts.
    """
    if not isinstance(name, str | Path):
        found = type(name).__name__
        raise DataError(f"expected the name of a file, found {found}; write the texts into a file")
    return copy_files(str(name))[0] if is_url(name) else Path(name)


def copy_files(url: str) -> list[Path]:
    """Return a copy of the file at `url`, or of each that fits a pattern such as s3://bucket/*.tsv.

    fsspec reads them, with the credentials of its configuration. A copy goes with the process; it is
    made again if the file has changed.

    Raises:
        DataError: There is no such file, or it cannot be read.
        MissingPackageError: fsspec is not installed.
    """
    with name_extra(url):
        from fsspec.core import url_to_fs
    try:
        system, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: fsspec cannot read it: {error}") from error
    try:
        if not glob.has_magic(path) or system.exists(path):
            return [_copy(system, path, url)]
        found = sorted(system.glob(path))
        if not found:
            raise DataError(f"{url}: no file fits this pattern")
        return [_copy(system, one, system.unstrip_protocol(one)) for one in found]
    except DragomanError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{url}: there is no such file") from error
    except PermissionError as error:
        raise DataError(f"{url}: no permission to read it") from error
    except Exception as error:  # each protocol has a library of its own, with its own errors
        reason = shorten(str(error) or type(error).__name__, 200)
        raise DataError(f"{url}: cannot be copied to {tempfile.gettempdir()}: {reason}") from error


def find_url(path: Path) -> str | None:
    """Return the URL of a copy; None: `path` is none."""
    for place, part in enumerate(path.parts):
        if part.startswith(_FOLDER):
            return unquote("".join(path.parts[place + 1 :]))
    return None


def _copy(system: "AbstractFileSystem", path: str, url: str) -> Path:
    info = system.info(path)
    if info["type"] == "directory":
        raise DataError(f"{url}: it is a folder; give its files, such as '{url.rstrip('/')}/*.tsv'")
    known, copy = _copies.get(url, (None, Path()))
    if known != info:
        name = quote(url, safe="")  # in the path, so that any process can name the file
        ends = range(len(name), 0, -_LONGEST)
        parts = [name[max(0, end - _LONGEST) : end] for end in reversed(ends)]
        copy = Path(_folder().name, *parts)
        copy.parent.mkdir(parents=True, exist_ok=True)
        new = copy.with_name(".new")
        system.get_file(path, str(new))
        new.replace(copy)
        _copies[url] = (info, copy)
    return copy


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix=_FOLDER)  # removed at the end of the process
