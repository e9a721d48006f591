"""Values for all settings that the user leaves open, chosen from statistics of the pairs."""

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from dragoman.configuration import list_set_values, merge_settings
from dragoman.errors import shorten
from dragoman.reading.statistics import PairStatistics, SideStatistics
from dragoman.records import SETTINGS
from dragoman.settings import Monitor, Settings, TokenizerKind, TokenizerSettings
from dragoman.tokenizers.tokenizer import KINDS

# The fewer the pairs, the smaller the model, the stronger the dropout, the smaller the batches:
# the direction is that of Araabi and Monz 2020 (low-resource Transformers).
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "model.d_model": 128,
        "model.dim_feedforward": 512,
        "model.num_encoder_layers": 2,
        "model.num_decoder_layers": 2,
        "model.dropout": 0.3,
        "optimization.warmup_steps": 200,
        "training.batch_tokens": 1024,
        "training.max_steps": 3000,
    },
    "small": {
        "model.dropout": 0.3,
        "optimization.warmup_steps": 500,
        "training.batch_tokens": 2048,
        "training.max_steps": 8000,
    },
    "medium": {
        "training.batch_tokens": 2048,
    },
    "large": {
        "model.d_model": 512,
        "model.nhead": 8,
        "model.dim_feedforward": 2048,
        "model.num_encoder_layers": 6,
        "model.num_decoder_layers": 6,
        "optimization.warmup_steps": 4000,
        "training.batch_tokens": 8192,
        "training.max_steps": 100_000,
    },
}


