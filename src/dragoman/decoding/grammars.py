"""Constrain outputs to a regular expression, a JSON schema or a grammar, with llguidance.

This works for every kind of tokenizer: llguidance sees the bytes of each token, never our
tokenizer. A symbol, which a separator joins to the next, is four tokens for llguidance: "b" as the
first symbol, " b" as a later one, and both with a separator after them, "b " and " b ", which show
whether another symbol may follow.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from dragoman.errors import DataError, SettingsError, name_extra
from dragoman.reading.text_files import check_file
from dragoman.settings import DecodingSettings
from dragoman.tokenizers.tokenizer import EOS_ID, PairTokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

_MAX_TOKEN_BYTES: Final = 1024  # llguidance 1.9.1 panics at a longer token

# By default llguidance asks our tokenizer how to split bytes that must follow, and allows no other
# split. Off: the constraint masks what does not match, the model chooses among the rest.
_OPTIONS: Final = '\n%llguidance {"no_forcing": true}\n'

# By default llguidance allows any amount: an unsure model would emit nothing but whitespace.
_WHITESPACE: Final = r"[ \t]{1,16}|\r?\n[ \t]{0,16}"

_DOCS: Final = "https://github.com/guidance-ai/llguidance/blob/main/docs"
_REMEDIES: Final = {
    "regex": "write it as Rust's regex crate reads it, without look-around; the whole output "
    "must match, so that ^ and $ are not needed",
    "json_schema": f"change the schema; what is supported: {_DOCS}/json_schema.md",
    "grammar": f"change the grammar; how it is written: {_DOCS}/syntax.md",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Language:
    """The constants of a constraint, shared by all its states."""

    setting: str
    """Its name, for messages: "regex", "json_schema" or "grammar"."""
    pieces: Sequence[bytes | None]
    """The bytes of each id of the target; None: an id without text, like the end."""
    separator: bytes
    is_nfc: bool
    """Whether outputs are composed to NFC."""

    @cached_property
    def has_text(self) -> NDArray[np.bool_]:
        """Which ids have text, (V,); an empty symbol, too."""
        return np.array([piece is not None for piece in self.pieces])

    @cached_property
    def empty_symbol(self) -> int | None:
        """The id of the empty symbol, as in the middle of "a  b"; None: the vocabulary lacks it."""
        return self.pieces.index(b"") if b"" in self.pieces else None

    def can_end(self, text: bytes) -> bool:
        """Whether `text`, which the grammar accepts, is valid as a whole output.

        It must be UTF-8 (a negated terminal of a grammar also accepts other bytes) and, if outputs
        are composed, already composed. JSON must be readable by Python, without a duplicate key in
        an object: llguidance 1.9.1 counts a duplicate as another property.
        """
        try:
            decoded = text.decode()
            if self.setting == "json_schema":
                json.loads(decoded, object_pairs_hook=_refuse_duplicates)
        except (ValueError, RecursionError):
            return False
        return not self.is_nfc or unicodedata.is_normalized("NFC", decoded)


@dataclass(frozen=True, kw_only=True, eq=False)
class GrammarState:
    """State of a constraint after a hypothesis: a value; its matcher is never advanced."""

    language: _Language
    matcher: "LLMatcher"
    text: bytes = b""
    is_first: bool = True

    def allowed(self) -> NDArray[np.bool_]:
        """Return which ids may come next, (V,); none if the vocabulary cannot spell a match.

        Raises: SettingsError, when the constraint is too complex for llguidance.
        """
        return self._allowed

    def advance(self, token: int) -> "GrammarState":
        """Return the state after `token`, which was allowed and is not the end.

        Raises: SettingsError, when the constraint is too complex for llguidance.
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
        # llguidance 1.9.1 reports a dead end by this error, not by an empty mask.
        is_dead = self.matcher.is_error() and "NoExtensionBias" in self.matcher.get_error()
        if self.matcher.is_error() and not is_dead:
            self._give_up(self.matcher.get_error())
        masks = np.unpackbits(bits, bitorder="little").view(np.bool_)
        # The mask has the end inside some lexemes, too: only is_accepting is right.
        is_end = self.matcher.is_accepting() and language.can_end(self.text)
        allowed = self._find_tokens(masks, is_joined=not self.is_first)
        if self.is_first and language.empty_symbol is not None:
            is_begun = self._find_tokens(masks, is_joined=True).any()
            allowed[language.empty_symbol] = is_end or is_begun
        allowed[EOS_ID] = is_end
        allowed.flags.writeable = False
        return allowed

    def _find_tokens(self, masks: NDArray[np.bool_], *, is_joined: bool) -> NDArray[np.bool_]:
        """Return which tokens may come next, (V,); `is_joined`: after the separator, if any."""
        language, size = self.language, len(self.language.pieces)
        if not language.separator:
            return masks[:size] & language.has_text
        first = size * is_joined
        found = masks[first : first + size] & language.has_text
        # A symbol is whole, followed by the separator or the end: "ja" is no start of "jab".
        can_continue = masks[2 * size + first : 3 * size + first]
        for token in np.flatnonzero(found & ~can_continue).tolist():
            found[token] = self.matcher.validate_tokens([first + token, EOS_ID]) == 2
        return found

    def _give_up(self, message: str) -> None:
        setting = self.language.setting
        raise SettingsError(
            f"decoding.{setting}: it is too complex after the output "
            f"{self.text[-40:].decode(errors='replace')!r}: {_shorten(message, setting)}; "
            f"{_REMEDIES[setting]}"
        )


