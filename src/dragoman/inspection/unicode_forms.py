"""One character in two spellings: composed in some rows, taken apart in others."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np

from dragoman.inspection.characters import NUM_CODES, find_rows
from dragoman.inspection.finding import MOST_EXAMPLES, Finding, show_row
from dragoman.inspection.profile import UNSETTLED, Profile
from dragoman.inspection.rows import SplitRows

_LEARNED_ROWS = 20_000  # rows that spellings are learned from
_MOST_SEQUENCES = 20  # composed forms of several characters, which must be searched for

_Places = dict[tuple[str, int], str]
"""The first of the spellings that were searched for, by split and row."""


def find_mixed_forms(
    splits: Mapping[str, SplitRows], profiles: Mapping[str, Profile]
) -> Iterator[Finding]:
    """Find characters that one side spells in two ways which Unicode holds for the same.

    The rows with the rarer spelling are named. Text that is taken apart throughout is no finding.
    """
    for profile in profiles.values():
        spellings = _learn_spellings(splits, profile)
        forms = _keep_present(splits, profile, spellings)
        if not forms:
            continue
        others = {other: form for form in forms for other in spellings[form]}
        apart = _search(splits, profile, others)
        whole = _search(splits, profile, forms)
        named, told = (apart, "taken apart") if len(apart) <= len(whole) else (whole, "composed")
        shown = ", ".join(
            f"{form} as {_spell(form)} and {_spell(other)}"
            for other, form in list(others.items())[:3]
        )
        yield Finding(
            kind="unicode_forms",
            title=f"characters of the {profile.side} in two Unicode forms",
            severity="warning",
            count=len(named),
            told=f"{len(apart):,} rows take {profile.side} characters apart, which {len(whole):,} rows "
            f"have composed: {shown}",
            remedy=f"set tokenizer.{profile.side}.unicode_form=nfc (or nfd), or bring the files into "
            "one form: to a model they are different texts",
            examples=tuple(
                show_row(splits[name], i, at=text, note=f"{text} {told}")
                for (name, i), text in list(named.items())[:MOST_EXAMPLES]
            ),
        )


def _learn_spellings(splits: Mapping[str, SplitRows], profile: Profile) -> dict[str, list[str]]:
    """Return the composed forms of what some rows spell otherwise, and these spellings."""
    marks = _list_marks(profile)
    # A letter with its marks; or a character that is composed of another (the Ångström sign).
    clusters = rf"[^{marks}][{marks}]+|[^\x00-\x7f]" if marks else r"[^\x00-\x7f]"
    find_clusters = re.compile(clusters).findall
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    num_learned = 0
    for name, rows in splits.items():
        texts = rows.side(profile.side)
        for i in profile.find(name, UNSETTLED):
            if unicodedata.is_normalized("NFC", texts[i]):
                continue
            for cluster in find_clusters(texts[i]):
                if (form := unicodedata.normalize("NFC", cluster)) != cluster:
                    counts[form][cluster] += 1
            num_learned += 1
            if num_learned >= _LEARNED_ROWS:
                break
    by_count = sorted(counts, key=lambda form: -counts[form].total())
    return {form: [spelling for spelling, _ in counts[form].most_common()] for form in by_count}


def _keep_present(
    splits: Mapping[str, SplitRows], profile: Profile, forms: Collection[str]
) -> list[str]:
    """Return those of `forms`, the frequent ones first, that stand in some row as they are."""
    counts = profile.all_counts
    sequences = [form for form in forms if len(form) > 1][:_MOST_SEQUENCES]
    present = set()
    for form in sequences:
        if _search(splits, profile, [form], is_one_enough=True):
            present.add(form)
    return [form for form in forms if form in present or (len(form) == 1 and counts[ord(form)] > 0)]


def _search(
    splits: Mapping[str, SplitRows],
    profile: Profile,
    spellings: Iterable[str],
    *,
    is_one_enough: bool = False,
) -> _Places:
    """Return the rows that have one of `spellings`, and which."""
    marks = _list_marks(profile)
    spellings = sorted(spellings, key=lambda spelling: (-len(spelling), spelling))
    end = f"(?![{marks}])" if marks else ""
    search = re.compile(f"(?:{'|'.join(map(re.escape, spellings))}){end}").search
    table = np.zeros(NUM_CODES, np.bool_)
    table[[ord(spelling[-1]) for spelling in spellings]] = True
    places: _Places = {}
    for name, rows in splits.items():
        texts = rows.side(profile.side)
        for i in find_rows(texts, table):
            if match := search(texts[i]):
                places[name, int(i)] = match[0]
                if is_one_enough:
                    return places
    return places


def _list_marks(profile: Profile) -> str:
    """Return what is put to a letter before it, as the inside of a class of an expression."""
    marks = (
        chr(code)
        for code in np.flatnonzero(profile.all_counts)
        if unicodedata.category(chr(code))[0] == "M" or 0x1160 <= code <= 0x11FF
    )
    return re.escape("".join(marks))


def _spell(text: str) -> str:
    return "+".join(f"U+{ord(character):04X}" for character in text)
