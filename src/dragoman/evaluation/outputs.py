"""Outputs and references that lie in files, line by line, whatever system wrote them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from dragoman.characters import find_surrogate
from dragoman.errors import DataError
from dragoman.evaluation.rows import Row
from dragoman.reading.text_files import open_text_file, read_blocks


def read_outputs(
    hypotheses: Path, references: Sequence[Path], sources: Path | None = None
) -> list[Row]:
    """Return a row for each line of `hypotheses`, with the same line of each of `references`.

    A file that ends in .jsonl holds an object a line, as `predict` and `evaluate` write them: its
    "text", "hypothesis" or "target" is taken, of a source file its "source". An empty line of a
    second or further file of references is none.

    Raises:
        DataError: A file cannot be read, has a line of another kind, or other many lines.
    """
    names = ("text", "hypothesis", "target", "reference")
    outputs = list(_read_lines(hypotheses, names))
    first, *others = [list(_read_lines(path, names)) for path in references]
    read = [(hypotheses, outputs), *zip(references, (first, *others), strict=True)]
    texts = [""] * len(outputs)
    if sources is not None:
        texts = list(_read_lines(sources, ("source",)))
        read.append((sources, texts))
    for path, lines in read:
        if len(lines) != len(outputs):
            raise DataError(
                f"{path}: {len(lines):,} lines, but {hypotheses} has {len(outputs):,}; line by "
                "line they belong together"
            )
    if not outputs:
        raise DataError(f"{hypotheses}: the file is empty")
    return [
        Row(
            source=texts[place],
            references=(first[place], *(lines[place] for lines in others if lines[place])),
            hypothesis=output,
            line=place + 1,
            file=str(references[0]),
        )
        for place, output in enumerate(outputs)
    ]


def _read_lines(path: Path, names: Sequence[str]) -> Iterator[str]:
    is_jsonl = ".jsonl" in path.suffixes
    with open_text_file(path) as stream:
        for block in read_blocks(stream, str(path)):
            for number, line in enumerate(block.lines, start=block.first):
                if not block.is_clean and not line.isascii():
                    _check_text(line, f"{path}:{number}")
                yield _take_value(line, names, f"{path}:{number}") if is_jsonl else line


def _check_text(line: str, place: str) -> None:
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: byte at character {error.start + 1} is not UTF-8") from error


def _take_value(line: str, names: Sequence[str], place: str) -> str:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from error
    found = (
        [content[name] for name in names if name in content] if isinstance(content, dict) else []
    )
    if not found or not isinstance(found[0], str):
        raise DataError(f"{place}: expected an object with the text under {' or '.join(names)}")
    if find_surrogate(found[0]) is not None:
        raise DataError(f"{place}: it holds a lone surrogate, which is no text")
    return found[0]