def constrain_to_grammar(
    decoding: DecodingSettings, tokenizer: PairTokenizer, fields: Sequence[str] = ()
) -> GrammarState:
    r"""Return the initial state for `decoding.regex`, `json_schema` or `grammar`; one is set.

    Syntax and meaning are llguidance's: \d and \w are Unicode's, as in Rust's regex crate; a
    terminal of a grammar is greedy. JSON may have up to 16 blanks, and a line break before them,
    wherever whitespace is allowed; the keys of an object come in the order of `fields`, those of the
    model's records, then in that of the schema.
    "x-guidance" in the schema sets other rules for whitespace.

    Costs 10 to 65 ms with 8,000 to 26,000 byte pieces, then 13 to 54 us a token of a hypothesis.

    Raises:
        SettingsError: It is invalid, no output can match it, its file cannot be read, llguidance is
            not installed, or the tokens are decomposed (unicode_form nfd).
    """
    setting = next(name for name in _REMEDIES if getattr(decoding, name))
    form = tokenizer.target.settings.unicode_form
    if form == "nfd":
        raise SettingsError(
            f"decoding.{setting}: the model emits letters and accents separately (its "
            "tokenizer.target.unicode_form is nfd), so its tokens cannot spell composed outputs; "
            "use decoding.choices, or train with unicode_form nfc"
        )
    try:
        found = _write_grammars(setting, getattr(decoding, setting), fields)
        grammars = json.dumps({"grammars": found})
    except RecursionError as error:
        raise SettingsError(f"decoding.{setting}: it is nested too deeply: {error}") from error
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
            "one; change it, or use a model trained on such outputs"
        )
    return state


def find_refused(schema: str, texts: Iterable[str]) -> dict[int, str]:
    """Return which of `texts` a JSON schema refuses, by place, each with the start that it accepts.

    Raises:
        SettingsError: As of `constrain_to_grammar`.
    """
    first = EOS_ID + 1
    pieces: list[bytes | None] = [*[None] * first, *(bytes([byte]) for byte in range(256))]
    language = _Language(setting="json_schema", pieces=pieces, separator=b"", is_nfc=False)
    grammars = json.dumps({"grammars": _write_grammars("json_schema", schema)})
    initial, refused = _make_matcher(language, grammars), dict[int, str]()
    for place, text in enumerate(texts):
        matcher, data = initial.deep_copy(), text.encode()
        accepted = matcher.try_consume_tokens([first + byte for byte in data])
        if accepted < len(data) or not matcher.is_accepting() or not language.can_end(data):
            refused[place] = data[:accepted].decode(errors="ignore")
    return refused


class _Vocabulary:
    """The tokens in the form that llguidance.TokenizerWrapper needs."""

    def __init__(self, language: _Language) -> None:
        # llguidance takes tokens with a byte 0xFF, which UTF-8 never has, as special.
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
        raise NotImplementedError  # called only for forced bytes: see _OPTIONS


