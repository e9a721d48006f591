"""Checks of characters: mojibake, lost text, hidden characters, mixed Unicode forms, unseen ones.

The costly ones look at a sample of at most 100,000 rows of each file, and say so.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain

from dragoman.characters import JOINERS, is_hidden
from dragoman.inspection.findings import (
    MOST_EXAMPLES,
    Finding,
    SplitRows,
    report,
    show_row,
    show_text,
)
from dragoman.settings import TokenizerSettings
from dragoman.tokenizers.tokenizer import KINDS
from dragoman.tokenizers.vocabularies import make_cut

_SAMPLED_ROWS = 100_000
_SIDES = ("source", "target")
# All of the category Zs but the plain one, and the ideographic one, which is usual in its scripts;
# in place before French punctuation, and beside numbers; after Â and Ã it is mojibake.
_UNUSUAL_SPACE = re.compile(r"(?<![«\dÂÃ])[\u00a0\u1680\u2000-\u200a\u202f\u205f](?![!?;:»%€\d])")
_MOST_SHOWN = 12
# The first words of Unicode names by script. Scripts whose letters are not joined or separated by
# zero-width characters, and names that tell no script:
_UNJOINED = {"LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN", "CJK", "HIRAGANA", "KATAKANA", "HANGUL", "FULLWIDTH", "HALFWIDTH"}  # fmt: skip
_NO_SCRIPT = {"COMBINING", "MODIFIER", "VARIATION", "FEMININE", "MASCULINE", "MICRO", "OHM", "KELVIN", "ANGSTROM"}  # fmt: skip
# Scripts without spaces between words, where a zero-width space is a place to break the line:
_UNSPACED = {"THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE", "BALINESE", "TAI", "NEW"}
_DIRECTIONS = {*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}  # fmt: skip
_TAGS = range(0xE0020, 0xE0080)  # after a black flag: the flag of a region
_SKIN_TONES = "".join(map(chr, range(0x1F3FB, 0x1F400)))


def find_mojibake(whole: SplitRows) -> Iterator[Finding]:
    """Find rows that ftfy considers wrongly decoded, and can repair."""
    rows, notes = whole.sample(_SAMPLED_ROWS), dict[int, str]()
    for i, pair in enumerate(rows.pairs):
        if text := _repair(pair.source) or _repair(pair.target):
            notes[i] = f"should be: {show_text(text)}"
    return report(
        rows, list(notes), "mojibake", f"wrongly decoded text in {rows.shown}",
        "look like UTF-8 that was decoded with another encoding",
        "export the files again as UTF-8; or repair them, as `ftfy FILE` does",
        notes=notes,
    )  # fmt: skip


def _repair(text: str) -> str:
    """Return what ftfy makes of mojibake; "" where the text is likely right."""
    from ftfy import fix_encoding
    from ftfy.badness import badness

    if text.isascii() or not (before := badness(text)):
        return ""
    fixed = fix_encoding(text)
    return fixed if len(fixed) < len(text) and badness(fixed) < before else ""


def find_replacements(rows: SplitRows) -> Iterator[Finding]:
    """Find rows with U+FFFD, which replaces text that could not be decoded."""
    found = [i for i, pair in enumerate(rows.pairs) if "\ufffd" in pair.source + pair.target]
    return report(
        rows, found, "replacement_characters", f"lost text in {rows.shown}",
        "have U+FFFD (\ufffd), which programs write where they cannot decode the text",
        "export the files again in the right encoding; the lost text cannot be restored from these",
        at="\ufffd",
    )  # fmt: skip


def find_hidden_characters(whole: SplitRows) -> Iterator[Finding]:
    """Find rows with hidden characters that are out of place, on either side."""
    rows, found = whole.sample(_SAMPLED_ROWS), dict[int, str]()
    for i, pair in enumerate(rows.pairs):
        both = pair.source + pair.target
        if both.isprintable():
            continue
        if hidden := list_hidden(pair.source, both) or list_hidden(pair.target, both):
            found[i] = hidden[0]
    return report(
        rows, list(found), "hidden_characters", f"hidden characters in {rows.shown}",
        f"have invisible control or zero-width characters: {_list_most(found)}",
        "remove them from the files, and from what will be predicted: a model takes them for text",
        at=found,
    )  # fmt: skip


def list_hidden(text: str, both: str) -> list[str]:
    """Return the hidden characters of `text` that are out of place, in their order.

    In place are joiners in scripts that join and in emoji, direction marks where `both` sides have
    text from right to left, line breaks in a field, and unusual spaces.
    """
    return [
        character
        for i, character in enumerate(text)
        if is_hidden(character)
        and character not in "\t\n"
        and unicodedata.category(character) != "Zs"
        and not _is_in_place(text, i, both)
    ]


def _is_in_place(text: str, i: int, both: str) -> bool:
    character = text[i]
    if character == "\r":
        return text[i + 1 : i + 2] == "\n"
    if character in JOINERS:
        before = text[:i].rstrip("\ufe0f" + _SKIN_TONES)
        if before and unicodedata.category(before[-1]) in ("So", "Cn"):  # emoji
            return True
        script = next(filter(None, map(_find_script, reversed(before))), "")
        return bool(script) and script not in _UNJOINED
    if character == "\u200b":
        return any(_find_script(letter) in _UNSPACED for letter in text)
    if character in _DIRECTIONS:
        others = set(both) - _DIRECTIONS
        return any(unicodedata.bidirectional(other) in ("R", "AL", "AN") for other in others)
    if ord(character) in _TAGS:
        return text[:i].rstrip("".join(map(chr, _TAGS))).endswith("\U0001f3f4")
    # A private character is in place where both sides have it.
    is_private = unicodedata.category(character) == "Co"
    return is_private and both.count(character) > text.count(character)


@cache
def _find_script(character: str) -> str:
    """Return the first word of a letter's Unicode name, such as "CYRILLIC"; "" for other characters."""
    if unicodedata.category(character)[0] not in "LM":
        return ""
    word = unicodedata.name(character, "").partition(" ")[0]
    return "" if word in _NO_SCRIPT else word


