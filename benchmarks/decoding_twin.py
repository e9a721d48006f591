"""Hugging Face's M2M100 with the weights of ours: the same function, so the same outputs.

Of its encoder-decoders it is the one with our layout: pre-norm, a last norm, scaled embeddings and
fixed positions. Marian, its usual one for translation, is post-norm without last norms, so that no
weights give it our outputs; with equal sizes and forced lengths it takes the same time, within 2%.
"""

import torch
import transformers
from torch import Tensor, nn
from transformers import M2M100Config, M2M100ForConditionalGeneration
from transformers.models.m2m_100.modeling_m2m_100 import (
    M2M100Decoder,
    M2M100Encoder,
    M2M100ScaledWordEmbedding,
)

from dragoman.model.transformer import Transformer
from dragoman.settings import ModelSettings

_NAMES = {
    ".linear1.": ".fc1.",
    ".linear2.": ".fc2.",
    ".multihead_attn.": ".encoder_attn.",
    ".norm1.": ".self_attn_layer_norm.",
    ".norm3.": ".final_layer_norm.",
}
"""Names of our parts in Hugging Face's words; norm2 is another one on each side."""


def make_twin(network: Transformer, sizes: ModelSettings) -> M2M100ForConditionalGeneration:
    """Return the M2M100 that computes what `network` computes.

    Raises:
        ImportError: Hugging Face has no model of this layout.
    """
    if not sizes.norm_first:
        raise ImportError("Hugging Face has no post-norm model with last norms, as ours is")
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with network.target_embedding.weight.device:
        twin = M2M100ForConditionalGeneration(
            M2M100Config(
                vocab_size=network.target_vocab_size,
                encoder_layers=sizes.num_encoder_layers,
                decoder_layers=sizes.num_decoder_layers,
                encoder_ffn_dim=sizes.dim_feedforward,
                decoder_ffn_dim=sizes.dim_feedforward,
                encoder_attention_heads=sizes.nhead,
                decoder_attention_heads=sizes.nhead,
                d_model=sizes.d_model,
                activation_function=sizes.activation,
                decoder_start_token_id=network.bos_id,
                pad_token_id=network.pad_id,
                bos_token_id=network.bos_id,
                eos_token_id=network.eos_id,
                tie_word_embeddings=False,  # each is put in below, shared or not
            )
        )
    _fill_side(twin.model.encoder, network.source_embedding, network.source_positions, sizes)
    _fill_side(twin.model.decoder, network.target_embedding, network.target_positions, sizes)
    for name in ("encoder", "decoder"):
        state = _rename(getattr(network.transformer, name).state_dict(), name)
        missing, unknown = getattr(twin.model, name).load_state_dict(state, strict=False)
        assert not unknown, unknown
        assert set(missing) == {"embed_tokens.weight"}, missing
    twin.lm_head = _make_head(network)
    twin.train(False)
    return twin


def _make_head(network: Transformer) -> nn.Linear:
    """Return the projection, without the rows that round ours up."""
    size, ours = network.target_vocab_size, network.output
    head = nn.Linear(network.d_model, size, bias=ours is not None)
    head.weight = nn.Parameter((network.target_embedding if ours is None else ours).weight[:size])
    if ours is not None:
        head.bias = nn.Parameter(ours.bias[:size])
    return head


def _fill_side(
    side: M2M100Encoder | M2M100Decoder,
    embedding: nn.Embedding,
    positions: nn.Module,
    sizes: ModelSettings,
) -> None:
    """Put the embeddings and the positions of ours into a side of theirs."""
    rows, width = embedding.weight.shape
    side.embed_tokens = M2M100ScaledWordEmbedding(rows, width, 0, embed_scale=width**0.5)
    side.embed_tokens.weight = embedding.weight
    table = positions(0, sizes.max_positions)
    blank = table.new_zeros(1, width)  # padding has the first place in theirs
    moved = torch.cat((blank, table)).detach()
    side.embed_positions.weights = nn.Buffer(moved, persistent=False)


def _rename(state: dict[str, Tensor], side: str) -> dict[str, Tensor]:
    """Return the state of `nn.TransformerEncoder` or -Decoder under Hugging Face's names."""
    second = "final_layer_norm" if side == "encoder" else "encoder_attn_layer_norm"
    names = {**_NAMES, ".norm2.": f".{second}."}
    renamed = {}
    for name, weights in state.items():
        if name.startswith("norm."):
            name = f"layer_{name}"
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        before, projection, kind = name.partition("in_proj_")
        if projection:
            for letter, third in zip("qkv", weights.chunk(3), strict=True):
                renamed[f"{before}{letter}_proj.{kind}"] = third
        else:
            renamed[name] = weights
    return renamed
