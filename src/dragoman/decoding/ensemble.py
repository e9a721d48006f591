"""Several models that speak with one voice: the mean of their probabilities; one is the usual case."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragoman.model import incremental
from dragoman.model.encoding import encode
from dragoman.model.incremental import DecoderCache
from dragoman.model.prepared import Prepared, prepare
from dragoman.model.transformer import Transformer

Caches = tuple[DecoderCache, ...]
Rule = Callable[[Float[Tensor, "R V"]], Float[Tensor, "R V"]]


class Ensemble:
    """Models of one vocabulary, stepped together over the same rows; good until they change."""

    def __init__(self, models: Sequence[Transformer]) -> None:
        self.models = tuple(models)
        first = self.models[0]
        self.pad_id, self.bos_id, self.eos_id = first.pad_id, first.bos_id, first.eos_id
        self.vocab_size = first.target_vocab_size
        longest = [m.longest_target for m in self.models if m.longest_target is not None]
        self.longest_target = min(longest, default=None)

    @cached_property
    def _prepared(self) -> tuple[Prepared, ...]:
        return tuple(prepare(model) for model in self.models)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch dropout and gradients off inside; the mode of each model is kept."""
        modes = [model.training for model in self.models]
        try:
            for model in self.models:
                model.eval()
            with torch.no_grad():
                yield
        finally:
            for model, mode in zip(self.models, modes, strict=True):
                model.train(mode)

    def start(self, source_ids: Int[Tensor, "N S"]) -> Caches:
        """Return the caches before the first token, a row a source."""
        return tuple(
            incremental.start(prepared, encode(prepared, source_ids)) for prepared in self._prepared
        )

    def step(
        self, ids: Int[Tensor, " R"], caches: Caches, rule: Rule | None = None
    ) -> tuple[Float[Tensor, "R V"], Caches]:
        """Return the log-probabilities of the token after `ids`, and the caches with it taken in.

        Padding and begin are never said: their log-probability is -inf. `rule` changes the logits
        of each model before they become probabilities.
        """
        parts, taken = [], []
        for prepared, cache in zip(self._prepared, caches, strict=True):
            logits, cache = incremental.step(prepared, ids, cache)
            logits = mute(logits.float(), (self.pad_id, self.bos_id))
            parts.append(torch.log_softmax(logits if rule is None else rule(logits), dim=-1))
            taken.append(cache)
        return average(parts), tuple(taken)

    def select(
        self, caches: Caches, rows: Int[Tensor, " R2"], sources: Int[Tensor, " N2"] | None = None
    ) -> Caches:
        """Return the caches of the given rows: see `incremental.select`."""
        return tuple(incremental.select(cache, rows, sources) for cache in caches)


def mute(logits: Float[Tensor, "*N V"], ids: Sequence[int]) -> Float[Tensor, "*N V"]:
    """Return `logits`, changed in place, with -inf for `ids`."""
    logits[..., list(ids)] = -torch.inf
    return logits


def average(log_probs: Sequence[Float[Tensor, "*N V"]]) -> Float[Tensor, "*N V"]:
    """Return the logarithm of the mean of the probabilities."""
    if len(log_probs) == 1:
        return log_probs[0]
    return torch.logsumexp(torch.stack(list(log_probs)), dim=0) - math.log(len(log_probs))
