"""Characters of the validation or test files that no training row has."""

import unicodedata
from collections.abc import Iterator, Mapping

import numpy as np

from dragoman.inspection.characters import NUM_CODES, find_rows
from dragoman.inspection.finding import MOST_EXAMPLES, Finding, count_share, show_row
from dragoman.inspection.profile import Profile
from dragoman.inspection.rows import SplitRows

_MOST_SHOWN = 12
_BYTES = ("bpe", "unigram")  # kinds of tokens that can spell any text


def find_unseen_characters(
    splits: Mapping[str, SplitRows],
    profiles: Mapping[str, Profile],
    kinds: Mapping[str, str],
) -> Iterator[Finding]:
    """Find characters of the files of validation and test that the training file never has.

    `kinds`: of the tokens of each side.
    """
    for name, rows in splits.items():
        for side, profile in profiles.items():
            counts = profile.counts[name]
            unseen = np.flatnonzero((counts > 0) & (profile.counts["train"] == 0))
            if not len(unseen):
                continue
            unseen = unseen[np.argsort(-counts[unseen], kind="stable")]
            table = np.zeros(NUM_CODES, np.bool_)
            table[unseen] = True
            texts = rows.side(side)
            found = find_rows(texts, table)
            shown = ", ".join(f"{_name(chr(c))} ({counts[c]:,})" for c in unseen[:_MOST_SHOWN])
            yield Finding(
                kind="unseen_characters",
                title=f"{side} characters of {rows.shown} that are not in train",
                severity="note",
                count=len(found),
                told=f"{len(unseen):,} different characters of the {side}, in "
                f"{count_share(len(found), len(rows))} of {rows.shown}, are never trained on: {shown}"
                f"{', …' * (len(unseen) > _MOST_SHOWN)}",
                remedy=_tell_remedy(side, kinds[side]),
                examples=tuple(
                    show_row(rows, int(i), at=next(c for c in texts[i] if table[ord(c)]))
                    for i in found[:MOST_EXAMPLES]
                ),
            )


def _tell_remedy(side: str, kind: str) -> str:
    if kind in _BYTES:
        return f"tokens are {kind}, which can spell them, but nothing was learned of them: add training rows that have them"  # fmt: skip
    told = "cannot come out of the model" if side == "target" else "are unknown to the model"
    return f"tokens are {kind}: these characters {told}; add training rows that have them, or bring them to known ones"  # fmt: skip


def _name(character: str) -> str:
    if unicodedata.category(character)[0] in "LNPS" and character.isprintable():
        return character
    return f"U+{ord(character):04X}"