def _make_matcher(language: _Language, grammars: str) -> "LLMatcher":
    llguidance = _import_llguidance(language.setting)
    vocabulary = _Vocabulary(language)
    if (longest := max(map(len, vocabulary.tokens))) > _MAX_TOKEN_BYTES:
        raise SettingsError(
            f"decoding.{language.setting}: the target's longest token has {longest} bytes, and "
            f"llguidance accepts up to {_MAX_TOKEN_BYTES}; use decoding.choices"
        )
    # Slices save time only with far larger vocabularies, and take 10-60 ms to build.
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary), slices=[])
    matcher: LLMatcher = llguidance.LLMatcher(
        tokenizer, grammars, log_level=0, limits=llguidance.LLParserLimits(verbose_errors=False)
    )
    if matcher.is_error():
        raise SettingsError(
            f"decoding.{language.setting}: {_shorten(matcher.get_error(), language.setting)}\n"
            f"{_REMEDIES[language.setting]}"
        )
    return matcher


def _refuse_duplicates(pairs: Sequence[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("duplicate key")


def _write_grammars(setting: str, value: str, fields: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the value of `setting` as llguidance's grammars, the top one first."""
    match setting:
        case "regex":
            return [{"lark_grammar": _regex_to_lark(value) + _OPTIONS}]
        case "json_schema":
            top = {"lark_grammar": f"start: @schema{_OPTIONS}"}
            ranks = {name: place for place, name in enumerate(fields)}
            return [top, {"name": "schema", "json_schema": _order(_parse_schema(value), ranks)}]
        case _:
            return [{"lark_grammar": _read(setting, value) + _OPTIONS}]


def _regex_to_lark(regex: str) -> str:
    # llguidance 1.9.1 silently reads both of these as another expression.
    if (len(regex) - len(regex.rstrip("\\"))) % 2:
        raise SettingsError(
            f"decoding.regex: {regex!r} ends with a lone backslash; write two for a backslash"
        )
    if "\n" in regex and re.search(r"\(\?[a-zA-Z]*x", regex):
        raise SettingsError("decoding.regex: an expression with the flag x must be on one line")
    return f"start: /{_import_llguidance('regex').regex_to_lark(regex, '')}/"


def _parse_schema(value: str) -> dict[str, Any] | bool:
    """Return the schema in `value`, which is JSON or the name of a file."""
    text, where = value.strip(), "decoding.json_schema"
    if not text.startswith("{") and text not in ("true", "false"):
        text, where = _read("json_schema", value), f"{where}: {value}"
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{where}: invalid JSON: {error}") from error
    if not isinstance(schema, dict | bool):
        raise SettingsError(f"{where}: a schema must be an object {{…}}, true or false")
    if schema is False:
        return schema
    schema = {} if schema is True else schema
    options = schema.get("x-guidance", {})
    if not isinstance(options, dict) or "whitespace_flexible" in options:
        return schema
    return {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE, **options}}


def _order(schema: Any, ranks: Mapping[str, int], name: str = "") -> Any:  # noqa: ANN401
    """Return a schema with the properties of each object in the order of `ranks`, others after them."""
    if isinstance(schema, list):
        return [_order(one, ranks) for one in schema]
    if not isinstance(schema, dict):
        return schema
    is_ordered = name == "properties"
    names = sorted(schema, key=lambda one: ranks.get(one, len(ranks)) if is_ordered else 0)
    return {one: _order(schema[one], ranks, one) for one in names}


def _read(setting: str, name: str) -> str:
    path = Path(name)
    try:
        check_file(path)
        return path.read_text(encoding="utf-8-sig")
    except DataError as error:
        raise SettingsError(f"decoding.{setting}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"decoding.{setting}: {path}: cannot be read: {error}") from error


def _import_llguidance(setting: str) -> ModuleType:
    """Return the module llguidance, which is an optional dependency."""
    with name_extra(f"decoding.{setting}:"):
        import llguidance
    return llguidance


def _shorten(message: str, setting: str) -> str:
    """Return the part of llguidance's message that is about the user's own text."""
    for mark in ("<non-verbose/>", "<state>", "<backtrace>"):
        message = message.partition(mark)[0]
    if setting == "regex":  # without our grammar around the expression
        message = message.partition("\n   1 | ")[0]
        message = message.rpartition(" (in regex): ")[2]
    ours = r"\n\s*\d+ \| (?:%llguidance \{\"no_forcing.*)?$"
    return re.sub(ours, "", message.rstrip(), flags=re.MULTILINE)
