"""Invented pairs, always the same ones, in any number and of any length: what is measured on."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random

_SYLLABLES = [c + v for c in "bcdfghklmnprstvz" for v in ("a", "e", "i", "o", "u", "ou", "ai")]
_MEAN_EXTRA = 7  # words of a sentence beyond the fewest, before the longest are cut


@dataclass(frozen=True, kw_only=True)
class Language:
    """What the sentences are like."""

    num_words: int = 3000  # of each side
    shortest: int = 5  # words of a sentence
    longest: int = 24


def write_pairs(path: Path, num_pairs: int, language: Language) -> None:
    """Write a TSV of so many pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(
            f"{source}\t{target}\n" for source, target in invent_pairs(num_pairs, language)
        )


def invent_pairs(num_pairs: int, language: Language) -> Iterator[tuple[str, str]]:
    """Yield pairs of sentences of invented words, some frequent and most rare as in a language.

    The target has a word for each of the source, and those of each three in another order.
    """
    generator = Random(1)
    words, translations = (_invent_words(generator, language.num_words) for _ in range(2))
    weights = list(accumulate(1 / (rank + 10) for rank in range(language.num_words)))
    for _ in range(num_pairs):
        extra = int(generator.expovariate(1 / _MEAN_EXTRA))
        length = min(language.longest, language.shortest + extra)
        picked = generator.choices(range(language.num_words), cum_weights=weights, k=length)
        turned = [i for start in range(0, length, 3) for i in picked[start : start + 3][::-1]]
        yield " ".join(words[i] for i in picked), " ".join(translations[i] for i in turned)


def _invent_words(generator: Random, num_words: int) -> list[str]:
    """Return different words, the frequent ones short."""
    words: dict[str, None] = {}
    while len(words) < num_words:
        longest = 2 if len(words) < 150 else 4
        words["".join(generator.choices(_SYLLABLES, k=generator.randint(1, longest)))] = None
    return list(words)
