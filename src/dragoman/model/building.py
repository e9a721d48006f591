"""From settings and weights to a `Transformer`, and from it back to weights."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from dragoman.errors import ModelFolderError
from dragoman.model.transformer import Transformer
from dragoman.settings import ModelSettings
from dragoman.text.pair_tokenizer import PairTokenizer
from dragoman.text.tokenizer import BOS_ID, EOS_ID, PAD_ID


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
    faults = [f"{name}: missing" for name in parameters.keys() - weights.keys()]
    faults += [f"{name}: unknown" for name in weights.keys() - parameters.keys()]
    faults += [
        f"{name}: shape {weights[name].shape}, expected {tuple(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in weights and weights[name].shape != tuple(parameter.shape)
    ]
    if faults:
        raise ModelFolderError(
            "the weights do not fit the settings beside them, as if from another model: "
            + "; ".join(sorted(faults)[:5])
            + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(weights[name]))
