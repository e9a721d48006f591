"""Random models for the searches, and the plainest way to ask them."""

import torch

from conftest import BOS, PAD, pad_right, random_ids
from dragoman.model.transformer import Transformer


def make_network(seed: int = 0, vocab_size: int = 11) -> Transformer:
    torch.manual_seed(seed)
    network = Transformer(20, 16, 2, 2, 32, target_vocab_size=vocab_size)
    torch.nn.init.normal_(network.output.weight)  # decided models: no near ties, ends by chance
    return network.eval()


def make_sources(lengths, seed=0):
    return [random_ids(1, n, 20, seed=seed + 7 * i) for i, n in enumerate(lengths)]


def join(sources, extra=0):
    longest = max(source.shape[1] for source in sources)
    return torch.cat([pad_right(s, longest + extra - s.shape[1]) for s in sources])


@torch.no_grad()
def score_plainly(network, source, ids):
    """The log-probabilities after `ids`, by the reference model."""
    logits = network(source, torch.tensor([[BOS, *ids]]))[0, -1]
    logits[[PAD, BOS]] = -torch.inf
    return logits.log_softmax(-1)
