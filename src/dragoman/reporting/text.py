"""Text from data as HTML: escaped, hidden characters as codes, bounded; and differences of texts."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

from dragoman.characters import JOINERS, SIGNS, is_hidden
from dragoman.evaluation.breakdown import align
from dragoman.grounding import Span

_LONGEST = 300  # characters of a text beside others
_LONGEST_COMPARED = 3000  # characters of a text that are aligned
_CONTEXT = 24  # characters on each side of a stretch that is left out


def show_text(text: str, longest: int = _LONGEST, spans: Sequence[Span] = ()) -> Markup:
    """Return `text` as HTML: escaped, isolated in its direction, hidden characters as codes.

    A control or format character, or a lone surrogate, becomes a small "U+202E"; a line break "↵".
    Characters beyond `longest` are counted. An empty text becomes "empty". Where `spans` stand,
    the text is marked, with their fields as its title; up to there it is shown.
    """
    if not text:
        return Markup('<i class="empty">empty</i>')
    longest = max(longest, *(min(span.end or 0, _LONGEST_COMPARED) for span in spans), 0)
    left = len(text) - longest
    more = Markup('<i class="empty"> … {} more characters</i>').format(f"{left:,}")
    return Markup('<bdi class="text" translate="no">{}</bdi>{}').format(
        _mark_spans(text[:longest], spans), more if left > 0 else ""
    )


def mark_hidden(text: str, *, shows_spaces: bool = False) -> Markup:
    """Return `text` as HTML, escaped, with a code in place of each hidden character."""
    shown = []
    for character in text:
        if shows_spaces and character == " ":
            shown.append(Markup('<span class="space">␣</span>'))
        elif code := _write_code(character):
            end = Markup("<wbr>") if character in SIGNS else ""
            shown.append(Markup('<span class="code">{}</span>{}').format(code, end))
        else:
            shown.append(escape(character))
    return Markup("").join(shown)


def write_plain(text: str, longest: int) -> str:
    """Return `text` without markup, for a label or an attribute: hidden characters as codes."""
    if not text:
        return "∅"
    shown = "".join(_write_code(character) or character for character in text[:longest])
    return shown if len(text) <= longest else f"{shown}…"


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Neighbouring units of both texts, or of only one."""

    kind: Literal["same", "missing", "extra"]
    text: str


def compare_texts(reference: str, output: str, unit: str = "") -> list[Stretch]:
    """Return the stretches of both texts in their order, with the fewest edits.

    "same" and "missing" make the reference; "same" and "extra" make the output.
    """
    stretches: list[Stretch] = []
    for is_same, _, missing, extra in align(_cut(reference, unit), _cut(output, unit)):
        if missing:
            stretches.append(Stretch(kind="same" if is_same else "missing", text="".join(missing)))
        if extra and not is_same:
            stretches.append(Stretch(kind="extra", text="".join(extra)))
    return stretches


def show_differences(reference: str, output: str, unit: str = "") -> tuple[Markup, Markup]:
    """Return both texts, with what only the reference has as <del>, only the output as <ins>.

    Screen readers say "missing:" and "extra:" before them. In long texts the middle of a stretch
    is left out.
    """
    is_cut = max(len(reference), len(output)) > _LONGEST_COMPARED
    stretches = compare_texts(reference[:_LONGEST_COMPARED], output[:_LONGEST_COMPARED], unit)
    is_long = sum(len(one.text) for one in stretches) > _LONGEST
    more = Markup('<i class="empty"> … the rest is not compared</i>') if is_cut else ""
    shown = []
    for text, other in ((reference, "extra"), (output, "missing")):
        kept = [one for one in stretches if one.kind != other]
        parts = Markup("").join(_show_stretch(one, unit, is_long=is_long) for one in kept)
        whole = Markup('<bdi class="text" translate="no">{}</bdi>{}').format(parts, more)
        shown.append(whole if text else show_text(text))
    return shown[0], shown[1]


def _mark_spans(text: str, spans: Sequence[Span]) -> Markup:
    ends = {0, len(text), *(end for span in spans for end in (span.start, span.end) if end)}
    shown = []
    for start, end in itertools.pairwise(sorted(ends)):
        part = mark_hidden(text[start:end])
        fields = [
            span.field + (" (nearly)" if span.kind == "near" else "")
            for span in spans
            if (span.start or 0) <= start < (span.end or 0)
        ]
        if fields and part:
            title = write_plain(", ".join(fields), 100)
            part = Markup('<mark title="{}">{}</mark>').format(title, part)
        shown.append(part)
    return Markup("").join(shown)


def _cut(text: str, unit: str) -> Sequence[str]:
    """Return the units of a text and the separators between them."""
    if not unit:
        return text
    between = r"(\s+)" if unit == " " else f"({re.escape(unit)})"
    return [part for part in re.split(between, text) if part]


def _show_stretch(stretch: Stretch, unit: str, *, is_long: bool) -> Markup:
    is_same = stretch.kind == "same"
    text = stretch.text
    if is_long and len(text) > 3 * _CONTEXT:
        left_out = f"{len(text) - 2 * _CONTEXT:,}"
        middle = Markup('<i class="empty">… {} characters …</i>').format(left_out)
        shown = mark_hidden(text[:_CONTEXT]) + middle + mark_hidden(text[-_CONTEXT:])
    else:
        shown = mark_hidden(text, shows_spaces=not (is_same or is_long or unit))
    if is_same:
        return shown
    tag = "del" if stretch.kind == "missing" else "ins"
    return Markup('<{0}><span class="aloud">[{1}: </span>{2}<span class="aloud">]</span></{0}>').format(
        Markup(tag), stretch.kind, shown
    )  # fmt: skip


def _write_code(character: str) -> str:
    """Return what is shown in place of a hidden character; "": it is shown itself."""
    if sign := SIGNS.get(character):
        return sign
    return f"U+{ord(character):04X}" if is_hidden(character) and character not in JOINERS else ""
