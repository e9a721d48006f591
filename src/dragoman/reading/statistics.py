"""What the pairs look like: the counts and lengths by which a preset is chosen."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from dragoman.reading.pairs import Pair, take_features
from dragoman.settings import DataSettings

_SURVEYED_ROWS = 100_000  # rows whose text is looked at; the rest is counted
_TAGGED = DataSettings(leading_tags=True)


@dataclass(frozen=True, kw_only=True)
class SideSurvey:
    """One side of the surveyed rows, leading tags left out; symbols stand between spaces."""

    mean_characters: float
    mean_symbols: float
    num_symbols: int  # distinct ones
    num_rare_symbols: int  # distinct ones that stand in one place only
    characters: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All pairs in brief."""

    num_pairs: int
    num_sources: int  # distinct ones among the surveyed rows
    source: SideSurvey
    target: SideSurvey
    all_tagged: bool  # every surveyed source begins with a <tag>


@dataclass
class _SideCount:
    num_rows: int = 0
    num_characters: int = 0
    symbols: Counter[str] = field(default_factory=Counter)
    characters: set[str] = field(default_factory=set)

    def add(self, text: str) -> None:
        self.num_rows += 1
        self.num_characters += len(text)
        self.symbols.update(text.split(" "))
        self.characters.update(text)

    def finish(self) -> SideSurvey:
        rows = max(1, self.num_rows)
        return SideSurvey(
            mean_characters=self.num_characters / rows,
            mean_symbols=self.symbols.total() / rows,
            num_symbols=len(self.symbols),
            num_rare_symbols=sum(count == 1 for count in self.symbols.values()),
            characters=frozenset(self.characters),
        )


def survey_pairs(pairs: Iterable[Pair]) -> Survey:
    """Return the survey of all `pairs`, in one pass and bounded memory."""
    source, target = _SideCount(), _SideCount()
    num_pairs, num_tagged = 0, 0
    sources: set[str] = set()
    for num_pairs, pair in enumerate(pairs, start=1):
        if num_pairs <= _SURVEYED_ROWS:
            text, tags = take_features(pair.source, (), (), _TAGGED)
            source.add(text)
            target.add(pair.target)
            sources.add(pair.source)
            num_tagged += bool(tags)
    return Survey(
        num_pairs=num_pairs,
        num_sources=len(sources),
        source=source.finish(),
        target=target.finish(),
        all_tagged=num_tagged == source.num_rows > 0,
    )
