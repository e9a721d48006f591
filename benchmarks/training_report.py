"""What training.py found, as tables, bars and JSON.

A rate is in target tokens a second: labels, the end counted, begin and padding not. A ratio is of
two rates of one round.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from tables import Bar, spread, table
from training_contender import Entry, Loaded, Rates, Turn

# Measured apart, eole made about this many times the usual loop in bf16, in batches of 1k tokens.
_EOLE = 2.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was measured."""

    turns: Mapping[Entry, list[Turn]]  # one a round
    limits: Mapping[Entry, list[Rates]]  # of the matrix products
    loaded: Mapping[Entry, Loaded]
    load_s: Mapping[Entry, float]
    absent: Mapping[Entry, str]
    flops: float  # of a target token with its source
    facts: Mapping[str, str]

    def describe(self) -> str:
        """Return the tables and the bars, as Markdown."""
        facts = dict(self.facts) | {
            f"took no part: {entry.title}": why for entry, why in self.absent.items()
        }
        parts = [
            "\n".join(f"- {name}: {value}" for name, value in facts.items()),
            self._describe_rates(),
            self._describe_work(),
            self._describe_processes(),
            "\n".join(map(str, self.list_bars())),
        ]
        return "\n\n".join(part for part in parts if part)

    def to_json(self) -> str:
        """Return every number of every turn, and the bars."""
        content: dict[str, Any] = {
            "facts": dict(self.facts),
            "flops_a_target_token": self.flops,
            "absent": {entry.title: reason for entry, reason in self.absent.items()},
            "tables": [self._describe_rates(), self._describe_work()],
            "bars": [asdict(bar) | {"verdict": bar.verdict} for bar in self.list_bars()],
            "measured": [
                {
                    **asdict(entry),
                    **asdict(self.loaded[entry]),
                    "load_s": self.load_s[entry],
                    "turns": [asdict(turn) | {"rate": turn.rate} for turn in turns],
                }
                for entry, turns in self.turns.items()
            ],
            "products": [
                {**asdict(entry), "turns": [asdict(rates) for rates in of_one]}
                for entry, of_one in self.limits.items()
            ],
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def list_bars(self) -> list[Bar]:
        """Return the bars of the project, as far as their contenders took part."""
        ours = self._find("dragoman", "auto")
        bf16 = self._find("usual", "bf16-mixed")
        peers = [entry for entry in self.turns if entry.kind == "hugging-face"]
        peer = max(peers, key=lambda entry: median(self._rate(entry)), default=None)
        bars = [
            Bar(claim=claim, least=least, ratios=self._compare(ours, base))
            for claim, least, base in (
                ("dragoman >= 4x the usual loop in fp32", 4.0, self._find("usual", "32-true")),
                ("dragoman >= 2.5x the usual loop in bf16", 2.5, bf16),
                (
                    f"dragoman >= {1.2 * _EOLE:g}x the usual loop in bf16: 1.2x eole, by hearsay",
                    1.2 * _EOLE,
                    bf16,
                ),
                (f"dragoman >= 2x Hugging Face's best ({_name(peer)})", 2.0, peer),
            )
        ]
        return [
            *bars,
            Bar(
                claim="useful work >= 0.4x the products of the model in bf16",
                least=0.4,
                ratios=self._find_parts(ours),
            ),
        ]

    def _describe_rates(self) -> str:
        heads = ["contender", "format", "batch", "target tokens/s", "tokens an update", "padding"]
        heads += ["source padding", "x usual fp32", "x usual bf16", "dragoman is"]
        fp32, bf16 = self._find("usual", "32-true"), self._find("usual", "bf16-mixed")
        ours = self._find("dragoman", "auto")
        rows = []
        for entry, turns in self.turns.items():
            loaded, updates = self.loaded[entry], sum(turn.updates for turn in turns)
            rates = self._rate(entry)
            target = sum(turn.target for turn in turns)
            rows.append(
                [
                    entry.name,
                    loaded.precision,
                    loaded.batch,
                    f"{median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})",
                    f"{target / updates:,.0f}",
                    _part(target, sum(turn.target_places for turn in turns)),
                    _part(
                        sum(turn.source for turn in turns),
                        sum(turn.source_places for turn in turns),
                    ),
                    self._describe_ratio(entry, fp32),
                    self._describe_ratio(entry, bf16),
                    self._describe_ratio(ours, entry),
                ]
            )
        return table(heads, rows) if rows else ""

    def _describe_work(self) -> str:
        """Return the useful work against the products alone; theirs too."""
        heads = ["useful work", "GFLOP/s", "of the products in bf16", "of a large bf16 product"]
        square = [rates.square_gflops for rates in self._find_limits()]
        rows = []
        for entry in self.turns:
            gflops = [self.flops * rate / 1e9 for rate in self._rate(entry)]
            rows.append(
                [
                    entry.name,
                    f"{median(gflops):,.1f}",
                    _spread_part(self._find_parts(entry)),
                    _spread_part(_divide(gflops, square)),
                ]
            )
        for entry, limits in self.limits.items():
            gflops = [rates.gflops for rates in limits]
            rows.append(
                [
                    f"{entry.name}: {median(rates.rate for rates in limits):,.0f} tokens/s",
                    f"{median(gflops):,.1f}",
                    _spread_part(
                        _divide(
                            [rates.rate for rates in limits],
                            [rates.rate for rates in self._find_limits()],
                        )
                    ),
                    _spread_part(_divide(gflops, square)),
                ]
            )
            rows.append(
                [
                    f"{entry.name}: a large square one",
                    f"{median(rates.square_gflops for rates in limits):,.1f}",
                    "",
                    _spread_part(_divide([rates.square_gflops for rates in limits], square)),
                ]
            )
        return table(heads, rows) if rows else ""

    def _describe_processes(self) -> str:
        phases = list(
            dict.fromkeys(name for said in self.loaded.values() for name in said.phases_s)
        )
        heads = ["s to the first step", "in all", "Python", *phases]
        heads += ["parameters", "peak memory, MiB", "on the GPU"]
        rows = []
        for entry, turns in self.turns.items():
            loaded, load_s = self.loaded[entry], self.load_s[entry]
            gpu = max(turn.gpu_peak_mib for turn in turns)
            rows.append(
                [
                    entry.name,
                    f"{load_s:.1f}",
                    f"{load_s - sum(loaded.phases_s.values()):.1f}",
                    *(f"{loaded.phases_s.get(name, 0.0):.1f}" for name in phases),
                    f"{loaded.num_parameters:,}",
                    f"{max(turn.peak_mib for turn in turns):,.0f}",
                    f"{gpu:,.0f}" if gpu else "",
                ]
            )
        note = (
            "data: dragoman reads the pairs, trains its tokenizer and makes the ids; to the others "
        )
        return f"{table(heads, rows)}\n\n{note}they are given, made beforehand." if rows else ""

    def _describe_ratio(self, fast: Entry | None, base: Entry | None) -> str:
        ratios = self._compare(fast, base)
        return spread(ratios) if ratios else ""

    def _compare(self, fast: Entry | None, base: Entry | None) -> list[float]:
        """Return how many times `base` `fast` is, round by round; empty if one took no part."""
        if fast is None or base is None:
            return []
        return _divide(self._rate(fast), self._rate(base))

    def _rate(self, entry: Entry) -> list[float]:
        return [turn.rate for turn in self.turns[entry]]

    def _find(self, kind: str, precision: str) -> Entry | None:
        """Return the first such contender, which is the plain one."""
        for entry in self.turns:
            if entry.kind == kind and entry.precision == precision:
                return entry
        return None

    def _find_limits(self) -> list[Rates]:
        """Return the rates of the products in bf16, round by round."""
        for entry, limits in self.limits.items():
            if entry.precision == "bf16-mixed":
                return limits
        return []

    def _find_parts(self, entry: Entry | None) -> list[float]:
        """Return which part of the limit is reached, round by round."""
        limits = self._find_limits()
        if entry is None or not limits:
            return []
        return _divide(self._rate(entry), [rates.rate for rates in limits])


def _divide(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratios, round by round; empty where `theirs` were not measured."""
    return [one / other for one, other in zip(ours, theirs, strict=True)] if theirs else []


def _name(entry: Entry | None) -> str:
    return "absent" if entry is None else entry.name


def _part(tokens: int, places: int) -> str:
    """Return which part of the places is padding."""
    return f"{100 * (1 - tokens / places):.1f}%"


def _spread_part(parts: Sequence[float]) -> str:
    if not parts:
        return ""
    low, middle, high = (f"{100 * x:.0f}" for x in (min(parts), median(parts), max(parts)))
    return f"{middle}% ({low}-{high})"
