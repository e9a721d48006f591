"""Statistics of the pairs, by which a preset is chosen, and the split that a pair belongs to."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal
from unicodedata import normalize

from dragoman.reading.pairs import Pair, take_features
from dragoman.settings import DataSettings

Split = Literal["train", "valid", "test"]
_MEASURED_ROWS = 100_000  # rows whose text is looked at; the rest is counted
_WITH_TAGS = DataSettings(leading_tags=True)


@dataclass(frozen=True, kw_only=True)
class SideStatistics:
    """One side of the measured rows, without leading tags; spaces separate symbols."""

    mean_characters: float
    mean_symbols: float
    num_symbols: int  # distinct ones
    num_rare_symbols: int  # distinct ones that occur once
    characters: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class PairStatistics:
    """Statistics of all pairs; texts are those of the first 100,000 rows, the measured ones."""

    num_pairs: int
    num_sources: int  # distinct ones among the measured rows
    source: SideStatistics
    target: SideStatistics
    all_tagged: bool  # every measured source begins with a <tag>


def collect_statistics(pairs: Iterable[Pair]) -> PairStatistics:
    """Return the statistics of `pairs`, in one pass and bounded memory."""
    source, target = _SideCounts(), _SideCounts()
    num_pairs, num_tagged = 0, 0
    sources: set[str] = set()
    for num_pairs, pair in enumerate(pairs, start=1):
        if num_pairs <= _MEASURED_ROWS:
            text, tags = take_features(pair.source, (), (), _WITH_TAGS)
            source.add(text)
            target.add(pair.target)
            sources.add(pair.source)
            num_tagged += bool(tags)
    return PairStatistics(
        num_pairs=num_pairs,
        num_sources=len(sources),
        source=source.finish(),
        target=target.finish(),
        all_tagged=num_tagged == source.num_rows > 0,
    )


def split_of(
    source: str, features: Sequence[str], valid_fraction: float, test_fraction: float
) -> Split:
    """Return the split of a source: the same on every machine, and in any order of the rows.

    It depends on a hash of the source alone, in the Unicode form NFC: a source in two forms is one.
    `features` are ignored, so that a source with
    several features is never in two splits. Changing one fraction moves no row between train
    and the other split, as long as the fractions sum to less than 1.
    """
    if valid_fraction == test_fraction == 0.0:
        return "train"
    source = normalize("NFC", source)
    digest = blake2b(source.encode(errors="surrogatepass"), digest_size=8).digest()
    place = (int.from_bytes(digest, "big") >> 11) / 2**53
    if place < valid_fraction:
        return "valid"
    return "test" if place >= 1.0 - test_fraction else "train"


@dataclass
class _SideCounts:
    num_rows: int = 0
    num_characters: int = 0
    symbols: Counter[str] = field(default_factory=Counter)
    characters: set[str] = field(default_factory=set)

    def add(self, text: str) -> None:
        self.num_rows += 1
        self.num_characters += len(text)
        self.symbols.update(text.split(" "))
        self.characters.update(text)

    def finish(self) -> SideStatistics:
        rows = max(1, self.num_rows)
        return SideStatistics(
            mean_characters=self.num_characters / rows,
            mean_symbols=self.symbols.total() / rows,
            num_symbols=len(self.symbols),
            num_rare_symbols=sum(count == 1 for count in self.symbols.values()),
            characters=frozenset(self.characters),
        )
