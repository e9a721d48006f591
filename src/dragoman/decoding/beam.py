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


@dataclass(kw_only=True)
class _Progress:
    """How far each group of the sources in the batch is."""

    num_done: Int[Tensor, "N G"]
    has_best_ended: Bool[Tensor, "N G"]
    is_over: Bool[Tensor, "N G"]
    best_done: Float[Tensor, "N G M"]
    """The normalized scores of the best done; M is the number of wanted ones."""

    def select(self, kept: Int[Tensor, " N2"]) -> "_Progress":
        """Return that of the sources that stay."""
        return _Progress(**{name: value[kept] for name, value in vars(self).items()})


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
    num_groups = decoding.diverse_groups if decoding.method == "diverse" else 1
    beam, width = decoding.beam_size, decoding.beam_size // num_groups
    device, num_sources = source_ids.device, len(source_ids)
    found = [[_Group() for _ in range(num_groups)] for _ in range(num_sources)]

    sources = torch.arange(num_sources, device=device)  # those still in the batch
    rows = sources.repeat_interleave(beam)
    caches = ensemble.select(ensemble.start(source_ids), rows)
    rules = rules.select(rows)
    ids = torch.full((len(rows),), ensemble.bos_id, device=device)
    limits = torch.tensor(longest, device=device)
    tokens = torch.empty(num_sources, num_groups, width, 0, dtype=torch.long, device=device)
    scores = torch.full((num_sources, num_groups, width), -torch.inf, device=device)
    scores[:, :, 0] = 0.0  # all hypotheses of a group are equal at first: use one
    wanted = (num_sources, num_groups, min(decoding.num_searched, width))
    exact = torch.float32 if device.type == "mps" else torch.float64  # that of Python's floats
    progress = _Progress(
        num_done=torch.zeros(wanted[:2], dtype=torch.long, device=device),
        has_best_ended=torch.zeros(wanted[:2], dtype=torch.bool, device=device),
        is_over=torch.zeros(wanted[:2], dtype=torch.bool, device=device),
        best_done=torch.full(wanted, -torch.inf, dtype=exact, device=device),
    )
    for position in range(max(longest)):
        rule = partial(rules.change_logits, history=tokens.flatten(0, 2))
        log_probs, caches = ensemble.step(ids, caches, rule)
        log_probs = rules.mask(log_probs, position).view(*scores.shape, -1)
        totals = scores[..., None] + log_probs
        candidates = _expand(totals, decoding.diverse_strength)
        if rules.states:
            groups = [found[i] for i in sources.tolist()]
            ends = totals[..., ensemble.eos_id]
            _keep_ends(groups, progress.is_over.tolist(), ends, tokens, decoding)
        is_last = (limits == position + 1)[:, None]
        _collect(found, sources, progress, candidates, tokens, is_last, ensemble.eos_id, decoding)
        chosen, is_live = _choose_live(candidates, width, ensemble.eos_id)
        _settle(progress, chosen.scores, limits, is_last, width, decoding)

        leaving = progress.is_over.all(dim=1)
        kept = None  # all
        if leaving.any():
            kept = (~leaving).nonzero()[:, 0]
            if not len(kept):
                break
            chosen = _Candidates(
                ids=chosen.ids[kept], parents=chosen.parents[kept], scores=chosen.scores[kept]
            )
            sources, limits, tokens, is_live = (
                each[kept] for each in (sources, limits, tokens, is_live)
            )
            progress = progress.select(kept)
        places = torch.arange(len(sources), device=device) if kept is None else kept
        first_rows = places[:, None] * beam + torch.arange(num_groups, device=device) * width
        rows = (first_rows[:, :, None] + chosen.parents).flatten()
        parents = chosen.parents[..., None].expand(-1, -1, -1, position)
        tokens = torch.cat((tokens.gather(2, parents), chosen.ids[..., None]), dim=-1)
        scores, ids = chosen.scores, chosen.ids.flatten()
        caches = ensemble.select(caches, rows, kept)
        rules = rules.select(rows).advance(ids, is_live.flatten())
    return [_rank(of_one, decoding, prefers_complete=bool(rules.states)) for of_one in found]


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


def _choose_live(
    candidates: _Candidates, width: int, eos_id: int
) -> tuple[_Candidates, Bool[Tensor, "N G W"]]:
    """Return the best `width` candidates without an end, and which of them are not masked."""
    is_end = candidates.ids == eos_id
    order = is_end.long().argsort(dim=-1, stable=True)[..., :width]
    if order.shape[-1] < width:  # fewer continuations than hypotheses: a tiny vocabulary
        order = torch.nn.functional.pad(order, (0, width - order.shape[-1]), mode="replicate")
    scores = candidates.scores.masked_fill(is_end, -torch.inf).gather(-1, order)
    chosen = _Candidates(
        ids=candidates.ids.gather(-1, order),
        parents=candidates.parents.gather(-1, order),
        scores=scores,
    )
    return chosen, ~scores.isneginf()


