"""What may be said next: one function a rule, and `Rules`, which holds those of a batch.

Two kinds. Rules on the logits change the model: what they forbid has no probability, and the rest
shares it (CTranslate2 does the same, so that scores are equal). Masks on the log-probabilities
leave the probability of what they allow as it was: a prefix and a constraint choose among the
model's outputs, they do not change what it believes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dragoman.decoding.hypothesis import Limits
from dragoman.decoding.search_config import ConstraintState, SearchConfig

_NONE = -1  # behind the end of a prefix


def forbid(logits: Float[Tensor, "R V"], ids: Sequence[int]) -> Float[Tensor, "R V"]:
    """Return `logits` without the tokens `ids`."""
    return logits.index_fill(1, torch.tensor(ids, device=logits.device), -torch.inf)


def delay_end(
    logits: Float[Tensor, "R V"], eos_id: int, is_too_short: Bool[Tensor, " R"]
) -> Float[Tensor, "R V"]:
    """Return `logits` without the end in the rows that are too short to end."""
    is_end = torch.arange(logits.shape[1], device=logits.device) == eos_id
    return logits.masked_fill(is_too_short[:, None] & is_end, -torch.inf)


def forbid_repeats(
    logits: Float[Tensor, "R V"], history: Int[Tensor, "R T"], size: int
) -> Float[Tensor, "R V"]:
    """Return `logits` without the tokens that would make a sequence of `size` come twice.

    After "a b c a", with size 2, b is out: "a b" is there already.
    """
    if history.shape[1] < size:
        return logits
    windows = history.unfold(1, size, 1)  # (R, T) -> (R, T - size + 1, size)
    last = history[:, history.shape[1] - size + 1 :]
    comes_again = (windows[:, :, :-1] == last[:, None, :]).all(dim=-1)
    counts = torch.zeros(logits.shape, dtype=torch.long, device=logits.device)
    counts.scatter_add_(1, windows[:, :, -1], comes_again.long())
    return logits.masked_fill(counts > 0, -torch.inf)


def force(log_probs: Float[Tensor, "R V"], tokens: Int[Tensor, " R"]) -> Float[Tensor, "R V"]:
    """Return `log_probs` with nothing but `tokens` in the rows where one is given (>= 0)."""
    ids = torch.arange(log_probs.shape[1], device=log_probs.device)
    is_other = (tokens >= 0)[:, None] & (ids != tokens[:, None])
    return log_probs.masked_fill(is_other, -torch.inf)


def allow_only(
    log_probs: Float[Tensor, "R V"], states: Sequence[ConstraintState]
) -> Float[Tensor, "R V"]:
    """Return `log_probs` with nothing but what each row's constraint allows."""
    allowed = torch.from_numpy(np.stack([state.allowed() for state in states]))
    return log_probs.masked_fill(~allowed.to(log_probs.device), -torch.inf)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of the rows of a batch; a value that is selected with them."""

    eos_id: int
    shortest: Int[Tensor, " R"]
    """Fewest tokens of the output, its end not counted."""
    prefixes: Int[Tensor, "R P"]
    """What the output begins with, -1 behind it."""
    states: tuple[ConstraintState, ...]
    """Of the constraint, one a row; none: there is no constraint."""
    forbidden_ids: tuple[int, ...]
    no_repeat_ngram: int
    can_be_too_short: bool

    @classmethod
    def start(
        cls,
        config: SearchConfig,
        eos_id: int,
        limits: Sequence[Limits],
        prefixes: Sequence[Sequence[int]] | None,
        device: torch.device,
    ) -> "Rules":
        """Return the rules before the first token."""
        shortest = torch.tensor([limit.shortest for limit in limits], device=device)
        rows = [torch.tensor(p, dtype=torch.long) for p in prefixes or [[] for _ in limits]]
        constraint = config.constraint
        return cls(
            eos_id=eos_id,
            shortest=shortest,
            prefixes=torch.nn.utils.rnn.pad_sequence(
                rows, batch_first=True, padding_value=_NONE
            ).to(device),
            states=() if constraint is None else (constraint,) * len(limits),
            forbidden_ids=config.forbidden_ids,
            no_repeat_ngram=config.decoding.no_repeat_ngram,
            can_be_too_short=bool((shortest > 0).any()),
        )

    def change_logits(
        self, logits: Float[Tensor, "R V"], history: Int[Tensor, "R T"]
    ) -> Float[Tensor, "R V"]:
        """Return the logits of the token after `history`, by the rules that change the model."""
        position = history.shape[1]
        changed = logits
        if self.forbidden_ids:
            changed = forbid(changed, self.forbidden_ids)
        if self.no_repeat_ngram:
            changed = forbid_repeats(changed, history, self.no_repeat_ngram)
        if self.can_be_too_short:
            changed = delay_end(changed, self.eos_id, position < self.shortest)
        if changed is logits:
            return logits
        # Where nothing is left to say, the output ends: a softmax over nothing is NaN.
        is_dumb = changed.amax(dim=1).isneginf()
        changed[is_dumb, self.eos_id] = 0.0
        if position < self.prefixes.shape[1]:  # the prefix stands above the rules
            is_forced = self.prefixes[:, position] != _NONE
            changed = torch.where(is_forced[:, None], logits, changed)
        return changed

    def mask(self, log_probs: Float[Tensor, "R V"], position: int) -> Float[Tensor, "R V"]:
        """Return the log-probabilities of the token at `position` that may be said there."""
        if self.states:
            log_probs = allow_only(log_probs, self.states)
        if position < self.prefixes.shape[1]:
            log_probs = force(log_probs, self.prefixes[:, position])
        return log_probs

    def select(self, rows: Int[Tensor, " R2"]) -> "Rules":
        """Return the rules of the given rows."""
        return replace(
            self,
            shortest=self.shortest[rows],
            prefixes=self.prefixes[rows],
            states=tuple(self.states[i] for i in rows.tolist()) if self.states else (),
        )

    def advance(self, ids: Int[Tensor, " R"], is_alive: Bool[Tensor, " R"]) -> "Rules":
        """Return the rules after `ids`; a row that is not alive stays where it is."""
        if not self.states:
            return self
        following = zip(self.states, ids.tolist(), is_alive.tolist(), strict=True)
        return replace(
            self,
            states=tuple(
                state.advance(token) if is_live and token != self.eos_id else state
                for state, token, is_live in following
            ),
        )
