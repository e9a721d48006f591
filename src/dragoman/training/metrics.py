"""What is measured while a model trains; each metric adds up over batches and ranks.

The teacher-forced ones take the sums that the loss has made already, so they cost nothing. The
decoded ones compare what the model writes by itself with what it should have written.
"""

from collections.abc import Sequence

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from dragoman.model.cross_entropy import LossSums


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


class DecodedMetrics(MetricCollection):
    """Exact match and token error rate (%) of one stage, over what the model wrote by itself."""

    def __init__(self, stage: str) -> None:
        super().__init__(
            {"exact_match": ExactMatch(), "token_error_rate": TokenErrorRate()},
            prefix=f"{stage}_",
            compute_groups=False,
        )
