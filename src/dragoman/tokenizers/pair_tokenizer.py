"""The tokens of both sides of a pair, and the features before a source, in one file."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dragoman.characters import find_surrogate
from dragoman.errors import DataError, ModelFolderError, SettingsError, shorten
from dragoman.settings import TokenizerSettings
from dragoman.storage import read_json, staged_file
from dragoman.tokenizers.special_ids import BOS_ID, EOS_ID, UNKNOWN_ID, find_free_name
from dragoman.tokenizers.tokenizer import Tokenizer, check_ids, find_side_faults
from dragoman.versions import tell_later

if TYPE_CHECKING:
    from dragoman.reading.pairs import Pair

_FORMAT: Final = "dragoman tokenizer"
_VERSION: Final = 1
_LARGEST_BYTES: Final = 1 << 27
_LONGEST_SYMBOL: Final = 1000  # characters of a feature
_REMEDY: Final = "copy the model folder anew from where it came, or train it again"


@dataclass(frozen=True, kw_only=True)
class PairTokenizer:
    """The tokens of both sides; where they are shared, `source` and `target` are one object.

    `features` gives the source id of each feature symbol; they follow the ids of the text, so that
    a text which reads like a symbol is never taken for one.
    """

    source: Tokenizer
    target: Tokenizer
    features: dict[str, int]

    @classmethod
    def train(cls, pairs: "Iterable[Pair]", settings: TokenizerSettings) -> "PairTokenizer":
        """Return tokenizers trained on the first `settings.training_rows` of `pairs`.

        Reads `pairs` once, to the end: feature symbols are taken from all of them, the most
        frequent first. Holds the texts of the training rows in memory.

        Raises:
            SettingsError: the settings do not suit their kinds, or shared sides differ.
            DataError: one side has no text, or so many or such long tokens that no model folder
                may hold them.
        """
        _check_settings(settings)
        sources: list[str] = []
        targets: list[str] = []
        counts = Counter[str]()
        for row, pair in enumerate(pairs):
            if row < settings.training_rows:
                sources.append(pair.source)
                targets.append(pair.target)
            counts.update(pair.features)
        if settings.shared:
            source = target = Tokenizer.train(sources + targets, settings.source)
        else:
            source = Tokenizer.train(sources, settings.source)
            target = Tokenizer.train(targets, settings.target)
        symbols = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
        made = cls(source=source, target=target, features=_number(symbols, source))
        _check_size(made)
        return made

    @property
    def is_shared(self) -> bool:
        """Whether both sides have one vocabulary."""
        return self.source is self.target

    @property
    def source_vocab_size(self) -> int:
        """Number of source ids: special, text, features."""
        return self.source.vocab_size + len(self.features)

    @property
    def target_vocab_size(self) -> int:
        """Number of target ids; the source's where shared, for one embedding serves both."""
        return self.source_vocab_size if self.is_shared else self.target.vocab_size

    def encode_sources(
        self, texts: Sequence[str], features: Sequence[tuple[str, ...]]
    ) -> list[list[int]]:
        """Return the ids of each source: its features, its text, EOS_ID.

        `features` has one tuple a text, empty for none; a symbol not seen in training becomes
        UNKNOWN_ID.
        """
        find = self.features.get
        return [
            [*(find(symbol, UNKNOWN_ID) for symbol in symbols), *ids, EOS_ID]
            if symbols
            else [*ids, EOS_ID]  # spares a generator for each of millions of rows
            for symbols, ids in zip(features, self.source.encode_batch(texts), strict=True)
        ]

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each target: BOS_ID, its text, EOS_ID."""
        return [[BOS_ID, *ids, EOS_ID] for ids in self.target.encode_batch(texts)]

    def count_unknown(self, ids: Sequence[int]) -> int:
        """Return how many of `ids` stand for a symbol, of text or features, not in the vocabulary."""
        return sum(id_ == UNKNOWN_ID for id_ in ids)

    def decode_target(self, ids: Sequence[int]) -> str:
        """Return the text of a target's `ids`; special ids, and features of the source, give none.

        Raises:
            ValueError: an id is not in 0 to target_vocab_size - 1.
        """
        check_ids(ids, self.target_vocab_size)
        if self.is_shared and self.features:
            ids = [id_ for id_ in ids if id_ < self.target.vocab_size]
        return self.target.decode(ids)

    def decode_targets(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """Return the text of each of `rows`, as `decode_target` does."""
        return [self.decode_target(ids) for ids in rows]

    def source_names(self) -> list[str]:
        """Return a readable name for each source id, in order and each once."""
        names = self.source.tokens(range(self.source.vocab_size))
        taken = set(names)
        for symbol in self.features:
            names.append(find_free_name(symbol, taken))
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
        }

    def save(self, path: Path) -> None:
        """Write everything to `path`, as JSON; a file that is there is replaced at one stroke."""
        with staged_file(path) as partial:
            partial.write_bytes(_dump(self))

    @classmethod
    def load(cls, path: Path) -> "PairTokenizer":
        """Return the tokenizer that `save` wrote to `path`.

        Raises:
            ModelFolderError: the file is missing, broken, or not from `save`.
        """
        content = read_json(path, _LARGEST_BYTES)
        try:
            return _from_content(content)
        except ModelFolderError as fault:
            raise ModelFolderError(f"{path}: {fault}") from fault


def _dump(tokenizer: PairTokenizer) -> bytes:
    text = json.dumps(tokenizer.to_dict(), ensure_ascii=False, indent=1)
    return text.encode("utf-8") + b"\n"


def _check_size(tokenizer: PairTokenizer) -> None:
    """Refuse a tokenizer that `load` would refuse, before a model is trained with it."""
    longest = max(map(len, tokenizer.features), default=0)
    if longest > _LONGEST_SYMBOL:
        raise DataError(
            f"a feature has {longest:,} characters, more than {_LONGEST_SYMBOL:,}: a feature is one "
            "symbol; check the columns that data.features names"
        )
    if (size := len(_dump(tokenizer))) > _LARGEST_BYTES:
        raise DataError(
            f"the tokens take {size >> 20:,} MiB, more than the {_LARGEST_BYTES >> 20} that a model "
            "may have: set tokenizer.source.kind and tokenizer.target.kind to bpe"
        )


def _check_settings(settings: TokenizerSettings) -> None:
    faults = find_side_faults(settings.source, "tokenizer.source.")
    faults += find_side_faults(settings.target, "tokenizer.target.")
    if settings.shared and settings.source != settings.target:
        fields = [
            name
            for name in type(settings.source).model_fields
            if getattr(settings.source, name) != getattr(settings.target, name)
        ]
        faults.append(
            "tokenizer.shared is true, but tokenizer.source and tokenizer.target differ in "
            f"{', '.join(fields)}: give both sides the same, or set tokenizer.shared to false"
        )
    if faults:
        raise SettingsError.gather(faults)


def _number(symbols: Sequence[str], source: Tokenizer) -> dict[str, int]:
    return {symbol: id_ for id_, symbol in enumerate(symbols, start=source.vocab_size)}


def _from_content(content: object) -> PairTokenizer:
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ModelFolderError(f"is not a dragoman tokenizer; {_REMEDY}")
    version = content.get("version")
    if type(version) is int and version > _VERSION:
        raise ModelFolderError(tell_later(shorten(str(version)), _VERSION))
    if version != _VERSION:
        raise ModelFolderError(
            f"has version {shorten(repr(version))}, but this dragoman reads {_VERSION}; {_REMEDY}"
        )
    try:
        return _take_content(content)
    except ModelFolderError as fault:
        raise ModelFolderError(f"{fault}; {_REMEDY}") from fault


def _take_content(content: dict[str, Any]) -> PairTokenizer:
    if content.keys() != {"format", "version", "features", "source", "target"}:
        raise ModelFolderError("does not hold features, source and target, and nothing else")
    source = _load_side("source", content["source"])
    is_shared = content["target"] == "source"
    target = source if is_shared else _load_side("target", content["target"])
    symbols = content["features"]
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        raise ModelFolderError("its features are not a list of strings")
    if len(set(symbols)) != len(symbols):
        raise ModelFolderError("a feature has two ids")
    _check_text(symbols, "a feature")
    if max(map(len, symbols), default=0) > _LONGEST_SYMBOL:
        raise ModelFolderError(f"a feature has more than {_LONGEST_SYMBOL:,} characters")
    return PairTokenizer(source=source, target=target, features=_number(symbols, source))


def _load_side(side: str, content: object) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_dict(content)
        _check_text(tokenizer.tokens(range(tokenizer.vocab_size)), "a token")
        return tokenizer
    except ModelFolderError as fault:
        raise ModelFolderError(f"the {side} tokenizer is broken: {fault}") from fault


def _check_text(symbols: Sequence[str], what: str) -> None:
    """Refuse what could never be written: JSON can spell half a character, a file of text cannot.

    Raises:
        ModelFolderError: There is such a symbol.
    """
    if find_surrogate("".join(symbols)) is not None:
        raise ModelFolderError(f"{what} holds a lone surrogate, which is no text")
