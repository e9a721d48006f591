"""An output beside its closest reference: what was left out, what was put in, character by character."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup
from rapidfuzz.distance import Levenshtein

from dragoman.reporting.visible import LONGEST, cut_clusters, mark_unseen

_LONGEST_COMPARED = 3000  # characters of a text that are aligned
_CONTEXT = 24  # characters that are shown on each side of a stretch that is left out


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch that both texts have, that the output lacks, or that it has too much."""

    kind: Literal["same", "left out", "put in"]
    text: str


def find_closest(output: str, references: Sequence[str]) -> tuple[str, int]:
    """Return the reference with the fewest edits (the first of equally close), and those edits."""
    distances = [Levenshtein.distance(output, reference) for reference in references]
    least = min(distances)
    return references[distances.index(least)], least


def compare_texts(reference: str, output: str) -> list[Part]:
    """Return the parts of both texts, in their order: few edits, accents never torn from letters.

    The parts but those put in make the reference; all but those left out make the output.
    """
    expected, found = cut_clusters(reference), cut_clusters(output)
    parts: list[Part] = []
    left_out = put_in = ""  # of neighbouring edits, which are told as one

    def close() -> None:
        parts.extend([Part(kind="left out", text=left_out)] * bool(left_out))
        parts.extend([Part(kind="put in", text=put_in)] * bool(put_in))

    for edit in Levenshtein.opcodes(expected, found):
        stretch = "".join(expected[edit.src_start : edit.src_end])
        if edit.tag != "equal":
            left_out += stretch
            put_in += "".join(found[edit.dest_start : edit.dest_end])
            continue
        close()
        left_out = put_in = ""
        parts.append(Part(kind="same", text=stretch))
    close()
    return parts


def show_differences(reference: str, output: str) -> Markup:
    """Return the output with its differences to the reference as <del> and <ins>, for people.

    What is read aloud says "missing:" and "extra:" before each, so neither colour nor line is
    needed. In long texts the middle of a stretch that both have is left out.
    """
    cut = max(len(reference), len(output)) > _LONGEST_COMPARED
    parts = compare_texts(reference[:_LONGEST_COMPARED], output[:_LONGEST_COMPARED])
    is_long = sum(len(part.text) for part in parts) > LONGEST
    shown = Markup("").join(_show_part(part, is_long=is_long) for part in parts)
    rest = Markup('<i class="empty"> … the rest is not compared</i>') if cut else ""
    nothing = Markup('<i class="empty">empty</i> ') if not output else ""
    return Markup('{}<bdi class="text" translate="no">{}</bdi>{}').format(nothing, shown, rest)


def _show_part(part: Part, *, is_long: bool) -> Markup:
    text = part.text
    if part.kind == "same":
        return _shorten(text) if is_long else mark_unseen(text)
    shown = _shorten(text) if is_long else mark_unseen(text, shows_spaces=True)
    name, label = ("del", "missing") if part.kind == "left out" else ("ins", "extra")
    return Markup('<{0}><span class="aloud">[{1}: </span>{2}<span class="aloud">]</span></{0}>').format(
        Markup(name), label, shown
    )  # fmt: skip


def _shorten(text: str) -> Markup:
    left_out = len(text) - 2 * _CONTEXT
    if left_out <= _CONTEXT:
        return mark_unseen(text)
    middle = Markup('<i class="empty">… {} characters …</i>').format(f"{left_out:,}")
    return mark_unseen(text[:_CONTEXT]) + middle + mark_unseen(text[-_CONTEXT:])
