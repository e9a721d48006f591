"""How a Transformer is trained: the step, the validation that decodes, the optimizer."""

import math
import time
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from jaxtyping import Float, Int
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import GradClipAlgorithmType, rank_zero_warn
from lightning.pytorch.utilities.compile import to_uncompiled
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, distributed
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from dragoman.data.dataset import Batch
from dragoman.data.sampler import cut_batch
from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.search import search
from dragoman.decoding.search_config import SearchConfig
from dragoman.errors import SettingsError
from dragoman.model.loss import (
    Distillation,
    Guidance,
    Implementation,
    LossSums,
    sum_losses,
    sum_losses_by_microbatches,
)
from dragoman.model.transformer import Transformer
from dragoman.settings import DecodingSettings, OptimizationSettings
from dragoman.training.muon import MuonAdamW
from dragoman.training.validation_metrics import (
    DecodedMetrics,
    DecodedRow,
    TeacherForcedMetrics,
    TextScoring,
)

Pairs = Batch | Sequence[Tensor]

# A loss is divided by this before it goes backward, and its gradient multiplied by it again: it
# keeps the sums of a batch within the range of float16; the result is the same.
_USUAL_TOKENS = 1024.0
_MOST_KEPT_ROWS = 2000  # of those that a validation decodes
_MOST_PER_REFERENCE, _MOST_BESIDES = 2, 10  # tokens that a validation decodes


