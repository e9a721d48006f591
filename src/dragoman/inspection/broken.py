"""Rows that cannot be used: those that the reader leaves out, and those with too many tokens."""

from collections.abc import Iterator

from dragoman.inspection.finding import (
    MOST_EXAMPLES,
    Example,
    Finding,
    Severity,
    count_share,
    show_row,
)
from dragoman.inspection.lengths import find_over_limit
from dragoman.inspection.rows import Reading, SplitRows
from dragoman.reading.row_errors import OVER_LONG
from dragoman.settings import DataSettings
from dragoman.tokenizers.pair_tokenizer import PairTokenizer


def find_broken_rows(reading: Reading, data: DataSettings) -> Iterator[Finding]:
    """Tell of the rows that the reader leaves out, kind by kind."""
    for kind, count in reading.fault_counts.items():
        is_long = kind == OVER_LONG
        policy = data.long_rows if is_long else data.broken_rows
        setting = "data.long_rows" if is_long else "data.broken_rows"
        raised = "raise data.max_characters, " if is_long else "mend them, "
        yield Finding(
            kind=kind.lower().replace(" ", "_").replace("-", "_"),
            title=f"rows that cannot be used: {kind}",
            severity=_grade(policy),
            count=count,
            told=f"{count:,} rows: {kind}; {_tell_policy(policy, setting)}",
            remedy=f"{raised}or leave them out with {setting}=skip"
            if policy == "error"
            else f"{raised}or go on without them",
            examples=tuple(
                Example(file=fault.file, line=fault.line, text=fault.detail)
                for fault in reading.faults
                if fault.kind == kind
            )[:MOST_EXAMPLES],
        )


def find_long_rows(
    rows: SplitRows, tokenizer: PairTokenizer, data: DataSettings
) -> Iterator[Finding]:
    """Find rows over data.max_tokens."""
    found, lengths = find_over_limit(rows, tokenizer, data.max_tokens)
    if count := len(found):
        policy = _tell_policy(data.long_rows, "data.long_rows")
        yield Finding(
            kind="over_long_tokens",
            title=f"rows of {rows.shown} with too many tokens",
            severity=_grade(data.long_rows),
            count=count,
            told=f"{count_share(count, len(rows))} of {rows.shown} have more than data.max_tokens="
            f"{data.max_tokens} tokens, up to {lengths.max():,}; {policy}",
            remedy=f"raise data.max_tokens (to {lengths.max()} for all; memory and time "
            "grow), cut the texts, or leave the rows out with data.long_rows=skip",
            examples=tuple(
                show_row(rows, int(i), note=f"{length:,} tokens")
                for i, length in zip(found[:MOST_EXAMPLES], lengths[:MOST_EXAMPLES], strict=True)
            ),
        )


def find_empty_splits(reading: Reading) -> Iterator[Finding]:
    """Tell where no row is left to train on or to validate on."""
    for name, purpose in (("train", "train on"), ("valid", "validate on")):
        if name in reading.splits and len(reading.splits[name]):
            continue
        yield Finding(
            kind="empty_split",
            title=f"no row to {purpose}",
            severity="fault",
            count=0,
            told=f"{reading.statistics.num_pairs:,} pairs with {reading.statistics.num_sources:,} different "
            f"sources leave none to {purpose}; fit stops at it",
            remedy="give more pairs, a file of validation pairs with data.valid, or another "
            "data.valid_fraction",
            examples=(),
        )


def _grade(policy: str) -> Severity:
    return "fault" if policy == "error" else "warning"


def _tell_policy(policy: str, setting: str) -> str:
    return "fit stops at them" if policy == "error" else f"fit leaves them out ({setting}=skip)"
