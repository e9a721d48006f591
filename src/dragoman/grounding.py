"""Where the values of a record stand in the source: in the same characters, nearly so, or nowhere.

exact   the same characters; composed and decomposed accents are the same
near    the same letters, digits and signs (such as $ and %), with other spaces, punctuation or
        case; or at most one edit for five of them, with the same digits and signs; or the same
        number of JSON, written otherwise
none    neither: the model has rewritten the value, or made it up

A place never begins or ends inside a number, a word with cases, a letter with its accents, or an
emoji. Where a value stands several times, its place is the one that the model points to
(tokenizer.pointers), else the first that no field before it has.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cached_property
from itertools import product
from typing import Literal, NamedTuple
from unicodedata import category, combining, normalize

from dragoman.records import Field, Format, leave_out, list_fields

Kind = Literal["exact", "near", "none"]

_LETTERS_PER_EDIT = 5  # of letters, digits and signs
_LEAST_SPELLED = 0.6  # of a value are letters and digits: A+ is not near A
_LEAST_RATIO = 70.0  # of rapidfuzz, for so many edits at most; it is lower than their similarity
_SLACK = 8  # letters by which the ends of the most similar place may be off
_JOINER = "\u200d"  # of emoji
_UNTRAPPED = Context(traps=[])  # an exponent may have any number of digits: NaN
# Numbers, with their separators of thousands and their decimal point: 1,250.50 and 1.250,50.
_NUMBERS = tuple(
    (
        re.compile(
            rf"(?<!\d)(?<!\d[.,])-?\d+(?:[{thousands}]\d{{3}})*(?:[{point}]\d+)?(?![.,]?\d)"
        ),
        str.maketrans(point, ".", thousands),
    )
    for thousands, point in ((",' \u00a0\u202f", "."), (".' \u00a0\u202f", ","))
)


class Span(NamedTuple):
    """A value of a record, and its place in the source."""

    field: str
    value: str
    start: int | None  # source[start:end], in code points; None: it does not stand there
    end: int | None
    kind: Kind


def find_spans(
    source: str, output: str, form: Format, pointed: Mapping[int, int] | None = None
) -> list[Span]:
    """Return each value of `output`, in order, with its place; []: it is not a record.

    Empty values have no place, and are left out. `pointed`: see `PairTokenizer.find_pointed`.
    """
    return [span for _, span in _ground(source, output, form, pointed or {})]


def leave_out_ungrounded(
    source: str,
    output: str,
    form: Format,
    required: Literal["exact", "near"],
    pointed: Mapping[int, int] | None = None,
) -> tuple[str, list[Span], int]:
    """Return `output` without the values that do not stand in `source`, the spans of the others, and
    the number of values left out.
    """
    accepted = ("exact",) if required == "exact" else ("exact", "near")
    placed = list(_ground(source, output, form, pointed or {}))
    starts = {field.start for field, span in placed if span.kind not in accepted}
    kept = [span for _, span in placed if span.kind in accepted]
    return leave_out(output, form, starts), kept, len(starts)


def _ground(
    source: str, output: str, form: Format, pointed: Mapping[int, int]
) -> Iterator[tuple[Field, Span]]:
    text, taken = _Source(source), list[tuple[int, int]]()
    for field in list_fields(output, form, splits_items=True) or ():
        if not field.text.strip():
            continue
        is_number = form == "json" and output[field.start] in "-0123456789"
        is_quoted = form == "json" and output[field.start] == '"'
        at = pointed.get(field.start + is_quoted)
        place, kind = text.find(field.text, taken, at, is_number=is_number)
        if place is None:
            yield field, Span(field.name, field.text, None, None, "none")
        else:
            taken.append(place)
            yield field, Span(field.name, field.text, *place, kind)


class _Source:
    """A source in which values are searched."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._found: dict[tuple[bool, str], list[tuple[int, int]]] = {}

    def find(
        self, value: str, taken: Sequence[tuple[int, int]], at: int | None, *, is_number: bool
    ) -> tuple[tuple[int, int] | None, Kind]:
        """Return the place of `value`, and how it stands there: that `at`, or one that is not `taken`."""
        if at is not None and self._text.startswith(value, at):
            return (at, at + len(value)), "exact"
        exact = self._find_all(self._characters, _decompose(value).text)
        if place := _choose(exact, taken):
            return place, "exact"
        if is_number:
            number = Decimal(value, _UNTRAPPED)
            return _choose(self._find_number(number), taken), "near"
        spelled = _fold(_decompose(value)).text
        is_signed = value[0] in "-\u2212" and value[1:2].isdecimal()
        if is_signed or len(spelled) < _LEAST_SPELLED * len("".join(value.split())):
            return None, "none"
        similar = _choose(self._find_all(self._spelling, spelled), taken)
        return similar or self._align(spelled), "near"

    @cached_property
    def _characters(self) -> "_Form":
        return _decompose(self._text)

    @cached_property
    def _spelling(self) -> "_Form":
        return _fold(self._characters)

    def _find_all(self, form: "_Form", value: str) -> list[tuple[int, int]]:
        """Return each place where the source, in this form, has `value`; parts of 8.20 come last."""
        key = (form is self._characters, value)
        if key not in self._found:  # many items of a list may be equal
            found, at = [], form.text.find(value)
            while at >= 0:
                if place := self._place(form, at, at + len(value)):
                    found.append(place)
                at = form.text.find(value, at + 1)
            self._found[key] = sorted(found, key=self._is_in_number)
        return self._found[key]

    def _is_in_number(self, place: tuple[int, int]) -> bool:
        start, end = place
        before, after = self._text[max(0, start - 2) : start + 1], self._text[end - 1 : end + 2]
        return any(re.fullmatch(r"\d[.,]\d", around) for around in (before, after))

    def _place(self, form: "_Form", first: int, last: int) -> tuple[int, int] | None:
        """Return the place in the source of `form.text[first:last]`; None if it cuts something."""
        start, end = form.starts[first], form.ends[last - 1]
        cuts_a_character = (first and form.starts[first - 1] == start) or (
            last < len(form.starts) and form.ends[last] == end
        )
        is_cut = cuts_a_character or self._cuts(start) or self._cuts(end)
        return None if is_cut else (start, end)

    def _cuts(self, at: int) -> bool:
        """Return whether what stands before and after this character belongs together."""
        text = self._text
        if not 0 < at < len(text):
            return False
        before, after = at - 1, text[at]
        while before and combining(text[before]):
            before -= 1
        one = text[before]
        return (
            (one.isdecimal() and after.isdecimal())
            or (_has_case(one) and _has_case(after))
            or category(after)[0] == "M"
            or "\u1160" <= after <= "\u11ff"  # vowels and final consonants of Hangul, decomposed
            or _JOINER in (text[at - 1], after)
            or "\U0001f3fb" <= after <= "\U0001f3ff"  # skin tones
        )

    def _find_number(self, value: Decimal) -> Iterator[tuple[int, int]]:
        """Yield each place of this number, as 1250.5 in 1,250.50 or 1.250,5."""
        for pattern, to_plain in _NUMBERS:
            for match in pattern.finditer(self._text):
                if Decimal(match[0].translate(to_plain)) == value:
                    yield match.span()

    def _align(self, spelled: str) -> tuple[int, int] | None:
        """Return the place of the most similar letters and digits; None: it is not similar enough."""
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.fuzz import partial_ratio_alignment

        form, most = self._spelling, len(spelled) // _LETTERS_PER_EDIT
        if not most or not form.text:
            return None
        found = partial_ratio_alignment(spelled, form.text, score_cutoff=_LEAST_RATIO)
        if found is None:
            return None
        strict, slack = _list_strict(spelled), min(most, _SLACK)
        best = None
        firsts, lasts = (
            range(max(0, at - slack), min(len(form.text), at + slack) + 1)
            for at in (found.dest_start, found.dest_end)
        )
        for first, last in product(firsts, lasts):
            part = form.text[first:last]
            edits = Levenshtein.distance(spelled, part, score_cutoff=most)
            if edits > most or not part or _list_strict(part) != strict:
                continue
            if place := self._place(form, first, last):
                best = min(best or (edits, place), (edits, place))
        return best and best[1]


