"""How good outputs are against their references: exact match, error rates, BLEU, chrF."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import sacrebleu
from rapidfuzz.distance import Levenshtein

from dragoman.text.pairs import Pair


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a set of rows; all but the signatures and `rows` in percent or points of 100."""

    rows: int  # distinct sources: several references of one count once
    exact_match: float  # rows whose hypothesis equals one of their references
    token_error_rate: float  # edits to the closest reference: WER over words, PER over phones
    character_error_rate: float
    bleu: float  # 0 where no hypothesis has four words, as BLEU is defined
    bleu_signature: str  # sacrebleu's: what another score must have, to be compared
    chrf: float
    chrf_signature: str

    def to_dict(self) -> dict[str, float | int | str]:
        """Return the scores by name, as plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One source with all its references, in the order in which they came."""

    source: str
    features: tuple[str, ...]
    references: tuple[str, ...]


def group_references(pairs: Iterable[Pair]) -> list[Group]:
    """Return a group for each (features, source); groups and references in first-seen order.

    A reference that comes twice is kept once.
    """
    found: dict[tuple[tuple[str, ...], str], dict[str, None]] = {}
    for pair in pairs:
        found.setdefault((pair.features, pair.source), {})[pair.target] = None
    return [
        Group(source=source, features=features, references=tuple(references))
        for (features, source), references in found.items()
    ]


def score(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], separator: str = " "
) -> Scores:
    """Return the scores of `hypotheses`; row i may have several `references[i]`.

    An error rate is the edits (insertions, deletions, substitutions) to the closest reference of
    each row, summed, over the lengths of those references, summed; so it may pass 100. Of equally
    close references the shortest counts, so that a tie never flatters (BLEU's rule too), and the
    order of references plays no part. Tokens are what stands between separators; an empty
    `separator` means white space. chrF alone may depend on the order of references: sacrebleu
    takes the first of equally good ones.

    Raises:
        ValueError: There are no rows, a row has no reference, or the two differ in length.
    """
    _check_rows(hypotheses, references)
    streams = _to_streams(references)
    # force: keep quiet about text that looks tokenized, which phones and codes always do.
    bleu, chrf = sacrebleu.BLEU(force=True), sacrebleu.CHRF()
    bleu_score = bleu.corpus_score(hypotheses, streams)
    chrf_score = chrf.corpus_score(hypotheses, streams)
    exact = sum(h in row for h, row in zip(hypotheses, references, strict=True))
    return Scores(
        rows=len(references),
        exact_match=100.0 * exact / len(references),
        token_error_rate=_error_rate(
            [_tokens(h, separator) for h in hypotheses],
            [[_tokens(r, separator) for r in row] for row in references],
        ),
        character_error_rate=_error_rate(hypotheses, references),
        bleu=bleu_score.score,
        bleu_signature=str(bleu.get_signature()),
        chrf=chrf_score.score,
        chrf_signature=str(chrf.get_signature()),
    )


def _check_rows(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses, but references for {len(references)} rows")
    if not references:
        raise ValueError("there are no rows to score")
    for row, texts in enumerate(references):
        if isinstance(texts, str):  # a string is a sequence of strings too: its characters
            raise ValueError(
                f"row {row}: references are a list of strings, not the string {texts!r}"
            )
        if not texts:
            raise ValueError(f"row {row} has no reference")


def _to_streams(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the references as sacrebleu takes them: list k holds the k-th one of every row."""
    most = max(map(len, references))
    streams = [[row[k] if k < len(row) else None for row in references] for k in range(most)]
    return cast(list[list[str]], streams)  # its types lack the None of a row that has less


def _tokens(text: str, separator: str) -> list[str]:
    return [token for token in text.split(separator or None) if token]


def _error_rate(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> float:
    edits = length = 0
    for hypothesis, row in zip(hypotheses, references, strict=True):
        closest = min((Levenshtein.distance(hypothesis, r), len(r)) for r in row)
        edits, length = edits + closest[0], length + closest[1]
    return 100.0 * edits / max(1, length)  # 1: every closest reference is empty