class TransformerTraining(lightning.LightningModule):
    """Trains `network` under Lightning's Trainer, with any callback, logger and strategy.

    Batches are `Batch` objects or `(source_ids, target_ids)` tensors, padded on the right.
    The loss of a step is the sum over all its target tokens (of all accumulated batches, on all
    ranks), divided once by their number, before the gradient is clipped. A step with a non-finite
    loss or gradient is skipped.

    Logs `{stage}_loss`, `_perplexity`, `_token_accuracy` (teacher-forced) for train, valid and
    test, and `_exact_match`, `_token_error_rate` and the scores of `scoring` (decoded greedily) for
    valid and test. Every `log_every_n_steps` steps of the Trainer it logs `update_loss` (of that
    step, over all ranks), `learning_rate` and `tokens_per_s`.

    After a validation, `decoded_rows` holds the rows that it decoded (of this rank, at most 2,000;
    the same each time).

    Args:
        max_steps: Total number of steps, for the schedules that end at zero.
        decoded_fraction: Fraction of each batch (at least one row) that a validation decodes; a
            test decodes all.
        implementation: Our fused training code, or torch's own modules; same function.
        micro_batch_tokens: Size of the micro-batches of the fused code on the CPU; None: at least
            one for each of torch's threads.
        scoring: Scores of texts, besides those of ids; None: there is no text.
        guided_ids: The first id of those whose place in the source guides the attention, and the
            first after them; see `Guidance`.
        teachers: Trained models with the same ids, for optimization.distillation; see `Distillation`.

    Raises: SettingsError, when there is only one of these two, or the ids differ.
    """

    def __init__(
        self,
        network: Transformer,
        optimization: OptimizationSettings,
        *,
        decoding: DecodingSettings | None = None,
        max_steps: int | None = None,
        decoded_fraction: float = 1.0,
        implementation: Implementation = "fused",
        micro_batch_tokens: int | None = None,
        scoring: TextScoring | None = None,
        guided_ids: tuple[int, int] = (0, 0),
        teachers: Sequence[Transformer] = (),
    ) -> None:
        super().__init__()
        self.network = network
        first, stop = guided_ids
        weight = optimization.guided_attention if first < stop else 0.0
        self.guidance = Guidance(first=first, stop=stop, weight=weight) if weight else None
        names = ("source_vocab_size", "target_vocab_size", "pad_id", "bos_id", "eos_id")
        own, *others = ([getattr(one, name) for name in names] for one in (network, *teachers))
        if bool(teachers) != (optimization.distillation > 0.0) or any(one != own for one in others):
            raise SettingsError(
                f"optimization.distillation: {optimization.distillation:g} with {len(others)} teachers; "
                f"above 0 it takes at least one, all with the ids of the network: {', '.join(names)} "
                f"{own}, found {others}"
            )
        taught = Distillation(teachers=tuple(teachers), weight=optimization.distillation)
        self.distillation = taught if teachers else None
        self.optimization = optimization
        self.decoding = decoding or DecodingSettings()
        self.max_steps = max_steps
        self.decoded_fraction = decoded_fraction
        self.validated_step = -1  # step of the last validation
        self.earlier_s, self._started_s = (
            0.0,
            time.monotonic(),
        )  # of training, before a resume; its start
        self.implementation: Implementation = implementation
        self.micro_batch_tokens = micro_batch_tokens
        self.train_metrics = TeacherForcedMetrics("train")
        self.valid_metrics = TeacherForcedMetrics("valid")
        self.test_metrics = TeacherForcedMetrics("test")
        self.valid_decoded = DecodedMetrics("valid", scoring)
        self.test_decoded = DecodedMetrics("test", scoring)
        self.decoded_rows: list[DecodedRow] = []
        # Sums of the current step, on this rank. They stay on the device: no step waits for them.
        self._step_tokens: Tensor
        self.register_buffer("_step_tokens", torch.tensor(0), persistent=False)
        self._step_loss: Tensor  # of all its batches; non-finite if that of one is
        self.register_buffer("_step_loss", torch.tensor(0.0), persistent=False)
        self._gradient_norm = torch.tensor(0.0)  # of the current step, before it is clipped
        self.step_loss = torch.tensor(torch.nan)  # of the last step, per token, over all ranks
        self._tokens_since = torch.tensor(0.0)  # target tokens of all ranks since `_since_s`
        self._since_s = time.monotonic()
        self._logged_step = 0
        # What this rank wants, as `GracefulStop` says; after the step, the greatest of all ranks.
        self.stop_request = 0.0
        self.num_skipped = 0  # steps in a row, for a non-finite loss or gradient
        self.current_batch = ""  # what was computed last, for error messages

    def forward(self, source_ids: Int[Tensor, "B S"], target_ids: Int[Tensor, "B T"]) -> Tensor:
        """Return the logits of the token after each of `target_ids`: see `Transformer.forward`."""
        logits: Tensor = self.network(source_ids, target_ids)
        return logits

    def generate(
        self, source_ids: Int[Tensor, "B S"], max_length: int | None = None, beam_size: int = 1
    ) -> list[list[int]]:
        """Return the best output of each source as ids: see `Transformer.generate`."""
        return self.network.generate(source_ids, max_length, beam_size)

    def score(
        self, source_ids: Int[Tensor, "B S"], target_ids: Int[Tensor, "B T"]
    ) -> list[Hypothesis]:
        """Return how probable each target is, in all and by token: see `Transformer.score`."""
        return self.network.score(source_ids, target_ids)

    def setup(self, stage: str) -> None:
        """Undo torch.compile: it is slow to trace the training code, and cannot trace decoding."""
        if self._compiler_ctx is not None:
            rank_zero_warn("torch.compile is not used: this model is fused already, without it")
            to_uncompiled(self)

    def on_fit_start(self) -> None:
        """Reset the sums of an earlier validation or an interrupted step; move the teachers."""
        self._step_tokens.zero_()
        self._step_loss.zero_()
        self.train_metrics.reset()
        for teacher in self.distillation.teachers if self.distillation else ():
            teacher.to(self.device)

    def on_train_start(self) -> None:
        """Start to measure the time and the speed."""
        self._logged_step = self.trainer.global_step
        self._started_s = time.monotonic()
        self._restart_speed()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the step of the last validation, the time, and what this step has not logged yet."""
        checkpoint["validated_step"] = self.validated_step
        checkpoint["trained_s"] = self.earlier_s + time.monotonic() - self._started_s
        unlogged = {name: float(value) for name, value in self._measure_step().items()}
        checkpoint["unlogged"] = (
            {**unlogged, "epoch": self.trainer.current_epoch} if unlogged else {}
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` saved."""
        self.validated_step = checkpoint.get("validated_step", -1)
        self.earlier_s = checkpoint.get("trained_s", 0.0)

    def training_step(self, batch: Pairs, batch_idx: int) -> Tensor:
        """Return the summed loss of the batch; `on_before_optimizer_step` makes it a mean."""
        batch = as_batch(batch)
        self.current_batch = _describe("training", batch)
        smoothing = self.optimization.label_smoothing
        sums = self._sum_losses(batch, smoothing, self.guidance, self.distillation)
        self._step_tokens += sums.num_tokens
        self._step_loss += sums.loss.detach()
        self.train_metrics.update(_drop_nonfinite(sums))
        return sums.loss / _USUAL_TOKENS

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the summed gradient by the target tokens of the step, over all ranks.

        If the loss or the gradient is not finite, drop the gradient: weights and AdamW's moments
        stay unchanged, on all ranks.

        Lightning calls this once the gradients of all accumulated batches and all ranks are in,
        unscaled, and before it clips them.
        """
        request = torch.full_like(self._step_loss, self.stop_request)
        own = torch.stack((self._step_tokens.float(), self._step_loss, request))
        gathered = gather_over_ranks(own)  # beside the gradients, all that ranks exchange in a step
        total, loss = gathered[:, :2].sum(dim=0)
        # Lightning has divided each loss by the batches per step, DDP the gradient by the ranks.
        divided_by = self.trainer.accumulate_grad_batches * self.trainer.world_size
        factor = _USUAL_TOKENS * divided_by / total.clamp(min=1)
        self.step_loss = loss / total.clamp(min=1)
        self._tokens_since = self._tokens_since + total
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, factor)
        self._gradient_norm = get_total_norm(gradients)
        # With float16, the scaler expects a non-finite gradient now and then, and handles it.
        checked = [loss] if self.trainer.precision == "16-mixed" else [loss, self._gradient_norm]
        numbers = [*checked, gathered[:, 2].max()]
        *found, self.stop_request = torch.stack([number.float() for number in numbers]).tolist()
        if all(map(math.isfinite, found)):
            self.num_skipped = 0
        else:
            self.num_skipped += 1
            optimizer.zero_grad(set_to_none=True)
        self._step_tokens.zero_()
        self._step_loss.zero_()

    def on_train_batch_end(self, outputs: object, batch: Pairs, batch_idx: int) -> None:
        """Log the loss of the step (smoothed, with dropout), the learning rate and the speed.

        Only at the steps that the Trainer's loggers write: every other step costs nothing.
        """
        if values := self._measure_step():
            self._logged_step = self.trainer.global_step
            self.log_dict(values)
            self._restart_speed()

    def _measure_step(self) -> dict[str, Tensor]:
        """Return what is to be logged of the last step; nothing if it is not due, or logged."""
        trainer = self.trainer
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_due = every > 0 and trainer.global_step % every == 0
        if trainer.global_step == self._logged_step or not (is_due or trainer.should_stop):
            return {}
        return {
            "update_loss": self.step_loss,
            "learning_rate": torch.tensor(trainer.optimizers[0].param_groups[0]["lr"]),
            "tokens_per_s": self.measure_speed(),
        }

    def measure_speed(self) -> Tensor:
        """Return the target tokens per second, of all ranks, since the last log or validation."""
        return self._tokens_since / max(1e-6, time.monotonic() - self._since_s)

    def _restart_speed(self) -> None:
        self._tokens_since, self._since_s = torch.tensor(0.0), time.monotonic()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by value, or by the norm computed before; also with a fused optimizer under bf16.

        Lightning 2.6.6 refuses the latter because gradients could be scaled, which only float16
        does (issue 21435); there, `configure_optimizers` uses no fused optimizer.
        """
        if gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
            clip_grad_value_(self.parameters(), gradient_clip_val or 0.0)
        elif gradient_clip_val:
            clip_grads_with_norm_(self.parameters(), gradient_clip_val, self._gradient_norm)

    def on_train_epoch_end(self) -> None:
        """Log the training metrics, unless validations do it.

        Validations at fixed steps do, except at the end of the training.
        """
        trainer = self.trainer
        validates_by_steps = trainer.enable_validation and trainer.check_val_every_n_epoch is None
        is_last = trainer.should_stop or trainer.global_step == trainer.max_steps
        if self.train_metrics.update_called and (is_last or not validates_by_steps):
            self._log_and_reset(self.train_metrics)

    def on_validation_epoch_start(self) -> None:
        """Drop the rows of the last validation."""
        self.decoded_rows = []

    def validation_step(self, batch: Pairs, batch_idx: int) -> None:
        """Score the batch under teacher forcing, and decode a fraction of it."""
        batch = as_batch(batch)
        self.current_batch = _describe("validation", batch)
        self.valid_metrics.update(self._sum_losses(batch))
        # Evenly spread rows: batches are sorted by length, so the first ones would be biased.
        count = max(1, round(self.decoded_fraction * len(batch)))
        places = torch.arange(count, device=batch.source_ids.device) * len(batch) // count
        sample = Batch(source_ids=batch.source_ids[places], target_ids=batch.target_ids[places])
        rows = self._decode_and_score(sample, self.valid_decoded)
        self.decoded_rows += rows[: _MOST_KEPT_ROWS - len(self.decoded_rows)]

    def on_validation_epoch_end(self) -> None:
        """Log the validation's metrics, and those of the training since the last one."""
        self.validated_step = self.trainer.global_step
        if self.train_metrics.update_called:  # on all ranks; one may have had no row
            self._log_and_reset(self.train_metrics)
        self._log_and_reset(self.valid_metrics)
        self._log_and_reset(self.valid_decoded)

    def on_validation_end(self) -> None:
        """Exclude the validation from the measured speed."""
        self._restart_speed()

    def test_step(self, batch: Pairs, batch_idx: int) -> None:
        """Score the batch under teacher forcing, and decode it."""
        batch = as_batch(batch)
        self.current_batch = _describe("test", batch)
        self.test_metrics.update(self._sum_losses(batch))
        self._decode_and_score(batch, self.test_decoded)

    def on_test_epoch_end(self) -> None:
        """Log the test's metrics."""
        self._log_and_reset(self.test_metrics)
        self._log_and_reset(self.test_decoded)

    def predict_step(self, batch: Pairs | Tensor, batch_idx: int) -> list[Hypothesis]:
        """Return the greedy hypotheses of the sources; targets are ignored."""
        if isinstance(batch, Batch):
            return self._decode(batch.source_ids)
        return self._decode(batch if isinstance(batch, Tensor) else batch[0])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, with weight decay for matrices only, and the schedule of each step.

        Raises:
            SettingsError: The schedule ends at zero, but neither `max_steps` nor the Trainer's is
                set.
        """
        settings = self.optimization
        trainer_steps = self.trainer.max_steps
        max_steps = self.max_steps or (trainer_steps if trainer_steps > 0 else None)
        learning_rate_factor(settings.warmup_steps, settings, max_steps)  # raises now, not later
        betas = (settings.beta1, settings.beta2)
        # A fused AdamW unscales float16 gradients itself, after Lightning has clipped them.
        fused = self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed"
        optimizer: torch.optim.AdamW
        if settings.optimizer == "muon":
            is_bf16 = self.trainer.precision == "bf16-mixed"
            optimizer = MuonAdamW(
                self.network,
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                betas=betas,
                fused=fused,
                dtype=torch.bfloat16 if is_bf16 else torch.float32,
            )
        else:
            groups: list[dict[str, Any]] = [
                {"params": [p for p in self.parameters() if p.ndim >= 2]},
                {"params": [p for p in self.parameters() if p.ndim < 2], "weight_decay": 0.0},
            ]
            optimizer = torch.optim.AdamW(
                groups,
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                betas=betas,
                fused=fused,
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, settings, max_steps)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "learning_rate"},
        }

    def _sum_losses(
        self,
        batch: Batch,
        label_smoothing: float = 0.0,
        guidance: Guidance | None = None,
        distillation: Distillation | None = None,
    ) -> LossSums:
        on_cpu = batch.source_ids.device.type == "cpu"
        if self.implementation == "fused" and on_cpu and self.training and torch.is_grad_enabled():
            micro_batches = cut_batch(
                batch,
                self.micro_batch_tokens,
                num_threads=torch.get_num_threads(),
                pad_id=self.network.pad_id,
            )
            return sum_losses_by_microbatches(
                *(self.network, micro_batches, label_smoothing),
                guidance=guidance,
                distillation=distillation,
            )
        return sum_losses(
            self.network,
            batch.source_ids,
            batch.target_ids,
            label_smoothing,
            self.implementation,
            guidance=guidance,
            distillation=distillation,
        )

    def _decode(
        self, source_ids: Int[Tensor, "B S"], most_tokens: Sequence[int] | None = None
    ) -> list[Hypothesis]:
        """Return the greedy output of each source; a beam is for the trained model."""
        config = SearchConfig(decoding=self.decoding.to_greedy())
        found = search([self.network], source_ids, config, most_tokens=most_tokens)
        return [best for best, *_ in found]

    def _decode_and_score(self, batch: Batch, metrics: DecodedMetrics) -> list[DecodedRow]:
        """Decode the rows that have a target, add their scores to `metrics`, and return them.

        A validation decodes at most `_MOST_PER_REFERENCE` times the tokens of the reference, and
        `_MOST_BESIDES`: a model at its start knows no end. A row truncated there is wrong, as any
        truncated row, with more errors than its reference has tokens.
        """
        has_target = (batch.target_ids != self.network.pad_id).any(dim=1)
        source_ids, target_ids = batch.source_ids[has_target], batch.target_ids[has_target]
        special = {self.network.pad_id, self.network.bos_id, self.network.eos_id}
        sources, references = (
            [[id_ for id_ in row if id_ not in special] for row in ids.tolist()]
            for ids in (source_ids, target_ids)
        )
        most_tokens = None
        if metrics is self.valid_decoded:
            most_tokens = [_MOST_PER_REFERENCE * len(one) + _MOST_BESIDES for one in references]
        decoded = self._decode(source_ids, most_tokens)
        rows = [
            DecodedRow(source, reference, hypothesis.ids, hypothesis.is_complete)
            for source, reference, hypothesis in zip(sources, references, decoded, strict=True)
        ]
        metrics.update([row.hypothesis for row in rows], references)
        return rows

    def _log_and_reset(self, metrics: TeacherForcedMetrics | DecodedMetrics) -> None:
        self.log_dict(metrics.compute(), sync_dist=True)
        if self.trainer.state.fn != TrainerFn.FITTING:
            # Lightning counts steps from 0, but is one further when the fit is over.
            self.log("step", float(max(0, self.trainer.global_step - 1)), sync_dist=True)
        metrics.reset()


def gather_over_ranks(numbers: Float[Tensor, " N"]) -> Float[Tensor, "R N"]:
    """Return the numbers of each of the R ranks; all call it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return numbers[None]
    gathered = [torch.empty_like(numbers) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, numbers)
    return torch.stack(gathered)


