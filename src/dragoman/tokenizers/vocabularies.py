"""The two kinds of vocabularies, and the special ids: tokens cut by a rule, and subwords over bytes.

A closed vocabulary has the tokens seen in training, of text that a rule cuts. Subwords, by BPE or
Unigram, spell any text and give it back unchanged: text is cut into words, digits and punctuation,
and these into their UTF-8 bytes, each written as a printable character. Pieces are strings of such
characters, and each of the 256 is a piece itself.
"""

import functools
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, TypeAdapter
from tokenizers import Encoding, Regex, models, pre_tokenizers, trainers
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

SMALLEST_SUBWORD_VOCABULARY: Final = FIRST_TEXT_ID + 256

# Marks stay with their letters (Indic vowel signs, NFD accents). Digits stand alone, so that every
# number is spelt with the same few tokens.
_WORDS: Final = r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"

# A space is never a character of a piece: it is written "Ġ". So no text gives these.
_SPECIAL_PIECES: Final = [f"{name} " for name in SPECIAL_NAMES]

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

    def find_parts(self) -> dict[int, tuple[int, int]]:
        """Return nothing: no token has parts."""
        return {}

    def token_bytes(self) -> list[bytes | None]:
        """Return the UTF-8 text of each token from FIRST_TEXT_ID on; None for a lone surrogate."""
        return [token.encode() if find_surrogate(token) is None else None for token in self._tokens]

    def to_json(self) -> list[str]:
        """Return plain JSON values for `from_json`."""
        return list(self._tokens)

    @classmethod
    def from_json(cls, content: Any, settings: SideSettings) -> "ClosedVocabulary":  # noqa: ANN401
        """Return the vocabulary that `to_json` wrote.

        Raises: ValueError, when `content` is not a list of different tokens.
        """
        vocabulary = cls(TypeAdapter(list[str]).validate_python(content, strict=True), settings)
        if len(vocabulary._ids) != len(content):
            twice = next(token for token, count in Counter(content).items() if count > 1)
            raise ValueError(f"the token {twice!r} has two ids")
        return vocabulary


