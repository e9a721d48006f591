"""A model laid out for inference: its products made ready once, for `encoding` and `incremental`.

The parameters are those of the stock `nn.Transformer`; what is prepared is good until they change.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dragoman.model.products import Activation, Product, make_product
from dragoman.model.transformer import Transformer

_ACTIVATIONS: dict[object, Activation] = {F.relu: "relu", F.gelu: "gelu"}


@dataclass(frozen=True, kw_only=True)
class PreparedLayer:
    """What a layer of the encoder and one of the decoder have: norms, and products by purpose."""

    norm_first: bool
    num_heads: int
    norms: tuple[nn.Module, ...]
    own: Product
    """Of the attention of a sequence to itself: to query, key and value."""
    own_output: Product
    widen: Product
    """To the feed-forward width, through the activation."""
    narrow: Product


@dataclass(frozen=True, kw_only=True)
class PreparedDecoderLayer(PreparedLayer):
    """A layer of the decoder, which attends to the source as well."""

    query: Product
    source: Product
    """To key and value of the source."""
    source_output: Product


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model with its layers and its projection to the target's vocabulary prepared."""

    model: Transformer
    encoder: tuple[PreparedLayer, ...]
    decoder: tuple[PreparedDecoderLayer, ...]
    project: Product


def prepare(model: Transformer) -> Prepared:
    """Return `model` laid out for inference; takes milliseconds, and memory as the model does."""
    size = model.target_vocab_size  # the rows that round the matrix up are left out
    output = model.target_embedding if model.output is None else model.output
    bias = None if model.output is None else model.output.bias[:size]
    return Prepared(
        model=model,
        encoder=tuple(_prepare_layer(layer) for layer in model.transformer.encoder.layers),
        decoder=tuple(_prepare_decoder_layer(layer) for layer in model.transformer.decoder.layers),
        project=make_product(output.weight[:size], bias),
    )


def split_heads(x: Float[Tensor, "B L D"], num_heads: int) -> Float[Tensor, "B H L Dh"]:
    """Return `x` by head, without a copy."""
    return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)  # (B, L, D) -> (B, L, H, Dh) -> ...


def _prepare_layer(layer: nn.TransformerEncoderLayer) -> PreparedLayer:
    own = layer.self_attn
    assert own.in_proj_weight is not None
    return PreparedLayer(
        norm_first=layer.norm_first,
        num_heads=own.num_heads,
        norms=(layer.norm1, layer.norm2),
        own=make_product(own.in_proj_weight, own.in_proj_bias),
        own_output=make_product(own.out_proj.weight, own.out_proj.bias),
        widen=_make_widening(layer),
        narrow=make_product(layer.linear2.weight, layer.linear2.bias),
    )


def _prepare_decoder_layer(layer: nn.TransformerDecoderLayer) -> PreparedDecoderLayer:
    own, other, width = layer.self_attn, layer.multihead_attn, layer.self_attn.embed_dim
    weight, bias = other.in_proj_weight, other.in_proj_bias
    assert own.in_proj_weight is not None
    assert weight is not None
    return PreparedDecoderLayer(
        norm_first=layer.norm_first,
        num_heads=own.num_heads,
        norms=(layer.norm1, layer.norm2, layer.norm3),
        own=make_product(own.in_proj_weight, own.in_proj_bias),
        own_output=make_product(own.out_proj.weight, own.out_proj.bias),
        widen=_make_widening(layer),
        narrow=make_product(layer.linear2.weight, layer.linear2.bias),
        query=make_product(weight[:width], None if bias is None else bias[:width]),
        source=make_product(weight[width:], None if bias is None else bias[width:]),
        source_output=make_product(other.out_proj.weight, other.out_proj.bias),
    )


def _make_widening(layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) -> Product:
    wide = layer.linear1
    return make_product(wide.weight, wide.bias, _ACTIVATIONS[layer.activation])
