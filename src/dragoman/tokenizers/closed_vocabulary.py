"""A vocabulary of the tokens seen in training, for text that a rule cuts; and the special ids."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import chain, repeat
from typing import Any, Final

from pydantic import TypeAdapter
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from dragoman.characters import find_surrogate
from dragoman.errors import SettingsError
from dragoman.settings import SideSettings, UnicodeForm

# The same in every vocabulary. No text is encoded to them, except to UNKNOWN_ID.
PAD_ID: Final = 0
BOS_ID: Final = 1
EOS_ID: Final = 2
UNKNOWN_ID: Final = 3
FIRST_TEXT_ID: Final = 4
SPECIAL_NAMES: Final = ("<pad>", "<s>", "</s>", "<unk>")

Cut = Callable[[str], Sequence[str]]


class ClosedVocabulary:
    """The tokens of kind characters, symbols or regex, most frequent first, ties by code point.

    In a file a token is its text, so a token that reads "<pad>" is an ordinary token.
    """

    spells_any_text: Final = False

    def __init__(self, tokens: Sequence[str], settings: SideSettings) -> None:
        self._tokens = list(tokens)
        self._ids = {token: id_ for id_, token in enumerate(tokens, start=FIRST_TEXT_ID)}
        self._cut = make_cut(settings)
        self.separator = _separator(settings) if settings.kind == "symbols" else ""

    @classmethod
    def train(cls, texts: Iterable[str], settings: SideSettings) -> "ClosedVocabulary":
        """Return the vocabulary of every token in `texts`."""
        counts = Counter(chain.from_iterable(map(make_cut(settings), texts)))
        return cls(sorted(counts, key=lambda token: (-counts[token], token)), settings)

    @property
    def vocab_size(self) -> int:
        """Number of ids, the special ones included."""
        return FIRST_TEXT_ID + len(self._tokens)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each of `texts`."""
        find, cut, unknown = self._ids.get, self._cut, repeat(UNKNOWN_ID)
        return [list(map(find, cut(text), unknown)) for text in texts]

    def find_unknown(self, text: str) -> list[str]:
        """Return the tokens of `text` that have no id."""
        return [token for token in self._cut(text) if token not in self._ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, all in range; special ids give none."""
        tokens = self._tokens
        return self.separator.join(
            [tokens[id_ - FIRST_TEXT_ID] for id_ in ids if id_ >= FIRST_TEXT_ID]
        )

    def names(self) -> list[str]:
        """Return a readable, unique name of each token from FIRST_TEXT_ID on."""
        return list(self._tokens)

    def token_bytes(self) -> list[bytes | None]:
        """Return the UTF-8 text of each token from FIRST_TEXT_ID on; None for a lone surrogate."""
        return [token.encode() if find_surrogate(token) is None else None for token in self._tokens]

    def to_json(self) -> list[str]:
        """Return plain JSON values for `from_json`."""
        return list(self._tokens)

    @classmethod
    def from_json(cls, content: Any, settings: SideSettings) -> "ClosedVocabulary":  # noqa: ANN401
        """Return the vocabulary that `to_json` wrote.

        Raises:
            ValueError: `content` is not a list of different tokens.
        """
        vocabulary = cls(TypeAdapter(list[str]).validate_python(content, strict=True), settings)
        if len(vocabulary._ids) != len(content):
            twice = next(token for token, count in Counter(content).items() if count > 1)
            raise ValueError(f"the token {twice!r} has two ids")
        return vocabulary


def make_cut(settings: SideSettings) -> Cut:
    """Return the function that cuts a text, in its Unicode form, into tokens.

    Raises:
        SettingsError: The pattern of kind regex is not a regular expression.
    """
    match settings.kind:
        case "characters":
            return str  # a string is the sequence of its code points
        case "symbols":
            separator = _separator(settings)
            # Empty symbols are kept, so that doubled and outer separators come back.
            return lambda text: text.split(separator) if text else ()
        case "regex":
            return _make_pattern_cut(settings.pattern)
        case "bpe" | "unigram":
            raise AssertionError(f"kind {settings.kind} has no closed vocabulary")


def to_unicode_form(text: str, form: UnicodeForm) -> str:
    """Return `text` in `form`; none leaves it as it is."""
    if form == "none":
        return text
    return unicodedata.normalize("NFC" if form == "nfc" else "NFD", text)


def find_free_name(name: str, taken: Container[str]) -> str:
    """Return `name`, in angle brackets if it is taken, as many as needed."""
    while name in taken:
        name = f"<{name}>"
    return name


def _separator(settings: SideSettings) -> str:
    return to_unicode_form(settings.separator, settings.unicode_form)


def _make_pattern_cut(pattern: str) -> Cut:
    try:
        splitter = Split(Regex(pattern), behavior="isolated")
    except Exception as error:  # tokenizers raises plain Exceptions
        raise SettingsError(f"pattern {pattern!r} is not a regular expression: {error}") from error

    def cut(text: str) -> Sequence[str]:
        try:
            return [piece for piece, _ in splitter.pre_tokenize_str(text)]
        except BaseException as error:
            # tokenizers 0.23 panics when the engine gives up, and exports no name for the panic.
            if type(error).__name__ != "PanicException":
                raise
            raise SettingsError(
                f"pattern {pattern!r} takes too many steps on the text {text[:40]!r} ({error}): "
                "write it without a repetition inside a repetition"
            ) from error

    return cut
