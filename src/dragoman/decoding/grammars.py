"""Outputs of a language: a regular expression, a JSON schema or a grammar, by llguidance.

Every kind of tokens can spell it: llguidance sees the bytes of each, never our tokenizer. For
symbols, which a separator joins, it has four tokens each: "b", as the first symbol comes, " b", as
later ones do, and both with the separator behind them, "b " and " b ", which tell whether another
symbol may follow.
"""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dragoman.decoding.grammar_settings import (
    REMEDIES,
    import_llguidance,
    shorten,
    write_grammars,
)
from dragoman.errors import SettingsError
from dragoman.settings import DecodingSettings
from dragoman.tokenizers.pair_tokenizer import PairTokenizer
from dragoman.tokenizers.special_ids import EOS_ID

_MOST_BYTES: Final = 1024  # of a token: llguidance 1.9.1 panics at a longer one


@runtime_checkable
class _Matcher(Protocol):
    """What is used of llguidance.LLMatcher: where one output stands in its grammar."""

    def deep_copy(self) -> "_Matcher": ...
    def consume_token(self, sampled_token: int) -> bool: ...
    def compute_bitmask(self) -> bytes: ...
    def validate_tokens(self, tokens: list[int]) -> int: ...
    def is_accepting(self) -> bool: ...
    def is_error(self) -> bool: ...
    def get_error(self) -> str: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class _Language:
    """What all states of a constraint share."""

    setting: str
    """Its name, for faults: "regex", "json_schema" or "grammar"."""
    pieces: Sequence[bytes | None]
    """The bytes that each id of the target spells; None: none."""
    separator: bytes
    is_nfc: bool
    """Whether an output is composed to NFC before it is read."""

    @cached_property
    def has_text(self) -> NDArray[np.bool_]:
        """Which ids spell something, (V,); an empty symbol does not, before the first separator."""
        return np.array([piece is not None for piece in self.pieces])

    @cached_property
    def empty_symbol(self) -> int | None:
        """The id of the symbol without text, which "a  b" has in its middle; None: there is none."""
        return self.pieces.index(b"") if b"" in self.pieces else None

    def can_end(self, text: bytes) -> bool:
        """Whether `text`, which the grammar accepts, is read by others as the grammar has read it.

        It must be UTF-8 (a negated terminal of a grammar also accepts other bytes) and, if outputs
        are composed, stay as it is then. JSON must be such that Python reads it, and names no key
        of an object twice: llguidance 1.9.1 counts one that comes twice as two.
        """
        try:
            decoded = text.decode()
            if self.setting == "json_schema":
                json.loads(decoded, object_pairs_hook=_refuse_twins)
        except (ValueError, RecursionError):
            return False
        return not self.is_nfc or unicodedata.is_normalized("NFC", decoded)


@dataclass(frozen=True, kw_only=True, eq=False)
class GrammarState:
    """Where a hypothesis stands in the language: a value; its matcher is never advanced."""

    language: _Language
    matcher: _Matcher
    text: bytes = b""
    is_first: bool = True

    def allowed(self) -> NDArray[np.bool_]:
        """Return which ids may come next, (V,); none where the vocabulary cannot spell a match.

        Raises:
            SettingsError: The constraint is too complex to go on.
        """
        return self._allowed

    def advance(self, token: int) -> "GrammarState":
        """Return the state after `token`, which was allowed and is not the end.

        Raises:
            SettingsError: The constraint is too complex to go on.
        """
        language, piece = self.language, self.language.pieces[token]
        assert piece is not None, f"token {token} was not allowed"
        is_joined = bool(language.separator) and not self.is_first
        text = language.separator + piece if is_joined else piece
        matcher = self.matcher.deep_copy()
        if text and not matcher.consume_token(token + len(language.pieces) * is_joined):
            self._give_up(matcher.get_error())
        return GrammarState(
            language=language, matcher=matcher, text=self.text + text, is_first=False
        )

    @cached_property
    def _allowed(self) -> NDArray[np.bool_]:
        language = self.language
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        # llguidance 1.9.1 tells where nothing may come next by this error, and not by an empty mask.
        is_dead = self.matcher.is_error() and "NoExtensionBias" in self.matcher.get_error()
        if self.matcher.is_error() and not is_dead:
            self._give_up(self.matcher.get_error())
        masks = np.unpackbits(bits, bitorder="little").view(np.bool_)
        # The mask has the end in the middle of some lexemes, too: is_accepting is the one to ask.
        is_end = self.matcher.is_accepting() and language.can_end(self.text)
        allowed = self._find_tokens(masks, is_joined=not self.is_first)
        if self.is_first and language.empty_symbol is not None:
            is_begun = self._find_tokens(masks, is_joined=True).any()
            allowed[language.empty_symbol] = is_end or is_begun
        allowed[EOS_ID] = is_end
        allowed.flags.writeable = False
        return allowed

    def _find_tokens(self, masks: NDArray[np.bool_], *, is_joined: bool) -> NDArray[np.bool_]:
        """Return which tokens may come next, (V,), behind a separator or not, if there is one."""
        language, size = self.language, len(self.language.pieces)
        if not language.separator:
            return masks[:size] & language.has_text
        first = size * is_joined
        found = masks[first : first + size] & language.has_text
        # A symbol is whole: behind it comes the separator or the end. "ja" is no way to "jab".
        goes_on = masks[2 * size + first : 3 * size + first]
        for token in np.flatnonzero(found & ~goes_on).tolist():
            found[token] = self.matcher.validate_tokens([first + token, EOS_ID]) == 2
        return found

    def _give_up(self, message: str) -> None:
        setting = self.language.setting
        raise SettingsError(
            f"decoding.{setting}: it is too complex behind the output "
            f"{self.text[-40:].decode(errors='replace')!r}: {shorten(message, setting)}; "
            f"{REMEDIES[setting]}"
        )