def _describe(stage: str, batch: Batch) -> str:
    rows, source = batch.source_ids.shape
    target = batch.target_ids.shape[1]
    return f"a {stage} batch of {rows:,} rows, {source:,} source and {target:,} target tokens each"


def _drop_nonfinite(sums: LossSums) -> LossSums:
    """Return the sums; zeros if the loss is not finite. Does not wait for the device."""
    is_finite = torch.isfinite(sums.loss.detach())
    loss, nll, num_correct, num_tokens = (
        torch.where(is_finite, number.detach(), 0)
        for number in (sums.loss, sums.nll, sums.num_correct, sums.num_tokens)
    )
    return LossSums(loss=loss, nll=nll, num_correct=num_correct, num_tokens=num_tokens)


def as_batch(batch: Pairs) -> Batch:
    """Return `batch` itself, or the batch of a (source_ids, target_ids) tuple or list."""
    if isinstance(batch, Batch):
        return batch
    source_ids, target_ids = batch
    return Batch(source_ids=source_ids, target_ids=target_ids)


def learning_rate_factor(
    step: int, optimization: OptimizationSettings, max_steps: int | None
) -> float:
    """Return the factor on the peak learning rate at `step`, from 0.

    Every schedule rises linearly over `warmup_steps`, so that the step after them has factor 1.
    cosine and linear reach zero at `max_steps`; the others do not need it (None).

    With warmup_steps 4, the first steps have 0.2, 0.4, 0.6, 0.8, then 1.0. After them, inverse_sqrt
    is sqrt((warmup_steps + 1) / (step + 1)): 0.5 at about four times the warm-up.

    Source of inverse_sqrt: Vaswani et al. 2017, section 5.3, rescaled to peak at 1.

    Raises:
        SettingsError: cosine or linear without `max_steps`.
    """
    warmup = optimization.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if optimization.schedule == "inverse_sqrt":
        return math.sqrt((warmup + 1) / (step + 1))
    if optimization.schedule == "constant":
        return 1.0
    if max_steps is None:
        raise SettingsError(
            f"optimization.schedule: {optimization.schedule} reaches zero at the last step: "
            "give max_steps, or use inverse_sqrt or constant"
        )
    done = min(1.0, (step - warmup) / max(1, max_steps - warmup))
    if optimization.schedule == "linear":
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done))
