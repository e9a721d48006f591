"""Text to ids and back: one vocabulary (`Tokenizer`), and those of both sides (`PairTokenizer`)."""

import codecs
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dragoman.errors import DataError, ModelFolderError, SettingsError, later_format_reason
from dragoman.settings import SideSettings, TokenizerKind, TokenizerSettings
from dragoman.storage import describe_first, read_json, staged_file
from dragoman.tokenizers.pointers import CASES, MOST_WORDS, Part, Pointers, Structure, Word
from dragoman.tokenizers.vocabularies import BOS_ID as BOS_ID
from dragoman.tokenizers.vocabularies import EOS_ID as EOS_ID
from dragoman.tokenizers.vocabularies import FIRST_TEXT_ID as FIRST_TEXT_ID
from dragoman.tokenizers.vocabularies import PAD_ID as PAD_ID
from dragoman.tokenizers.vocabularies import (
    SMALLEST_SUBWORD_VOCABULARY,
    ClosedVocabulary,
    Subwords,
    make_cut,
    to_unicode_form,
)
from dragoman.tokenizers.vocabularies import SPECIAL_NAMES as SPECIAL_NAMES
from dragoman.tokenizers.vocabularies import UNKNOWN_ID as UNKNOWN_ID
from dragoman.tokenizers.vocabularies import find_free_name as find_free_name

if TYPE_CHECKING:
    from dragoman.reading.pairs import Pair

KINDS: Final[Mapping[TokenizerKind, type[ClosedVocabulary] | type[Subwords]]] = {
    "characters": ClosedVocabulary,
    "symbols": ClosedVocabulary,
    "regex": ClosedVocabulary,
    "bpe": Subwords,
    "unigram": Subwords,
}

Frame = Literal["end", "begin_end", "begin", "none"]
"""Which of BOS_ID and EOS_ID a source has around its text; `fit` makes "end", imported models differ."""

_FORMAT: Final = "dragoman tokenizer"
_VERSION: Final = 1
_MAX_FEATURE_CHARACTERS: Final = 1000
_REMEDY: Final = "copy the model folder again, or train it again"


class _StoredSide(BaseModel):
    model_config = ConfigDict(extra="forbid")

    settings: SideSettings
    tokens: Any  # by `to_json` of the kind


