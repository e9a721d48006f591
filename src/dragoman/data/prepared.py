"""What a run finds in its pairs before it trains, kept for the next run: the statistics, tokens and ids.

Two entries of the cache, because the settings that ids are made with depend on the statistics. Each
is known by everything that it is made from: the bytes and names of the files, the settings, the
code. What none of it changes (the sizes of the model, the folder of the run) finds it again.
"""

import hashlib
import platform
import stat
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dragoman.data.cache import LARGEST_BYTES, Cache, find_default_folder, make_key
from dragoman.data.folder import Findings, list_files, read_findings, read_json, write_json
from dragoman.errors import DataError
from dragoman.reading.statistics import PairStatistics
from dragoman.settings import DataSettings, Settings
from dragoman.storage import sha256
from dragoman.tokenizers.pair_tokenizer import PairTokenizer

_FORMAT = 2
_FEWEST_CHARACTERS = 1_000_000  # on both sides together: less is prepared in under a second
_STATISTICS = "statistics.json"
_CODE = ("settings.py", "reading/*.py", "tokenizers/*.py", "data/*.py", "training/datamodule.py")


class PreparedData:
    """Finds, or keeps, what was prepared of the files of a run.

    `told` says what became of it, for people; "" where nothing is kept, or nothing is worth it.

    Args:
        pairs: The files of the training pairs.
        data: Names the other files, and the cache; none: nothing is found or kept.
        folder: Of the run's own, for its data: `find_ids` puts them there, or who prepares.
    """

    def __init__(self, pairs: Sequence[str | Path], data: DataSettings, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Sequence[str | Path]] = {
            "pairs": list(pairs),
            "valid": data.valid,
            "test": data.test,
        }
        self._statistics_key = self._ids_key = ""
        self.told = ""
        self._cache = _open_cache(data.cache)
        self._digests = _digest(self._files)

    @property
    def sha256(self) -> dict[str, str]:
        """The SHA-256 of each file as it was at the start; of none where one is no regular file."""
        return {name: digest for files in (self._digests or {}).values() for name, digest in files}

    def find_statistics(self, data: DataSettings) -> PairStatistics | None:
        """Return the statistics of the pairs, if it was kept."""
        if self._digests is None or self._cache is None:
            return None
        made_from = {**_list_tools(), "files": self._digests["pairs"], "data": _dump(data)}
        self._statistics_key = make_key("statistics", made_from)
        if not self._cache.take(self._statistics_key, [_STATISTICS], self._folder):
            return None
        try:
            return TypeAdapter(PairStatistics).validate_python(
                read_json(self._folder / _STATISTICS)
            )
        except ValueError:
            self._cache.remove(self._statistics_key)
            return None

    def find_ids(self, settings: Settings) -> tuple[PairTokenizer, Findings] | None:
        """Return the tokenizer and the findings, and put the ids in place, if they were kept.

        `settings` are resolved; only those of data and tokenizer count.
        """
        if self._digests is None or self._cache is None:
            return None
        made_from = {
            **_list_tools(),
            "files": self._digests,
            "data": _dump(settings.data),
            "tokenizer": settings.tokenizer.model_dump(mode="json"),
        }
        self._ids_key = make_key("ids", made_from)
        names = [file.name for file in list_files(self._folder)]
        if not self._cache.take(self._ids_key, names, self._folder):
            return None
        try:
            found = read_findings(self._folder)
        except DataError:
            self._cache.remove(self._ids_key)
            return None
        self.told = f"prepared data: from the cache {self._cache.folder}"
        return found

    def keep(self, statistics: PairStatistics) -> None:
        """Keep what was prepared, and lies whole in the folder, if it is worth it.

        Nothing is kept of files that have changed since they were looked at first.
        """
        sides = statistics.source.mean_characters + statistics.target.mean_characters
        if self._digests is None or self._cache is None:
            return
        if statistics.num_pairs * sides < _FEWEST_CHARACTERS:
            return
        write_json(self._folder / _STATISTICS, asdict(statistics))
        files = list_files(self._folder)
        size = sum(file.stat().st_size for file in files)
        if size > LARGEST_BYTES:
            self.told = (
                f"prepared data: not kept, {size / 2**30:,.1f} GiB are more than the cache has"
            )
        elif _digest(self._files) != self._digests:
            self.told = "prepared data: not kept, the files have changed while they were read"
        else:
            try:
                self._cache.keep(self._statistics_key, [self._folder / _STATISTICS])
                self._cache.keep(self._ids_key, files)
                self.told = f"prepared data: kept in the cache {self._cache.folder}"
            except OSError as error:
                self.told = (
                    f"prepared data: not kept, {self._cache.folder} cannot be written "
                    f"({error.strerror})"
                )


def _open_cache(setting: str) -> Cache | None:
    if setting in ("none", ""):
        return None
    folder = find_default_folder() if setting == "auto" else Path(setting)
    if folder is None:
        return None
    cache = Cache(folder)
    cache.prune()
    return cache


def _digest(files: dict[str, Sequence[str | Path]]) -> dict[str, list[list[str]]] | None:
    """Return name and SHA-256 of each file; None if one is missing, or is no file that stays.

    The names count, because notes name rows by their file, and a suffix tells the format.
    """
    try:
        paths = [Path(name) for names in files.values() for name in names]
        if not all(stat.S_ISREG(path.stat().st_mode) for path in paths):
            return None
        return {
            role: [[str(name), sha256(Path(name))] for name in names]
            for role, names in files.items()
        }
    except (OSError, ValueError):
        return None  # whoever reads them says what is wrong


def _list_tools() -> dict[str, object]:
    """Return what else the result depends on: versions, and the code that makes it."""
    root = Path(__file__).parents[1]  # the package
    code = hashlib.sha256()
    for path in sorted(path for pattern in _CODE for path in root.glob(pattern)):
        code.update(path.read_bytes())
    return {
        "format": _FORMAT,
        "code": code.hexdigest(),
        "versions": {name: version(name) for name in ("dragoman", "tokenizers", "pyarrow")},
        "python": platform.python_version(),
        "byte order": sys.byteorder,
    }


def _dump(data: DataSettings) -> dict[str, Any]:
    return data.model_dump(mode="json", exclude={"cache"})
