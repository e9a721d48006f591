"""Prepared data of earlier runs in the user's cache folder, found by what they were made from.

    data-0a1b…/   an entry: the files of `RunData`, under their names
    text-0a1b…/ ids-0a1b…/   the text of one large file of pairs, part by part, and its ids

An entry is written under a temporary name, renamed, and never changed; its digests are checked on
use. `take` gives the caller copies, so an entry may be removed at any time, without a lock.
"""

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from dragoman.configuration import list_set_values
from dragoman.settings import Settings
from dragoman.storage import sha256

# Raise it whenever the same files and settings give other statistics, tokens, ids or file layouts.
FORMAT = 15
NOT_IN_KEYS = ("cache", "processes", "weights")  # settings of data that change no entry
UNUSED_DAYS = 30  # entries unused for so long are removed
LARGEST_BYTES = 10 * 2**30  # then the entries unused for longest are removed, down to this size

# Earlier versions made entries with other prefixes: they are pruned as well.
_ENTRY, _STAGED = re.compile(r"[a-z]+-[0-9a-f]{64}"), ".staged-"
_DIGESTS = "digests.json"  # of the other files of an entry
_DAY_S = 86_400.0  # temporary folders that are older were left by a run that died


def make_key(digests: Mapping[str, object], settings: Settings) -> str:
    """Return the name of the entry for these files and the settings typed for data and tokenizer."""
    chosen = {
        name: value
        for name, value in list_set_values(settings)
        if name.startswith(("data.", "tokenizer."))
        and name.removeprefix("data.") not in NOT_IN_KEYS
    }
    return name_entry("data", {"files": digests, "settings": chosen})


def name_entry(kind: str, made_from: Mapping[str, object]) -> str:
    """Return the name of an entry of this kind; `made_from`: all that it depends on, as JSON."""
    content = {
        "format": FORMAT,
        "versions": {name: version(name) for name in ("dragoman", "tokenizers", "pyarrow")},
        "python": platform.python_version(),
        **made_from,
    }
    text = json.dumps(content, sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()}"


class Cache:
    """The entries in `folder`, which is made when the first entry is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, setting: str) -> "Cache | None":
        """Return the cache of the setting data.cache, pruned; None if there is none.

        auto: dragoman in XDG_CACHE_HOME or ~/.cache; a user without a home has none.
        """
        if setting in ("none", ""):
            return None
        folder = Path(setting)
        if setting == "auto":
            # A relative path there is ignored: XDG Base Directory Specification 0.8.
            named = Path(os.environ.get("XDG_CACHE_HOME", ""))
            try:
                folder = (named if named.is_absolute() else Path.home() / ".cache") / "dragoman"
            except RuntimeError:
                return None
        cache = cls(folder)
        cache.prune()
        return cache

    def take(self, key: str, into: Path) -> dict[str, str]:
        """Copy the files of an entry into the folder `into`; return the SHA-256 of each, by name.

        Without such an entry, or if its files are damaged, nothing is copied, and the result is empty.
        """
        entry, digests = self.folder / key, dict[str, str]()
        try:
            with tempfile.TemporaryDirectory(prefix=".taking-", dir=into) as name:
                taken = Path(name)
                for file in list(entry.iterdir()):
                    shutil.copyfile(file, taken / file.name)
                    digests[file.name] = sha256(taken / file.name)
                del digests[_DIGESTS]
                if json.loads((taken / _DIGESTS).read_bytes()) != digests:
                    raise ValueError(_DIGESTS)
                for file_name in digests:
                    (taken / file_name).replace(into / file_name)
        except OSError:  # no such entry, or another run has just removed it
            return {}
        except (ValueError, KeyError):
            self.remove(key)
            return {}
        with suppress(OSError):  # the folder may be read-only
            os.utime(entry)  # `prune` goes by it
        return digests

    def keep(self, key: str, folder: Path, digests: Mapping[str, str]) -> None:
        """Make an entry of the files in `folder` with these names; `digests`: the SHA-256 of each."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=_STAGED, dir=self.folder))
        try:
            for name in digests:
                shutil.copyfile(folder / name, staged / name)
            (staged / _DIGESTS).write_text(json.dumps(digests))
            staged.rename(self.folder / key)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another run was faster
                raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def remove(self, key: str) -> None:
        """Remove an entry, as far as the folder can be written; `take` refuses half of one."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def prune(self, largest_bytes: int = LARGEST_BYTES) -> list[str]:
        """Remove entries unused for `UNUSED_DAYS`; then those unused for longest over the limit.

        Nothing else in the folder is touched. Returns the keys of the removed entries.
        """
        now_s, removed, entries = time.time(), list[str](), list[tuple[float, str, int]]()
        with suppress(OSError):  # no such folder, or another run is removing an entry
            for path in self.folder.iterdir():
                used_s = path.stat().st_mtime
                if path.name.startswith(_STAGED) and now_s - used_s > _DAY_S:
                    shutil.rmtree(path, ignore_errors=True)
                elif _ENTRY.fullmatch(path.name) and path.is_dir():
                    size = sum(file.lstat().st_size for file in path.iterdir())
                    entries.append((used_s, path.name, size))
        total = sum(size for *_, size in entries)
        for used_s, key, size in sorted(entries):
            if now_s - used_s > UNUSED_DAYS * _DAY_S or total > largest_bytes:
                self.remove(key)
                removed.append(key)
                total -= size
        return removed
