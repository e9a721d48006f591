"""Checks of rows: repeats and leaks, lengths in characters and tokens, sides that do not belong together."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dragoman.inspection.findings import (
    MOST_EXAMPLES,
    Finding,
    SplitFigures,
    SplitRows,
    report,
    show_text,
    spread,
)
from dragoman.reading.row_errors import name_row
from dragoman.settings import DataSettings, Settings
from dragoman.tokenizers.tokenizer import PairTokenizer

_MANY_DUPLICATES = 0.05  # of the rows of a split
_MANY_LEAKS = 0.01
_DOMINANT = 0.25
_FEWEST_DOMINANT = 10  # rows
_TRAINED_ROWS = 50_000
_ENCODED_ROWS = 50_000
_LONGEST_ROWS = 20_000  # also encoded, to find those over the limit
_MOST_BYTES = 4  # of a character in UTF-8: no text has more tokens than bytes
_NUM_BUCKETS = 1 << 16  # character bigrams are counted by a hash
_SMOOTHING = 0.5
_MOST_CHARACTERS = 20_000_000  # of each side, that the bigrams are counted on
# Chosen on 22 real sets with one row in a thousand swapped: none of 1.1 million rows, but two of
# half a million short program texts, was named wrongly; 27 of 29 captions were found.
_LEAST_EVIDENCE = 30.0  # nats, over the whole row
_LEAST_DIFFERENCE = 0.1  # nats per character, of the median row: below, the sides are alike
_MOST_SWAPPED = 0.1  # of the training rows: more is typical of the data
_CHUNK_ROWS = 4096
# Sides of unequal lengths.
_LONG = 60  # characters of the longer side: short texts may have any ratio
_FEWEST_ROWS = 200
_MOST_SPREAD = 0.5  # standard deviation of the logarithm of the ratio: above, it says nothing
_LEAST_FACTOR = 6.0  # times longer or shorter than usual
_LEAST_DEVIATIONS = 6.0
_MOST_ODD = 0.005  # of the rows: more is typical of the data


def find_leaks(files: Mapping[str, SplitRows]) -> Iterator[Finding]:
    """Find sources, features included, that are in two splits."""
    for name, other in (("valid", "train"), ("test", "train"), ("test", "valid")):
        if name not in files or other not in files:
            continue
        rows, seen = files[name], files[other]
        found = np.flatnonzero(np.isin(rows.source_keys, seen.source_keys))
        same_target = int(np.isin(rows.pair_keys, seen.pair_keys).sum())
        searched = f" (in a sample of {len(seen):,} rows of {seen.shown})" * bool(seen.sampled_from)
        first = {
            int(i): seen.pairs[np.argmax(seen.source_keys == rows.source_keys[i])]
            for i in found[:MOST_EXAMPLES]
        }
        yield from report(
            rows, found, "leakage", f"sources of {rows.shown} that are also in {seen.shown}",
            f"have a source that is also in {seen.shown}, {same_target:,} of them with the same "
            f"target{searched}",
            f"scores on {name} partly measure memory: remove these rows from {seen.shown}, or score "
            "the others separately",
            severity="warning" if len(found) > _MANY_LEAKS * len(rows) else "note",
            notes={i: name_row(pair.file, pair.line) for i, pair in first.items()},
        )  # fmt: skip


def find_duplicates(rows: SplitRows) -> Iterator[Finding]:
    """Find rows that repeat an earlier row of their file, features and target included."""
    _, first, inverse = np.unique(rows.pair_keys, return_index=True, return_inverse=True)
    earlier = first[inverse]
    found = np.flatnonzero(earlier != np.arange(len(rows)))
    known = {int(i): rows.pairs[earlier[i]] for i in found[:MOST_EXAMPLES]}
    return report(
        rows, found, "duplicates", f"duplicates in {rows.shown}",
        "repeat an earlier row exactly",
        "repeated pairs weigh more in training and in scores: remove the repeats, unless they are "
        "intended",
        severity="warning" if len(found) > _MANY_DUPLICATES * len(rows) else "note",
        notes={i: f"also in {name_row(pair.file, pair.line)}" for i, pair in known.items()},
    )  # fmt: skip


def find_several_targets(rows: SplitRows) -> Iterator[Finding]:
    """Find sources, features included, with more than one target in their file."""
    _, first, counts = np.unique(rows.pair_keys, return_index=True, return_counts=True)
    keys, places = np.unique(rows.source_keys[first], return_inverse=True)
    targets = np.bincount(places)
    if targets.max() < 2:
        return
    best = np.zeros(len(keys), np.int64)
    np.maximum.at(best, places, counts)
    ceiling = int(10_000 * best.sum() / len(rows)) / 100  # rounded down: 100% would be wrong
    found = np.flatnonzero(np.isin(rows.source_keys, keys[targets > 1]))
    _, first, places = np.unique(rows.source_keys[found], return_index=True, return_inverse=True)
    yield from report(
        rows, found[np.argsort(first[places], kind="stable")],  # rows of one source together
        "several_targets", f"sources with several targets in {rows.shown}",
        f"are of {int((targets > 1).sum()):,} sources (of {len(keys):,}) with up to {targets.max()} "
        f"targets; with one output per source, at most {ceiling:.2f}% of all rows can be matched "
        "exactly",
        "in a test they are alternative references of one source (dragoman evaluate accepts any of "
        "them); in training, keep them if all are right, or add a column that distinguishes them "
        "(data.features)",
        severity="note",
    )  # fmt: skip


def find_copies(rows: SplitRows) -> Iterator[Finding]:
    """Find rows with letters whose target equals their source."""
    found = [
        i
        for i, pair in enumerate(rows.pairs)
        if pair.source == pair.target and any(map(str.isalpha, pair.source))
    ]
    return report(
        rows, found, "copies", f"copies in {rows.shown}", "have their source as target",
        "right if the task leaves some texts unchanged; in translation these are untranslated rows: "
        "remove them",
        severity="note",
    )  # fmt: skip


def find_dominant_target(rows: SplitRows) -> Iterator[Finding]:
    """Find a target that many training rows share."""
    target, count = Counter(rows.targets).most_common(1)[0]
    share = count / len(rows)
    if share < _DOMINANT or count < _FEWEST_DOMINANT:
        return
    yield from report(
        rows, [i for i, text in enumerate(rows.targets) if text == target], "dominant_target",
        f"one target for many rows of {rows.shown}",
        f"have the target “{show_text(target)}”: a model that always writes it is right that often",
        "score the other rows separately; remove some of these rows if the model writes it too often",
        severity="warning" if share >= 0.5 else "note",
    )  # fmt: skip


def train_tokenizer(rows: SplitRows, settings: Settings) -> tuple[PairTokenizer, list[str]]:
    """Return a tokenizer trained on the rows, or on a sample of many, and a note about a sample.

    Raises: SettingsError, when the settings of the tokenizer contradict each other.
    """
    sample = rows.sample(_TRAINED_ROWS)
    tokenizer = PairTokenizer.train(sample.pairs, settings.tokenizer)
    note = f"tokens are of a tokenizer trained on a sample of {len(sample):,} rows, evenly spread"
    return tokenizer, [note] if len(sample) < rows.num_rows else []


def measure_split(rows: SplitRows, tokenizer: PairTokenizer) -> tuple[SplitFigures, list[str]]:
    """Return the sizes of a split, and notes on how they were measured."""
    indices = spread(len(rows), _ENCODED_ROWS)
    source_tokens, target_tokens = _count_tokens(rows, tokenizer, indices)
    lengths = {
        "source_characters": _count_characters(rows.sources),
        "target_characters": _count_characters(rows.targets),
        "source_tokens": source_tokens,
        "target_tokens": target_tokens,
    }
    figures = dict[str, dict[str, float]]()
    for name, values in lengths.items():
        shares = np.percentile(values, [5, 50, 95, 99])
        figures[name] = {
            "min": int(values.min()),
            **dict(zip(("p5", "median", "p95", "p99"), shares.round(1).tolist(), strict=True)),
            "max": int(values.max()),
            "mean": round(float(values.mean()), 2),
        }
    notes = []
    if rows.sampled_from:
        checked = f"{rows.name}: {len(rows):,} rows are checked, evenly spread, of about "
        notes.append(f"{checked}{rows.num_rows:,}")
    if len(indices) < len(rows):
        sample = f"a sample of {len(indices):,} rows, evenly spread"
        notes.append(f"lengths in tokens of {rows.name}: {sample}")
    num_sources = len(np.unique(rows.source_keys))
    return SplitFigures(
        files=rows.files, rows=len(rows), sources=num_sources, lengths=figures
    ), notes


def find_long_rows(
    rows: SplitRows, tokenizer: PairTokenizer, data: DataSettings
) -> Iterator[Finding]:
    """Find rows over data.max_tokens.

    If very many rows could be over the limit, only the longest are encoded.
    """
    longer = np.maximum(_count_characters(rows.sources), _count_characters(rows.targets))
    longer += np.fromiter((len(pair.features) for pair in rows.pairs), np.int64, len(rows))
    candidates = np.flatnonzero(longer * _MOST_BYTES + 2 > data.max_tokens)
    if len(candidates) > _LONGEST_ROWS:
        candidates = np.sort(candidates[np.argsort(longer[candidates])[-_LONGEST_ROWS:]])
    lengths = np.maximum(*_count_tokens(rows, tokenizer, candidates))
    found = candidates[lengths > data.max_tokens]
    if not len(found):
        return
    stops, longest = data.long_rows == "error", lengths.max()
    policy = "fit stops at them" if stops else "fit skips them (data.long_rows=skip)"
    yield from report(
        rows, found, "over_long_tokens", f"rows of {rows.shown} with too many tokens",
        f"have more than data.max_tokens={data.max_tokens} tokens, up to {longest:,}; {policy}",
        f"raise data.max_tokens ({longest} is enough for all; memory and time grow), shorten the "
        "texts, or skip the rows with data.long_rows=skip",
        severity="fault" if stops else "warning",
        notes={int(i): f"{n:,} tokens" for i, n in zip(candidates, lengths, strict=True)},
    )  # fmt: skip


def _count_characters(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the characters of each text, (N,)."""
    return np.fromiter(map(len, texts), np.int64, len(texts))


