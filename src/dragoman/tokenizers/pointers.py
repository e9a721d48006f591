"""Records whose values point into their source: a model names the words of a value, and spells none.

    source   The turf team Inc.                 ->   ⟨0⟩⟨Capital⟩the ⟨1⟩turf ⟨2⟩team ⟨3⟩⟨Capital⟩inc.
    target   Name: The turf team | Type: Inc.   ->   ⟨ | Name: ⟩ ⟨0⟩⟨1⟩⟨2⟩ ⟨ | Type: ⟩ ⟨3⟩

The words of a source are numbered. A value is the numbers of its words; what stands between two
that follow each other belongs to them, unless an empty text is put between: 030 123 as 030123. The
text between two values is one token, where it recurs. Anything else is spelled. Copying becomes
choosing, which few pairs suffice for: a pointer network (Vinyals et al. 2015) in the vocabulary of a
usual Transformer, so that every engine can run it. As its letters need not be known to copy it, a
source is read in lower case, with a token for the case of each word.

A value may stand at several places: a total is among the prices, too. It points to the place whose
words before it are the most typical of its field, such as "total" and "amount".
"""

import json
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from dataclasses import field as default
from functools import cache, cached_property
from itertools import islice, pairwise
from math import exp, log
from typing import Any, Literal, NamedTuple
from unicodedata import category

from dragoman.records import Format, detect_format, list_fields

Words = Literal["spaces", "punctuation", "all"]
CASES = ("Capital", "UPPER", "MiXed")
"""The tokens before a word that is not in lower case: a source is read in lower case."""

_WORDS: dict[Words, str] = {  # {marks}: accents and vowel signs, which are no letters of \w
    "spaces": r"\S+",
    "punctuation": r"\w(?:\S*[\w{marks}])?|[^\w\s]+",  # (1,250.50): three
    "all": r"\d+|[{alone}][{marks}]*|(?:[^\W\d_{alone}][{marks}]*)+|[^\w\s][{marks}]*|_",
}
# Letters of scripts without spaces (Thai to Khmer, kana, Han), and of Hangul, where particles follow
# a name without a space: each is a word.
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
_MARKS = range(0x300, 0x20000)  # where the marks of Unicode are, but for selectors of variants
_LEAD: dict[Format, str] = {"json": "", "\n": "\n", "|": " | ", ";": "; "}  # of the first field too
MOST_WORDS = 4000  # of a source that have a number
_MOST_STRUCTURES = 1000
_LEAST_POINTED = 0.5  # of the characters of a field; others are spelled, such as categories
_LEAST_SHARE = 0.95  # of the characters that the finest words cover
_MOST_OTHERS = 0.1  # of the targets that are no records
_LOOKED_AT = 5000  # pairs
_NEARBY = 4  # words with letters before a value
_LEAST_TYPICAL = 0.01  # of the values of a field have such a word before them
_ROUNDS = 5  # of expectation maximization
_LEAST_AMBIGUOUS = 0.1  # of the values of a field: else the order of the fields tells enough
_MOST_TYPICAL = 30  # words of a field


class Word(NamedTuple):
    """A word of a source, by its number."""

    number: int


class Structure(NamedTuple):
    """The text between two values, by its place in `Pointers.structures`."""

    place: int


Part = Word | Structure | str


