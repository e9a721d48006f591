"""A vocabulary of the tokens seen in training, for text cut by a rule; all others are unknown."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain, repeat
from typing import Final

from tokenizers.pre_tokenizers import Split

from dragoman.errors import DataError, ModelFolderError, SettingsError
from dragoman.settings import SideSettings
from dragoman.tokenizers.special_ids import FIRST_TEXT_ID, UNKNOWN_ID
from dragoman.tokenizers.unicode_form import to_unicode_form
from tokenizers import Regex

LARGEST_VOCABULARY: Final = 1_000_000
LONGEST_TOKEN: Final = 100_000  # characters

Cut = Callable[[str], Sequence[str]]


class ClosedVocabulary:
    """The tokens of kind characters, symbols or regex, most frequent first, ties by code point.

    What stands for a token in a file is its text, so a token that reads "<pad>" is as good as any.
    """

    def __init__(self, tokens: Sequence[str], settings: SideSettings) -> None:
        self._tokens = list(tokens)
        self._ids = {token: id_ for id_, token in enumerate(tokens, start=FIRST_TEXT_ID)}
        self._cut = make_cut(settings)
        self.separator = _separator(settings) if settings.kind == "symbols" else ""

    @classmethod
    def train(cls, texts: Iterable[str], settings: SideSettings) -> "ClosedVocabulary":
        """Return the vocabulary of every token in `texts`.

        Raises:
            DataError: There are more tokens, or longer ones, than a model folder may hold.
        """
        cut = make_cut(settings)
        counts = Counter(chain.from_iterable(map(cut, texts)))
        if fault := _find_excess(counts):
            raise DataError(f"{fault}: for such text, set tokenizer kind to bpe")
        return cls(sorted(counts, key=lambda token: (-counts[token], token)), settings)

    @property
    def vocab_size(self) -> int:
        """Number of ids, the special ones included."""
        return FIRST_TEXT_ID + len(self._tokens)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each of `texts`."""
        find, cut, unknown = self._ids.get, self._cut, repeat(UNKNOWN_ID)
        return [list(map(find, cut(text), unknown)) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, all in range; special ids give none."""
        tokens = self._tokens
        return self.separator.join(
            [tokens[id_ - FIRST_TEXT_ID] for id_ in ids if id_ >= FIRST_TEXT_ID]
        )

    def names(self) -> list[str]:
        """Return the tokens as people read them, each once, from FIRST_TEXT_ID on."""
        return list(self._tokens)

    def token_bytes(self) -> list[bytes | None]:
        """Return the UTF-8 text of each token from FIRST_TEXT_ID on; a lone surrogate has none."""
        return [_to_utf8(token) for token in self._tokens]

    def to_json(self) -> list[str]:
        """Return what `from_json` takes."""
        return list(self._tokens)

    @classmethod
    def from_json(cls, content: object, settings: SideSettings) -> "ClosedVocabulary":
        """Return the vocabulary that `to_json` wrote.

        Raises:
            ModelFolderError: `content` is not a list of different tokens of this kind, not too many
                and not too long.
        """
        if not isinstance(content, list) or not all(isinstance(token, str) for token in content):
            raise ModelFolderError("its tokens are not a list of strings")
        if fault := _find_excess(content):
            raise ModelFolderError(fault)
        if len(set(content)) != len(content):
            twice = next(token for token, count in Counter(content).items() if count > 1)
            raise ModelFolderError(f"the token {twice!r} has two ids")
        vocabulary = cls(content, settings)
        for token in content:
            if settings.kind == "characters" and len(token) != 1:
                raise ModelFolderError(f"the token {token!r} is not one character")
            if settings.kind == "symbols" and vocabulary.separator in token:
                raise ModelFolderError(f"the token {token!r} holds the separator")
            if settings.kind == "regex" and not token:
                raise ModelFolderError("it has an empty token")
        return vocabulary


def make_cut(settings: SideSettings) -> Cut:
    """Return the function that cuts a text, in its Unicode form, into tokens.

    Raises:
        SettingsError: the pattern of kind regex is not a regular expression.
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


def _find_excess(tokens: Collection[str]) -> str:
    """Return what is too much of `tokens`, or ""."""
    if len(tokens) > LARGEST_VOCABULARY:
        return f"{len(tokens):,} different tokens, more than {LARGEST_VOCABULARY:,}"
    longest = max(map(len, tokens), default=0)
    if longest > LONGEST_TOKEN:
        return f"a token of {longest:,} characters, more than {LONGEST_TOKEN:,}"
    return ""


def _to_utf8(token: str) -> bytes | None:
    try:
        return token.encode()
    except UnicodeEncodeError:
        return None


def _separator(settings: SideSettings) -> str:
    return to_unicode_form(settings.separator, settings.unicode_form)


def _make_pattern_cut(pattern: str) -> Cut:
    try:
        splitter = Split(Regex(pattern), behavior="isolated")
    except Exception as fault:  # tokenizers raises no kind of its own
        raise SettingsError(f"pattern {pattern!r} is not a regular expression: {fault}") from fault

    def cut(text: str) -> Sequence[str]:
        try:
            return [piece for piece, _ in splitter.pre_tokenize_str(text)]
        except BaseException as fault:
            # tokenizers 0.23 panics when the engine gives up, and exports no name for the panic.
            if type(fault).__name__ != "PanicException":
                raise
            raise SettingsError(
                f"pattern {pattern!r} takes too many steps on the text {text[:40]!r} ({fault}): "
                "write it without a repetition inside a repetition"
            ) from fault

    return cut
