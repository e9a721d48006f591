"""One vocabulary: text to ids and back, by tokens that a rule cuts, or by subwords over bytes.

A closed vocabulary has the tokens seen in training, of text that a rule cuts. Subwords, by BPE or
Unigram, spell any text and give it back unchanged: text is cut into words, digits and punctuation,
and these into their UTF-8 bytes, each written as a printable character. Pieces are strings of such
characters, and each of the 256 is a piece itself.
"""

import codecs
import functools
import json
import math
import os
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice, repeat
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, TypeAdapter
from tokenizers import Encoding, Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from dragoman.characters import find_surrogate
from dragoman.errors import DataError, ModelFolderError, SettingsError
from dragoman.settings import SideSettings, TokenizerKind, UnicodeForm
from dragoman.storage import describe_first

# The same in every vocabulary. No text is encoded to them, except to UNKNOWN_ID.
PAD_ID: Final = 0
BOS_ID: Final = 1
EOS_ID: Final = 2
UNKNOWN_ID: Final = 3
FIRST_TEXT_ID: Final = 4
SPECIAL_NAMES: Final = ("<pad>", "<s>", "</s>", "<unk>")

_PATTERN_ROWS = 1000  # cut together
_SMALLEST_SUBWORD_VOCABULARY = FIRST_TEXT_ID + 256

# Marks stay with their letters (Indic vowel signs, NFD accents). Digits stand alone, so that every
# number is spelt with the same few tokens.
_WORDS: Final = r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"

# A space is never a character of a piece: it is written "Ġ". So no text gives these.
_SPECIAL_PIECES: Final = [f"{name} " for name in SPECIAL_NAMES]

Cut = Callable[[Iterable[str]], Iterator[Sequence[str]]]


class _StoredSide(BaseModel):
    model_config = ConfigDict(extra="forbid")

    settings: SideSettings
    tokens: Any  # by `_to_json` of the kind