def constrain_to_grammar(decoding: DecodingSettings, tokenizer: PairTokenizer) -> GrammarState:
    r"""Return the state before an output by `decoding.regex`, `json_schema` or `grammar`; one is set.

    A regular expression and a grammar mean what llguidance reads in them: \d and \w are Unicode's,
    as in Rust's regex crate; a terminal of a grammar takes as much as it can. JSON may have, where
    whitespace may stand, up to 16 blanks and a line break before them, and the keys of an object in
    the order of the schema; "x-guidance" in the schema sets other rules for whitespace.

    Costs 10 to 65 ms with 8,000 to 26,000 byte pieces, then 13 to 54 us a token of a hypothesis.

    Raises:
        SettingsError: It is broken, no output can match it, its file cannot be read, llguidance is
            not installed, or the tokens are decomposed (unicode_form nfd).
    """
    setting = next(name for name in REMEDIES if getattr(decoding, name))
    form = tokenizer.target.settings.unicode_form
    if form == "nfd":
        raise SettingsError(
            f"decoding.{setting}: the model writes letters and accents apart (its "
            "tokenizer.target.unicode_form is nfd), so that its tokens do not spell the output as it "
            "is read; take decoding.choices, or train with unicode_form nfc"
        )
    grammars = write_grammars(setting, getattr(decoding, setting))
    pieces = tokenizer.target.token_bytes()
    pieces += [None] * (tokenizer.target_vocab_size - len(pieces))  # features of the source
    language = _Language(
        setting=setting,
        pieces=pieces,
        separator=tokenizer.target.separator.encode(),
        is_nfc=form == "nfc",
    )
    state = GrammarState(language=language, matcher=_make_matcher(language, grammars))
    if not state.allowed().any():
        raise SettingsError(
            f"decoding.{setting}: no output can match: no token of the target's vocabulary begins "
            "one; change it, or take a model that was trained on such outputs"
        )
    return state


class _Vocabulary:
    """The tokens as llguidance.TokenizerWrapper takes them."""

    def __init__(self, language: _Language) -> None:
        # A byte of 0xFF, which is in no UTF-8, would mark a token of llguidance's as special.
        pieces = [b"" if p is None or b"\xff" in p else p for p in language.pieces]
        pieces[EOS_ID] = b"\xff</s>"
        if separator := language.separator:
            pieces += [
                b"" if piece is None else left + piece + right
                for left, right in ((separator, b""), (b"", separator), (separator, separator))
                for piece in language.pieces
            ]
        self.tokens = pieces
        self.eos_token_id = EOS_ID
        self.bos_token_id = None
        self.special_token_ids: list[int] = []

    def __call__(self, text: bytes) -> list[int]:
        raise NotImplementedError  # asked only for bytes that are forced: see grammar_settings


def _make_matcher(language: _Language, grammars: list[dict[str, Any]]) -> _Matcher:
    llguidance = import_llguidance(language.setting)
    vocabulary = _Vocabulary(language)
    if (longest := max(map(len, vocabulary.tokens))) > _MOST_BYTES:
        raise SettingsError(
            f"decoding.{language.setting}: the target's longest token has {longest} bytes, and "
            f"llguidance takes up to {_MOST_BYTES}; take decoding.choices"
        )
    # Without slices, which spare time with vocabularies far larger than ours, at 10-60 ms to begin.
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary), slices=[])
    matcher: _Matcher = llguidance.LLMatcher(
        tokenizer,
        json.dumps({"grammars": grammars}),
        log_level=0,
        limits=llguidance.LLParserLimits(verbose_errors=False),
    )
    if matcher.is_error():
        raise SettingsError(
            f"decoding.{language.setting}: {shorten(matcher.get_error(), language.setting)}\n"
            f"{REMEDIES[language.setting]}"
        )
    return matcher


def _refuse_twins(pairs: Sequence[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key comes twice")
