"""A folder of results kept between runs: an entry is there whole and unchanged, or not at all.

    ids-0a1b….../          an entry: the kind and the SHA-256 of everything that it was made from
        manifest.json      size and SHA-256 of each of its files
        train.arrow …
    making-k3j2h1/         an entry on its way in, or on its way out

Whoever takes an entry gets files of his own (other names of the same bytes, or copies where the
disk is another), and checks those. So no lock is needed: an entry may be put twice, or removed at
any moment, and nobody that has taken it notices.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dragoman.storage import sha256

UNUSED_DAYS = 30  # an entry that nobody took for so long is removed
LARGEST_BYTES = 10 * 2**30  # beyond so much in all, those unused for longest are removed

_MANIFEST = "manifest.json"
_LONGEST_MANIFEST_BYTES = 1 << 16
_MAKING = "making-"
_MAKING_DAYS = 1  # what is older was left by a run that died
_ENTRY = re.compile(r"[a-z]+-[0-9a-f]{64}")
_DAY_S = 86_400.0


def find_default_folder() -> Path | None:
    """Return the user's folder for what can be made again: in XDG_CACHE_HOME, or in ~/.cache.

    None: the user has no home, as in some containers; nothing is kept then.
    """
    # A relative path there counts as none: XDG Base Directory Specification 0.8.
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named / "dragoman"
    try:
        return Path.home() / ".cache" / "dragoman"
    except RuntimeError:
        return None


def make_key(kind: str, ingredients: Mapping[str, object]) -> str:
    """Return the name of the entry that is made of `ingredients`, which are plain JSON values."""
    text = json.dumps(ingredients, sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()}"


class Cache:
    """The entries in `folder`, which is made when the first is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, key: str, names: Sequence[str], into: Path) -> bool:
        """Put the files `names` of the entry into the folder `into`, and return whether it was there.

        An entry that is not whole, has other files or has changed is removed, and counts as none.
        """
        entry = self.folder / key
        if not os.access(entry, os.R_OK | os.X_OK):
            return False
        with tempfile.TemporaryDirectory(prefix=".taking-", dir=into) as taken:
            try:
                for name in names:
                    _link_or_copy(entry / name, Path(taken) / name)
                is_whole = _read_manifest(entry) == _describe(Path(taken), names)
            except (OSError, ValueError):
                is_whole = False
            if not is_whole:
                self.remove(key)
                return False
            for name in names:
                (Path(taken) / name).replace(into / name)
        # By this, `prune` knows when it was used; it fails where the folder is read-only, or where
        # another run has just removed the entry.
        with suppress(OSError):
            os.utime(entry)
        return True

    def keep(self, key: str, files: Sequence[Path]) -> None:
        """Make an entry of `files`, under their names; one that is there already stays.

        Raises:
            OSError: The folder cannot be written.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=_MAKING, dir=self.folder))
        try:
            for file in files:
                _link_or_copy(file, making / file.name)
            manifest = _describe(making, [file.name for file in files])
            (making / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
            try:
                making.rename(self.folder / key)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another run was quicker
                    raise
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def remove(self, key: str) -> None:
        """Remove an entry, as far as the folder can be written."""
        try:
            leaving = tempfile.mkdtemp(prefix=_MAKING, dir=self.folder)
        except OSError:
            return
        with suppress(OSError):  # another run may have removed it
            # At one stroke: nobody finds half of it.
            (self.folder / key).rename(Path(leaving) / key)
        shutil.rmtree(leaving, ignore_errors=True)

    def prune(
        self, unused_days: float = UNUSED_DAYS, largest_bytes: int = LARGEST_BYTES
    ) -> list[str]:
        """Remove each entry that was not used for `unused_days`; then, as long as those that are left
        have more than `largest_bytes`, the one that was not used for longest.

        Nothing else in the folder is touched. Returns the keys of the removed entries.
        """
        now_s = time.time()
        entries = self._list_entries()
        total = sum(size for _, _, size in entries)
        removed = []
        for key, used_s, size in entries:
            if now_s - used_s > unused_days * _DAY_S or total > largest_bytes:
                self.remove(key)
                removed.append(key)
                total -= size
        for left in self.folder.glob(f"{_MAKING}*"):
            if now_s - _modified_s(left) > _MAKING_DAYS * _DAY_S:
                shutil.rmtree(left, ignore_errors=True)
        return removed

    def _list_entries(self) -> list[tuple[str, float, int]]:
        """Return key, time of the last use and size of each entry, the longest unused first."""
        entries = []
        try:
            for entry in self.folder.iterdir():
                if _ENTRY.fullmatch(entry.name) and entry.is_dir():
                    size = sum(file.lstat().st_size for file in entry.iterdir())
                    entries.append((entry.name, _modified_s(entry), size))
        except OSError:
            return []  # no such folder, or another run removes an entry just now
        return sorted(entries, key=lambda entry: entry[1])


def _modified_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _describe(folder: Path, names: Sequence[str]) -> dict[str, list[object]]:
    return {name: [(folder / name).stat().st_size, sha256(folder / name)] for name in sorted(names)}


def _read_manifest(entry: Path) -> object:
    with (entry / _MANIFEST).open("rb") as file:
        return json.loads(file.read(_LONGEST_MANIFEST_BYTES))
