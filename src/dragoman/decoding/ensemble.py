"""An ensemble: the average of the models' next-token probabilities; usually it is one model."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragoman.model import inference
from dragoman.model.block import DecoderCache
from dragoman.model.inference import PackedModel, pack
from dragoman.model.transformer import Transformer

Caches = tuple[DecoderCache, ...]
Rule = Callable[[Float[Tensor, "R V"]], Float[Tensor, "R V"]]


class Ensemble:
    """Models with one vocabulary, stepped together over the same rows.

    The weights are packed at the first search: a later change of the parameters is not seen.
    """

    def __init__(self, models: Sequence[Transformer]) -> None:
        self.models = tuple(models)
        first = self.models[0]
        self.pad_id, self.bos_id, self.eos_id = first.pad_id, first.bos_id, first.eos_id
        self.never_emitted = first.never_emitted
        self.vocab_size = first.target_vocab_size
        longest = [m.longest_target for m in self.models if m.longest_target is not None]
        self.longest_target = min(longest, default=None)

    @cached_property
    def _packed(self) -> tuple[PackedModel, ...]:
        return tuple(pack(model) for model in self.models)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch dropout and gradients off in the context, then restore the mode of each model."""
        training = [model for model in self.models if model.training]
        try:
            for model in training:
                model.eval()
            with torch.inference_mode():
                yield
        finally:
            for model in training:
                model.train()

    def start(self, source_ids: Int[Tensor, "N S"]) -> Caches:
        """Return the caches before the first token, a row a source."""
        return tuple(inference.start(packed, source_ids) for packed in self._packed)

    def step(
        self, ids: Int[Tensor, " R"], caches: Caches, rule: Rule | None = None
    ) -> tuple[Float[Tensor, "R V"], Caches]:
        """Return the log-probabilities of the token after `ids`, and the caches that include `ids`.

        The log-probability of `Transformer.never_emitted` is -inf. `rule` changes the logits of
        each model before the softmax.
        """
        by_model, following = [], []
        for packed, cache in zip(self._packed, caches, strict=True):
            logits, cache = inference.step(packed, ids, cache)
            logits = mask_tokens(logits.float(), self.never_emitted)
            by_model.append(torch.log_softmax(logits if rule is None else rule(logits), dim=-1))
            following.append(cache)
        return average(by_model), tuple(following)

    def select(
        self, caches: Caches, rows: Int[Tensor, " R2"], sources: Int[Tensor, " N2"] | None = None
    ) -> Caches:
        """Return the caches of the given rows; the old ones are used up: see `inference.select`."""
        return tuple(inference.select(cache, rows, sources) for cache in caches)


def mask_tokens(logits: Float[Tensor, "*N V"], ids: Sequence[int]) -> Float[Tensor, "*N V"]:
    """Set the logits of `ids` to -inf, in place, and return `logits`."""
    for id_ in ids:  # an index of all ids would be copied to the device, which waits for it
        logits[..., id_] = -torch.inf
    return logits


def average(log_probs: Sequence[Float[Tensor, "*N V"]]) -> Float[Tensor, "*N V"]:
    """Return the log of the mean of the probabilities."""
    if len(log_probs) == 1:
        return log_probs[0]
    return torch.logsumexp(torch.stack(list(log_probs)), dim=0) - math.log(len(log_probs))