class Tokenizer(ABC):
    """The vocabulary of one side, or of both if they share it. Each kind is a subclass.

    No text is encoded to PAD_ID, BOS_ID or EOS_ID, whatever it reads like. UNKNOWN_ID stands for a
    token that was not in the training text; bpe and unigram have no such token.

    If no id is UNKNOWN_ID, `decode(encode(text))` is `text` for unicode_form none, and NFC(text) for
    nfc and nfd.
    """

    spells_any_text: ClassVar[bool]

    def __init__(self, settings: SideSettings, vocab_size: int, separator: str = "") -> None:
        self.settings = settings
        self.vocab_size = vocab_size
        """Number of ids, the special ones included."""
        self.separator = separator
        """What `decode` puts between two tokens, before it composes the text: "" but for symbols."""

    @classmethod
    def train(
        cls, texts: Iterable[str], settings: SideSettings, start: "Tokenizer | None" = None
    ) -> "Tokenizer":
        """Return a tokenizer trained on `texts`; the same texts give the same tokenizer.

        Reads `texts` once. `start`, of the same settings: keep its tokens with their ids, and add
        those of `texts` that it lacks; bpe and unigram lack none.

        Raises:
            SettingsError: The settings do not suit their kind.
            DataError: There is no text, or every text is empty.
        """
        if errors := find_side_errors(settings):
            raise SettingsError.gather(errors)
        if start is not None and start.spells_any_text:
            return start
        formed = (to_unicode_form(text, settings.unicode_form) for text in texts)
        first = next((text for text in formed if text), None)
        if first is None:
            raise DataError(
                "there is no text to train a tokenizer on (no rows, or every text is empty): "
                "check the files and the columns that data.source and data.target name"
            )
        known = start._to_json() if start else []
        return KINDS[settings.kind]._train(chain([first], formed), settings, known)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without BOS_ID and EOS_ID: see `encode_batch`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each of `texts`; faster than one by one."""
        form = self.settings.unicode_form
        if form != "none":
            texts = [to_unicode_form(text, form) for text in texts]
        return self._encode(texts)

    def name_unknown(self, text: str) -> str:
        """Return the different tokens of `text` that become UNKNOWN_ID, for messages; "": none."""
        return ""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special ids give none.

        Raises: ValueError, when an id is not in 0 to vocab_size - 1.
        """
        check_ids(ids, self.vocab_size)
        text = self._decode(ids)
        # Output is always composed: jamo come back as Hangul syllables.
        return text if self.settings.unicode_form == "none" else unicodedata.normalize("NFC", text)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Return a readable name for each of `ids`; no two ids have the same.

        Raises: ValueError, when an id is not in 0 to vocab_size - 1.
        """
        ids = list(ids)
        check_ids(ids, self.vocab_size)
        return [self._names[id_] for id_ in ids]

    @abstractmethod
    def token_bytes(self) -> list[bytes | None]:
        """Return the UTF-8 bytes that each id stands for, before the text is composed.

        A byte piece may be a part of a character. None for an id that spells no text: the special
        ones, and lone surrogates.
        """

    def find_parts(self) -> dict[int, tuple[int, int]]:
        """Return the ids of the two parts of each subword that kind bpe made of them."""
        return {}

    def find_ends(self, ids: Sequence[int]) -> list[int]:
        """Return where each token ends in `decode(ids)`, in characters.

        A part of a character ends before it, but for the last part.
        """
        text, ends, separator = "", [], self.separator.encode()
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for place, id_ in enumerate(ids):
            piece = self._bytes[id_] if id_ < len(self._bytes) else None
            text += decoder.decode((separator if place else b"") + (piece or b""))
            ends.append(len(text))
        if self.settings.unicode_form == "none" or text.isascii():
            return ends
        return [len(unicodedata.normalize("NFC", text[:end])) for end in ends]

    def to_dict(self) -> dict[str, Any]:
        """Return the tokenizer as plain JSON values, for `from_dict`."""
        return {"settings": self.settings.model_dump(), "tokens": self._to_json()}

    @classmethod
    def from_dict(cls, content: object) -> "Tokenizer":
        """Return the tokenizer that `to_dict` wrote.

        Raises: ModelFolderError, when `content` is not what `to_dict` writes.
        """
        try:
            stored = _StoredSide.model_validate(content)
            if errors := find_side_errors(stored.settings):
                raise ModelFolderError("; ".join(errors))
            return KINDS[stored.settings.kind]._from_json(stored.tokens, stored.settings)
        except ValueError as error:
            raise ModelFolderError(describe_first(error)) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer.from_dict, (self.to_dict(),)

    @cached_property
    def _bytes(self) -> list[bytes | None]:
        return self.token_bytes()

    @cached_property
    def _names(self) -> list[str]:
        texts = self._name_tokens()
        taken = set(texts)
        return [*(find_free_name(name, taken) for name in SPECIAL_NAMES), *texts]

    @classmethod
    @abstractmethod
    def _train(cls, texts: Iterable[str], settings: SideSettings, known: list[str]) -> "Tokenizer":
        """Return a tokenizer of the tokens `known`, and of `texts`, in their form, one not empty."""

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    @abstractmethod
    def _decode(self, ids: Sequence[int]) -> str: ...

    @abstractmethod
    def _name_tokens(self) -> list[str]:
        """Return a readable, unique name of each token from FIRST_TEXT_ID on."""

    @abstractmethod
    def _to_json(self) -> Any: ...  # noqa: ANN401

    @classmethod
    @abstractmethod
    def _from_json(cls, content: Any, settings: SideSettings) -> "Tokenizer":  # noqa: ANN401
        """Return the tokenizer of the tokens that `_to_json` wrote.

        Raises: ValueError, when `content` is not what it writes.
        """


class _ClosedVocabulary(Tokenizer):
    """The tokens of kind characters, symbols or regex, most frequent first, ties by code point.

    In a file a token is its text, so a token that reads "<pad>" is an ordinary token.
    """

    spells_any_text = False

    def __init__(self, tokens: Sequence[str], settings: SideSettings) -> None:
        separator = settings.separator if settings.kind == "symbols" else ""
        separator = to_unicode_form(separator, settings.unicode_form)
        super().__init__(settings, FIRST_TEXT_ID + len(tokens), separator)
        self._tokens = list(tokens)
        self._ids = {token: id_ for id_, token in enumerate(tokens, start=FIRST_TEXT_ID)}
        self._cut = make_cut(settings)

    @classmethod
    def _train(
        cls, texts: Iterable[str], settings: SideSettings, known: list[str]
    ) -> "_ClosedVocabulary":
        counts = Counter(chain.from_iterable(make_cut(settings)(texts)))
        found = sorted(counts, key=lambda token: (-counts[token], token))
        return cls(list(dict.fromkeys([*known, *found])), settings)

    def name_unknown(self, text: str) -> str:
        tokens = next(self._cut([to_unicode_form(text, self.settings.unicode_form)]))
        return ", ".join(repr(one) for one in dict.fromkeys(tokens) if one not in self._ids)

    def token_bytes(self) -> list[bytes | None]:
        texts = [one.encode() if find_surrogate(one) is None else None for one in self._tokens]
        return [None] * FIRST_TEXT_ID + texts

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        find, unknown = self._ids.get, repeat(UNKNOWN_ID)
        return [list(map(find, tokens, unknown)) for tokens in self._cut(texts)]

    def _decode(self, ids: Sequence[int]) -> str:
        tokens = self._tokens
        return self.separator.join(
            [tokens[id_ - FIRST_TEXT_ID] for id_ in ids if id_ >= FIRST_TEXT_ID]
        )

    def _name_tokens(self) -> list[str]:
        return self._tokens

    def _to_json(self) -> list[str]:
        return list(self._tokens)

    @classmethod
    def _from_json(cls, content: Any, settings: SideSettings) -> "_ClosedVocabulary":  # noqa: ANN401
        vocabulary = cls(TypeAdapter(list[str]).validate_python(content, strict=True), settings)
        if len(vocabulary._ids) != len(content):
            twice = next(token for token, count in Counter(content).items() if count > 1)
            raise ValueError(f"the token {twice!r} has two ids")
        return vocabulary


class _Subwords(Tokenizer):
    """The pieces of kind bpe or unigram, at most `settings.vocab_size`."""

    spells_any_text = True

    def __init__(self, backend: Backend, settings: SideSettings) -> None:
        self._backend = backend
        vocab = backend.get_vocab(with_added_tokens=False)
        super().__init__(settings, len(vocab))
        byte_of = _byte_alphabet()
        self._pieces = [b""] * FIRST_TEXT_ID + [
            bytes([byte_of[character] for character in piece])
            for piece in sorted(vocab, key=vocab.__getitem__)[FIRST_TEXT_ID:]
        ]

    @classmethod
    def _train(cls, texts: Iterable[str], settings: SideSettings, known: list[str]) -> "_Subwords":
        guard_forks()
        options: dict[str, Any] = {
            "vocab_size": settings.vocab_size,
            "special_tokens": _SPECIAL_PIECES,
            "initial_alphabet": sorted(_byte_alphabet()),
            "show_progress": False,
        }
        trainer: trainers.BpeTrainer | trainers.UnigramTrainer
        if settings.kind == "bpe":
            backend = Backend(models.BPE())
            trainer = trainers.BpeTrainer(
                min_frequency=2, **options
            )  # a pair seen once is by chance
        else:
            backend = Backend(models.Unigram())
            trainer = trainers.UnigramTrainer(**options)
        backend.pre_tokenizer = _cut_words()
        backend.train_from_iterator(iter(texts), trainer)
        model: dict[str, Any] = json.loads(backend.to_str())["model"]
        if settings.kind == "unigram":
            vocab = _settle_scores(model["vocab"])
            if len(vocab) > settings.vocab_size:  # tokenizers 0.23 misses it if only bytes fit
                vocab = [one for one in vocab if len(one[0]) == 1 or one[0] in _SPECIAL_PIECES]
            model = {"vocab": vocab}
        return cls(_build(model, settings), settings)

    def token_bytes(self) -> list[bytes | None]:
        return [None] * FIRST_TEXT_ID + list[bytes | None](self._pieces[FIRST_TEXT_ID:])

    def find_parts(self) -> dict[int, tuple[int, int]]:
        ids = self._backend.get_vocab(with_added_tokens=False)
        merges = self._to_json()["model"].get("merges", ())
        return {ids[a + b]: (ids[a], ids[b]) for a, b in merges}

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each of `texts`, computed by as many threads as there are cores."""
        if len(texts) == 1:  # threads started for it would slow down the engine
            return [self._backend.encode(texts[0], add_special_tokens=False).ids]
        guard_forks()
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; bytes that only a model puts together may become U+FFFD."""
        return b"".join(map(self._pieces.__getitem__, ids)).decode("utf-8", errors="replace")

    def _name_tokens(self) -> list[str]:
        """Return the text of each piece, or, if that is a part of a character, its bytes: "<C3 A4>"."""
        texts: list[str | None] = []
        for piece in self._pieces[FIRST_TEXT_ID:]:
            try:
                texts.append(piece.decode("utf-8"))
            except UnicodeDecodeError:
                texts.append(None)
        taken = {text for text in texts if text is not None}
        return [
            find_free_name(f"<{piece.hex(' ').upper()}>", taken) if text is None else text
            for piece, text in zip(self._pieces[FIRST_TEXT_ID:], texts, strict=True)
        ]

    def _to_json(self) -> Any:  # noqa: ANN401
        return json.loads(self._backend.to_str())  # a Hugging Face tokenizer file

    @classmethod
    def _from_json(cls, content: Any, settings: SideSettings) -> "_Subwords":  # noqa: ANN401
        """Only the pieces and merges of `content` are used, whatever else it holds."""
        try:
            return cls(_build(content["model"], settings), settings)
        except Exception as error:  # tokenizers raises plain Exceptions
            raise ValueError(f"its pieces cannot be used: {str(error)[:200]}") from error


KINDS: Final[Mapping[TokenizerKind, type[Tokenizer]]] = {
    "characters": _ClosedVocabulary,
    "symbols": _ClosedVocabulary,
    "regex": _ClosedVocabulary,
    "bpe": _Subwords,
    "unigram": _Subwords,
}


def find_side_errors(settings: SideSettings, name: str = "") -> list[str]:
    """Return what is wrong with the settings of a side; `name` ("tokenizer.source.") precedes each."""
    match settings.kind:
        case "bpe" | "unigram" if settings.vocab_size < _SMALLEST_SUBWORD_VOCABULARY:
            return [
                f"{name}vocab_size is {settings.vocab_size}, but kind {settings.kind} needs at "
                f"least {_SMALLEST_SUBWORD_VOCABULARY}, for the 256 bytes and 4 special tokens: "
                f"raise it, or set {name}kind to characters"
            ]
        case "symbols" if not settings.separator:
            return [
                f"{name}separator is empty, so it is unclear where a symbol ends: "
                f"give the text between two symbols, or set {name}kind to characters"
            ]
        case "regex" if not settings.pattern:
            return [
                f"{name}pattern is empty, but kind regex needs one: "
                r"give a regular expression, for example \w+"
            ]
        case "regex":
            try:
                make_cut(settings)
            except SettingsError as error:
                return [f"{name}{error}"]
    return []


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


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raise a ValueError, when an id is not in 0 to vocab_size - 1."""
    if len(ids) and (min(ids) < 0 or max(ids) >= vocab_size):
        wrong = next(id_ for id_ in ids if not 0 <= id_ < vocab_size)
        raise ValueError(f"id {wrong} is not in 0 to {vocab_size - 1}")


