"""The decoding settings, resolved for one vocabulary: tokens as ids, a constraint ready to use."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dragoman.configuration import suggest
from dragoman.decoding.choices import constrain_to_choices
from dragoman.decoding.grammars import constrain_to_grammar
from dragoman.errors import SettingsError
from dragoman.settings import DecodingSettings
from dragoman.tokenizers.tokenizer import PairTokenizer


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
