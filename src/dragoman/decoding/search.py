"""Search with the method that the settings name."""

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from dragoman.decoding.beam import search_beam
from dragoman.decoding.ensemble import Ensemble
from dragoman.decoding.greedy_and_sampling import sample, search_greedily
from dragoman.decoding.hypothesis import Hypothesis, limit_lengths
from dragoman.decoding.rules import Rules
from dragoman.decoding.search_config import SearchConfig
from dragoman.model.transformer import Transformer


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
            found = search_greedily(ensemble, source_ids, longest, rules, decoding)
            return [[hypothesis] for hypothesis in found]
        return search_beam(ensemble, source_ids, longest, rules, decoding)
