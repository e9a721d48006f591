"""Subword pieces over bytes, by BPE or Unigram: they cover any text, and give it back unchanged.

Text is cut into words, digits and signs, and these into their UTF-8 bytes, each written as a
printable character; pieces are strings of such characters, and each of the 256 is a piece itself.
"""

import functools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from dragoman.errors import ModelFolderError, shorten
from dragoman.settings import SideSettings
from dragoman.tokenizers.closed_vocabulary import LARGEST_VOCABULARY, LONGEST_TOKEN
from dragoman.tokenizers.special_ids import FIRST_TEXT_ID, SPECIAL_NAMES, find_free_name
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

SMALLEST_SUBWORD_VOCABULARY: Final = FIRST_TEXT_ID + 256

# Marks stay with their letters (Indic vowel signs, NFD accents); digits stand alone, so that every
# number is spelt with the same few tokens.
_WORDS: Final = r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"

# A space is never a character of a piece: it is written "Ġ". So no text gives these.
_SPECIAL_PIECES: Final = [f"{name} " for name in SPECIAL_NAMES]

_LONGEST_PIECE: Final = 1024  # bytes of a piece of Unigram: tokenizers goes down one call for each

_PROBE: Final = "  <pad>\x00▁Ġ \u0301é\r\n가 "


