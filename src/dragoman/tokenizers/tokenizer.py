"""One vocabulary: text to ids and back."""

import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from dragoman.characters import find_surrogate
from dragoman.errors import DataError, ModelFolderError, SettingsError
from dragoman.settings import SideSettings
from dragoman.tokenizers.closed_vocabulary import ClosedVocabulary, make_cut
from dragoman.tokenizers.special_ids import BOS_ID as BOS_ID
from dragoman.tokenizers.special_ids import EOS_ID as EOS_ID
from dragoman.tokenizers.special_ids import FIRST_TEXT_ID, SPECIAL_NAMES, find_free_name
from dragoman.tokenizers.special_ids import PAD_ID as PAD_ID
from dragoman.tokenizers.special_ids import UNKNOWN_ID as UNKNOWN_ID
from dragoman.tokenizers.subwords import SMALLEST_SUBWORD_VOCABULARY, Subwords
from dragoman.tokenizers.unicode_form import from_unicode_form, to_unicode_form


class Tokenizer:
    """The tokens of one side, or of both where they share them.

    No text is encoded to PAD_ID, BOS_ID or EOS_ID, whatever it reads like, and to UNKNOWN_ID only
    for a token that was not in the training text; bpe and unigram know no such token.

    Where no id is UNKNOWN_ID, `decode(encode(text))` is `text` for unicode_form none, and NFC(text)
    for nfc and nfd.
    """

    def __init__(self, settings: SideSettings, pieces: ClosedVocabulary | Subwords) -> None:
        self.settings = settings
        self._pieces = pieces

    @classmethod
    def train(cls, texts: Iterable[str], settings: SideSettings) -> "Tokenizer":
        """Return a tokenizer trained on `texts`; the same texts give the same tokenizer.

        Reads `texts` once.

        Raises:
            SettingsError: the settings do not suit their kind.
            DataError: there is no text, or every text is empty; or, but for kinds characters and
                symbols, a text holds a lone surrogate.
        """
        faults = find_side_faults(settings)
        if faults:
            raise SettingsError.gather(faults)
        formed = (to_unicode_form(text, settings.unicode_form) for text in texts)
        first = next((text for text in formed if text), None)
        if first is None:
            raise DataError(
                "there is no text to train a tokenizer on (no rows, or every text is empty): "
                "check the files and the columns that data.source and data.target name"
            )
        kind = Subwords if settings.kind in ("bpe", "unigram") else ClosedVocabulary
        try:
            return cls(settings, kind.train(itertools.chain([first], formed), settings))
        except UnicodeEncodeError as error:
            raise _describe_surrogate(error.object, error.start) from error

    @property
    def vocab_size(self) -> int:
        """Number of ids, the special ones included."""
        return self._pieces.vocab_size

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without BOS_ID and EOS_ID.

        Raises:
            DataError: as `encode_batch`.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each of `texts`; quicker than one by one.

        Raises:
            DataError: a text holds a lone surrogate; kinds characters and symbols take it.
        """
        form = self.settings.unicode_form
        if form != "none":
            texts = [to_unicode_form(text, form) for text in texts]
        try:
            return self._pieces.encode_batch(texts)
        except (TypeError, UnicodeEncodeError):  # TypeError: what tokenizers makes of a surrogate
            for text in texts:
                if (place := find_surrogate(text)) is not None:
                    raise _describe_surrogate(text, place) from None
            raise

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special ids give none.

        Raises:
            ValueError: an id is not in 0 to vocab_size - 1.
        """
        check_ids(ids, self.vocab_size)
        return from_unicode_form(self._pieces.decode(ids), self.settings.unicode_form)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Return a readable name for each of `ids`; no two ids have the same.

        Raises:
            ValueError: an id is not in 0 to vocab_size - 1.
        """
        ids = list(ids)
        check_ids(ids, self.vocab_size)
        return [self._names[id_] for id_ in ids]

    @property
    def separator(self) -> str:
        """What `decode` puts between two tokens, before it composes the text: "" but for symbols."""
        return self._pieces.separator

    def token_bytes(self) -> list[bytes | None]:
        """Return the UTF-8 bytes that each id stands for, before the text is composed.

        A byte piece may be a part of a character. None for an id that spells no text: the special
        ones, and lone surrogates.
        """
        return [None] * FIRST_TEXT_ID + self._pieces.token_bytes()

    def to_dict(self) -> dict[str, Any]:
        """Return the tokenizer as plain JSON values, for `from_dict`."""
        return {"settings": self.settings.model_dump(), "tokens": self._pieces.to_json()}

    @classmethod
    def from_dict(cls, content: object) -> "Tokenizer":
        """Return the tokenizer that `to_dict` wrote.

        Raises:
            ModelFolderError: `content` is not what `to_dict` writes.
        """
        if not isinstance(content, dict) or content.keys() != {"settings", "tokens"}:
            raise ModelFolderError("it does not hold settings and tokens, and nothing else")
        try:
            settings = SideSettings.model_validate(content["settings"])
        except ValidationError as fault:
            raise ModelFolderError(f"its settings are broken: {fault}") from fault
        faults = find_side_faults(settings)
        if faults:
            raise ModelFolderError(f"its settings are broken: {'; '.join(faults)}")
        kind = Subwords if settings.kind in ("bpe", "unigram") else ClosedVocabulary
        return cls(settings, kind.from_json(content["tokens"], settings))

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer.from_dict, (self.to_dict(),)

    @cached_property
    def _names(self) -> list[str]:
        texts = self._pieces.names()
        taken = set(texts)
        return [*(find_free_name(name, taken) for name in SPECIAL_NAMES), *texts]


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Refuse ids that are not in 0 to `vocab_size` - 1.

    Raises:
        ValueError: there is such an id.
    """
    if len(ids) and (min(ids) < 0 or max(ids) >= vocab_size):
        wrong = next(id_ for id_ in ids if not 0 <= id_ < vocab_size)
        raise ValueError(f"id {wrong} is not in 0 to {vocab_size - 1}")


def _describe_surrogate(text: str, place: int) -> DataError:
    return DataError(
        f"the text {text[:40]!r} holds a lone surrogate, \\u{ord(text[place]):04x}, at character "
        f"{place + 1}, which is no text: take it out"
    )


def find_side_faults(settings: SideSettings, name: str = "") -> list[str]:
    """Return what is wrong with the settings of a side; `name` ("tokenizer.source.") precedes each."""
    match settings.kind:
        case "bpe" | "unigram" if settings.vocab_size < SMALLEST_SUBWORD_VOCABULARY:
            return [
                f"{name}vocab_size is {settings.vocab_size}, but kind {settings.kind} needs at "
                f"least {SMALLEST_SUBWORD_VOCABULARY}, for the 256 bytes and 4 special tokens: "
                f"raise it, or set {name}kind to characters"
            ]
        case "symbols" if not settings.separator:
            return [
                f"{name}separator is empty, so nothing tells where a symbol ends: "
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
            except SettingsError as fault:
                return [f"{name}{fault}"]
    return []
