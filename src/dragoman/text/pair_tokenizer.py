"""The tokens of both sides of a pair, and the features before a source, in one file."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dragoman.errors import ModelFolderError, SettingsError
from dragoman.settings import TokenizerSettings
from dragoman.text.special_ids import BOS_ID, EOS_ID, UNKNOWN_ID, find_free_name
from dragoman.text.tokenizer import Tokenizer, check_ids, find_side_faults

if TYPE_CHECKING:
    from dragoman.text.pairs import Pair

_FORMAT: Final = "dragoman tokenizer"
_VERSION: Final = 1
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
            DataError: one side has no text.
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
        return cls(source=source, target=target, features=_number(symbols, source))

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
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=1)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(text.encode("utf-8") + b"\n")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> "PairTokenizer":
        """Return the tokenizer that `save` wrote to `path`.

        Raises:
            ModelFolderError: the file is missing, broken, or not from `save`.
        """
        try:
            return _from_content(json.loads(path.read_bytes()))
        except OSError as fault:
            found = f"cannot be read: {fault.strerror}"
            raise ModelFolderError(f"{path}: {found}; {_REMEDY}") from fault
        except ValueError as fault:  # not UTF-8, or not JSON
            raise ModelFolderError(f"{path}: is no JSON: {fault}; {_REMEDY}") from fault
        except ModelFolderError as fault:
            raise ModelFolderError(f"{path}: {fault}; {_REMEDY}") from fault


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
        raise ModelFolderError("is not a dragoman tokenizer")
    if content.get("version") != _VERSION:
        raise ModelFolderError(
            f"has version {content.get('version')!r}, but this dragoman reads {_VERSION}"
        )
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
    return PairTokenizer(source=source, target=target, features=_number(symbols, source))


def _load_side(side: str, content: object) -> Tokenizer:
    try:
        return Tokenizer.from_dict(content)
    except ModelFolderError as fault:
        raise ModelFolderError(f"the {side} tokenizer is broken: {fault}") from fault
