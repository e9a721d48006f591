"""A vocabulary of the tokens seen in training, for text that a rule cuts; and the special ids."""

import functools
import os
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any, Final

from pydantic import TypeAdapter
from tokenizers import Encoding, Regex, models
from tokenizers import Tokenizer as Backend
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

_PATTERN_ROWS = 1000  # cut together
_PATTERN_S, _PATTERN_S_PER_CHARACTER = 10.0, 1e-5  # the longest that a pattern may take for them

Cut = Callable[[Iterable[str]], Iterator[Sequence[str]]]


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
        counts = Counter(chain.from_iterable(make_cut(settings)(texts)))
        return cls(sorted(counts, key=lambda token: (-counts[token], token)), settings)

    @property
    def vocab_size(self) -> int:
        """Number of ids, the special ones included."""
        return FIRST_TEXT_ID + len(self._tokens)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each of `texts`."""
        find, unknown = self._ids.get, repeat(UNKNOWN_ID)
        return [list(map(find, tokens, unknown)) for tokens in self._cut(texts)]

    def find_unknown(self, text: str) -> list[str]:
        """Return the tokens of `text` that have no id."""
        return [token for token in next(self._cut([text])) if token not in self._ids]

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
    """Return the function that cuts texts, in their Unicode form, into tokens.

    Raises:
        SettingsError: The pattern of kind regex is not a regular expression.
    """
    match settings.kind:
        case "characters":
            return iter  # a string is the sequence of its code points
        case "symbols":
            separator = _separator(settings)
            # Empty symbols are kept, so that doubled and outer separators come back.
            return lambda texts: (text.split(separator) if text else () for text in texts)
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
    backend = Backend(models.WordLevel({"": 0}, unk_token=""))
    try:
        backend.pre_tokenizer = Split(Regex(pattern), behavior="isolated")
    except Exception as error:  # tokenizers raises plain Exceptions
        raise SettingsError(f"pattern {pattern!r} is not a regular expression: {error}") from error

    def cut(texts: Iterable[str]) -> Iterator[Sequence[str]]:
        rest = iter(texts)
        while rows := list(islice(rest, _PATTERN_ROWS)):
            for text, encoding in zip(rows, _match(backend, pattern, rows), strict=True):
                yield [text[start:end] for start, end in encoding.offsets]

    return cut


def _match(backend: Backend, pattern: str, rows: list[str]) -> list[Encoding]:
    """Return where `pattern` matches in each of `rows`.

    The pattern may be a stranger's, and the engine backtracks: it runs in a thread that is left
    alone after a time limit, or when the user interrupts.

    Raises:
        SettingsError: The pattern takes too many steps, or too long.
        UnicodeEncodeError: A text holds a lone surrogate.
    """
    for text in rows:
        text.encode()
    found: list[Encoding] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.extend(backend.encode_batch(rows, add_special_tokens=False))
        except BaseException as error:
            errors.append(error)

    guard_forks()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    limit_s = _PATTERN_S + _PATTERN_S_PER_CHARACTER * sum(map(len, rows))
    thread.join(limit_s)
    # tokenizers 0.23 panics when the engine gives up, and exports no name for the panic.
    if thread.is_alive() or (errors and type(errors[0]).__name__ == "PanicException"):
        why = f"over {limit_s:.0f} s" if thread.is_alive() else str(errors[0])
        raise SettingsError(
            f"pattern {pattern!r} takes too many steps on texts such as {max(rows, key=len)[:40]!r} "
            f"({why}): write it with fewer repetitions, inside or after each other"
        )
    if errors:
        raise errors[0]
    return found


@functools.cache
def guard_forks() -> None:
    """Let tokenizers use threads, but not in a forked child, where they would hang.

    Left to itself it prints a warning at every fork. A value set by the user stays.
    """
    if "TOKENIZERS_PARALLELISM" not in os.environ:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        os.register_at_fork(
            after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false")
        )
