"""Statistics of the pairs, by which a preset is chosen, and the split that a pair belongs to."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from hashlib import blake2b
from itertools import chain, islice
from typing import Literal
from unicodedata import normalize

from dragoman.reading.jsonl import list_objects
from dragoman.reading.pairs import Pair, take_features
from dragoman.records import Format, detect_format, list_fields
from dragoman.settings import DataSettings
from dragoman.tokenizers.pointers import Pointers

Split = Literal["train", "valid", "test"]
MEASURED_ROWS = 100_000  # at most, whose text is looked at; the rest is counted
_WITH_TAGS = DataSettings(leading_tags=True)
# A JSON object, or the begin of `field: value`.
_RECORD = re.compile(r"\s*(?:\{.*\}\s*\Z|[^\W\d_][^:|;\n]{0,39}:\s)", re.DOTALL)
_WORD = re.compile(r"\w+")
_MOST_RECORDS, _LEAST_COPIED = 0.9, 0.2  # of the targets; of their words, field names included
_LOOKED_AT = 1000  # records whose fields are looked at, and words whose stems are
_LONGEST_WORD = 50  # characters
# Of the letters of a source, those of its stem. In the first 1,000 rows of the recipes' sets: 90% in
# Turkish and Seneca inflection, 71% in RIDGES, 64% in Czech morphemes, 37% in Icelandic phones.
_LEAST_STEM = 0.75


@dataclass(frozen=True, kw_only=True)
class SideStatistics:
    """One side of the measured rows, without leading tags; spaces separate symbols."""

    mean_characters: float
    mean_symbols: float
    num_symbols: int  # distinct ones
    num_rare_symbols: int  # distinct ones that occur once, in distinct texts
    characters: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class PairStatistics:
    """Statistics of all pairs; of more than 100,000, texts are those of rows evenly spread: the measured ones."""

    num_pairs: int
    num_sources: int  # distinct ones among the measured rows
    source: SideStatistics
    target: SideStatistics
    all_tagged: bool  # every measured source begins with a <tag>
    record_form: Format | None = None  # of the targets, if over 90% of them are records
    record_fields: tuple[str, ...] = ()  # the names of their fields, in the order of the records
    has_copied_records: bool = False  # targets are records, with words of their sources
    can_point: bool = False  # targets are records, with values that stand in their sources
    features_separator: str = ""  # in the values of features, if they plainly have several parts
    is_inflection: bool = False  # words with features, whose targets hold most of their letters


def collect_statistics(pairs: Iterable[Pair]) -> PairStatistics:
    """Return the statistics of `pairs`, in one pass; of their texts, the measured rows are held."""
    rows, every, num_pairs = list[Pair](), 1, 0
    for pair in pairs:
        if num_pairs % every == 0:
            rows.append(pair)
        num_pairs += 1
        if len(rows) > MEASURED_ROWS:  # files may be sorted, or of several kinds
            rows, every = rows[::2], 2 * every
    texts, tags = list[str](), list[tuple[str, ...]]()
    for pair in rows:
        text, found = take_features(pair.source, (), (), _WITH_TAGS)
        texts.append(text)
        tags.append(found)
    both = list(zip(texts, rows, strict=True))
    tagged = (one for one, found in zip(both, tags, strict=True) if found or one[1].features)
    stems = [_measure_stem(text, pair.target) for text, pair in islice(tagged, _LOOKED_AT)]
    records = [(text, pair.target) for text, pair in both if _RECORD.match(pair.target)]
    fields, others, num_objects, copied = list[str](), list[str](), 0, 0.0
    for text, target in records:
        words = _WORD.findall(target)
        copied += sum(word in text for word in words) / max(1, len(words))
        if (objects := list_objects(target)) is not None:
            num_objects += 1
            for names in objects:
                _merge_names(fields, names)
        elif len(others) < _LOOKED_AT:
            others.append(target)
    are_records = len(records) > _MOST_RECORDS * len(rows)
    form: Format | None = "json" if num_objects > _MOST_RECORDS * len(rows) else None
    if form is None and are_records:
        form, fields = _find_text_form(others)
    return PairStatistics(
        num_pairs=num_pairs,
        num_sources=len({pair.source for pair in rows}),
        source=_measure_side(texts),
        target=_measure_side([pair.target for pair in rows]),
        all_tagged=bool(tags) and all(tags),
        record_form=form,
        record_fields=tuple(fields),
        has_copied_records=bool(fields) and are_records and copied > _LEAST_COPIED * len(records),
        can_point=are_records
        and Pointers.train(*zip(*records[:_LOOKED_AT], strict=True)) is not None,
        features_separator=_find_separator({one for pair in rows for one in pair.features}),
        is_inflection=bool(stems) and sum(stems) >= _LEAST_STEM * len(stems),
    )


def _measure_side(texts: Sequence[str]) -> SideStatistics:
    distinct, num_rows = dict.fromkeys(texts), max(1, len(texts))
    symbols = Counter(chain.from_iterable(text.split(" ") for text in distinct))
    return SideStatistics(
        mean_characters=sum(map(len, texts)) / num_rows,
        mean_symbols=sum(1 + text.count(" ") for text in texts) / num_rows,
        num_symbols=len(symbols),
        num_rare_symbols=sum(count == 1 for count in symbols.values()),
        characters=frozenset[str]().union(*distinct),
    )


def _measure_stem(source: str, target: str) -> float:
    """Return the fraction of a word that is the longest string it shares with its target."""
    if not 0 < len(source) <= _LONGEST_WORD:
        return 0.0
    return SequenceMatcher(None, source, target, autojunk=False).find_longest_match().size / len(
        source
    )


def _merge_names(order: list[str], names: Sequence[str]) -> None:
    """Insert those of the `names` of a record that `order` lacks, beside their neighbours."""
    for place, name in enumerate(names):
        if name not in order:
            known = [order.index(other) for other in names if other in order]
            first = min(known, default=len(order))
            order.insert(order.index(names[place - 1]) + 1 if place else first, name)


def _find_text_form(texts: Sequence[str]) -> tuple[Format | None, list[str]]:
    """Return the separator of `field: value` texts, and the names, if they recur.

    None: texts of a single field, which may be speech.
    """
    form = detect_format(texts)
    counts, order = Counter[str](), list[str]()
    for text in texts:
        names = [field.name for field in list_fields(text, form or "\n") or ()]
        counts.update(names)
        _merge_names(order, names)
    return (form, order) if counts.total() >= 2 * len(counts) > 0 else (None, [])


def _find_separator(features: Collection[str]) -> str:
    """Return the separator in distinct features such as "tags=V;PST", "" if they are whole.

    Most of those that have it must share a part with others, and no part may have a space: names
    and glosses are whole.
    """
    pairs = [(label, value) for label, _, value in (one.partition("=") for one in features)]
    for separator in (";", "|"):
        split = [{(label, part) for part in value.split(separator)} for label, value in pairs]
        counts = Counter(chain.from_iterable(split))
        bundles = [
            parts for parts, (_, value) in zip(split, pairs, strict=True) if separator in value
        ]
        texts = [part for parts in bundles for _, part in parts]
        num_shared = sum(any(counts[part] > 1 for part in parts) for parts in bundles)
        if not any(" " in text for text in texts) and num_shared > max(1, len(bundles) / 2):
            return separator
    return ""


def split_of(
    source: str, features: Sequence[str], valid_fraction: float, test_fraction: float
) -> Split:
    """Return the split of a source: the same on every machine, and in any order of the rows.

    It depends on a hash of the source alone, in the Unicode form NFC: a source in two forms is one.
    `features` are ignored, so that a source with several features is never in two splits. Changing
    one fraction moves no row between train and the other split, as long as the fractions sum to less
    than 1.
    """
    if valid_fraction == test_fraction == 0.0:
        return "train"
    place = place_of(source)
    if place < valid_fraction:
        return "valid"
    return "test" if place >= 1.0 - test_fraction else "train"


def is_in_part(source: str, fraction: float) -> bool:
    """Return whether a training source is in this fraction of all: see data.train_fraction."""
    return fraction == 1.0 or place_of(source, b"part") < fraction


def place_of(source: str, purpose: bytes = b"") -> float:
    """Return where a source is among all possible ones, from 0 to 1: another for each purpose."""
    text = normalize("NFC", source).encode(errors="surrogatepass")
    digest = blake2b(text, digest_size=8, person=purpose).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