def make_cut(settings: SideSettings) -> Cut:
    """Return the function that cuts texts, in their Unicode form, into tokens.

    Raises: SettingsError, when the pattern of kind regex is not a regular expression.
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
            for text, encoding in zip(rows, match(rows), strict=True):
                yield [text[start:end] for start, end in encoding.offsets]

    def match(rows: list[str]) -> list[Encoding]:
        guard_forks()
        try:
            return backend.encode_batch(rows, add_special_tokens=False)
        except BaseException as error:
            # tokenizers 0.23 panics when the engine gives up, and exports no name for the panic.
            if type(error).__name__ != "PanicException":
                raise
            raise SettingsError(
                f"pattern {pattern!r} takes too many steps on texts such as "
                f"{max(rows, key=len)[:40]!r} ({error}): write it with fewer repetitions, inside or "
                "after each other"
            ) from None

    return cut


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


class _BpeModel(BaseModel):
    vocab: dict[str, int]
    merges: list[tuple[str, str]]


class _UnigramModel(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    vocab: list[tuple[str, float]]


class Subwords:
    """The pieces of kind bpe or unigram."""

    spells_any_text: Final = True
    separator: Final = ""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        vocab = backend.get_vocab(with_added_tokens=False)
        pieces = sorted(vocab, key=vocab.__getitem__)
        byte_of = _byte_alphabet()
        self._bytes = [b""] * FIRST_TEXT_ID + [
            bytes([byte_of[character] for character in piece]) for piece in pieces[FIRST_TEXT_ID:]
        ]

    @classmethod
    def train(cls, texts: Iterable[str], settings: SideSettings) -> "Subwords":
        """Return at most `settings.vocab_size` pieces, trained on `texts` (one not empty)."""
        guard_forks()
        return cls(_build(_train(texts, settings), settings))

    @property
    def vocab_size(self) -> int:
        """Number of ids, the special ones included."""
        return len(self._bytes)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each of `texts`, computed by as many threads as there are cores."""
        if len(texts) == 1:  # threads started for it would slow down the engine
            return [self._backend.encode(texts[0], add_special_tokens=False).ids]
        guard_forks()
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def find_unknown(self, text: str) -> list[str]:
        """Return the tokens of `text` that have no id: none, since the bytes spell any text."""
        return []

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, all in range; special ids give none.

        Bytes that are not UTF-8, which only a model can put together, become U+FFFD.
        """
        return b"".join(map(self._bytes.__getitem__, ids)).decode("utf-8", errors="replace")

    def names(self) -> list[str]:
        """Return a readable, unique name of each piece from FIRST_TEXT_ID on.

        It is the text of the piece, or, if that is a part of a character, its bytes: "<C3 A4>".
        """
        texts: list[str | None] = []
        for piece in self._bytes[FIRST_TEXT_ID:]:
            try:
                texts.append(piece.decode("utf-8"))
            except UnicodeDecodeError:
                texts.append(None)
        taken = {text for text in texts if text is not None}
        return [
            find_free_name(f"<{piece.hex(' ').upper()}>", taken) if text is None else text
            for piece, text in zip(self._bytes[FIRST_TEXT_ID:], texts, strict=True)
        ]

    def token_bytes(self) -> list[bytes | None]:
        """Return the bytes of each piece from FIRST_TEXT_ID on; they may be a part of a character."""
        return list(self._bytes[FIRST_TEXT_ID:])

    def find_parts(self) -> dict[int, tuple[int, int]]:
        """Return the ids of the two parts that bpe merged to each id, for those that it merged."""
        ids = self._backend.get_vocab(with_added_tokens=False)
        merges = self.to_json()["model"].get("merges", ())
        return {ids[a + b]: (ids[a], ids[b]) for a, b in merges}

    def to_json(self) -> dict[str, Any]:
        """Return the content of a Hugging Face tokenizer file."""
        content: dict[str, Any] = json.loads(self._backend.to_str())
        return content

    @classmethod
    def from_json(cls, content: Any, settings: SideSettings) -> "Subwords":  # noqa: ANN401
        """Return the pieces that `to_json` wrote.

        Only the pieces and merges of `content` are used, whatever else it holds.

        Raises:
            ValueError: They are not those of a tokenizer of this kind that dragoman trained.
        """
        try:
            return cls(_build(content["model"], settings))
        except Exception as error:  # tokenizers raises plain Exceptions
            raise ValueError(f"its pieces cannot be used: {str(error)[:200]}") from error


def _build(model: Any, settings: SideSettings) -> Backend:  # noqa: ANN401
    """Return a tokenizer of the pieces in `model`, the part of a file of this name."""
    if settings.kind == "bpe":
        bpe = _BpeModel.model_validate(model)
        backend = Backend(models.BPE(vocab=bpe.vocab, merges=bpe.merges))
    else:
        unigram = _UnigramModel.model_validate(model)
        backend = Backend(models.Unigram(unigram.vocab, unk_id=None))
    backend.pre_tokenizer = _make_cut()
    vocab = backend.get_vocab(with_added_tokens=False)
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError(f"its ids are not 0 to {len(vocab) - 1}, each once")
    if [vocab.get(piece) for piece in _SPECIAL_PIECES] != list(range(FIRST_TEXT_ID)):
        raise ValueError(f"its first ids are not {_SPECIAL_PIECES}")
    if not _byte_alphabet().keys() <= vocab.keys():
        raise ValueError("it lacks some of the 256 bytes")
    return backend


def _train(texts: Iterable[str], settings: SideSettings) -> dict[str, Any]:
    """Return the part "model" of the file of a trained tokenizer."""
    options: dict[str, Any] = {
        "vocab_size": settings.vocab_size,
        "special_tokens": _SPECIAL_PIECES,
        "initial_alphabet": sorted(_byte_alphabet()),
        "show_progress": False,
    }
    trainer: trainers.BpeTrainer | trainers.UnigramTrainer
    if settings.kind == "bpe":
        backend = Backend(models.BPE())
        trainer = trainers.BpeTrainer(min_frequency=2, **options)  # a pair seen once is by chance
    else:
        backend = Backend(models.Unigram())
        trainer = trainers.UnigramTrainer(**options)
    backend.pre_tokenizer = _make_cut()
    backend.train_from_iterator(iter(texts), trainer)
    model: dict[str, Any] = json.loads(backend.to_str())["model"]
    if settings.kind == "bpe":
        return model
    vocab = _settle_scores(model["vocab"])
    if len(vocab) > settings.vocab_size:  # tokenizers 0.23 misses the limit if only bytes fit
        vocab = [entry for entry in vocab if len(entry[0]) == 1 or entry[0] in _SPECIAL_PIECES]
    return {"vocab": vocab}


def _make_cut() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _settle_scores(vocab: list[list[Any]]) -> list[list[Any]]:
    """Return the pieces of Unigram with scores and in an order that are the same in every run.

    tokenizers 0.23 walks hash maps in a random order. So sums differ in their last digits, and the
    bytes that no piece was kept for get steps of 0.0001 up from the lowest score in any order.
    """
    specials, pieces = vocab[:FIRST_TEXT_ID], vocab[FIRST_TEXT_ID:]
    floor = min(score for _, score in pieces)
    settled = []
    for piece, score in pieces:
        is_leftover_byte = len(piece) == 1 and score < floor + 257 * 0.0001
        settled.append([piece, round(floor if is_leftover_byte else score, 6)])
    return specials + sorted(settled, key=lambda entry: (-entry[1], entry[0]))


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a piece stands for.

    Source: GPT-2's encoder.py, bytes_to_unicode; printable bytes are themselves.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others: Iterator[int] = (byte for byte in range(256) if byte not in printable)
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return alphabet
