"""What is measured while a model trains; each metric adds up over batches and ranks.

The teacher-forced ones take the sums that the loss has made already, so they cost nothing. The
decoded ones compare what the model writes by itself with what it should have written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from dragoman.evaluation import metrics as evaluation
from dragoman.model.loss import LossSums
from dragoman.settings import Settings
from dragoman.training.texts import Texts

_OVER_IDS = ("exact_match", "token_error_rate")  # measured here, over ids


def monitor_mode(monitor: str) -> Literal["min", "max"]:
    """Return whether a lower or a higher value of a resolved `training.monitor` is better."""
    return "max" if monitor != "loss" and evaluation.is_higher_better(monitor) else "min"


class TokenMean(Metric):
    """A sum over tokens, divided by their number: loss a token, or (times 100) accuracy."""

    full_state_update = False
    total: Tensor
    num_tokens: Tensor

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, total: Tensor, num_tokens: Tensor) -> None:
        """Add the `total` of `num_tokens` tokens."""
        self.total += total
        self.num_tokens += num_tokens

    def compute(self) -> Tensor:
        """Return the mean; NaN over no tokens."""
        return self.scale * self.total / self.num_tokens


class Perplexity(TokenMean):
    """exp of the mean negative log-likelihood of a token, without label smoothing."""

    def compute(self) -> Tensor:
        """Return the perplexity; NaN over no tokens."""
        return super().compute().exp()


class TeacherForcedMetrics(MetricCollection):
    """Loss, perplexity and token accuracy (%) of one stage, under teacher forcing."""

    def __init__(self, stage: str) -> None:
        super().__init__(
            {
                "loss": TokenMean(),
                "perplexity": Perplexity(),
                "token_accuracy": TokenMean(scale=100.0),
            },
            prefix=f"{stage}_",
            compute_groups=False,  # they look alike to torchmetrics, but take different sums
        )

    @property
    def mean_loss(self) -> TokenMean:
        """The loss, with its sums."""
        loss = self["loss"]
        assert isinstance(loss, TokenMean)
        return loss

    def capture_sums(self) -> list[list[float]]:
        """Return the sums of this rank until now: total and tokens of each metric."""
        return [
            [float(metric.total), float(metric.num_tokens)]
            for metric in self.values()
            if isinstance(metric, TokenMean)
        ]

    def restore_sums(self, sums: Sequence[Sequence[float]]) -> None:
        """Add to what `capture_sums` returned, or to nothing; after a `reset`."""
        for metric, (total, num_tokens) in zip(self.values(), sums, strict=False):
            assert isinstance(metric, TokenMean)
            metric.update(torch.tensor(total), torch.tensor(int(num_tokens)))

    def add(self, sums: LossSums) -> None:
        """Add the sums of a batch."""
        self["loss"].update(sums.loss.detach(), sums.num_tokens)
        self["perplexity"].update(sums.nll, sums.num_tokens)
        self["token_accuracy"].update(sums.num_correct, sums.num_tokens)


class ExactMatch(Metric):
    """Percentage of rows whose decoded ids are exactly those of the reference."""

    full_state_update = False
    num_correct: Tensor
    num_rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("num_correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("num_rows", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, hypotheses: Sequence[Sequence[int]], references: Sequence[list[int]]) -> None:
        """Add rows; ids without begin, end and padding."""
        self.num_rows += len(references)
        self.num_correct += sum(
            list(hypothesis) == reference
            for hypothesis, reference in zip(hypotheses, references, strict=True)
        )

    def compute(self) -> Tensor:
        """Return the percentage; NaN over no rows."""
        return 100.0 * self.num_correct / self.num_rows


class TokenErrorRate(Metric):
    """Edits from the decoded ids to the reference, per 100 tokens of the reference."""

    full_state_update = False
    num_edits: Tensor
    num_tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("num_edits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, hypotheses: Sequence[Sequence[int]], references: Sequence[list[int]]) -> None:
        """Add rows; ids without begin, end and padding."""
        self.num_tokens += sum(map(len, references))
        self.num_edits += sum(
            Levenshtein.distance(hypothesis, reference)
            for hypothesis, reference in zip(hypotheses, references, strict=True)
        )

    def compute(self) -> Tensor:
        """Return the rate in percent, which may pass 100; NaN over no tokens."""
        return 100.0 * self.num_edits / self.num_tokens


class TextScore(Metric):
    """A score of `dragoman evaluate`, over texts: the statistics of all rows, added up, make it."""

    full_state_update = False
    sums: Tensor

    def __init__(self, score: evaluation.Metric) -> None:
        super().__init__()
        self.score = score
        num_statistics = score.collect(["a"], [["a"]]).shape[-1]
        # Whole numbers: exact however many rows there are, on devices without float64 too.
        self.add_state("sums", torch.zeros(num_statistics, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Add rows of one reference each."""
        if references:
            statistics = self.score.collect(hypotheses, [[text] for text in references])
            sums = np.rint(statistics).astype(np.int64).sum(axis=0)
            self.sums += torch.from_numpy(sums).to(self.sums.device)

    def compute(self) -> Tensor:
        """Return the score, in percent or points of 100."""
        sums = self.sums.cpu().numpy().astype(np.float64)
        return torch.tensor(float(self.score.combine(sums[None])[0]), device=self.sums.device)


@dataclass(frozen=True, kw_only=True)
class TextScoring:
    """What it takes to score ids as texts."""

    scores: Sequence[evaluation.Metric]
    texts: Texts


def choose_text_scores(settings: Settings, texts: Texts) -> TextScoring:
    """Return the scores over texts that suit the resolved `settings`; the monitor is among them.

    Of symbols none but the monitor: a token error rate and exact matches say all.
    """
    kind = settings.tokenizer.target.kind
    names: set[str] = {settings.training.monitor}
    if kind != "symbols":
        names.add("character_error_rate")
    if kind in ("bpe", "unigram"):
        names |= {"chrf", "bleu"}
    known = evaluation.list_known_metrics(settings.evaluation).values()
    scores = [one for one in known if one.name in names and one.name not in _OVER_IDS]
    return TextScoring(scores=scores, texts=texts)


class DecodedMetrics(MetricCollection):
    """Scores (%) of one stage, over what the model wrote by itself.

    Exact match and token error rate over ids, and what `scoring` gives over texts.
    """

    def __init__(self, stage: str, scoring: TextScoring | None = None) -> None:
        text_scores = {score.name: TextScore(score) for score in scoring.scores} if scoring else {}
        super().__init__(
            {"exact_match": ExactMatch(), "token_error_rate": TokenErrorRate(), **text_scores},
            prefix=f"{stage}_",
            compute_groups=False,
        )
        self._texts = scoring.texts if scoring else None

    def add(self, hypotheses: Sequence[Sequence[int]], references: Sequence[list[int]]) -> None:
        """Add rows; ids without begin, end and padding."""
        texts: tuple[list[str], list[str]] | None = None
        for metric in self.values():
            if not isinstance(metric, TextScore):
                metric.update(hypotheses, references)
                continue
            assert self._texts is not None
            if texts is None:
                texts = (
                    [self._texts.read_output(ids) for ids in hypotheses],
                    [self._texts.read_reference(ids) for ids in references],
                )
            metric.update(*texts)
