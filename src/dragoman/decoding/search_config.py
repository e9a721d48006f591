"""The decoding settings, resolved for one vocabulary: tokens as ids, a constraint ready to use.

Choices are one here; expressions, schemas and grammars are in `grammars`."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dragoman.configuration import suggest
from dragoman.decoding.grammars import constrain_to_grammar
from dragoman.errors import DataError, SettingsError
from dragoman.reading.row_errors import EMPTY_LINE, RowErrors, find_line_error
from dragoman.reading.text_files import open_text_file, read_blocks
from dragoman.settings import DecodingSettings
from dragoman.tokenizers.tokenizer import UNKNOWN_ID, PairTokenizer

_UNKNOWN_SYMBOL = "symbol that the target's vocabulary lacks"


@runtime_checkable
class ConstraintState(Protocol):
    """State of a constraint after the tokens of one hypothesis: an immutable value."""

    def allowed(self) -> NDArray[np.bool_]:
        """Return which ids of the target's vocabulary may come next, the end included: (V,)."""
        ...

    def advance(self, token: int) -> "ConstraintState":
        """Return the state after `token`, which was allowed."""
        ...


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The settings of a search, and the values that depend on the target's vocabulary."""

    decoding: DecodingSettings
    forbidden_ids: tuple[int, ...] = ()
    constraint: ConstraintState | None = None  # before the first token; None: unconstrained


def resolve_search(
    decoding: DecodingSettings, tokenizer: PairTokenizer, fields: Sequence[str] = ()
) -> SearchConfig:
    """Resolve `decoding` for the vocabularies of `tokenizer`, and `fields` of the model's records.

    Raises:
        SettingsError: A forbidden token is not in the vocabulary, or a constraint is invalid.
    """
    ids = {name: id_ for id_, name in enumerate(tokenizer.target_names())}
    if unknown := [token for token in decoding.forbidden_tokens if token not in ids]:
        raise SettingsError(
            f"decoding.forbidden_tokens: {unknown[0]!r} is not in the target's vocabulary"
            f"{suggest(unknown[0], list(ids))}"
        )
    constraint: ConstraintState | None = None
    constraints = ("choices", "regex", "json_schema", "grammar")
    if tokenizer.pointers and (given := [one for one in constraints if getattr(decoding, one)]):
        raise SettingsError(
            f"decoding.{given[0]}: this model points to the words of its source, which a constraint "
            "does not know; train it with tokenizer.pointers false"
        )
    if decoding.choices:
        constraint = constrain_to_choices(Path(decoding.choices), tokenizer)
    elif decoding.regex or decoding.json_schema or decoding.grammar:
        constraint = constrain_to_grammar(decoding, tokenizer, fields)
    return SearchConfig(
        decoding=decoding,
        forbidden_ids=tuple(ids[token] for token in decoding.forbidden_tokens),
        constraint=constraint,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class ChoiceState:
    """State after a hypothesis: the choices `first` to `last` - 1 begin with its `depth` tokens.

    Of "cab", "car" and "dot", in characters, "c" and "d" may come first. After "c", choices 0 to 1
    remain at depth 1, and "a" may come; after "cab", choice 0 at depth 3, and the end may come.
    """

    ids: NDArray[np.int32]
    """Those of all choices, each with its end, concatenated in sorted order."""
    starts: NDArray[np.int64]
    """Where each choice begins in `ids`."""
    vocab_size: int
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
        return replace(self, first=first, last=last, depth=self.depth + 1)

    @cached_property
    def _column(self) -> NDArray[np.int32]:
        """The next id of each choice, ascending: the choices are sorted and share a prefix."""
        return self.ids[self.starts[self.first : self.last] + self.depth]

    @cached_property
    def _allowed(self) -> NDArray[np.bool_]:
        allowed = np.zeros(self.vocab_size, dtype=np.bool_)
        allowed[self._column] = True
        allowed.flags.writeable = False
        return allowed


def constrain_to_choices(path: Path, tokenizer: PairTokenizer) -> ChoiceState:
    """Return the initial state for outputs that are lines of the file at `path`.

    Lines are tokenized as in training. Duplicates and empty lines at the end of the file are
    ignored.

    Raises:
        SettingsError: The file cannot be read, is empty, or has invalid lines: empty, not UTF-8, or
            with a symbol that is not in the target's vocabulary.
    """
    try:
        choices, errors = _read_choices(path, tokenizer)
    except DataError as error:
        raise SettingsError(f"decoding.choices: {error}") from error
    if errors.total:
        raise SettingsError(
            f"decoding.choices: {path}: {errors.total} invalid lines; correct or remove them:\n"
            f"{errors.report()}"
        )
    if not choices:
        raise SettingsError(f"decoding.choices: {path} is empty; write one output per line")
    ordered = sorted(set(map(tuple, choices)))
    lengths = np.fromiter(map(len, ordered), dtype=np.int64, count=len(ordered))
    flat = itertools.chain.from_iterable(ordered)
    ids = np.fromiter(flat, dtype=np.int32, count=int(lengths.sum()))
    starts = lengths.cumsum() - lengths
    size = tokenizer.target_vocab_size
    return ChoiceState(ids=ids, starts=starts, vocab_size=size, first=0, last=len(ordered))


def _read_choices(path: Path, tokenizer: PairTokenizer) -> tuple[list[list[int]], RowErrors]:
    """Return the ids of each valid line with its end, and the errors of the others."""
    choices: list[list[int]] = []
    errors = RowErrors()
    with open_text_file(path) as stream:
        for block in read_blocks(stream, str(path), drops_blank_end=True):
            texts: dict[int, str] = {}
            for line, text in enumerate(block.lines, start=block.first):
                error = None if block.is_clean else find_line_error(str(path), line, text)
                if not text:
                    errors.add(path, line, EMPTY_LINE, "the line is empty")
                elif error is not None:
                    errors.add(path, line, error.kind, error.detail)
                else:
                    texts[line] = text
            encoded = tokenizer.encode_targets(list(texts.values()))
            for (line, text), ids in zip(texts.items(), encoded, strict=True):
                if UNKNOWN_ID in ids:
                    names = tokenizer.target.name_unknown(text)
                    found = f"{text[:40]!r} has a {_UNKNOWN_SYMBOL}: {names}"
                    errors.add(path, line, _UNKNOWN_SYMBOL, found)
                else:
                    choices.append(ids[1:])  # without the begin
    return choices, errors
