"""Beam search, and diverse beam search, whose groups avoid each other's tokens.

The algorithm is CTranslate2's, so both engines give the same lists. At each step the candidates are
the 2K best continuations of the K hypotheses. Of the first K candidates, those that end or have the
longest length are done. The best K candidates without an end continue.

An example, K = 2: of "a" (-1.0) and "b" (-1.5) the candidates are "a END" (-1.2), "b c" (-1.7),
"a d" (-2.0) and "b END" (-2.1). "a END" is done, with -1.2 / 2 tokens = -0.6; "b c" and "a d"
continue. "b END" is not done: it is not among the first two.

Under a constraint the algorithm is the same, and its results come first. But there "b" may be able
only to end: if "a d" is truncated in the end, no output would match the constraint. So ends that
are not done are kept as spares, and replace truncated hypotheses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dragoman.decoding.ensemble import Ensemble
from dragoman.decoding.hypothesis import Hypothesis, find_divisor, normalize
from dragoman.decoding.rules import Rules
from dragoman.settings import DecodingSettings


@dataclass
class _Group:
    """The results of one group of one source; a beam of K has G groups of K / G hypotheses."""

    done: list[Hypothesis] = field(default_factory=list)
    spare: list[Hypothesis] = field(default_factory=list)
    """Under a constraint: the best hypotheses that could have ended, done or not."""


@dataclass(frozen=True, kw_only=True)
class _Candidates:
    """The best continuations of each group, best first; C is 2K / G (tiny vocabularies: less)."""

    ids: Int[Tensor, "N G C"]
    parents: Int[Tensor, "N G C"]
    """The hypothesis of the group that each continues."""
    scores: Float[Tensor, "N G C"]


def search_beam(
    ensemble: Ensemble,
    source_ids: Int[Tensor, "N S"],
    longest: Sequence[int],
    rules: Rules,
    decoding: DecodingSettings,
) -> list[list[Hypothesis]]:
    """Return up to `decoding.num_searched` hypotheses of each source, best first.

    Args:
        longest: Most tokens of each output, its end included.
        rules: One row per source.

    Source: Vijayakumar et al. 2018, with Hamming diversity, for the groups.
    """
    beam = _Beam(source_ids, longest, ensemble.eos_id, decoding)
    caches = ensemble.start(source_ids)
    ids = torch.full((len(source_ids),), ensemble.bos_id, device=source_ids.device)
    copies = decoding.beam_size  # of each row: at first all hypotheses of a source are equal
    for position in range(max(longest)):
        rule = partial(rules.change_logits, history=beam.tokens.flatten(0, 2)[::copies])
        log_probs, caches = ensemble.step(ids, caches, rule)
        log_probs = rules.mask(log_probs, position)
        if copies > 1:
            log_probs = log_probs.repeat_interleave(copies, dim=0)
        log_probs = log_probs.view(*beam.scores.shape, -1)
        totals = beam.scores[..., None] + log_probs
        candidates = _expand(totals, decoding.diverse_strength)
        if rules.states:
            beam.keep_ends(totals[..., ensemble.eos_id])
        is_last = (beam.limits == position + 1)[:, None]
        beam.collect(candidates, is_last)
        chosen = _choose_live(candidates, beam.width, ensemble.eos_id)
        beam.settle(chosen.scores, is_last)
        kept = None  # all
        if (leaving := beam.is_over.all(dim=1)).any():
            kept = (~leaving).nonzero()[:, 0]
            if not len(kept):
                break
            chosen = beam.drop(kept, chosen)
        rows = beam.extend(chosen, kept) // copies
        copies = 1
        ids = chosen.ids.flatten()
        caches = ensemble.select(caches, rows, kept)
        rules = rules.select(rows).advance(ids, ~chosen.scores.isneginf().flatten())
    return [_rank(of_one, decoding, prefers_complete=bool(rules.states)) for of_one in beam.found]


class _Beam:
    """The sources in the batch: the hypotheses of their groups, and how far each group is.

    N sources, G groups, W hypotheses in each, T tokens so far; M of the best done are wanted.
    """

    def __init__(
        self,
        source_ids: Int[Tensor, "N S"],
        longest: Sequence[int],
        eos_id: int,
        decoding: DecodingSettings,
    ) -> None:
        device, count = source_ids.device, len(source_ids)
        num_groups = decoding.diverse_groups if decoding.method == "diverse" else 1
        width = decoding.beam_size // num_groups
        self.width, self._eos_id, self._decoding = width, eos_id, decoding
        self.found = [[_Group() for _ in range(num_groups)] for _ in range(count)]
        self.sources = torch.arange(count, device=device)
        self.limits = torch.tensor(longest, device=device)
        self.tokens = torch.empty(count, num_groups, width, 0, dtype=torch.long, device=device)
        self.scores = torch.full((count, num_groups, width), -torch.inf, device=device)
        self.scores[:, :, 0] = 0.0  # all hypotheses of a group are equal at first: use one
        self.num_done = torch.zeros(count, num_groups, dtype=torch.long, device=device)
        self.has_best_ended = torch.zeros(count, num_groups, dtype=torch.bool, device=device)
        self.is_over = torch.zeros(count, num_groups, dtype=torch.bool, device=device)
        exact = torch.float32 if device.type == "mps" else torch.float64  # that of Python's floats
        wanted = (count, num_groups, min(decoding.num_searched, width))
        self.best_done = torch.full(wanted, -torch.inf, dtype=exact, device=device)  # (N, G, M)

    def collect(self, candidates: _Candidates, is_last: Bool[Tensor, "N 1"]) -> None:
        """Add to `done` those of the first candidates that end or have the longest length."""
        length, decoding = self.tokens.shape[3] + 1, self._decoding
        ids, scores = candidates.ids[..., : self.width], candidates.scores[..., : self.width]
        is_done = (ids == self._eos_id) | is_last[..., None]
        is_done &= ~scores.isneginf() & ~self.is_over[..., None]
        places = is_done.nonzero()
        if not len(places):
            return
        self.num_done += is_done.sum(dim=-1)
        self.has_best_ended |= is_done[..., 0]
        if decoding.stop == "exact":
            normalized = scores.to(self.best_done.dtype) / find_divisor(length, decoding)
            both = torch.cat((self.best_done, normalized.masked_fill(~is_done, -torch.inf)), dim=-1)
            self.best_done = both.topk(self.best_done.shape[-1], dim=-1).values
        i, g, place = places.unbind(1)
        past_tokens = self.tokens[i, g, candidates.parents[i, g, place]]  # (P, T)
        columns = (self.sources[i], g, ids[i, g, place])
        # Two reads for all of them: each one waits for a GPU.
        numbered = torch.cat((torch.stack(columns, dim=1), past_tokens), dim=1)
        for (source, group, token, *past), score in zip(
            numbered.tolist(), scores[i, g, place].tolist(), strict=True
        ):
            is_end = token == self._eos_id
            self.found[source][group].done.append(
                Hypothesis(
                    ids=tuple(past) if is_end else (*past, token),
                    score=score,
                    normalized_score=normalize(score, length, decoding),
                    is_complete=is_end,
                )
            )

    def keep_ends(self, scores: Float[Tensor, "N G W"]) -> None:
        """Add to `spare` the hypotheses that may end here, with their scores if they ended."""
        decoding, listed = self._decoding, scores.tolist()
        is_over, sources = self.is_over.tolist(), self.sources.tolist()
        for i, g, place in (~scores.isneginf()).nonzero().tolist():
            group, score = self.found[sources[i]][g], listed[i][g][place]
            normalized = normalize(score, self.tokens.shape[-1] + 1, decoding)
            is_full = len(group.spare) == decoding.num_searched
            if is_over[i][g] or (is_full and normalized <= group.spare[-1].normalized_score):
                continue
            ended = Hypothesis(
                ids=tuple(self.tokens[i, g, place].tolist()),
                score=score,
                normalized_score=normalized,
                is_complete=True,
            )
            group.spare = _sort([*group.spare, ended])[: decoding.num_searched]

    def settle(self, scores: Float[Tensor, "N G W"], is_last: Bool[Tensor, "N 1"]) -> None:
        """Mark the groups that are over: no hypothesis continues, or `decoding.stop` is met."""
        best, decoding = scores.amax(dim=-1), self._decoding
        wanted = self.best_done.shape[-1]
        if decoding.stop == "exact":
            # An upper bound: scores only fall, and the longest length divides them most.
            dtype = self.best_done.dtype
            bound = best.to(dtype) / find_divisor(self.limits[:, None].to(dtype), decoding)
            is_met = (self.num_done >= wanted) & (self.best_done[..., -1] >= bound)
        elif decoding.length_penalty == 0:
            is_met = self.has_best_ended & (self.num_done >= wanted)
        else:
            is_met = self.num_done >= self.width
        self.is_over |= is_met | is_last | best.isneginf()

    def drop(self, kept: Int[Tensor, " N2"], chosen: _Candidates) -> _Candidates:
        """Keep these sources, and return their candidates."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[kept])
        return _Candidates(
            ids=chosen.ids[kept], parents=chosen.parents[kept], scores=chosen.scores[kept]
        )

    def extend(self, chosen: _Candidates, kept: Int[Tensor, " N2"] | None) -> Int[Tensor, " R"]:
        """Continue with the chosen candidates; return the row of each one's parent."""
        num_groups, position = self.tokens.shape[1], self.tokens.shape[3]
        places = torch.arange(len(self.sources), device=self.tokens.device)
        groups = torch.arange(num_groups, device=self.tokens.device) * self.width
        first_rows = (places if kept is None else kept)[:, None] * num_groups * self.width + groups
        parents = chosen.parents[..., None].expand(-1, -1, -1, position)
        self.tokens = torch.cat((self.tokens.gather(2, parents), chosen.ids[..., None]), dim=-1)
        self.scores = chosen.scores
        return (first_rows[:, :, None] + chosen.parents).flatten()