def _collect(
    found: Sequence[Sequence[_Group]],
    sources: Int[Tensor, " N"],
    progress: _Progress,
    candidates: _Candidates,
    tokens: Int[Tensor, "N G W T"],
    is_last: Bool[Tensor, "N 1"],
    eos_id: int,
    decoding: DecodingSettings,
) -> None:
    """Add to `done` those of the first candidates that end or have the longest length."""
    width, length = tokens.shape[2], tokens.shape[3] + 1
    ids, scores = candidates.ids[..., :width], candidates.scores[..., :width]
    is_done = (ids == eos_id) | is_last[..., None]
    is_done &= ~scores.isneginf() & ~progress.is_over[..., None]
    places = is_done.nonzero()
    if not len(places):
        return
    progress.num_done += is_done.sum(dim=-1)
    progress.has_best_ended |= is_done[..., 0]
    if decoding.stop == "exact":
        normalized = scores.to(progress.best_done.dtype) / find_divisor(length, decoding)
        both = torch.cat((progress.best_done, normalized.masked_fill(~is_done, -torch.inf)), dim=-1)
        progress.best_done = both.topk(progress.best_done.shape[-1], dim=-1).values
    i, g, place = places.unbind(1)
    for source, group, past, token, score in zip(
        sources[i].tolist(),
        g.tolist(),
        tokens[i, g, candidates.parents[i, g, place]].tolist(),
        ids[i, g, place].tolist(),
        scores[i, g, place].tolist(),
        strict=True,
    ):
        found[source][group].done.append(
            Hypothesis(
                ids=tuple(past) if token == eos_id else (*past, token),
                score=score,
                normalized_score=normalize(score, length, decoding),
                is_complete=token == eos_id,
            )
        )


def _keep_ends(
    groups: Sequence[Sequence[_Group]],
    is_over: Sequence[Sequence[bool]],
    scores: Float[Tensor, "N G W"],
    tokens: Int[Tensor, "N G W T"],
    decoding: DecodingSettings,
) -> None:
    """Add to `spare` the hypotheses that may end here, with their scores if they ended."""
    listed = scores.tolist()
    for i, g, place in (~scores.isneginf()).nonzero().tolist():
        group, score = groups[i][g], listed[i][g][place]
        normalized = normalize(score, tokens.shape[-1] + 1, decoding)
        is_full = len(group.spare) == decoding.num_searched
        if is_over[i][g] or (is_full and normalized <= group.spare[-1].normalized_score):
            continue
        ended = Hypothesis(
            ids=tuple(tokens[i, g, place].tolist()),
            score=score,
            normalized_score=normalized,
            is_complete=True,
        )
        group.spare = _sort([*group.spare, ended])[: decoding.num_searched]


def _settle(
    progress: _Progress,
    scores: Float[Tensor, "N G W"],
    limits: Int[Tensor, " N"],
    is_last: Bool[Tensor, "N 1"],
    width: int,
    decoding: DecodingSettings,
) -> None:
    """Mark the groups that are over: no hypothesis continues, or `decoding.stop` is met."""
    best = scores.amax(dim=-1)
    wanted = progress.best_done.shape[-1]
    if decoding.stop == "exact":
        # An upper bound: scores only fall, and the longest length divides them most.
        dtype = progress.best_done.dtype
        bound = best.to(dtype) / find_divisor(limits[:, None].to(dtype), decoding)
        is_met = (progress.num_done >= wanted) & (progress.best_done[..., -1] >= bound)
    elif decoding.length_penalty == 0:
        is_met = progress.has_best_ended & (progress.num_done >= wanted)
    else:
        is_met = progress.num_done >= width
    progress.is_over |= is_met | is_last | best.isneginf()


def _rank(
    groups: Sequence[_Group], decoding: DecodingSettings, *, prefers_complete: bool
) -> list[Hypothesis]:
    """Return the best hypotheses of all groups; under a constraint only complete ones match."""
    ranked = _sort([one for group in groups for one in group.done])
    if prefers_complete:
        complete = [one for one in ranked if one.is_complete]
        truncated = [one for one in ranked if not one.is_complete]
        spare = [one for group in groups for one in group.spare if one not in group.done]
        ranked = complete + _sort(spare) + truncated
    if not ranked:  # no token was left: an empty, truncated output
        return [Hypothesis(ids=(), score=0.0, normalized_score=0.0, is_complete=False)]
    return ranked[: decoding.num_searched]


def _sort(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda one: one.normalized_score, reverse=True)
