"""The data of a run on disk: ids by split, the held-out pairs as text, the tokenizer, what was found.

    train.arrow valid.arrow test.arrow   ids, memory-mapped
    valid.jsonl test.jsonl               the held-out pairs: what is scored in the end
    tokenizer.json findings.json

With it a run needs its files of pairs no more: they may change, or go, while it trains for hours.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from pydantic import TypeAdapter, ValidationError

from dragoman.data.encoding import Split
from dragoman.errors import DataError, ModelFolderError
from dragoman.reading.pairs import Pair
from dragoman.tokenizers.pair_tokenizer import PairTokenizer

SPLITS: tuple[Split, ...] = ("train", "valid", "test")

_HELD_OUT: tuple[Split, ...] = ("valid", "test")
_TOKENIZER, _FINDINGS = "tokenizer.json", "findings.json"
_LONGEST_BYTES = 1 << 28  # of a file that is read at once
_PAIR = TypeAdapter(Pair)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found while the ids were written."""

    num_rows: dict[Split, int]
    notes: list[str]  # for people
    file: str  # the file of the training pairs, by whose lines rows are named


def list_files(folder: Path) -> list[Path]:
    """Return every file of the data in `folder`."""
    held_out = [_name_texts(split) for split in _HELD_OUT]
    names = [*map(name_ids, SPLITS), *held_out, _TOKENIZER, _FINDINGS]
    return [folder / name for name in names]


def name_ids(split: Split) -> str:
    """Return the name of the file with the ids of `split`."""
    return f"{split}.arrow"


def write_findings(folder: Path, tokenizer: PairTokenizer, findings: Findings) -> None:
    """Write what goes with ids and texts that are there already."""
    write_json(folder / _FINDINGS, asdict(findings))
    tokenizer.save(folder / _TOKENIZER)


def read_findings(folder: Path) -> tuple[PairTokenizer, Findings]:
    """Return what `write_findings` wrote.

    Raises:
        DataError: A file is missing, or is not what it should be.
    """
    if missing := [path.name for path in list_files(folder) if not path.is_file()]:
        raise DataError(
            f"{folder}: the data of the run are not whole: {', '.join(missing)} missing"
        )
    try:
        findings = TypeAdapter(Findings).validate_python(read_json(folder / _FINDINGS))
        return PairTokenizer.load(folder / _TOKENIZER), findings
    except (ValueError, ModelFolderError) as error:
        raise DataError(f"{folder}: the data of the run cannot be read: {error}") from error


def keep_held_out(
    pairs: Iterable[tuple[Split, Pair]], folder: Path
) -> Iterator[tuple[Split, Pair]]:
    """Yield `pairs`; write those that are not trained on into `folder`, as they go by."""
    with ExitStack() as stack:
        files: dict[Split, TextIO] = {
            split: stack.enter_context((folder / _name_texts(split)).open("w", encoding="ascii"))
            for split in _HELD_OUT
        }
        for split, pair in pairs:
            if split in files:
                files[split].write(json.dumps(pair._asdict()) + "\n")
            yield split, pair


def read_held_out(folder: Path, split: Split) -> Iterator[Pair]:
    """Yield the pairs of `split` that `keep_held_out` wrote.

    Raises:
        DataError: The file is missing, or is not what it should be.
    """
    path = folder / _name_texts(split)
    try:
        with path.open(encoding="ascii") as file:
            for line in file:
                yield _PAIR.validate_json(line)
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the held-out pairs of the run cannot be read: {error}") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content`, sets as lists; a file that is there is not written into, but replaced."""
    path.unlink(missing_ok=True)  # it may be another name of a file in the cache
    path.write_text(json.dumps(content, default=sorted), encoding="utf-8")


def read_json(path: Path) -> object:
    """Return what `write_json` wrote.

    Raises:
        ValueError: It is no JSON, or too long.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return json.loads(file.read(_LONGEST_BYTES))


def _name_texts(split: Split) -> str:
    return f"{split}.jsonl"