def make_cut(settings: SideSettings) -> Cut:
    """Return the function that cuts texts, in their Unicode form, into tokens; for subwords characters.

    Raises: SettingsError, when the pattern of kind regex is not a regular expression.
    """
    if settings.kind in ("characters", "bpe", "unigram"):
        return iter  # a string is the sequence of its code points
    if settings.kind == "symbols":
        separator = to_unicode_form(settings.separator, settings.unicode_form)
        # Empty symbols are kept, so that doubled and outer separators come back.
        return lambda texts: (text.split(separator) if text else () for text in texts)
    pattern = settings.pattern
    backend = Backend(models.WordLevel({"": 0}, unk_token=""))
    try:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
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


def _build(model: Any, settings: SideSettings) -> Backend:  # noqa: ANN401
    """Return a tokenizer of the pieces in `model`, the part of a file of this name."""
    if settings.kind == "bpe":
        merges = [(first, second) for first, second in model["merges"]]
        backend = Backend(models.BPE(vocab=model["vocab"], merges=merges))
    else:
        scores = [(piece, score) for piece, score in model["vocab"]]
        if not all(math.isfinite(score) for _, score in scores):
            raise ValueError("a score is not finite")
        backend = Backend(models.Unigram(scores, unk_id=None))
    backend.pre_tokenizer = _cut_words()
    vocab = backend.get_vocab(with_added_tokens=False)
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError(f"its ids are not 0 to {len(vocab) - 1}, each once")
    if [vocab.get(piece) for piece in _SPECIAL_PIECES] != list(range(FIRST_TEXT_ID)):
        raise ValueError(f"its first ids are not {_SPECIAL_PIECES}")
    if not _byte_alphabet().keys() <= vocab.keys():
        raise ValueError("it lacks some of the 256 bytes")
    return backend


def _cut_words() -> pre_tokenizers.PreTokenizer:
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
