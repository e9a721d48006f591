"""Search with the method that the settings name; score given targets."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragoman.decoding.beam import search_beam
from dragoman.decoding.ensemble import Ensemble, average, mask_tokens
from dragoman.decoding.greedy_and_sampling import decode, sample
from dragoman.decoding.hypothesis import Hypothesis, limit_lengths, normalize
from dragoman.decoding.rules import Rules
from dragoman.decoding.search_config import SearchConfig
from dragoman.model.transformer import Transformer
from dragoman.settings import DecodingSettings


def search(
    models: Sequence[Transformer] | Ensemble,
    source_ids: Int[Tensor, "N S"],
    config: SearchConfig,
    prefixes: Sequence[Sequence[int]] | None = None,
    most_tokens: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Return the hypotheses of each source, best first.

    Dropout is off, whatever the mode of the models; the mode is kept. A hypothesis depends on its
    source alone, not on its batch.

    Args:
        models: One model, or several with one vocabulary. Callers that search often keep an
            `Ensemble`: packing the weights takes milliseconds.
        prefixes: Ids at the start of the output of each source; they raise its longest length.
        most_tokens: A bound on the output of each source, its end included, besides the settings.
    """
    if not len(source_ids):
        return []
    ensemble = models if isinstance(models, Ensemble) else Ensemble(models)
    decoding = config.decoding
    lengths = (source_ids != ensemble.pad_id).sum(dim=1).tolist()
    limits = limit_lengths(lengths, decoding, ensemble.longest_target)
    longest = [limit.longest for limit in limits]
    if most_tokens is not None:
        longest = [min(both) for both in zip(longest, most_tokens, strict=True)]
    if prefixes is not None:
        longest = [most + len(prefix) for most, prefix in zip(longest, prefixes, strict=True)]
        if ensemble.longest_target is not None:
            longest = [min(most, ensemble.longest_target) for most in longest]
    rules = Rules.start(config, ensemble.eos_id, limits, prefixes, source_ids.device)
    with ensemble.evaluating():
        if decoding.method == "sampling":
            return sample(ensemble, source_ids, longest, rules, decoding)
        if decoding.method == "beam" and decoding.beam_size == 1:
            return [[one] for one in decode(ensemble, source_ids, longest, rules, decoding)]
        return search_beam(ensemble, source_ids, longest, rules, decoding)


def score_targets(
    models: Sequence[Transformer],
    source_ids: Int[Tensor, "B S"],
    targets: Sequence[Sequence[int]],
    decoding: DecodingSettings,
) -> list[Hypothesis]:
    """Return each of `targets`, ids without begin and end, as a complete hypothesis.

    What is never emitted is masked, so the score is that of a search without rules. With several
    models, their probabilities are averaged.
    """
    if not len(targets):
        return []
    ensemble = Ensemble(models)
    device = source_ids.device
    rows = [
        torch.tensor([ensemble.bos_id, *ids, ensemble.eos_id], device=device) for ids in targets
    ]
    target_ids = torch.nn.utils.rnn.pad_sequence(
        rows, batch_first=True, padding_value=ensemble.pad_id
    )
    with ensemble.evaluating():
        by_model, alignment = [], None
        for model in ensemble.models:
            memory = model.encode(source_ids)
            logits = model.decode(target_ids[:, :-1], memory).float()
            logits = mask_tokens(logits, ensemble.never_emitted)
            by_model.append(torch.log_softmax(logits, dim=-1))
        log_probs = average(by_model).gather(-1, target_ids[:, 1:, None])[..., 0]
        if decoding.alignment:
            attentions = [align(m, source_ids, target_ids[:, :-1]) for m in ensemble.models]
            alignment = torch.stack(attentions).mean(0)
    hypotheses = []
    for i, ids in enumerate(targets):
        scored = log_probs[i, : len(ids) + 1].tolist()
        aligned: list[list[float]] = []
        if alignment is not None:
            source_length = int((source_ids[i] != ensemble.pad_id).sum())
            aligned = alignment[i, : len(scored), :source_length].tolist()
        hypotheses.append(
            Hypothesis(
                ids=tuple(ids),
                score=sum(scored),
                normalized_score=normalize(sum(scored), len(scored), decoding),
                is_complete=True,
                log_probs=tuple(scored),
                alignment=tuple(map(tuple, aligned)),
            )
        )
    return hypotheses


@torch.no_grad()
def align(
    model: Transformer, source_ids: Int[Tensor, "B S"], target_ids: Int[Tensor, "B T"]
) -> Float[Tensor, "B T S"]:
    """Return the attention over the source for the token after each of `target_ids`.

    The mean over the heads of the decoder's last layer: that of `nn.MultiheadAttention` with
    `average_attn_weights`.
    """
    memory = model.encode(source_ids)
    last = model.transformer.decoder.layers[-1]
    found: list[Tensor] = []

    def take(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        found.append(inputs[0])

    # The query of the last layer's cross-attention: the stock layer does not return it.
    handle = last.multihead_attn.register_forward_hook(take)
    try:
        model.decode_states(target_ids, memory)
    finally:
        handle.remove()
    _, weights = last.multihead_attn(
        found[0], memory.states, memory.states, key_padding_mask=~memory.is_token
    )
    averaged: Tensor = weights
    return averaged
