"""Outputs from a list: at each step, the tokens that lead on towards one of them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dragoman.errors import DataError, SettingsError
from dragoman.reading.row_errors import EMPTY_LINE, RowErrors, find_line_error
from dragoman.reading.text_files import Block, open_text_file, read_blocks
from dragoman.tokenizers.pair_tokenizer import PairTokenizer
from dragoman.tokenizers.special_ids import UNKNOWN_ID

_UNKNOWN_SYMBOL = "symbol that the target's vocabulary lacks"


@dataclass(frozen=True, eq=False)
class _Choices:
    """The ids of each output with its end, one output behind the other, in their order as lists."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    """Where each output begins in `ids`."""
    vocab_size: int


@dataclass(frozen=True, eq=False)
class ChoiceState:
    """Where a hypothesis stands: the choices `first` to `last` - 1 begin with its `depth` tokens.

    Of "cab", "car" and "dot", in characters, "c" and "d" may come first; after "c" stand 0 to 1 at
    depth 1, and "a" may come; after "cab", 0 to 0 at depth 3, the end.
    """

    choices: _Choices
    first: int
    last: int
    depth: int = 0

    def allowed(self) -> NDArray[np.bool_]:
        """Return which ids may come next, (V,)."""
        return self._allowed

    def advance(self, token: int) -> "ChoiceState":
        """Return the state after `token`, which was allowed and is not the end."""
        first = self.first + int(np.searchsorted(self._column, token, side="left"))
        last = self.first + int(np.searchsorted(self._column, token, side="right"))
        assert first < last, f"token {token} was not allowed"
        return ChoiceState(self.choices, first, last, self.depth + 1)

    @cached_property
    def _column(self) -> NDArray[np.int32]:
        """The next id of each choice; they rise, for the choices are sorted and begin alike."""
        return self.choices.ids[self.choices.starts[self.first : self.last] + self.depth]

    @cached_property
    def _allowed(self) -> NDArray[np.bool_]:
        allowed = np.zeros(self.choices.vocab_size, dtype=np.bool_)
        allowed[self._column] = True
        allowed.flags.writeable = False
        return allowed


def constrain_to_choices(path: Path, tokenizer: PairTokenizer) -> ChoiceState:
    """Return the state before an output that is one of the lines of the file at `path`.

    Each is spelt as the tokenizer spells it in training. A line that comes twice counts once; empty
    lines at the end of the file are none.

    Raises:
        SettingsError: The file cannot be read, has no line, or has lines that no output can be:
            empty, not UTF-8, or with a symbol that is not in the target's vocabulary.
    """
    try:
        choices, faults = _read_choices(path, tokenizer)
    except DataError as error:
        raise SettingsError(f"decoding.choices: {error}") from error
    if faults.total:
        raise SettingsError(
            f"decoding.choices: {path}: no output can be these lines ({faults.total}); mend them or "
            f"take them out:\n{faults.report()}"
        )
    if not choices:
        raise SettingsError(f"decoding.choices: {path} is empty; write one output a line")
    return _sort(choices, tokenizer.target_vocab_size)


def _read_choices(path: Path, tokenizer: PairTokenizer) -> tuple[list[list[int]], RowErrors]:
    """Return the ids of each line with its end, and what is wrong with the others."""
    choices: list[list[int]] = []
    faults = RowErrors()
    with open_text_file(path) as stream:
        for block in read_blocks(stream, str(path), drops_blank_end=True):
            lines = dict(_find_texts(path, block, faults))
            encoded = tokenizer.encode_targets(list(lines.values()))
            for (line, text), ids in zip(lines.items(), encoded, strict=True):
                if UNKNOWN_ID in ids:
                    found = f"{text[:40]!r} has a {_UNKNOWN_SYMBOL}"
                    faults.add(path, line, _UNKNOWN_SYMBOL, found)
                else:
                    choices.append(ids[1:])  # without the begin
    return choices, faults


def _find_texts(path: Path, block: Block, faults: RowErrors) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that may be an output."""
    for line, text in enumerate(block.lines, start=block.first):
        fault = None if block.is_clean else find_line_error(str(path), line, text)
        if not text:
            faults.add(path, line, EMPTY_LINE, "the line is empty")
        elif fault is not None:
            faults.add(path, line, fault.kind, fault.detail)
        else:
            yield line, text


def _sort(choices: list[list[int]], vocab_size: int) -> ChoiceState:
    ordered = sorted(set(map(tuple, choices)))
    lengths = np.fromiter(map(len, ordered), dtype=np.int64, count=len(ordered))
    flat = itertools.chain.from_iterable(ordered)
    ids = np.fromiter(flat, dtype=np.int32, count=int(lengths.sum()))
    starts = lengths.cumsum() - lengths
    return ChoiceState(_Choices(ids, starts, vocab_size), first=0, last=len(ordered))