class _StoredPair(BaseModel):
    """The content of tokenizer.json."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["dragoman tokenizer"]
    version: Literal[1]
    features: list[str]
    source: _StoredSide
    target: _StoredSide | Literal["source"]
    pointers: Pointers | None = None
    frame: Frame = "end"


class Tokenizer:
    """The vocabulary of one side, or of both if they share it.

    No text is encoded to PAD_ID, BOS_ID or EOS_ID, whatever it reads like. UNKNOWN_ID stands for a
    token that was not in the training text; bpe and unigram have no such token.

    If no id is UNKNOWN_ID, `decode(encode(text))` is `text` for unicode_form none, and NFC(text) for
    nfc and nfd.
    """

    def __init__(self, settings: SideSettings, pieces: ClosedVocabulary | Subwords) -> None:
        self.settings = settings
        self._pieces = pieces

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
        if start is not None and start._pieces.spells_any_text:
            return start
        formed = (to_unicode_form(text, settings.unicode_form) for text in texts)
        first = next((text for text in formed if text), None)
        if first is None:
            raise DataError(
                "there is no text to train a tokenizer on (no rows, or every text is empty): "
                "check the files and the columns that data.source and data.target name"
            )
        pieces = KINDS[settings.kind].train(chain([first], formed), settings)
        if start is not None:
            tokens = dict.fromkeys([*start._pieces.to_json(), *pieces.to_json()])
            pieces = ClosedVocabulary(list(tokens), settings)
        return cls(settings, pieces)

    @property
    def vocab_size(self) -> int:
        """Number of ids, the special ones included."""
        return self._pieces.vocab_size

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without BOS_ID and EOS_ID: see `encode_batch`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each of `texts`; faster than one by one."""
        form = self.settings.unicode_form
        if form != "none":
            texts = [to_unicode_form(text, form) for text in texts]
        return self._pieces.encode_batch(texts)

    def name_unknown(self, text: str) -> str:
        """Return the different tokens of `text` that become UNKNOWN_ID, for messages; "": none."""
        found = self._pieces.find_unknown(to_unicode_form(text, self.settings.unicode_form))
        return ", ".join(repr(token) for token in dict.fromkeys(found))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special ids give none.

        Raises: ValueError, when an id is not in 0 to vocab_size - 1.
        """
        _check_ids(ids, self.vocab_size)
        text = self._pieces.decode(ids)
        # Output is always composed: jamo come back as Hangul syllables.
        return text if self.settings.unicode_form == "none" else unicodedata.normalize("NFC", text)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Return a readable name for each of `ids`; no two ids have the same.

        Raises: ValueError, when an id is not in 0 to vocab_size - 1.
        """
        ids = list(ids)
        _check_ids(ids, self.vocab_size)
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

    def find_parts(self) -> dict[int, tuple[int, int]]:
        """Return the ids of the two parts of each subword that kind bpe made of them."""
        return self._pieces.find_parts()

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

    @cached_property
    def _bytes(self) -> list[bytes | None]:
        return self.token_bytes()

    def to_dict(self) -> dict[str, Any]:
        """Return the tokenizer as plain JSON values, for `from_dict`."""
        return {"settings": self.settings.model_dump(), "tokens": self._pieces.to_json()}

    @classmethod
    def from_dict(cls, content: object) -> "Tokenizer":
        """Return the tokenizer that `to_dict` wrote.

        Raises: ModelFolderError, when `content` is not what `to_dict` writes.
        """
        try:
            stored = _StoredSide.model_validate(content)
            settings = stored.settings
            if errors := find_side_errors(settings):
                raise ModelFolderError("; ".join(errors))
            return cls(settings, KINDS[settings.kind].from_json(stored.tokens, settings))
        except ValueError as error:
            raise ModelFolderError(describe_first(error)) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer.from_dict, (self.to_dict(),)

    @cached_property
    def _names(self) -> list[str]:
        texts = self._pieces.names()
        taken = set(texts)
        return [*(find_free_name(name, taken) for name in SPECIAL_NAMES), *texts]


