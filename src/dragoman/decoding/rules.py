"""Rules for the next token: one function per rule, and `Rules`, the rules of a batch.

There are two kinds. Rules on the logits change the distribution: forbidden tokens get no
probability, the others share it (CTranslate2 does the same, so scores are equal). Masks on the
log-probabilities do not renormalize: under a prefix or a constraint, the tokens that remain keep
the probability that the model gives them.

A new rule is a function here, a line in `Rules.change_logits` or `Rules.mask`, and a setting.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dragoman.decoding.hypothesis import Limits
from dragoman.decoding.search_config import ConstraintState, SearchConfig

_NONE = -1  # after the end of a prefix


def forbid(logits: Float[Tensor, "R V"], ids: Sequence[int]) -> Float[Tensor, "R V"]:
    """Mask the tokens `ids`."""
    return logits.index_fill(1, torch.tensor(ids, device=logits.device), -torch.inf)


def delay_end(
    logits: Float[Tensor, "R V"], eos_id: int, is_too_short: Bool[Tensor, " R"]
) -> Float[Tensor, "R V"]:
    """Mask the end in the rows that are too short to end."""
    is_end = torch.arange(logits.shape[1], device=logits.device) == eos_id
    return logits.masked_fill(is_too_short[:, None] & is_end, -torch.inf)


def forbid_repeats(
    logits: Float[Tensor, "R V"], history: Int[Tensor, "R T"], size: int
) -> Float[Tensor, "R V"]:
    """Mask the tokens that would repeat an n-gram of `size` tokens.

    After "a b c a", with size 2, b is masked: "a b" is already there.
    """
    if history.shape[1] < size:
        return logits
    windows = history.unfold(1, size, 1)  # (R, T) -> (R, T - size + 1, size)
    last = history[:, history.shape[1] - size + 1 :]
    is_repeated = (windows[:, :, :-1] == last[:, None, :]).all(dim=-1)
    counts = torch.zeros(logits.shape, dtype=torch.long, device=logits.device)
    counts.scatter_add_(1, windows[:, :, -1], is_repeated.long())
    return logits.masked_fill(counts > 0, -torch.inf)


def allow_prefix(
    log_probs: Float[Tensor, "R V"], tokens: Int[Tensor, " R"]
) -> Float[Tensor, "R V"]:
    """Mask all but `tokens` in the rows that have one (>= 0)."""
    ids = torch.arange(log_probs.shape[1], device=log_probs.device)
    is_other = (tokens >= 0)[:, None] & (ids != tokens[:, None])
    return log_probs.masked_fill(is_other, -torch.inf)


def allow_matches(
    log_probs: Float[Tensor, "R V"], states: Sequence[ConstraintState]
) -> Float[Tensor, "R V"]:
    """Mask the tokens that the constraint of each row does not allow."""
    allowed = torch.from_numpy(np.stack([state.allowed() for state in states]))
    return log_probs.masked_fill(~allowed.to(log_probs.device), -torch.inf)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of the rows of a batch: an immutable value."""

    config: SearchConfig
    eos_id: int
    shortest: Int[Tensor, " R"]
    """Fewest tokens of the output, without its end."""
    prefixes: Int[Tensor, "R P"]
    """The ids that the output begins with, then -1."""
    states: tuple[ConstraintState, ...]
    """The state of the constraint in each row; empty: unconstrained."""
    has_minimum: bool
    """Whether `shortest` is above 0 in any row."""

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
            config=config,
            eos_id=eos_id,
            shortest=shortest,
            prefixes=torch.nn.utils.rnn.pad_sequence(
                rows, batch_first=True, padding_value=_NONE
            ).to(device),
            states=() if constraint is None else (constraint,) * len(limits),
            has_minimum=bool((shortest > 0).any()),
        )

    def change_logits(
        self, logits: Float[Tensor, "R V"], history: Int[Tensor, "R T"]
    ) -> Float[Tensor, "R V"]:
        """Apply the rules on logits to the token after `history`."""
        position = history.shape[1]
        changed = logits
        if self.config.forbidden_ids:
            changed = forbid(changed, self.config.forbidden_ids)
        if size := self.config.decoding.no_repeat_ngram:
            changed = forbid_repeats(changed, history, size)
        if self.has_minimum:
            changed = delay_end(changed, self.eos_id, position < self.shortest)
        if changed is logits:
            return logits
        # If no token is left, the output ends: a softmax over nothing is NaN.
        no_token_left = changed.amax(dim=1).isneginf()
        changed[no_token_left, self.eos_id] = 0.0
        if position < self.prefixes.shape[1]:  # a prefix overrides the rules
            in_prefix = self.prefixes[:, position] != _NONE
            changed = torch.where(in_prefix[:, None], logits, changed)
        return changed

    def mask(self, log_probs: Float[Tensor, "R V"], position: int) -> Float[Tensor, "R V"]:
        """Mask the tokens that the constraint and the prefix do not allow at `position`."""
        if self.states:
            log_probs = allow_matches(log_probs, self.states)
        if position < self.prefixes.shape[1]:
            log_probs = allow_prefix(log_probs, self.prefixes[:, position])
        return log_probs

    def select(self, rows: Int[Tensor, " R2"]) -> "Rules":
        """Return the rules of the given rows."""
        return replace(
            self,
            shortest=self.shortest[rows],
            prefixes=self.prefixes[rows],
            states=tuple(self.states[i] for i in rows.tolist()) if self.states else (),
        )

    def advance(self, ids: Int[Tensor, " R"], is_live: Bool[Tensor, " R"]) -> "Rules":
        """Return the rules after `ids`; a row that is not live keeps its state."""
        if not self.states:
            return self
        following = zip(self.states, ids.tolist(), is_live.tolist(), strict=True)
        return replace(
            self,
            states=tuple(
                state.advance(token) if moves and token != self.eos_id else state
                for state, token, moves in following
            ),
        )
