"""What decoding.py found, as tables, bars and JSON.

All times are from text to text: with tokenizing and detokenizing. A ratio is of the two times of one
round for the same sentences, given in the same calls. Only a list, which the usual loop cannot take,
is compared with its batches by output tokens a second: it takes fewer sentences, whose outputs may
happen to be shorter.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from decoding_contender import Entry, Turn
from tables import Bar, spread, table

from dragoman.model_folder.folder import TOKENIZER
from dragoman.tokenizers.tokenizer import PairTokenizer

BATCHES, LIST, SINGLE = "batches of 64", "one list", "single"  # how sentences are given

Turns = dict[tuple[str, Entry], list[Turn]]
"""The turns, one a round, by how sentences were given and by contender."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was measured."""

    turns: Turns
    tokens: Mapping[str, int]  # of each output, its end counted
    load_s: Mapping[Entry, float]
    absent: Mapping[Entry, str]
    facts: Mapping[str, str]

    def describe(self) -> str:
        """Return the tables and the bars, as Markdown."""
        facts = dict(self.facts) | {
            f"took no part: {entry.title}": why for entry, why in self.absent.items()
        }
        parts = [
            "\n".join(f"- {name}: {value}" for name, value in facts.items()),
            self._describe_batches(),
            self._describe_single(),
            self._describe_processes(),
            "\n".join(map(str, self.list_bars())),
        ]
        return "\n\n".join(parts)

    def to_json(self) -> str:
        """Return every number of every turn, and the bars; the texts are left out."""
        rows = [
            {
                **asdict(entry),
                "given": mode,
                "rows": len(turns[0].texts),
                "equal_outputs": self._count_equal(mode, entry),
                "load_s": self.load_s[entry],
                "turns": [
                    {
                        "tokens": self._count_tokens(turn),
                        **{name: value for name, value in asdict(turn).items() if name != "texts"},
                    }
                    for turn in turns
                ],
            }
            for (mode, entry), turns in self.turns.items()
        ]
        content: dict[str, Any] = {
            "facts": dict(self.facts),
            "absent": {entry.title: reason for entry, reason in self.absent.items()},
            "tables": [self._describe_batches(), self._describe_single()],
            "bars": [asdict(bar) | {"verdict": bar.verdict} for bar in self.list_bars()],
            "measured": rows,
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def list_bars(self) -> list[Bar]:
        """Return the bars of the project, as far as their contenders took part."""
        torch, predict = self._find("torch"), self._find("predict")
        bars = []
        for kind in ("usual", "usual-lean"):
            usual = self._find(kind)
            if usual is None:
                continue
            for claim, least, mode, fast, base_mode in (
                ("cached greedy in torch", 20.0, BATCHES, torch, BATCHES),
                ("default predict, given one list,", 60.0, LIST, predict, BATCHES),
                ("default predict, single,", 10.0, SINGLE, predict, SINGLE),
            ):
                base = "at batch 64" if base_mode == BATCHES else "single"
                bars.append(
                    Bar(
                        claim=f"{claim} >= {least:g}x {usual.name} {base}",
                        least=least,
                        ratios=self._compare((mode, fast), (base_mode, usual)),
                    )
                )
        beam, peer = self._find("torch", is_beam=True), self._find("transformers", is_beam=True)
        bars.append(
            Bar(
                claim="beam in torch >= 2.5x Hugging Face's beam at batch 64",
                least=2.5,
                ratios=self._compare((BATCHES, beam), (BATCHES, peer)),
            )
        )
        return bars + [
            bar
            for is_beam in (False, True)
            for mode in (LIST, BATCHES, SINGLE)
            for bar in self._compare_by_hand(mode, is_beam)
        ]

    def _compare_by_hand(self, mode: str, is_beam: bool) -> list[Bar]:
        """Return the bar of predict against CTranslate2 in the layout that is the quickest here."""
        predict = self._find("predict", is_beam=is_beam)
        by_hand = [
            entry
            for given, entry in self.turns
            if given == mode
            and entry.kind == "ctranslate2"
            and entry.compute_type == "float32"
            and (entry.beam_size > 1) == is_beam
        ]
        if predict is None or not by_hand:
            return []
        best = max(by_hand, key=lambda entry: median(self._rate(mode, entry)))
        return [
            Bar(
                claim=f"default predict, {predict.search}, {mode}, >= 0.95x {best.name} by hand",
                least=0.95,
                ratios=self._compare((mode, predict), (mode, best)),
            )
        ]

    def _describe_batches(self) -> str:
        heads = ["contender", "search", "given", "sentences", "sentences/s", "search alone"]
        heads += ["tokens/s", "tokens an output", "equal outputs", "x usual loop"]
        rows = []
        for (mode, entry), turns in self.turns.items():
            if mode == SINGLE:
                continue
            count = len(turns[0].texts)
            alone = _median(turns, lambda turn: len(turn.texts) / sum(turn.search_s))
            rows.append(
                [
                    entry.name,
                    entry.search,
                    mode,
                    f"{count:,}",
                    f"{_median(turns, lambda turn: len(turn.texts) / turn.total_s):,.1f}",
                    "" if entry.kind == "predict" else f"{alone:,.1f}",
                    f"{median(self._rate(mode, entry)):,.0f}",
                    f"{self._count_tokens(turns[0]) / count:.1f}",
                    self._count_equal(mode, entry),
                    self._describe_ratio(mode, entry),
                ]
            )
        return table(heads, rows)

    def _describe_single(self) -> str:
        heads = ["one by one", "search", "sentences", "median ms", "p95 ms", "tokens an output"]
        heads += ["equal outputs", "x usual loop"]
        rows = []
        for (mode, entry), turns in self.turns.items():
            if mode != SINGLE:
                continue
            milliseconds = sorted(1000 * seconds for turn in turns for seconds in turn.call_s)
            count = len(turns[0].texts)
            rows.append(
                [
                    entry.name,
                    entry.search,
                    f"{count:,}",
                    f"{median(milliseconds):.1f}",
                    f"{milliseconds[int(0.95 * len(milliseconds))]:.1f}",
                    f"{self._count_tokens(turns[0]) / count:.1f}",
                    self._count_equal(mode, entry),
                    self._describe_ratio(mode, entry),
                ]
            )
        return table(heads, rows)

    def _describe_processes(self) -> str:
        peaks: dict[Entry, float] = {}
        for (_, entry), turns in self.turns.items():
            peaks[entry] = max(peaks.get(entry, 0.0), turns[-1].peak_mib)
        return table(
            ["process", "search", "s to load", "peak memory, MiB"],
            [
                [entry.name, entry.search, f"{self.load_s[entry]:.1f}", f"{peak:,.0f}"]
                for entry, peak in peaks.items()
            ],
        )

    def _describe_ratio(self, mode: str, entry: Entry) -> str:
        base = SINGLE if mode == SINGLE else BATCHES
        ratios = self._compare((mode, entry), (base, self._find("usual")))
        return spread(ratios) if ratios else ""

    def _compare(
        self, fast: tuple[str, Entry | None], base: tuple[str, Entry | None]
    ) -> list[float]:
        """Return how many times `base` `fast` is, round by round; empty if one took no part."""
        (fast_mode, fast_entry), (base_mode, base_entry) = fast, base
        if fast_entry is None or base_entry is None:
            return []
        if fast_mode != base_mode:
            rates = zip(
                self._rate(fast_mode, fast_entry), self._rate(base_mode, base_entry), strict=True
            )
            return [one / other for one, other in rates]
        rounds = zip(
            self.turns[fast_mode, fast_entry], self.turns[base_mode, base_entry], strict=True
        )
        ratios = []
        for one, other in rounds:
            both = min(len(one.call_s), len(other.call_s))
            ratios.append(sum(other.call_s[:both]) / sum(one.call_s[:both]))
        return ratios

    def _rate(self, mode: str, entry: Entry) -> list[float]:
        """Return the output tokens a second, round by round."""
        return [self._count_tokens(turn) / turn.total_s for turn in self.turns[mode, entry]]

    def _count_tokens(self, turn: Turn) -> int:
        return sum(self.tokens[text] for text in turn.texts)

    def _count_equal(self, mode: str, entry: Entry) -> str:
        """Return how many outputs are those of the usual loop, or of our beam in torch."""
        is_beam = entry.beam_size > 1
        judge = self._find("torch" if is_beam else "usual", is_beam=is_beam)
        if judge is None:
            return ""
        right = self.turns[SINGLE if mode == SINGLE else BATCHES, judge][-1].texts
        pairs = list(zip(self.turns[mode, entry][-1].texts, right, strict=False))
        return f"{sum(one == other for one, other in pairs)} of {len(pairs)}"

    def _find(self, kind: str, *, is_beam: bool = False) -> Entry | None:
        found = [e for _, e in self.turns if e.kind == kind and (e.beam_size > 1) == is_beam]
        return found[0] if found else None


def count_tokens(turns: Turns, path: Path) -> dict[str, int]:
    """Return the tokens of each text in `turns`, its end counted, by the tokenizer of the model."""
    texts = list({text for of_one in turns.values() for turn in of_one for text in turn.texts})
    tokenizer = PairTokenizer.load(path / TOKENIZER)
    ids = tokenizer.encode_targets(texts)
    return {text: len(row) - 1 for text, row in zip(texts, ids, strict=True)}


def _median(turns: Sequence[Turn], measure: Callable[[Turn], float]) -> float:
    return median(measure(turn) for turn in turns)