def find_spaces(rows: SplitRows) -> Iterator[Finding]:
    """Find rows with spaces around a side, and rows with spaces that only look like a plain one."""
    outer = [
        i
        for i, pair in enumerate(rows.pairs)
        if any(side[:1].isspace() or side[-1:].isspace() for side in pair[:2])
    ]
    yield from report(
        rows, outer, "outer_spaces", f"spaces around the text in {rows.shown}",
        "have white space at the beginning or the end of a side; it is kept, and learned",
        "remove it from the files, unless it is meant",
    )  # fmt: skip
    spaces = {
        i: found[0]
        for i, pair in enumerate(rows.pairs)
        if not (pair.source.isascii() and pair.target.isascii())
        and (found := _UNUSUAL_SPACE.findall(pair.source + pair.target))
    }
    yield from report(
        rows, list(spaces), "unusual_spaces",
        f"spaces that only look like plain ones in {rows.shown}",
        f"have other spaces than U+0020: {_list_most(spaces)}",
        "replace them by plain spaces, in what will be predicted too, unless they are meant: to a "
        "model they are different characters",
        severity="note", at=spaces,
    )  # fmt: skip


def find_mixed_forms(files: Mapping[str, SplitRows]) -> Iterator[Finding]:
    """Find characters that one side spells in two ways which Unicode considers equivalent.

    The rows with the rarer spelling are named. Text that is decomposed throughout is no finding.
    """
    samples = [rows.sample(_SAMPLED_ROWS) for rows in files.values()]
    for side in _SIDES:
        find_clusters = _compile_clusters(samples, side)
        clusters = set[str]()
        for rows in samples:
            for text in rows.side(side):
                if not text.isascii():
                    clusters.update(find_clusters(text))
        composed = {
            cluster: form
            for cluster in clusters
            if (form := unicodedata.normalize("NFC", cluster)) != cluster and form in clusters
        }
        if not composed:
            continue
        # The rows with each spelling, and the first cluster that each spells so.
        spelled: dict[str, list[tuple[SplitRows, int, str]]] = {"decomposed": [], "composed": []}
        for rows in samples:
            for i, text in enumerate(rows.side(side)):
                found = [] if text.isascii() else find_clusters(text)
                for spelling, wanted in zip(spelled, (composed, {*composed.values()}), strict=True):
                    if first := next((cluster for cluster in found if cluster in wanted), ""):
                        spelled[spelling].append((rows, i, first))
        rarer = min(spelled, key=lambda spelling: len(spelled[spelling]))
        most = Counter(cluster for _, _, cluster in spelled["decomposed"]).most_common(3)
        shown = ", ".join(
            f"{composed[other]} as {_spell(composed[other])} and {_spell(other)}"
            for other, _ in most
        )
        sampled = " (in samples of the rows)" * any(rows.sampled_from for rows in samples)
        yield Finding(
            kind="unicode_forms",
            title=f"characters of the {side} in two Unicode forms",
            severity="warning",
            count=len(spelled[rarer]),
            message=f"{len(spelled['decomposed']):,} rows have {side} characters decomposed, which "
            f"{len(spelled['composed']):,} rows have composed{sampled}: {shown}",
            remedy=f"set tokenizer.{side}.unicode_form=nfc (or nfd), or convert the files to one "
            "form: to a model they are different texts",
            examples=tuple(
                show_row(rows, i, at=cluster, note=f"{cluster} {rarer}")
                for rows, i, cluster in spelled[rarer][:MOST_EXAMPLES]
            ),
        )