def _expand(totals: Float[Tensor, "N G W V"], strength: float) -> _Candidates:
    """Return the 2W best continuations of each group.

    A token loses `strength` for each earlier group that has chosen it.
    """
    num_sources, num_groups, width, vocab_size = totals.shape
    count = min(2 * width, width * vocab_size)
    taken = totals.new_zeros(num_sources, vocab_size)  # number of groups that chose each token
    by_group: list[tuple[Tensor, Tensor, Tensor]] = []
    for group in range(num_groups):
        own = totals[:, group]
        ranked = own if group == 0 else own - strength * taken[:, None, :]
        places = ranked.flatten(1).topk(count, dim=1).indices
        ids, parents = places % vocab_size, places // vocab_size
        by_group.append((ids, parents, own.flatten(1).gather(1, places)))
        taken.scatter_add_(1, ids[:, :width], torch.ones_like(ids[:, :width], dtype=taken.dtype))
    stacked = [torch.stack(each, dim=1) for each in zip(*by_group, strict=True)]
    return _Candidates(ids=stacked[0], parents=stacked[1], scores=stacked[2])


def _choose_live(candidates: _Candidates, width: int, eos_id: int) -> _Candidates:
    """Return the best `width` candidates without an end; a score of -inf: there are fewer."""
    is_end = candidates.ids == eos_id
    order = is_end.long().argsort(dim=-1, stable=True)[..., :width]
    if order.shape[-1] < width:  # fewer continuations than hypotheses: a tiny vocabulary
        order = torch.nn.functional.pad(order, (0, width - order.shape[-1]), mode="replicate")
    return _Candidates(
        ids=candidates.ids.gather(-1, order),
        parents=candidates.parents.gather(-1, order),
        scores=candidates.scores.masked_fill(is_end, -torch.inf).gather(-1, order),
    )


def _rank(
    groups: Sequence[_Group], decoding: DecodingSettings, *, prefers_complete: bool
) -> list[Hypothesis]:
    """Return the best hypotheses of all groups, each once; under a constraint only complete ones match."""
    ranked = _sort([one for group in groups for one in group.done])
    if prefers_complete:
        complete = [one for one in ranked if one.is_complete]
        truncated = [one for one in ranked if not one.is_complete]
        spare = [one for group in groups for one in group.spare]
        ranked = complete + _sort(spare) + truncated
    if not ranked:  # no token was left: an empty, truncated output
        return [Hypothesis(ids=(), score=0.0, normalized_score=0.0, is_complete=False)]
    found = dict[tuple[tuple[int, ...], bool], Hypothesis]()
    for one in ranked:  # several groups may find the same
        found.setdefault((one.ids, one.is_complete), one)
    return list(found.values())[: decoding.num_searched]


def _sort(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda one: one.normalized_score, reverse=True)