@dataclass(frozen=True, kw_only=True)
class _Form:
    """A text in another form, and from where to where each of its characters stands in the text."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]


def _decompose(text: str) -> _Form:
    """Return `text` with decomposed accents; a letter and its accents have one place."""
    if text.isascii():
        return _Form(text=text, starts=range(len(text)), ends=range(1, len(text) + 1))
    firsts = [at for at, character in enumerate(text) if at == 0 or not combining(character)]
    pieces, starts, ends = [], list[int](), list[int]()
    for start, end in zip(firsts, [*firsts[1:], len(text)], strict=True):
        pieces.append(normalize("NFD", text[start:end]))
        starts += [start] * len(pieces[-1])
        ends += [end] * len(pieces[-1])
    return _Form(text="".join(pieces), starts=starts, ends=ends)


def _fold(form: _Form) -> _Form:
    """Return its letters, digits and signs without case, and one space between two numbers."""
    characters, starts, ends = list[str](), list[int](), list[int]()
    gap = -1
    for at, character in enumerate(form.text):
        if not (character.isalnum() or category(character)[0] == "M" or _is_sign(character)):
            gap = at
            continue
        if gap == at - 1 and characters and character.isdecimal() and characters[-1].isdecimal():
            characters.append(" ")
            starts.append(form.starts[gap])
            ends.append(form.ends[gap])
        is_written = character.isalpha() or character.isdecimal()  # in other widths: not ² as 2
        for one in (normalize("NFKD", character) if is_written else character).casefold():
            characters.append(one)
            starts.append(form.starts[at])
            ends.append(form.ends[at])
    return _Form(text="".join(characters), starts=starts, ends=ends)


def _choose(
    places: Iterable[tuple[int, int]], taken: Sequence[tuple[int, int]]
) -> tuple[int, int] | None:
    """Return the first place that overlaps with no taken one; else the first; None: there is none."""
    first = None
    for place in places:
        if not any(place[0] < end and start < place[1] for start, end in taken):
            return place
        first = first or place
    return first


def _is_sign(character: str) -> bool:
    """Return whether it changes the meaning of a number or grade, as punctuation does not."""
    return character in "+%‰°" or category(character) == "Sc"


def _list_strict(text: str) -> list[str]:
    """Return the numbers and signs of folded text, which no edit may change."""
    return [one for one in re.findall(r"\d+|\W", text) if one.isdecimal() or _is_sign(one)]


def _has_case(character: str) -> bool:
    return character.islower() or character.isupper()