def _compile_clusters(samples: Sequence[SplitRows], side: str) -> Callable[[str], list[str]]:
    """Return a function that finds the letters with marks in a text, and what is outside ASCII."""
    characters = set[str]().union(*(text for rows in samples for text in rows.side(side)))
    marks = "".join(
        character
        for character in characters
        if unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"
    )
    single = r"[^\x00-\x7f]|[;`K]"  # three characters outside ASCII are equivalent to these
    if not marks:
        return re.compile(single).findall
    marks = re.escape(marks)
    return re.compile(f"[^{marks}][{marks}]+|{single}").findall


def find_unseen_characters(
    files: Mapping[str, SplitRows], tokenizer: TokenizerSettings
) -> Iterator[Finding]:
    """Find characters, or symbols, of the validation and test files that the training file never has."""
    held_out = [rows for name, rows in files.items() if name != "train"]
    for side in _SIDES if held_out else ():
        settings = tokenizer.source if side == "source" else tokenizer.target
        kind, cut = settings.kind, make_cut(settings)
        what = "symbols" if kind in ("symbols", "regex") else "characters"
        effect = f"the model {'cannot write' if side == 'target' else 'does not know'} these {what}"
        if KINDS[kind].spells_any_text:
            effect = "they can spell these characters, but the model learns nothing about them"
        train = files["train"]
        trained = set[str]().union(*cut(train.side(side)))
        searched = f"a sample of {len(train):,} rows of " * bool(train.sampled_from)
        for rows in held_out:
            unseen = {
                i: [one for one in tokens if one not in trained]
                for i, tokens in enumerate(cut(rows.side(side)))
                if not trained.issuperset(tokens)
            }
            counts = Counter(chain.from_iterable(unseen.values()))
            shown = ", ".join(
                f"{_show(one)} ({count:,})" for one, count in counts.most_common(_MOST_SHOWN)
            )
            yield from report(
                rows, list(unseen), "unseen_characters",
                f"{side} {what} of {rows.shown} that are not in train",
                f"have {side} {what} that are not in {searched}the training data, {len(counts):,} "
                f"different ones: {shown}{', …' * (len(counts) > _MOST_SHOWN)}",
                f"tokens are {kind}: {effect}; add training rows with them, or replace them by known "
                "ones",
                severity="note", at={i: found[0] for i, found in unseen.items()},
            )  # fmt: skip


def _show(token: str) -> str:
    is_visible = len(token) != 1 or unicodedata.category(token)[0] in "LNPS"
    return show_text(token) or "''" if is_visible else _spell(token)


def _spell(text: str) -> str:
    return "+".join(f"U+{ord(character):04X}" for character in text)


def _list_most(characters: Mapping[int, str]) -> str:
    """Return the most frequent of the characters that were found, by row, with their names."""
    shown = []
    for one, count in Counter(characters.values()).most_common(3):
        name = unicodedata.name(one, "").lower()
        shown.append(f"U+{ord(one):04X}{name and f' {name}'} in {count:,}")
    return ", ".join(shown)
