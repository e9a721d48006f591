"""The metrics of a training, summed over batches and ranks.

Under teacher forcing they reuse the sums of the loss, so they cost nothing; the others compare what
the model decodes by itself with the reference, as ids and as text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from torchmetrics import Metric

from dragoman.evaluation import metrics as evaluation
from dragoman.model.loss import LossSums
from dragoman.settings import Settings
from dragoman.tokenizers.tokenizer import KINDS, UNKNOWN_ID, PairTokenizer

_OVER_IDS = ("exact_match", "token_error_rate")  # measured here, over ids
_UNKNOWN: Final = "\ufffd"  # shown for a token outside of the vocabulary


class TeacherForcedMetrics(Metric):
    """Loss, perplexity and accuracy (%) per token of one stage, under teacher forcing.

    The perplexity is without label smoothing.
    """

    full_state_update = False
    sums: Tensor  # (3): loss, negative log-likelihood, correct tokens
    num_tokens: Tensor

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage
        self.add_state("sums", torch.zeros(3), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, sums: LossSums) -> None:
        """Add the sums of a batch."""
        self.sums += torch.stack((sums.loss.detach(), sums.nll, sums.num_correct.float()))
        self.num_tokens += sums.num_tokens

    def compute(self) -> dict[str, Tensor]:
        """Return the means by name; NaN over no tokens."""
        loss, nll, num_correct = self.sums
        return {
            f"{self.stage}_loss": loss / self.num_tokens,
            f"{self.stage}_perplexity": (nll / self.num_tokens).exp(),
            f"{self.stage}_token_accuracy": 100.0 * num_correct / self.num_tokens,
        }

    def capture_sums(self) -> list[list[float]]:
        """Return the sums of this rank as plain values: [sum, tokens] for each metric."""
        return [[total, float(self.num_tokens)] for total in self.sums.tolist()]

    def restore_sums(self, captured: Sequence[Sequence[float]]) -> None:
        """Continue from the sums of `capture_sums`."""
        loss, nll, num_correct = torch.tensor([total for total, _ in captured]).to(self.sums.device)
        num_tokens = torch.tensor(int(captured[0][1]), device=self.sums.device)
        self.update(
            LossSums(loss=loss, nll=nll, num_correct=num_correct.long(), num_tokens=num_tokens)
        )


@dataclass(frozen=True)
class Texts:
    """Decodes ids (without begin, end and padding) to text.

    In a source or a reference, a symbol that was not seen in training becomes U+FFFD, so that no
    output without it counts as right. An output becomes what the trained model would write.
    """

    tokenizer: PairTokenizer

    def read_source(self, ids: Sequence[int]) -> str:
        """Return the features of a source, a space after each, and its text."""
        names = {id_: name for name, id_ in self.tokenizer.features.items()}
        symbols = [f"{names[id_]} " for id_ in ids if id_ in names]
        text = [id_ for id_ in ids if id_ not in names]
        return "".join(symbols) + self._mark_unknown(text, is_source=True)

    def read_reference(self, ids: Sequence[int]) -> str:
        """Return the text of a reference."""
        return self._mark_unknown(ids)

    def read_output(self, ids: Sequence[int]) -> str:
        """Return the text of an output."""
        return self.tokenizer.decode_target(ids)

    def _mark_unknown(self, ids: Sequence[int], *, is_source: bool = False) -> str:
        tokenizer = self.tokenizer
        side = tokenizer.source if is_source else tokenizer.target
        decode = side.decode if is_source and not tokenizer.pointers else tokenizer.decode_target
        parts: list[str] = []
        for is_unknown, run in groupby(ids, key=lambda id_: id_ == UNKNOWN_ID):
            part = list(run)
            parts += [_UNKNOWN] * len(part) if is_unknown else [decode(part)]
        return side.separator.join(parts)

    def __deepcopy__(self, memo: object) -> "Texts":
        return self  # immutable: copies of a module, as for averages, share it


@dataclass(frozen=True, kw_only=True)
class TextScoring:
    """The metrics over texts, and how ids become texts."""

    scores: Sequence[evaluation.Metric]
    texts: Texts


def choose_text_scores(settings: Settings, texts: Texts) -> TextScoring:
    """Return the metrics over texts for the resolved `settings`: the monitor, and more for text.

    Targets of symbols need no more: the metrics over ids say all.
    """
    kind = settings.tokenizer.target.kind
    names: set[str] = {settings.training.monitor}
    if kind != "symbols":
        names.add("character_error_rate")
    if KINDS[kind].spells_any_text:
        names |= {"chrf", "bleu"}
    known = evaluation.list_known_metrics(settings.evaluation).values()
    scores = [one for one in known if one.name in names and one.name not in _OVER_IDS]
    return TextScoring(scores=scores, texts=texts)


def monitor_mode(monitor: str) -> Literal["min", "max"]:
    """Return whether a lower or a higher value of a resolved `training.monitor` is better."""
    return "max" if monitor != "loss" and evaluation.is_higher_better(monitor) else "min"


class DecodedRow(NamedTuple):
    """A decoded row; ids without begin, end and padding."""

    source: list[int]
    reference: list[int]
    hypothesis: tuple[int, ...]
    is_complete: bool


class DecodedMetrics(Metric):
    """Scores (%) of one stage over decoded rows.

    Exact match and token error rate (edits per 100 reference tokens) over ids, and the metrics of
    `scoring` over texts.
    """

    full_state_update = False
    counts: Tensor  # (4): exact rows, rows, edits, reference tokens

    def __init__(self, stage: str, scoring: TextScoring | None = None) -> None:
        super().__init__()
        self.stage, self.scoring = stage, scoring
        self.add_state("counts", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")
        for score in scoring.scores if scoring else ():
            # Integers: exact for any number of rows, also on devices without float64.
            sums = torch.zeros(score.count_rows(["a"], [["a"]]).shape[-1], dtype=torch.int64)
            self.add_state(f"{score.name}_sums", sums, dist_reduce_fx="sum")

    def update(self, hypotheses: Sequence[Sequence[int]], references: Sequence[list[int]]) -> None:
        """Add rows; ids without begin, end and padding."""
        if not references:
            return
        rows = list(zip(hypotheses, references, strict=True))
        counts = [
            sum(list(hypothesis) == reference for hypothesis, reference in rows),
            len(rows),
            sum(Levenshtein.distance(hypothesis, reference) for hypothesis, reference in rows),
            sum(map(len, references)),
        ]
        self.counts += torch.tensor(counts, device=self.counts.device)
        if self.scoring is None:
            return
        texts = self.scoring.texts
        outputs = [texts.read_output(ids) for ids in hypotheses]
        expected = [[texts.read_reference(ids)] for ids in references]
        for score in self.scoring.scores:
            statistics = np.rint(score.count_rows(outputs, expected)).astype(np.int64).sum(axis=0)
            sums = getattr(self, f"{score.name}_sums")
            sums += torch.from_numpy(statistics).to(sums.device)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores by name, in percent or points of 100; NaN over no rows."""
        num_exact, num_rows, num_edits, num_tokens = self.counts
        found = {
            "exact_match": 100.0 * num_exact / num_rows,
            "token_error_rate": 100.0 * num_edits / num_tokens,
        }
        for score in self.scoring.scores if self.scoring else ():
            sums = getattr(self, f"{score.name}_sums").cpu().numpy().astype(np.float64)
            value = float(score.from_sums(sums[None])[0])
            found[score.name] = torch.tensor(value, device=self.counts.device)
        return {f"{self.stage}_{name}": value for name, value in found.items()}
