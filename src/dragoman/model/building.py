"""Build a `Transformer` from settings and weights, and copy its weights."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dragoman.errors import ModelFolderError
from dragoman.model.transformer import Transformer
from dragoman.model_folder.folder import ModelFolder, StoredWeights
from dragoman.settings import ModelSettings
from dragoman.tokenizers.tokenizer import BOS_ID, EOS_ID, FIRST_TEXT_ID, PAD_ID, PairTokenizer

_SHOWN = 5  # tensors in a message


def build_network(model: ModelSettings, tokenizer: PairTokenizer) -> Transformer:
    """Return a new `Transformer` with random weights, for the vocabularies of `tokenizer`."""
    network = Transformer(
        tokenizer.source_vocab_size,
        model.d_model,
        model.nhead,
        model.num_encoder_layers,
        model.dim_feedforward,
        model.max_positions,
        model.dropout,
        target_vocab_size=None if tokenizer.is_shared else tokenizer.target_vocab_size,
        num_decoder_layers=model.num_decoder_layers,
        activation=model.activation,
        norm_first=model.norm_first,
        positions=model.positions,
        tie_embeddings=model.tie_embeddings,
        pad_id=PAD_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        never_emitted=tokenizer.never_emitted,
    )
    if tokenizer.pointers:
        numbers = network.source_embedding.weight[slice(*tokenizer.numbers)]
        _start_numbers(numbers.detach())
    return network


def _start_numbers(rows: Tensor) -> None:
    """Add waves to the random embeddings of numbers, (N, D), so that "the next one" is alike for all.

    Each number would learn its neighbour by itself otherwise, and the high ones are rare.
    """
    count, width = rows.shape
    angles = torch.arange(count)[:, None] * 2 * 100 ** -torch.linspace(0, 1, width // 2)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1) * (2 / width) ** 0.5  # as large as rows
    rows[:, : waves.shape[1]].add_(waves)  # an odd width has one column without
    rows.mul_(0.5**0.5)


def load_network(
    model: ModelSettings, tokenizer: PairTokenizer, weights: Mapping[str, NDArray[np.float32]]
) -> Transformer:
    """Return a `Transformer` of the sizes in the settings, with `weights`.

    Raises: ModelFolderError, when the name or the shape of a tensor does not fit the settings.
    """
    loaded = dict(weights)
    num_stored = sum(weight.size for weight in loaded.values())
    # Settings that ask for more than is stored are compared without memory, on the meta device. The
    # others are not: there, torch 2.13 imports torch._dynamo, which takes a second.
    with torch.device("meta" if count_at_least(model, tokenizer) > num_stored else "cpu"):
        network = build_network(model, tokenizer)
    expected = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    found = {name: weight.shape for name, weight in loaded.items()}
    misfits = [
        f"{name}: found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(expected.keys() | found.keys())
        if found.get(name) != expected.get(name)
    ]
    if misfits:
        where = f"{weights.path}: " if isinstance(weights, StoredWeights) else ""
        more = f"; and {len(misfits) - _SHOWN} more" if len(misfits) > _SHOWN else ""
        raise ModelFolderError(
            f"{where}the weights do not fit the settings, as if from another model: "
            f"{'; '.join(misfits[:_SHOWN])}{more}"
        )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.from_numpy(loaded[name]))
    return network


def start_network(network: Transformer, tokenizer: PairTokenizer, start: ModelFolder) -> None:
    """Give `network`, of the same sizes, the weights of the model `start`.

    `tokenizer` has the tokens and features of its tokenizer, and more: their rows start at the mean of
    the old tokens or features.

    Raises: ModelFolderError, when the weights do not fit the settings of `start`.
    """
    old, first = start.tokenizer, tokenizer.source.vocab_size
    trained = dict(load_network(start.settings.model, old, start.weights).named_parameters())
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            found = trained[name]
            if not name.startswith(("source_embedding", "target_embedding", "output")):
                parameter.copy_(found)
                continue
            has_features = name.startswith("source") or old.is_shared
            texts = found[: (old.source if has_features else old.target).vocab_size]
            parameter.copy_(texts[FIRST_TEXT_ID:].mean(0))
            parameter[: len(texts)] = texts
            if has_features and old.features:  # after the text, in both
                features = found[len(texts) : len(texts) + len(old.features)]
                parameter[first : first + len(tokenizer.features)] = features.mean(0)
                parameter[first : first + len(features)] = features
            if old.pointers:  # the same in both, at the end
                count = old.source_vocab_size - old.numbers[0]
                place = tokenizer.numbers[0]
                parameter[place : place + count] = found[old.numbers[0] : old.source_vocab_size]


def count_at_least(model: ModelSettings, tokenizer: PairTokenizer) -> int:
    """Return the number of parameters in the largest matrices: a network has at least so many."""
    num_layers = model.num_encoder_layers + model.num_decoder_layers
    num_positions = model.max_positions if model.positions == "learned" else 0
    rows = num_layers * (2 * model.dim_feedforward + 4 * model.d_model)
    return model.d_model * (rows + tokenizer.source_vocab_size + num_positions)


def copy_weights(network: Transformer) -> dict[str, NDArray[np.float32]]:
    """Return float32 copies of the parameters by name; a shared (tied) one comes once."""
    return {
        name: parameter.detach().float().cpu().numpy().copy()
        for name, parameter in network.named_parameters()
    }
