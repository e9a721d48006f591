"""From settings and weights to a `Transformer`, and from it back to weights."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from dragoman.errors import ModelFolderError
from dragoman.model.transformer import Transformer
from dragoman.model_folder.weights import find_weight_faults, list_shapes
from dragoman.settings import ModelSettings
from dragoman.tokenizers.pair_tokenizer import PairTokenizer
from dragoman.tokenizers.tokenizer import BOS_ID, EOS_ID, PAD_ID


def build_network(model: ModelSettings, tokenizer: PairTokenizer) -> Transformer:
    """Return a new `Transformer` of the given sizes, for the vocabularies of `tokenizer`."""
    return Transformer(
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
    )


def load_network(
    model: ModelSettings, tokenizer: PairTokenizer, weights: Mapping[str, NDArray[np.float32]]
) -> Transformer:
    """Return a `Transformer` with `weights`, of the sizes that the settings tell.

    No memory is taken for it before `weights` are known to be of these sizes.

    Raises:
        ModelFolderError: A name or a shape is not that of the network.
    """
    sizes = tokenizer.source_vocab_size, tokenizer.target_vocab_size
    expected = list_shapes(model, *sizes, is_shared=tokenizer.is_shared)
    found = {name: weight.shape for name, weight in weights.items()}
    if faults := find_weight_faults(expected, found):
        raise ModelFolderError(faults)
    network = build_network(model, tokenizer)
    load_weights(network, weights)
    return network


def copy_weights(network: Transformer) -> dict[str, NDArray[np.float32]]:
    """Return copies of the parameters by name, each once even where parts share it, in float32."""
    return {
        name: parameter.detach().float().cpu().numpy().copy()
        for name, parameter in network.named_parameters()
    }


def load_weights(network: Transformer, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Put `weights` into `network`.

    Raises:
        ModelFolderError: A name or a shape is not that of the network.
    """
    parameters = dict(network.named_parameters())
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    found = {name: weight.shape for name, weight in weights.items()}
    if faults := find_weight_faults(expected, found):
        raise ModelFolderError(faults)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(weights[name]))