@dataclass(frozen=True, kw_only=True)
class Pointers:
    """How records of one form point into their sources.

    Args:
        fields: Those whose values point; the values of others are spelled.
        structures: The texts between values that recur.
        num_words: Words of a source that have a number, from its first.
        typical: By field whose values stand at several places: words before them, in lower case,
            with the logarithm of how much more frequent each is there than elsewhere.
    """

    form: Format
    words: Words
    fields: tuple[str, ...]
    structures: tuple[str, ...]
    num_words: int
    typical: Mapping[str, Mapping[str, float]] = default(default_factory=dict)

    @classmethod
    def train(cls, sources: Sequence[str], targets: Sequence[str]) -> "Pointers | None":
        """Return the pointers for these pairs; None: the targets are no records of their sources."""
        every = sources
        sources, targets = sources[:_LOOKED_AT], targets[:_LOOKED_AT]
        form = detect_format(targets, most_others=_MOST_OTHERS)
        if form is None:
            return None
        best, most = None, 0
        for words in reversed(_WORDS):
            finder = cls(form=form, words=words, fields=(), structures=(), num_words=MOST_WORDS)
            pointed, characters = Counter[str](), Counter[str]()
            for source, target in zip(sources, targets, strict=True):
                places = _Places(source, finder)
                for _, name, value in finder._cut(target):
                    spelled = (one for one in places.find(value, 0) if isinstance(one, str))
                    characters[name] += len(value)
                    pointed[name] += len(value) - sum(map(len, spelled))
            fields = [name for name in pointed if pointed[name] > _LEAST_POINTED * characters[name]]
            if (total := sum(pointed[name] for name in fields)) >= _LEAST_SHARE * most and total:
                best, most = (words, fields), max(most, total)
        if best is None:
            return None
        words, fields = best
        finder = replace(finder, words=words, fields=tuple(fields))
        structures = Counter[str]()
        for target in targets:
            structures.update(text for text, _, _ in finder._cut(target))
        listed = [text for text, count in structures.most_common(_MOST_STRUCTURES) if count > 1]
        return cls(
            form=form,
            words=words,
            fields=tuple(fields),
            structures=("", *filter(None, listed)),
            num_words=min(max(len(_compile(words).findall(one)) for one in every), MOST_WORDS),
            typical=finder._find_typical(sources, targets),
        )

    def _find_typical(
        self, sources: Sequence[str], targets: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        """Return `typical`, by expectation maximization over the places of each value."""
        around: dict[str, list[list[dict[str, None]]]] = {name: [] for name in self.fields}
        overall, num_words = Counter[str](), 0
        for source, target in zip(sources, targets, strict=True):
            places = _Places(source, self)
            num_words += len(places.lower)
            overall.update(filter(None, places.lower))
            for _, name, value in self._cut(target):
                if name in around and (found := places.list_whole(value)):
                    around[name].append([places.list_before(one.start) for one in found])
        typical = dict[str, dict[str, float]]()
        for name, values in around.items():
            odds = dict[str, float]()
            num_ambiguous = sum(len(found) > 1 for found in values)
            if not values or num_ambiguous < _LEAST_AMBIGUOUS * len(values):
                continue
            for _ in range(_ROUNDS):
                counts = defaultdict[str, float](float)
                for candidates in values:
                    scores = [exp(_rate(one, odds)) for one in candidates]
                    for one, score in zip(candidates, scores, strict=True):
                        for word in one:
                            counts[word] += score / sum(scores)
                odds = {
                    word: log((count / len(values)) / (_NEARBY * overall[word] / num_words))
                    for word, count in counts.items()
                    if count > _LEAST_TYPICAL * len(values)
                }
            best = sorted(odds, key=lambda word: -counts[word] * odds[word])[:_MOST_TYPICAL]
            typical[name] = {word: round(odds[word], 3) for word in best if odds[word] > 0}
        return typical

    @property
    def lead(self) -> str:
        """What is added before the first field, so that all fields begin alike."""
        return _LEAD[self.form]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    def find_words(self, source: str) -> list[tuple[int, int]]:
        """Return where the numbered words of `source` stand, in characters."""
        words = _compile(self.words).finditer(source)
        return [match.span() for match in islice(words, self.num_words)]

    def split_source(self, source: str) -> list[str]:
        """Return `source` in pieces: the k-th ends with the k-th word; the last has none."""
        ends = [0, *(end for _, end in self.find_words(source)), len(source)]
        return [source[start:end] for start, end in pairwise(ends)]

    def find_case(self, text: str) -> int | None:
        """Return the place in CASES of a word with what stands before it; None: lower case."""
        word = text.lstrip()
        if word == word.lower():
            return None
        if word[1:] == word[1:].lower():
            return 0
        return 1 if word == word.upper() else 2

    def split_target(self, source: str, target: str) -> list[Part]:
        """Return the parts of `target`, of which `join` makes it again."""
        parts: list[Part] = []
        places, after = _Places(source, self), 0
        for structure, name, value in self._cut(target):
            if structure:
                parts.append(self._find_structure(structure))
            if name not in self.fields:
                parts.append(self._escape(value))
                continue
            for piece in places.find(value, after, self.typical.get(name, {})):
                if piece == "":
                    parts.append(self._find_structure(""))
                elif isinstance(piece, str):
                    parts.append(self._escape(piece))
                else:
                    parts += map(Word, piece)
                    after = piece.stop
        parts = [part for part in parts if part != ""]
        if "".join(self.join(source, parts)) == target:
            return parts
        return [self.lead + target if target.startswith(self.lead) else target]

    def join(self, source: str, parts: Iterable[Part]) -> Iterator[str]:
        """Yield the text of each of `parts`; a word that `source` lacks becomes U+FFFD."""
        words, before = self.find_words(source), -1
        for place, part in enumerate(parts):
            number = part.number if isinstance(part, Word) else -1
            if isinstance(part, Structure):
                text = self.structures[part.place]
            elif isinstance(part, str):
                text = part
            elif number >= len(words):
                text = "\ufffd"
            else:
                start, end = words[number]
                if before >= 0 and number == before + 1:
                    start = words[before][1]
                text = self._escape(source[start:end])
            yield text if place else text.removeprefix(self.lead)
            before = number if number < len(words) else -1

    @cached_property
    def _places(self) -> dict[str, int]:
        return {text: place for place, text in enumerate(self.structures)}

    def _find_structure(self, text: str) -> Part:
        place = self._places.get(text)
        return text if place is None else Structure(place)

    def _escape(self, value: str) -> str:
        return json.dumps(value, ensure_ascii=False)[1:-1] if self.form == "json" else value

    def _cut(self, target: str) -> Iterator[tuple[str, str, str]]:
        """Yield the text before each value, its field, and the value; the rest without a value."""
        fields = list_fields(target, self.form, splits_items=True)
        before, at = "" if fields is None else self.lead, 0
        for field in fields or ():
            start, end = field.start, field.end
            if self.form == "json" and target[start] == '"':
                start, end = start + 1, end - 1
            if self._escape(field.text) != target[start:end]:
                continue  # written otherwise than `join` would: it stays in the text
            yield before + target[at:start], field.name, field.text
            before, at = "", end
        yield before + target[at:], "", ""


class _Places:
    """A source and its words, to search in; runs of words are ranges of their numbers."""

    def __init__(self, source: str, pointers: Pointers) -> None:
        self._source = source
        spans = pointers.find_words(source)
        self._starts, self._ends = [start for start, _ in spans], [end for _, end in spans]
        self._words = [source[start:end] for start, end in spans]

    @cached_property
    def _numbers(self) -> dict[str, list[int]]:
        numbers = dict[str, list[int]]()
        for number, word in enumerate(self._words):
            numbers.setdefault(word, []).append(number)
        return numbers

    @cached_property
    def _lengths(self) -> set[int]:
        return set(map(len, self._numbers))

    def find(
        self, value: str, after: int, typical: Mapping[str, float] | None = None
    ) -> Sequence[range | str]:
        """Return `value` as words and text: the words that read it, at the most typical place.

        Of equals, the first from `after` on, or ever. If there are none, in pieces: the longest runs
        of words with letters or digits, else text; "" stands between two runs that would be read as
        one.
        """
        found = self.list_whole(value)
        if not found:
            return list(self._find_pieces(value, after))
        found.sort(key=lambda one: one.start < after)
        if typical and len(found) > 1:
            return [max(found, key=lambda one: _rate(self.list_before(one.start), typical))]
        return found[:1]

    def list_whole(self, value: str) -> list[range]:
        """Return the runs of words that read `value`, in order."""
        found, at = list[range](), self._source.find(value) if value else -1
        while at >= 0:
            end = at + len(value)
            first, last = bisect_left(self._starts, at), bisect_left(self._ends, end)
            is_run = first <= last < len(self._ends)
            if is_run and (self._starts[first], self._ends[last]) == (at, end):
                found.append(range(first, last + 1))
            at = self._source.find(value, at + 1)
        return found

    def list_before(self, number: int) -> dict[str, None]:
        """Return the last words with letters before a word, in lower case, the nearest first."""
        # No set: its order, and so the sums over it, would differ between processes.
        return dict.fromkeys(islice(filter(None, reversed(self.lower[:number])), _NEARBY))

    @cached_property
    def lower(self) -> list[str]:
        """Each word in lower case; "" without letters."""
        words = map(str.lower, self._words)
        return [word if any(map(str.isalpha, word)) else "" for word in words]

    def _find_pieces(self, value: str, after: int) -> Iterator[range | str]:
        at, spelled = 0, ""
        while at < len(value):
            found = self._find_longest(value, at, after)
            if found is None:
                spelled, at = spelled + value[at], at + 1
                continue
            if spelled or (at and found.start == after):
                yield spelled
            yield found
            after, spelled = found.stop, ""
            at += self._ends[found.stop - 1] - self._starts[found.start]
        if spelled:
            yield spelled

    def _find_longest(self, value: str, at: int, after: int) -> range | None:
        """Return the longest run of words that `value` has at `at`; of equals, the next one.

        None begins or ends inside a word with cases: "a" is no piece of "Paris".
        """
        best, most = None, (0, False)
        if _is_inside(value, at):
            return None
        for length in self._lengths:
            for first in self._numbers.get(value[at : at + length], ()):
                stop, end = first, at
                for place in range(first, len(self._ends)):
                    start = self._ends[place - 1] if place > first else self._starts[place]
                    word = self._source[start : self._ends[place]]
                    if not value.startswith(word, end):
                        break
                    end += len(word)
                    if not _is_inside(value, end):
                        stop, found = place + 1, end
                if stop == first or (rank := (found - at, first >= after)) <= most:
                    continue
                if any(map(str.isalnum, value[at:found])):
                    best, most = range(first, stop), rank
        return best


def _rate(words: Iterable[str], odds: Mapping[str, float]) -> float:
    return sum(odds.get(word, 0.0) for word in words)


@cache
def _compile(words: Words) -> re.Pattern[str]:
    marks = "".join(one for one in map(chr, _MARKS) if category(one)[0] == "M")
    marks += "\U000e0100-\U000e01ef"
    return re.compile(_WORDS[words].format(marks=marks, alone=_ALONE))


def _is_inside(value: str, at: int) -> bool:
    """Return whether a word of letters with cases is cut before the character `at`."""
    around = value[at - 1 : at + 1] if at else ""
    return len(around) == 2 and all(one.islower() or one.isupper() for one in around)
