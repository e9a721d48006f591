"""Text to ids and back, for pairs: the vocabularies of both sides, feature symbols, and pointers."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from unicodedata import normalize

from pydantic import BaseModel, ConfigDict, ValidationError

from dragoman.errors import DataError, ModelFolderError, SettingsError, later_format_reason
from dragoman.settings import TokenizerSettings, UnicodeForm
from dragoman.storage import describe_first, read_json, staged_file
from dragoman.tokenizers.pointers import CASES, MOST_WORDS, Part, Pointers, Structure, Word
from dragoman.tokenizers.vocabularies import BOS_ID as BOS_ID
from dragoman.tokenizers.vocabularies import EOS_ID as EOS_ID
from dragoman.tokenizers.vocabularies import FIRST_TEXT_ID as FIRST_TEXT_ID
from dragoman.tokenizers.vocabularies import KINDS as KINDS
from dragoman.tokenizers.vocabularies import PAD_ID as PAD_ID
from dragoman.tokenizers.vocabularies import UNKNOWN_ID as UNKNOWN_ID
from dragoman.tokenizers.vocabularies import Tokenizer as Tokenizer
from dragoman.tokenizers.vocabularies import check_ids
from dragoman.tokenizers.vocabularies import find_free_name as find_free_name
from dragoman.tokenizers.vocabularies import find_side_errors as find_side_errors

if TYPE_CHECKING:
    from dragoman.reading.pairs import Pair

Frame = Literal["end", "begin_end", "begin", "none"]
"""Which of BOS_ID and EOS_ID a source has around its text; `fit` makes "end", imported models differ."""

_FORMAT: Final = "dragoman tokenizer"
_VERSION: Final = 1
_MAX_FEATURE_CHARACTERS: Final = 1000
_REMEDY: Final = "copy the model folder again, or train it again"


class _StoredPair(BaseModel):
    """The content of tokenizer.json."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["dragoman tokenizer"]
    version: Literal[1]
    features: list[str]
    source: Any  # by `Tokenizer.to_dict`
    target: Any  # likewise, or "source"
    pointers: Pointers | None = None
    frame: Frame = "end"


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
        num_pairs: int | None = None,
    ) -> "PairTokenizer":
        """Return tokenizers trained on at most `settings.training_rows` of `pairs`, evenly spread.

        Reads `pairs` once, to the end: feature symbols are taken from all of them, the most
        frequent first. Holds the texts of the training rows in memory. `start`, of the same
        settings: keep its tokens and features, before new ones. `num_pairs`: their number, or more
        if all of them fit; None: all are held.

        Raises:
            SettingsError: The settings do not suit their kinds, or shared sides differ.
            DataError: One side has no text, or a feature is long.
        """
        errors = find_side_errors(settings.source, "tokenizer.source.")
        errors += find_side_errors(settings.target, "tokenizer.target.")
        if settings.shared and settings.source != settings.target:
            other = dict(settings.target)
            differing = [name for name, value in settings.source if value != other[name]]
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
        if num_pairs is None:
            num_pairs = len(pairs := list(pairs))
        for row, pair in enumerate(pairs):
            if row * settings.training_rows % num_pairs < settings.training_rows:
                sources.append(pair.source)
                targets.append(pair.target)
            counts.update(pair.features)
        pointers = start.pointers if start else None
        if settings.pointers and pointers is None:
            form = settings.source.unicode_form
            pointers = Pointers.train(_compose(sources, form), _compose(targets, form))
        old_source, old_target = (start.source, start.target) if start else (None, None)
        if settings.shared:
            if pointers:
                sources = [source.lower() for source in sources]
            source = target = Tokenizer.train(sources + targets, settings.source, old_source)
        else:
            source = Tokenizer.train(sources, settings.source, old_source)
            target = Tokenizer.train(targets, settings.target, old_target)
        symbols = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
        symbols = list(dict.fromkeys([*(start.features if start else ()), *symbols]))
        if (longest := max(map(len, symbols), default=0)) > _MAX_FEATURE_CHARACTERS:
            raise DataError(
                f"a feature has {longest:,} characters, more than {_MAX_FEATURE_CHARACTERS:,}: a "
                "feature is one symbol; check the columns that data.features names"
            )
        return cls(
            source=source,
            target=target,
            features=_number(symbols, source),
            pointers=pointers,
            frame=start.frame if start else "end",
        )

    @property
    def is_shared(self) -> bool:
        """Whether both sides have one vocabulary."""
        return self.source is self.target

    @property
    def source_vocab_size(self) -> int:
        """Number of source ids: special, text, features, those of pointers."""
        return self._firsts[3]

    @property
    def target_vocab_size(self) -> int:
        """Number of target ids; the source's if shared, since both use one embedding."""
        return self.source_vocab_size if self.is_shared else self.target.vocab_size

    @property
    def never_emitted(self) -> tuple[int, ...]:
        """The target ids that spell nothing, and are not the end: an output never has them."""
        of_sources = self.features.values() if self.is_shared else ()
        _, case, structure, _ = self._firsts
        return (PAD_ID, BOS_ID, UNKNOWN_ID, *of_sources, *range(case, structure))

    @property
    def numbers(self) -> tuple[int, int]:
        """The first id of the numbers of words, and the first after them; equal: there are none."""
        return self._firsts[0], self._firsts[1]

    @cached_property
    def _firsts(self) -> tuple[int, int, int, int]:
        """The first id of the numbers of words, of cases, of structures, and after all of them."""
        number = self.source.vocab_size + len(self.features)
        if self.pointers is None:
            return number, number, number, number
        case = number + self.pointers.num_words
        structure = case + len(CASES)
        return number, case, structure, structure + len(self.pointers.structures)

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

    def name_unknown(self, source: str, features: Sequence[str]) -> str:
        """Return the features and tokens of a source that become UNKNOWN_ID, for messages."""
        named = [repr(symbol) for symbol in features if symbol not in self.features]
        named.append(self.source.name_unknown(source.lower() if self.pointers else source))
        return ", ".join(filter(None, named)) or "more words than any training source has"

    def _number_words(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, with its number and case before each word.

        UNKNOWN_ID stands before words that have no number, because no training source is so long.
        """
        assert self.pointers is not None
        first_number, first_case, *_ = self._firsts
        texts = _compose(texts, self.source.settings.unicode_form)
        pieces = [self.pointers.split_source(text) for text in texts]
        spelled = [piece.lower() for row in pieces for piece in row]
        encoded = iter(self.source.encode_batch(spelled))
        rows = []
        for *words, rest in pieces:
            ids = list[int]()
            for number, word in enumerate(words, start=first_number):
                case = self.pointers.find_case(word)
                ids += (number,) if case is None else (number, first_case + case)
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
        form = self.source.settings.unicode_form
        rows = list(map(self.pointers.split_target, _compose(sources, form), _compose(texts, form)))
        spelled = [part for row in rows for part in row if isinstance(part, str)]
        encoded = iter(self.target.encode_batch(spelled))
        number, _, structure, _ = self._firsts
        found = []
        for row in rows:
            ids = [BOS_ID]
            for part in row:
                if isinstance(part, str):
                    ids += next(encoded)
                else:
                    ids.append(
                        number + part.number if isinstance(part, Word) else structure + part.place
                    )
            found.append([*ids, EOS_ID])
        return found

    def decode_target(self, ids: Sequence[int]) -> str:
        """Return the text of a target's `ids`: see `Tokenizer.decode`. Features give none.

        A word of the source reads as its number: see `read_target`.
        """
        check_ids(ids, self.target_vocab_size)
        if self.pointers is None:
            if self.is_shared and self.features:
                ids = [id_ for id_ in ids if id_ < self.target.vocab_size]
            return self.target.decode(ids)
        text = ""
        for part, _ in self._find_parts(ids):
            if isinstance(part, str):
                text += part
            elif isinstance(part, Word):
                text += f"⟨{part.number}⟩"
            else:
                text += self.pointers.structures[part.place]
        return text

    def read_target(self, ids: Sequence[int], source: str) -> str:
        """Return the text of a target's `ids`, with the words of `source` to which they point."""
        if self.pointers is None:
            return self.decode_target(ids)
        [source] = _compose([source], self.source.settings.unicode_form)
        return "".join(self.pointers.join(source, (part for part, _ in self._find_parts(ids))))

    def find_target_ends(self, ids: Sequence[int], source: str) -> list[int]:
        """Return where each token ends in `read_target(ids, source)`, in characters."""
        if self.pointers is None:
            return self.target.find_ends(ids)
        [source] = _compose([source], self.source.settings.unicode_form)
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

    def find_pointed(self, ids: Sequence[int], source: str) -> dict[int, int]:
        """Return where each word of `source` stands that `ids` point to, by its place in `read_target`.

        {} if texts are composed: the places would be those in the composed source.
        """
        if self.pointers is None or self.source.settings.unicode_form != "none":
            return {}
        words, found, at = self.pointers.find_words(source), dict[int, int](), 0
        parts = [part for part, _ in self._find_parts(ids)]
        for part, text in zip(parts, self.pointers.join(source, parts), strict=True):
            if isinstance(part, Word) and part.number < len(words):
                found[at] = words[part.number][0]
            at += len(text)
        return found

    def spells(self, ids: Sequence[int]) -> bool:
        """Return whether there are pointers, and `ids` spell text that could be theirs."""
        return self.pointers is not None and any(
            FIRST_TEXT_ID <= id_ < self.target.vocab_size for id_ in ids
        )

    def _find_parts(self, ids: Sequence[int]) -> Iterator[tuple[Part, Sequence[int]]]:
        """Yield the parts that `ids` spell, each with its ids; features give none."""
        first, case, last, _ = self._firsts
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
            source = target = _load_side("source", stored.source)
            if stored.target != "source":
                target = _load_side("target", stored.target)
            num_words = stored.pointers.num_words if stored.pointers else 1
            if not 0 < num_words <= MOST_WORDS or (stored.pointers and target is not source):
                raise ModelFolderError(
                    f"pointers: they need one vocabulary, and 1 to {MOST_WORDS:,} words"
                )
        except (ValidationError, ModelFolderError) as error:
            raise ModelFolderError(f"{path}: {describe_first(error)}; {_REMEDY}") from error
        return cls(
            source=source,
            target=target,
            features=_number(stored.features, source),
            pointers=stored.pointers,
            frame=stored.frame,
        )


def _load_side(side: str, content: object) -> Tokenizer:
    try:
        return Tokenizer.from_dict(content)
    except ModelFolderError as error:
        raise ModelFolderError(f"{side}: {error}") from error


def _compose(texts: Sequence[str], form: UnicodeForm) -> Sequence[str]:
    """Return texts whose words can be pointed to, as outputs are composed, unless `form` is none."""
    return texts if form == "none" else [normalize("NFC", text) for text in texts]


def _number(symbols: Sequence[str], source: Tokenizer) -> dict[str, int]:
    return {symbol: id_ for id_, symbol in enumerate(symbols, start=source.vocab_size)}