# Short sequences of letters or symbols, and records with copied values: a wide and deep model,
# however few the pairs, and as many steps as passes over the pairs need.
# Measured in recipes/presets.md.
_LETTERS: dict[str, Any] = {
    "model.d_model": 256,
    "model.dim_feedforward": 1024,
    "model.num_encoder_layers": 4,
    "model.num_decoder_layers": 4,
    "optimization.learning_rate": 1e-3,
    "optimization.warmup_steps": 500,
}
_MOST_LETTERS = 40.0  # mean number on the longer side
_LETTERS_BATCH = {"tiny": 1024, "small": 1024, "medium": 2048}  # tokens
_LETTERS_ROWS = 4  # of mean length that fit into a batch, at least: of records
_POINTER_ROWS, _POINTER_BATCH = 8, 2048  # the same for pointers, and their largest usual batch
_FEW_EPOCHS, _FEW_EPOCHS_DROPOUT = 60, 0.2  # of pointers to long sources, which learn slowly
_LETTERS_EPOCHS = 120
_LETTERS_TOKENS = (3_000_000, 14_000_000)  # of a run, at least and at most
_QUALITIES = {"quick": 0.125, "normal": 1.0, "best": 4.0}  # of the steps
_VALIDATIONS = 20  # in a run: so that patience never ends it before its second half
_HALLUCINATION = 0.6  # of inflection with few pairs; with 3,801 it costs two points
_SUBWORDS = 0.35  # for a character, of a vocabulary of 1,000 to 4,000
_SHORT_SYMBOLS = 4.5  # mean number of words; longer is running text
_MOST_CHARACTERS = 5000  # maximum size of a vocabulary of characters
_MOST_SYMBOLS = 500  # maximum size of a vocabulary of symbols
# Of the symbols in 50 pairs, at most 37% occur once if they are phones, 66% and more if words.
_MOST_RARE = 0.45


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The resolved settings, and a reason for each choice."""

    settings: Settings
    reasons: tuple[str, ...]


def choose_settings(
    settings: Settings, statistics: PairStatistics, *, is_parallel: bool = False
) -> Choice:
    """Return `settings` with a value for each open one; values of the user stay.

    `is_parallel`: the pairs came from two files. It is stored, so that a line to predict is a whole
    source, with its tabs.
    """
    by_hand = dict(list_set_values(settings))
    open_ones = ("training.monitor", "data.records", "data.record_fields", "decoding.records")
    for name in ("preset", *open_ones):
        if by_hand.get(name) in ("auto", ()):
            del by_hand[name]
    settings = merge_settings(Settings(), by_hand)
    num_pairs = max(1, round(statistics.num_pairs * settings.data.train_fraction))
    size, why_size = _choose_size(settings, num_pairs)
    chosen, reasons = dict[str, Any](), dict[str, str]()

    def choose(name: str, value: object, why: str) -> None:
        chosen[name], reasons[name] = value, why

    choose("preset", size, f"preset {size}: {why_size}")
    chosen.update(_SIZES[size])
    if size == "medium":  # from the steps of "small" on, about ten passes over running text
        chosen["training.max_steps"] = min(max(8000, num_pairs // 12), 40_000)
    if 1 not in (settings.model.num_encoder_layers, settings.model.num_decoder_layers):
        # Better on texts, letters and records; of a single layer, the cross-attention would have
        # no positions at all.
        chosen["model.positions"] = "rotary"
    if statistics.all_tagged:
        why = "every source begins with a <tag>: each tag becomes one symbol"
        choose("data.leading_tags", True, why)
    if separator := statistics.features_separator:
        why = f"features are split at {separator!r}: each part is one symbol"
        choose("data.features_separator", separator, why)
    form, fields = statistics.record_form, statistics.record_fields
    shown = shorten(", ".join(fields), 200)
    if settings.data.records == "json" or (settings.data.records == "auto" and form == "json"):
        form = chosen["data.records"] = "json"
        why = f"targets are JSON objects, with the fields in one order: {shown}"
        choose("data.record_fields", fields, why)
    elif form is not None:
        reasons["data.records"] = f"targets are records, kept as they are written: {shown}"
    chosen["decoding.records"] = next(
        (name for name, one in SETTINGS.items() if one == form), "none"
    )
    if is_parallel:
        chosen["data.format"] = "parallel"
    # 5%; more for few pairs (about 40, at most 20%), less for many (about 2,000). By all pairs, so
    # that data.train_fraction leaves the held-out ones as they are.
    all_pairs = max(1, statistics.num_pairs)
    least = max(0.05, min(0.2, 40 / all_pairs))
    chosen["data.valid_fraction"] = round(min(least, 2000 / all_pairs), 6)
    # Fewer merges for fewer pairs. Source: Sennrich and Zhang 2019.
    sizes = ((1_000_000, 16_000), (100_000, 8000), (10_000, 4000), (0, 1000))
    vocab_size = next(vocab_size for least, vocab_size in sizes if num_pairs >= least)
    task = settings.evaluation.task
    has_copies = task == "records" or (task == "auto" and statistics.has_copied_records)
    can_point = statistics.can_point and _can_point(settings, by_hand)
    pointers = settings.tokenizer.pointers or (has_copies and can_point)
    if has_copies and settings.model.positions != "learned":  # at most as many tokens as characters
        times = 3 if pointers else 1  # a letter may have a number and a case
        chosen["data.max_tokens"] = times * settings.data.max_characters + 100
    if pointers:
        chosen["tokenizer.shared"] = True
        why = (
            "pointers: most values of the records stand in their sources, so the model learns the "
            "places of their words, not their letters"
        )
        choose("tokenizer.pointers", True, why)
    for side, found in (("source", statistics.source), ("target", statistics.target)):
        kind, why = _choose_kind(found)
        if pointers:
            kind, why = "bpe", "words have numbers, to which records point"
        elif has_copies:
            kind, why = "characters", "targets are records with values copied from their sources"
        choose(f"tokenizer.{side}.kind", kind, f"{side} tokens {kind}: {why}")
        chosen[f"tokenizer.{side}.vocab_size"] = vocab_size
        num_decomposed = len(set(normalize("NFD", "".join(found.characters))))
        if kind == "characters" and len(found.characters) >= max(150, 2 * num_decomposed):
            why = (
                f"{side} in the Unicode form NFD: {num_decomposed} different characters (Hangul as "
                f"jamo) instead of {len(found.characters):,}"
            )
            choose(f"tokenizer.{side}.unicode_form", "nfd", why)
    if settings.tokenizer.shared or pointers:
        chosen.update(_follow_shared(settings, chosen))
    tokenizer = merge_settings(settings, chosen).tokenizer
    length = max(
        _measure_length(statistics.source, tokenizer.source.kind),
        _measure_length(statistics.target, tokenizer.target.kind),
    )
    if pointers:  # subwords and numbers; targets are shorter
        length = _SUBWORDS * statistics.source.mean_characters + statistics.source.mean_symbols + 1
    if size in _LETTERS_BATCH and (length < _MOST_LETTERS or (has_copies and length < math.inf)):
        batch = max(_LETTERS_BATCH[size], _LETTERS_ROWS * int(length))
        if pointers:  # up to three times as many rows, as long as the batch is small
            rows = _POINTER_ROWS * int(length)
            batch = max(_LETTERS_BATCH[size], rows, min(3 * rows, _POINTER_BATCH))
        least, most = _LETTERS_TOKENS
        num_tokens = min(max(least, _LETTERS_EPOCHS * num_pairs * int(length)), most)
        if pointers and num_tokens < _FEW_EPOCHS * num_pairs * int(length):
            chosen["model.dropout"] = _FEW_EPOCHS_DROPOUT
        chosen.update(_LETTERS)
        chosen["training.batch_tokens"], chosen["training.max_steps"] = batch, num_tokens // batch
        reasons["model.num_encoder_layers"] = (
            "4 + 4 layers: short sequences of letters or symbols, or copied records"
        )
    if settings.preset == "fast":  # most of the time of a search is the decoder's
        chosen["model.num_encoder_layers"], chosen["model.num_decoder_layers"] = 6, 1
        reasons["model.num_decoder_layers"] = "preset fast: 6 encoder layers, 1 decoder layer"
    if settings.training.start_from:
        rate = chosen.get("optimization.learning_rate", settings.optimization.learning_rate)
        chosen["training.max_steps"] //= 4
        why = "a lower learning rate and a quarter of the steps: the weights are trained already"
        choose("optimization.learning_rate", 0.3 * rate, why)
    characters = statistics.target.characters
    num_common = len(characters & statistics.source.characters)
    if tokenizer.source == tokenizer.target and num_common >= 0.7 * len(characters):
        why = "one vocabulary: both sides have the same tokenizer and script"
        choose("tokenizer.shared", True, why)
    merged = merge_settings(settings, chosen)
    is_spelled = merged.tokenizer.source.kind == merged.tokenizer.target.kind == "characters"
    if size == "tiny" and statistics.is_inflection and is_spelled and merged.tokenizer.shared:
        why = (
            f"random letters in the stems of {_HALLUCINATION:.0%} of the words of each batch: "
            "inflection, with few words to learn it from"
        )
        choose("optimization.hallucination", _HALLUCINATION, why)
    monitor, why_monitor = _choose_monitor(merged.tokenizer, statistics.target)
    choose("training.monitor", monitor, f"best by {monitor}: {why_monitor}")
    chosen["model.tie_embeddings"] = merged.tokenizer.shared
    chosen["training.max_steps"] = int(chosen["training.max_steps"] * _QUALITIES[settings.quality])
    max_steps = merge_settings(settings, chosen).training.max_steps
    chosen["training.valid_every"] = math.ceil(max_steps / _VALIDATIONS)
    chosen["optimization.warmup_steps"] = limit_warmup(merged, max_steps)
    return Choice(
        settings=merge_settings(settings, chosen),
        reasons=tuple(why for name, why in reasons.items() if name not in by_hand),
    )


def limit_warmup(settings: Settings, max_steps: int) -> int:
    """Return the warm-up for so many steps: a shorter run must still reach the peak of the rate."""
    return min(settings.optimization.warmup_steps, max_steps // 4)


def _choose_size(settings: Settings, num_pairs: int) -> tuple[str, str]:
    if settings.preset not in ("auto", "fast"):
        return settings.preset, "as set"
    if num_pairs < 2_000:
        return "tiny", f"{num_pairs:,} pairs, fewer than 2,000"
    if num_pairs < 30_000:
        return "small", f"{num_pairs:,} pairs, 2,000 to 30,000"
    if num_pairs < 1_000_000:
        return "medium", f"{num_pairs:,} pairs, 30,000 to a million"
    return "large", f"{num_pairs:,} pairs, a million or more"


def _choose_kind(side: SideStatistics) -> tuple[TokenizerKind, str]:
    """Return the kind of tokens and the reason: the same for 50 pairs of a task as for 50,000.

    Symbols need a closed inventory: few distinct ones, most of which occur again. Characters suit
    words and short phrases. Running text is split into subwords (bpe), which keeps sequences short.
    """
    num_symbols, num_rare = side.num_symbols, side.num_rare_symbols
    is_closed = num_symbols <= _MOST_SYMBOLS and num_rare <= _MOST_RARE * num_symbols
    if is_closed and side.mean_symbols >= 1.5:
        return "symbols", f"{side.num_symbols} different ones, separated by spaces"
    if _is_short_text(side):
        return (
            "characters",
            f"words or short phrases, {side.mean_characters:.0f} characters on average",
        )
    return "bpe", f"running text, {side.mean_characters:.0f} characters on average"


def _measure_length(side: SideStatistics, kind: TokenizerKind) -> float:
    """Return the mean number of tokens with an end; of running text infinity."""
    return {"characters": side.mean_characters, "symbols": side.mean_symbols}.get(
        kind, math.inf
    ) + 1


def _is_short_text(side: SideStatistics) -> bool:
    return side.mean_symbols <= _SHORT_SYMBOLS and len(side.characters) <= _MOST_CHARACTERS


def _can_point(settings: Settings, by_hand: Container[str]) -> bool:
    """Return whether nothing that the user set speaks against pointers."""
    decoding = settings.decoding
    both = merge_settings(settings, _follow_shared(settings, {})).tokenizer
    return not (
        "tokenizer.pointers" in by_hand
        or ("tokenizer.shared" in by_hand and not settings.tokenizer.shared)
        or settings.tokenizer.source.kind != settings.tokenizer.target.kind
        or both.source != both.target
        or any((decoding.choices, decoding.regex, decoding.json_schema, decoding.grammar))
    )


def _choose_monitor(tokenizer: TokenizerSettings, target: SideStatistics) -> tuple[Monitor, str]:
    """Return the score that chooses the best checkpoint, and the reason.

    Running text has many right wordings: chrF gives partial credit. Symbols and characters are
    compared token by token. Short strings in subwords are compared by characters, because one
    letter may change all subwords of a word.
    """
    kind = tokenizer.target.kind
    if not KINDS[kind].spells_any_text or tokenizer.pointers:
        what = "pointers to words" if tokenizer.pointers else kind
        return "token_error_rate", f"targets are {what}, compared one by one"
    if _is_short_text(target):
        return "character_error_rate", "targets are short strings in subwords"
    return "chrf", "targets are running text, with many right wordings"


def _follow_shared(settings: Settings, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return values that make both sides equal: each setting of one side also goes to the other."""
    alike = {
        name.replace(".source.", ".target."): value
        for name, value in chosen.items()
        if name.startswith("tokenizer.source.")
    }
    for side, other in (("source", "target"), ("target", "source")):
        for name, value in list_set_values(getattr(settings.tokenizer, side)):
            alike[f"tokenizer.{other}.{name}"] = value
    return alike