class Subwords:
    """The pieces of kind bpe or unigram."""

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
        _guard_forks()
        content = (
            _train_bpe(texts, settings.vocab_size)
            if settings.kind == "bpe"
            else _train_unigram(texts, settings.vocab_size)
        )
        content["added_tokens"] = []  # else a text that reads like one would become it
        return cls(Backend.from_str(json.dumps(content)))

    @property
    def vocab_size(self) -> int:
        """Number of ids, the special ones included."""
        return len(self._bytes)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each of `texts`, computed by as many threads as there are cores."""
        if len(texts) == 1:  # threads that were woken for it would stand in the engine's way
            return [self._backend.encode(texts[0], add_special_tokens=False).ids]
        _guard_forks()
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, all in range; special ids give none.

        Bytes that are no UTF-8, which only a model can put together, become U+FFFD.
        """
        return b"".join(map(self._bytes.__getitem__, ids)).decode("utf-8", errors="replace")

    def names(self) -> list[str]:
        """Return the pieces as people read them, each once, from FIRST_TEXT_ID on.

        A piece is its text, or, where it is a part of a character, its bytes as in "<C3 A4>".
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

    def to_json(self) -> dict[str, Any]:
        """Return the content of a Hugging Face tokenizer file."""
        content: dict[str, Any] = json.loads(self._backend.to_str())
        return content

    @classmethod
    def from_json(cls, content: object, settings: SideSettings) -> "Subwords":
        """Return the pieces that `to_json` wrote.

        Raises:
            ModelFolderError: `content` is not the tokenizer of this kind that dragoman trains.
        """
        model = _check_content(content, settings)
        try:
            # What cuts the text before is ours, whatever the file says: it was compared.
            backend = Backend.from_str(json.dumps({**_pipeline(), "model": model}))
        except Exception as fault:  # tokenizers raises no kind of its own
            reason = shorten(str(fault), 200)
            raise ModelFolderError(f"it is no Hugging Face tokenizer: {reason}") from fault
        _check_backend(backend, settings)
        subwords = cls(backend)
        ids = subwords.encode_batch([_PROBE])[0]
        if min(ids) < FIRST_TEXT_ID or subwords.decode(ids) != _PROBE:
            raise ModelFolderError("its pieces do not give back the text that they are made from")
        return subwords


def _check_content(content: object, settings: SideSettings) -> dict[str, Any]:
    """Return the model of a tokenizer file, once nothing else in it does anything but what ours does.

    tokenizers can do much more to a text: replace it by expressions of any cost, blow it up, add
    tokens to it. Whatever else a file asks for, or asks too much of, is refused before it is built.

    Raises:
        ModelFolderError: It is not what dragoman writes; says what.
    """
    if not isinstance(content, dict):
        raise ModelFolderError("it is no object")
    expected = _pipeline()
    if not content.keys() <= {*expected, "model", "version"} or "model" not in content:
        raise ModelFolderError("it has other parts than a tokenizer of dragoman")
    for name, part in expected.items():
        if content.get(name) != part:
            raise ModelFolderError(f"its {name} is not the one that dragoman writes")
    model = content["model"]
    empty: dict[str, Any] = _empty_model(settings.kind)
    if not isinstance(model, dict) or not model.keys() <= empty.keys():
        raise ModelFolderError("its model has other parts than one of dragoman")
    sizes = {"vocab", "merges"} & empty.keys()
    for name in empty.keys() - sizes:
        if model.get(name, empty[name]) != empty[name]:
            raise ModelFolderError(f"{name} of its model is not as dragoman writes it")
    for name in sizes:
        _check_entries(model.get(name), name, settings.kind)
    return model


def _check_entries(entries: object, name: str, kind: str) -> None:
    if not isinstance(entries, dict if (kind, name) == ("bpe", "vocab") else list):
        raise ModelFolderError(f"{name} of its model is no list of pieces")
    assert isinstance(entries, dict | list)
    if len(entries) > LARGEST_VOCABULARY:
        raise ModelFolderError(f"{len(entries):,} pieces, more than {LARGEST_VOCABULARY:,}")
    if name == "merges":
        are_right = all(
            isinstance(one, list) and len(one) == 2 and isinstance(one[0], str)
            and isinstance(one[1], str)
            for one in entries
        )  # fmt: skip
    elif isinstance(entries, dict):
        are_right = all(type(id_) is int and 0 <= id_ < len(entries) for id_ in entries.values())
    else:
        are_right = all(
            isinstance(one, list) and len(one) == 2 and isinstance(one[0], str)
            and len(one[0]) <= _LONGEST_PIECE and type(one[1]) in (int, float)
            for one in entries
        )  # fmt: skip
    if not are_right:
        raise ModelFolderError(f"{name} of its model holds what is no piece, or too long")
    if isinstance(entries, dict) and max(map(len, entries), default=0) > LONGEST_TOKEN:
        raise ModelFolderError(f"a piece has more than {LONGEST_TOKEN:,} bytes")


def _check_backend(backend: Backend, settings: SideSettings) -> None:
    expected = models.BPE if settings.kind == "bpe" else models.Unigram
    if not isinstance(backend.model, expected):
        found = type(backend.model).__name__
        raise ModelFolderError(f"its kind is {settings.kind}, but its model is {found}")
    if backend.get_added_tokens_decoder() or backend.normalizer or backend.post_processor:
        raise ModelFolderError("it has added tokens, a normalizer or a post-processor")
    vocab = backend.get_vocab(with_added_tokens=False)
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ModelFolderError(f"its ids are not 0 to {len(vocab) - 1}, each once")
    if [vocab.get(piece) for piece in _SPECIAL_PIECES] != list(range(FIRST_TEXT_ID)):
        raise ModelFolderError(f"its first ids are not {_SPECIAL_PIECES}")
    alphabet = _byte_alphabet().keys()
    if not alphabet <= vocab.keys():
        raise ModelFolderError("it lacks some of the 256 bytes")
    for piece, id_ in vocab.items():
        if id_ >= FIRST_TEXT_ID and not (piece and alphabet >= set(piece)):
            raise ModelFolderError(f"its piece {piece!r} is not made of bytes")


def _train_bpe(texts: Iterable[str], vocab_size: int) -> dict[str, Any]:
    backend = Backend(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,  # a pair seen once teaches nothing about other text
        special_tokens=_SPECIAL_PIECES,
        initial_alphabet=sorted(_byte_alphabet()),
        show_progress=False,
    )
    return _train(backend, trainer, texts)


def _train_unigram(texts: Iterable[str], vocab_size: int) -> dict[str, Any]:
    backend = Backend(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=_SPECIAL_PIECES,
        initial_alphabet=sorted(_byte_alphabet()),
        show_progress=False,
    )
    content = _train(backend, trainer, texts)
    settled = _settle_scores(content["model"]["vocab"])
    if len(settled) > vocab_size:  # tokenizers 0.23 misses the limit where only the bytes fit
        settled = [entry for entry in settled if len(entry[0]) == 1 or entry[0] in _SPECIAL_PIECES]
    content["model"]["vocab"] = settled
    return content


def _train(
    backend: Backend, trainer: trainers.BpeTrainer | trainers.UnigramTrainer, texts: Iterable[str]
) -> dict[str, Any]:
    backend.pre_tokenizer = _make_cut()
    backend.train_from_iterator(iter(texts), trainer)
    content: dict[str, Any] = json.loads(backend.to_str())
    return content


def _make_cut() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@functools.cache
def _pipeline() -> dict[str, Any]:
    """Return all but the model of a tokenizer file, as tokenizers writes ours."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = _make_cut()
    content: dict[str, Any] = json.loads(backend.to_str())
    return {name: part for name, part in content.items() if name not in ("model", "version")}


@functools.cache
def _empty_model(kind: str) -> dict[str, Any]:
    model = models.BPE() if kind == "bpe" else models.Unigram()
    content: dict[str, Any] = json.loads(Backend(model).to_str())["model"]
    if kind == "unigram":
        content["unk_id"] = None  # a trained one knows every byte
    return content


def _settle_scores(vocab: list[list[Any]]) -> list[list[Any]]:
    """Return Unigram's pieces with scores, and in an order, that do not change between runs.

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


@functools.cache
def _guard_forks() -> None:
    """Let tokenizers use threads, but not in a forked child, where they would hang.

    Left to itself it prints a warning at every fork. A value set by the user stays.
    """
    if "TOKENIZERS_PARALLELISM" not in os.environ:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        os.register_at_fork(
            after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false")
        )