@dataclass(frozen=True, kw_only=True)
class PairTokenizer:
    """The vocabularies of both sides; if they are shared, `source` and `target` are one object.

    `features` gives the source id of each feature symbol. They follow the ids of the text, so a text
    that reads like a symbol is never taken for one. The ids of `pointers` follow them: the numbers of
    the words, then the cases, then the structures.
    """

    source: Tokenizer
    target: Tokenizer
    features: dict[str, int]
    pointers: Pointers | None = None  # None also if targets are no records of their sources
    frame: Frame = "end"

    @classmethod
    def train(
        cls,
        pairs: "Iterable[Pair]",
        settings: TokenizerSettings,
        start: "PairTokenizer | None" = None,
    ) -> "PairTokenizer":
        """Return tokenizers trained on the first `settings.training_rows` of `pairs`.

        Reads `pairs` once, to the end: feature symbols are taken from all of them, the most
        frequent first. Holds the texts of the training rows in memory. `start`, of the same
        settings: keep its tokens and features, before new ones.

        Raises:
            SettingsError: The settings do not suit their kinds, or shared sides differ.
            DataError: One side has no text, or a feature is long.
        """
        errors = find_side_errors(settings.source, "tokenizer.source.")
        errors += find_side_errors(settings.target, "tokenizer.target.")
        if settings.shared and settings.source != settings.target:
            source_values, target_values = dict(settings.source), dict(settings.target)
            differing = [
                name for name in source_values if source_values[name] != target_values[name]
            ]
            errors.append(
                "tokenizer.shared is true, but tokenizer.source and tokenizer.target differ in "
                f"{', '.join(differing)}: give both sides the same, or set tokenizer.shared to false"
            )
        if settings.pointers and not settings.shared:
            errors.append(
                "tokenizer.pointers needs one vocabulary for both sides: set tokenizer.shared, and "
                "give both sides the same kind"
            )
        if errors:
            raise SettingsError.gather(errors)
        sources: list[str] = []
        targets: list[str] = []
        counts = Counter[str]()
        for row, pair in enumerate(pairs):
            if row < settings.training_rows:
                sources.append(pair.source)
                targets.append(pair.target)
            counts.update(pair.features)
        pointers = start.pointers if start else None
        if settings.pointers and pointers is None:
            pointers = Pointers.train(sources, targets)
        old = (start.source, start.target) if start else ()
        if settings.shared:
            if pointers:
                sources = [source.lower() for source in sources]
            source = target = Tokenizer.train(sources + targets, settings.source, *old[:1])
        else:
            source = Tokenizer.train(sources, settings.source, *old[:1])
            target = Tokenizer.train(targets, settings.target, *old[1:])
        symbols = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
        if start is not None:
            symbols = list(dict.fromkeys([*start.features, *symbols]))
        if (longest := max(map(len, symbols), default=0)) > _MAX_FEATURE_CHARACTERS:
            raise DataError(
                f"a feature has {longest:,} characters, more than {_MAX_FEATURE_CHARACTERS:,}: a "
                "feature is one symbol; check the columns that data.features names"
            )
        numbered = _number(symbols, source)
        frame = start.frame if start else "end"
        return cls(source=source, target=target, features=numbered, pointers=pointers, frame=frame)

    @property
    def is_shared(self) -> bool:
        """Whether both sides have one vocabulary."""
        return self.source is self.target

    @property
    def source_vocab_size(self) -> int:
        """Number of source ids: special, text, features, those of pointers."""
        return self._first_structure + (len(self.pointers.structures) if self.pointers else 0)

    @property
    def target_vocab_size(self) -> int:
        """Number of target ids; the source's if shared, since both use one embedding."""
        return self.source_vocab_size if self.is_shared else self.target.vocab_size

    @property
    def never_emitted(self) -> tuple[int, ...]:
        """The target ids that spell nothing, and are not the end: an output never has them."""
        of_sources = self.features.values() if self.is_shared else ()
        cases = range(self._first_case, self._first_structure)
        return (PAD_ID, BOS_ID, UNKNOWN_ID, *of_sources, *cases)

    @property
    def numbers(self) -> tuple[int, int]:
        """The first id of the numbers of words, and the first after them; equal: there are none."""
        return self._first_number, self._first_case

    @property
    def _first_number(self) -> int:
        return self.source.vocab_size + len(self.features)

    @property
    def _first_case(self) -> int:
        return self._first_number + (self.pointers.num_words if self.pointers else 0)

    @property
    def _first_structure(self) -> int:
        return self._first_case + (len(CASES) if self.pointers else 0)

    def encode_sources(
        self, texts: Sequence[str], features: Sequence[tuple[str, ...]]
    ) -> list[list[int]]:
        """Return the ids of each source: its features, its text, EOS_ID; or as `frame` says.

        `features` has one tuple a text, empty for none; a symbol not seen in training becomes
        UNKNOWN_ID.
        """
        find = self.features.get
        begin = (BOS_ID,) if "begin" in self.frame else ()
        end = (EOS_ID,) if "end" in self.frame else ()
        encoded = self._number_words(texts) if self.pointers else self.source.encode_batch(texts)
        return [
            [*begin, *(find(symbol, UNKNOWN_ID) for symbol in symbols), *ids, *end]
            if symbols
            else [*begin, *ids, *end]  # no generator for each of millions of rows
            for symbols, ids in zip(features, encoded, strict=True)
        ]

    def _number_words(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, with its number and case before each word.

        UNKNOWN_ID stands before words that have no number, because no training source is so long.
        """
        assert self.pointers is not None
        pieces = [self.pointers.split_source(text) for text in texts]
        spelled = [piece.lower() for row in pieces for piece in row]
        encoded = iter(self.source.encode_batch(spelled))
        rows = []
        for *words, rest in pieces:
            ids = list[int]()
            for number, word in enumerate(words, start=self._first_number):
                case = self.pointers.find_case(word)
                ids += (number,) if case is None else (number, self._first_case + case)
                ids += next(encoded)
            has_more = len(words) == self.pointers.num_words and not (rest == "" or rest.isspace())
            rows.append([*ids, *([UNKNOWN_ID] if has_more else []), *next(encoded)])
        return rows

    def encode_targets(
        self, texts: Sequence[str], sources: Sequence[str] | None = None
    ) -> list[list[int]]:
        """Return the ids of each target: BOS_ID, its text, EOS_ID.

        `sources`: to which the values of records may point; None: all is spelled.
        """
        if self.pointers is None or sources is None:
            return [[BOS_ID, *ids, EOS_ID] for ids in self.target.encode_batch(texts)]
        rows = [
            self.pointers.split_target(source, text)
            for source, text in zip(sources, texts, strict=True)
        ]
        spelled = [part for row in rows for part in row if isinstance(part, str)]
        encoded = iter(self.target.encode_batch(spelled))
        return [
            [BOS_ID, *chain.from_iterable(self._encode_part(part, encoded) for part in row), EOS_ID]
            for row in rows
        ]

    def _encode_part(self, part: Part, encoded: Iterator[list[int]]) -> Sequence[int]:
        if isinstance(part, Word):
            return (self._first_number + part.number,)
        if isinstance(part, Structure):
            return (self._first_structure + part.place,)
        return next(encoded)

    def decode_target(self, ids: Sequence[int]) -> str:
        """Return the text of a target's `ids`: see `Tokenizer.decode`. Features give none.

        A word of the source reads as its number: see `read_target`.
        """
        _check_ids(ids, self.target_vocab_size)
        if self.is_shared and self.features:
            first = self.target.vocab_size
            ids = [id_ for id_ in ids if not first <= id_ < self._first_number]
        if self.pointers is None:
            return self.target.decode(ids)
        return "".join(
            part
            if isinstance(part, str)
            else f"⟨{part.number}⟩"
            if isinstance(part, Word)
            else self.pointers.structures[part.place]
            for part, _ in self._find_parts(ids)
        )

    def decode_targets(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """Return the text of each of `rows`, as `decode_target` does."""
        return [self.decode_target(ids) for ids in rows]

    def read_target(self, ids: Sequence[int], source: str) -> str:
        """Return the text of a target's `ids`, with the words of `source` to which they point."""
        if self.pointers is None:
            return self.decode_target(ids)
        return "".join(self.pointers.join(source, (part for part, _ in self._find_parts(ids))))

    def find_target_ends(self, ids: Sequence[int], source: str) -> list[int]:
        """Return where each token ends in `read_target(ids, source)`, in characters."""
        if self.pointers is None:
            return self.target.find_ends(ids)
        parts = list(self._find_parts(ids))
        texts = self.pointers.join(source, [part for part, _ in parts])
        ends, start = list[int](), 0
        for (part, run), text in zip(parts, texts, strict=True):
            if isinstance(part, str):
                cut = len(part) - len(text)  # at the begin of the output: see `Pointers.join`
                ends += [start + max(0, end - cut) for end in self.target.find_ends(run)]
            else:
                ends.append(start + len(text))
            start += len(text)
        return ends

    def spells(self, ids: Sequence[int]) -> bool:
        """Return whether there are pointers, and `ids` spell text that could be theirs."""
        return self.pointers is not None and any(
            FIRST_TEXT_ID <= id_ < self.target.vocab_size for id_ in ids
        )

    def _find_parts(self, ids: Sequence[int]) -> Iterator[tuple[Part, Sequence[int]]]:
        """Yield the parts that `ids` spell, each with its ids; features give none."""
        first, case, last = self._first_number, self._first_case, self._first_structure
        for is_text, run in groupby(ids, key=lambda id_: id_ < first):
            found = list(run)
            if is_text:
                yield self.target.decode([i for i in found if i < self.target.vocab_size]), found
                continue
            for id_ in found:
                if not case <= id_ < last:
                    yield Structure(id_ - last) if id_ >= last else Word(id_ - first), [id_]

    def source_names(self) -> list[str]:
        """Return a readable name for each source id, in order and each once."""
        names = self.source.tokens(range(self.source.vocab_size))
        taken = set(names)
        others = list(self.features)
        if self.pointers:
            numbers = map(str, range(self.pointers.num_words))
            others += (f"⟨{text}⟩" for text in (*numbers, *CASES, *self.pointers.structures))
        for name in others:
            names.append(find_free_name(name, taken))
            taken.add(names[-1])
        return names

    def target_names(self) -> list[str]:
        """Return a readable name for each target id, in order and each once."""
        if self.is_shared:
            return self.source_names()
        return self.target.tokens(range(self.target.vocab_size))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "features": list(self.features),
            "source": self.source.to_dict(),
            "target": "source" if self.is_shared else self.target.to_dict(),
            **({"pointers": self.pointers.to_dict()} if self.pointers else {}),
            **({"frame": self.frame} if self.frame != "end" else {}),
        }

    def save(self, path: Path) -> None:
        """Write everything to `path`, as JSON, atomically."""
        with staged_file(path) as temporary:
            text = json.dumps(self.to_dict(), ensure_ascii=False, indent=1)
            temporary.write_text(text + "\n", "utf-8", newline="\n")

    @classmethod
    def load(cls, path: Path) -> "PairTokenizer":
        """Return the tokenizer that `save` wrote to `path`.

        Raises: ModelFolderError, when the file is missing, invalid, or not from `save`.
        """
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ModelFolderError(f"{path}: not a dragoman tokenizer; {_REMEDY}")
        if type(found := content.get("version")) is int and found > _VERSION:
            raise ModelFolderError(f"{path}: {later_format_reason(found, _VERSION)}")
        try:
            stored = _StoredPair.model_validate(content)
            if len(set(stored.features)) != len(stored.features):
                raise ModelFolderError("features: one of them has two ids")
            source = _load_side("source", content)
            target = source if stored.target == "source" else _load_side("target", content)
            num_words = stored.pointers.num_words if stored.pointers else 1
            if not 0 < num_words <= MOST_WORDS or (stored.pointers and target is not source):
                raise ModelFolderError(
                    f"pointers: they need one vocabulary, and 1 to {MOST_WORDS:,} words"
                )
        except (ValidationError, ModelFolderError) as error:
            raise ModelFolderError(f"{path}: {describe_first(error)}; {_REMEDY}") from error
        features = _number(stored.features, source)
        return cls(
            source=source,
            target=target,
            features=features,
            pointers=stored.pointers,
            frame=stored.frame,
        )


def find_side_errors(settings: SideSettings, name: str = "") -> list[str]:
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


def _number(symbols: Sequence[str], source: Tokenizer) -> dict[str, int]:
    return {symbol: id_ for id_, symbol in enumerate(symbols, start=source.vocab_size)}


def _load_side(side: Literal["source", "target"], content: Mapping[str, Any]) -> Tokenizer:
    try:
        return Tokenizer.from_dict(content[side])
    except ModelFolderError as error:
        raise ModelFolderError(f"{side}: {error}") from error


def _check_ids(ids: Sequence[int], vocab_size: int) -> None:
    if len(ids) and (min(ids) < 0 or max(ids) >= vocab_size):
        wrong = next(id_ for id_ in ids if not 0 <= id_ < vocab_size)
        raise ValueError(f"id {wrong} is not in 0 to {vocab_size - 1}")