def leave_room_for_outputs(
    settings: Settings, source_lengths: NDArray[np.int32], target_lengths: NDArray[np.int32]
) -> tuple[Settings, list[str]]:
    """Return `settings` with the longest output fitted to the training targets; and messages.

    decoding.max_length_extra is raised if they need more. decoding.max_length becomes twice the
    longest target plus that: an output that is far longer would never end. Lengths that were set
    stay, and a message says how many targets are longer.

    Args:
        source_lengths: Tokens of each training pair, ends included, (N,).
        target_lengths: The same, begin and end included, (N,).
    """
    decoding, given, prefix = settings.decoding, dict(list_set_values(settings)), "decoding."
    ends = target_lengths - 1  # without begin
    beyond = ends - (decoding.max_length_ratio * source_lengths).astype(np.int64)
    extra, needed = decoding.max_length_extra, int(beyond.max())
    chosen: dict[str, int] = {}
    messages = []
    if needed > extra and f"{prefix}max_length_extra" not in given:
        chosen[f"{prefix}max_length_extra"] = extra = needed
        messages.append(f"longest output: decoding.max_length_extra {needed}, for long targets")
    elif needed > extra:
        messages.append(
            f"longest output: {int((beyond > extra).sum()):,} training targets are longer than "
            f"decoding.max_length_extra {extra} allows; {needed} would suffice"
        )
    most = decoding.max_length
    if most and (num_longer := int((ends > most).sum())):
        messages.append(
            f"longest output: {num_longer:,} training targets are longer than "
            f"decoding.max_length {most}; {int(ends.max())} would suffice"
        )
    names = ("max_length", "max_length_ratio", "max_length_extra")
    if not any(f"{prefix}{name}" in given for name in names):
        chosen[f"{prefix}max_length"] = 2 * int(ends.max()) + extra
    return merge_settings(settings, chosen), messages