def _count_tokens(
    rows: SplitRows, tokenizer: PairTokenizer, indices: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens of sources and of targets, begin and end included."""
    sources, targets = list[int](), list[int]()
    for start in range(0, len(indices), 4096):
        pairs = [rows.pairs[i] for i in indices[start : start + 4096]]
        texts, features = [pair.source for pair in pairs], [pair.features for pair in pairs]
        sources += map(len, tokenizer.encode_sources(texts, features))
        targets += map(len, tokenizer.encode_targets([pair.target for pair in pairs], texts))
    return np.array(sources, np.int64), np.array(targets, np.int64)


def find_swapped(files: Mapping[str, SplitRows]) -> Iterator[Finding]:
    """Find rows whose sides are likely swapped, by the log-odds of their character bigrams.

    Bigrams are counted on the training rows; where both sides look alike, nothing is found. A
    whole file of validation or test pairs may be swapped.
    """
    train = files["train"]
    difference = np.log(_count_bigrams(train.sources)) - np.log(_count_bigrams(train.targets))
    evidence = difference.astype(np.float32)
    usual_source = float(np.median(_weigh(train.sources, evidence)[1]))
    usual_target = float(np.median(-_weigh(train.targets, evidence)[1]))
    if min(usual_source, usual_target) < _LEAST_DIFFERENCE:
        return
    for name, rows in files.items():
        source, source_mean = _weigh(rows.sources, evidence)
        target, target_mean = _weigh(rows.targets, evidence)
        found = np.flatnonzero(
            (source - target < -_LEAST_EVIDENCE)
            & (source_mean < -0.5 * usual_target)
            & (-target_mean < -0.5 * usual_source)
        )
        if name != "train" or len(found) <= _MOST_SWAPPED * len(rows):
            yield from report(
                rows, found, "swapped", f"likely swapped columns in {rows.shown}",
                "have a source that looks like a target, and a target that looks like a source",
                "check these rows, and swap their columns",
            )  # fmt: skip


def find_odd_lengths(rows: SplitRows) -> Iterator[Finding]:
    """Find long rows with sides of very unequal lengths, where those of other rows are similar."""
    if len(rows) < _FEWEST_ROWS:
        return
    source = _count_characters(rows.sources)
    target = np.maximum(1, _count_characters(rows.targets))  # perhaps empty on purpose
    ratio = np.log(target / source)
    usual = np.median(ratio)
    deviation = 1.4826 * np.median(np.abs(ratio - usual))
    longest = np.maximum(source * np.exp(usual), target)
    least = max(np.log(_LEAST_FACTOR), _LEAST_DEVIATIONS * deviation)
    found = np.flatnonzero((longest >= _LONG) & (np.abs(ratio - usual) > least))
    if deviation > _MOST_SPREAD or len(found) > max(1, _MOST_ODD * len(rows)):
        return
    yield from report(
        rows, found, "odd_lengths", f"sides of very unequal lengths in {rows.shown}",
        f"have a target more than {np.exp(least):.0f} times longer or shorter than expected from "
        f"the source (usual: {np.exp(usual):.2f} times the source)",
        "check whether the sides belong together, or one is truncated",
        severity="note",
    )  # fmt: skip


def _count_bigrams(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the smoothed frequency of each bucket, (_NUM_BUCKETS,)."""
    counts = np.full(_NUM_BUCKETS, _SMOOTHING)
    total = 0
    for buckets, _ in _read_bigrams(texts):
        counts += np.bincount(buckets, minlength=_NUM_BUCKETS)
        total += len(buckets)
        if total > _MOST_CHARACTERS:
            break
    return np.asarray(counts / counts.sum(), np.float64)


def _weigh(
    texts: Sequence[str], evidence: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the evidence that each text is a source, in nats, in all and per character, (N,) each."""
    sums = [np.add.reduceat(evidence[buckets], starts) for buckets, starts in _read_bigrams(texts)]
    total = np.concatenate(sums).astype(np.float64)
    return total, total / np.maximum(1, _count_characters(texts))


def _read_bigrams(texts: Sequence[str]) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.int64]]]:
    """Yield, for some texts at a time, the bucket of each bigram, and where each text starts.

    A bigram is a character and the one before it; the first one has none before it.
    """
    for first in range(0, len(texts), _CHUNK_ROWS):
        # An empty target (data.broken_rows=keep_empty) counts as a space.
        rows = [text or " " for text in texts[first : first + _CHUNK_ROWS]]
        lengths = _count_characters(rows)
        starts = np.cumsum(lengths) - lengths
        codes = np.frombuffer("".join(rows).encode("utf-32-le"), np.uint32)
        before = np.empty_like(codes)
        before[1:] = codes[:-1]
        before[starts] = 0
        mixed = (before * np.uint32(0x9E3779B1)) ^ (codes * np.uint32(0x85EBCA6B))
        yield (mixed >> np.uint32(7)) % np.uint32(_NUM_BUCKETS), starts
