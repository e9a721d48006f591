"""The Transformer block, our own: one forward pass for training and for cached decoding.

It computes the function of the stock `nn.Transformer`, from the same parameters, in less time. One
product gives queries, keys and values. In training, products have the dtype of autocast, with each
weight cast once; on the CPU, attention is computed by plain products (the backward pass of torch's
flash attention is slow there), and element-wise operations are those of cpu_training.py. In
inference, the encoder does no work for padding, and the decoder keeps keys and values of past tokens.

B rows, S source tokens, T target tokens. In a beam several rows continue one source: N sources and
R rows, R / N for each source. Keys and values of a source are kept once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dragoman.model.cpu_training import Dropout, pad_keys, split_heads
from dragoman.model.transformer import LearnedPositions, Memory, Transformer, rotate

Function = Callable[[Float[Tensor, "*N I"]], Float[Tensor, "*N O"]]

# With more scores than this and no dropout, torch's attention takes over in training on the CPU. It
# does not keep them in memory, but is slower (1.2 to 1.3 times at 300 to 2,000 tokens, torch 2.13).
_MAX_SCORES = 2**22


class Weights:
    """The parameters of a model in the forms that a forward pass needs.

    This class is for training: autograd gives the gradients to the parameters. The subclasses are
    `Leaves` for micro-batches and `PackedWeights` for inference.

    `dtype`: of matrix products; each parameter is cast once.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._cast: dict[Tensor, Tensor] = {}

    def matmul_weight(self, parameter: Tensor) -> Tensor:
        """Return a parameter in the dtype of matrix products."""
        if parameter not in self._cast:
            self._cast[parameter] = parameter.to(self.dtype)
        return self._cast[parameter]

    def norm_weight(self, parameter: Tensor) -> Tensor:
        """Return a parameter of a norm, in its own dtype."""
        return parameter

    def embedding_rows(self, table: Tensor, ids: Int[Tensor, "*L"]) -> Float[Tensor, "*L D"]:
        """Return the rows `ids` of an embedding."""
        return F.embedding(ids, table)

    def linear(self, weight: Tensor, bias: Tensor, activation: Function | None = None) -> Function:
        """Return the function x -> activation(x @ weight.T + bias); both are matmul weights."""
        if activation is not None:
            return lambda x: activation(F.linear(x.to(self.dtype), weight, bias))
        return lambda x: F.linear(x.to(self.dtype), weight, bias)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of the encoder or the decoder, as functions over its weights."""

    norm_first: bool
    num_heads: int
    norms: tuple[Function, ...]  # one for each sub-layer, in order
    self_qkv: Function
    self_output: Function
    cross: "CrossAttention | None"  # None in the encoder
    linear1: Function  # with the activation and, in training on the CPU, the dropout
    linear2: Function


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """The attention of a decoder layer to the source, as functions over its weights."""

    query: Function
    key_value: Function
    output: Function


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A model ready for forward passes: its layers over some weights, and its dropout."""

    model: Transformer
    weights: Weights
    dropout: Dropout
    is_inference: bool
    """Then the encoder leaves padding out."""
    is_cpu_training: bool
    """Then `weights` are scaled for the dropout, which is a mask only."""
    encoder: tuple[Layer, ...]
    encoder_norm: Function
    decoder: tuple[Layer, ...]
    decoder_norm: Function


@dataclass(frozen=True)
class Mask:
    """The positions that attention may use: bias 0 there, -inf elsewhere; None: all positions."""

    bias: Float[Tensor, "..."] | None = None
    is_causal: bool = False  # exactly the causal mask


@dataclass(frozen=True, kw_only=True)
class DecoderCache:
    """Keys and values of each layer: of the source, and of the `length` target tokens so far.

    They are concatenated: W is 2 D. C is the capacity, at least `length`.
    """

    source: tuple[Float[Tensor, "N S W"] | Float[Tensor, "two N H S Dh"], ...]
    """In inference by head, contiguous: every step reads them."""
    source_mask: Mask
    target: tuple[
        Float[Tensor, "R C W"], ...
    ] = ()  # empty in training, which decodes all tokens at once
    length: int = 0
    spare: tuple[Float[Tensor, "..."], ...] = ()
    """Buffers as `target`, for the rows of the next selection."""


def make_layers(
    model: Transformer,
    weights: Weights,
    dropout: Dropout,
    *,
    is_inference: bool = False,
    is_cpu_training: bool = False,
) -> Layers:
    """Return `model` with its layers as functions over `weights`."""
    stock = model.transformer
    masked = dropout if is_cpu_training else None
    return Layers(
        model=model,
        weights=weights,
        dropout=dropout,
        is_inference=is_inference,
        is_cpu_training=is_cpu_training,
        encoder=tuple(_make_layer(weights, layer, masked) for layer in stock.encoder.layers),
        encoder_norm=_make_norm(weights, stock.encoder.norm),
        decoder=tuple(_make_layer(weights, layer, masked) for layer in stock.decoder.layers),
        decoder_norm=_make_norm(weights, stock.decoder.norm),
    )


def encode(layers: Layers, source_ids: Int[Tensor, "B S"]) -> Memory:
    """Return what `Transformer.encode` does; in inference, states at padding have no meaning."""
    model = layers.model
    is_token = model.find_tokens(source_ids)
    mask = _make_mask(layers, is_token[:, None, None, :])
    x = _embed(layers, source_ids, model.source_embedding, model.source_positions)
    packing = _Packing(is_token) if layers.is_inference and mask.bias is not None else None
    x = x if packing is None else packing.pack(x)
    for layer in layers.encoder:
        x = _apply_layer(layers, layer, x, mask, packing=packing)
    x = layers.encoder_norm(x)
    return Memory(states=x if packing is None else packing.unpack(x), is_token=is_token)


def start_decoder(layers: Layers, memory: Memory) -> DecoderCache:
    """Return the cache before the first target token, with the source's keys and values."""
    states = memory.states.to(layers.weights.dtype)
    source = tuple(layer.cross.key_value(states) for layer in layers.decoder if layer.cross)
    if layers.is_inference:
        heads, rows = layers.model.nhead, len(states)
        source = tuple(torch.stack(_split_heads(one, 2, heads, rows)) for one in source)
    return DecoderCache(
        source=source, source_mask=_make_mask(layers, memory.is_token[:, None, None, :])
    )


def decode(
    layers: Layers, target_ids: Int[Tensor, "R T"], cache: DecoderCache
) -> Float[Tensor, "*N D"]:
    """Return the decoder's states of `target_ids`: (R, T, D), as `Transformer.decode_states` does.

    With a past (`cache.target`), T is 1: the token is the next one, its keys and values are written
    into the buffers, and the states are (R, D).
    """
    model, length, start = layers.model, target_ids.shape[1], cache.length
    x = _embed(layers, target_ids, model.target_embedding, model.target_positions, start)
    if cache.target:
        assert length == 1
        x, mask = x[:, 0], Mask()  # (R, 1, D) -> (R, D)
    else:
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        mask = _make_mask(layers, causal[None, None], is_causal=True)
    for number, layer in enumerate(layers.decoder):
        x = _apply_layer(
            layers,
            layer,
            x,
            mask,
            past=cache.target[number][:, : start + 1] if cache.target else None,
            source=(cache.source[number], cache.source_mask),
        )
    return layers.decoder_norm(x)


def _embed(
    layers: Layers,
    ids: Int[Tensor, "B L"],
    embedding: nn.Embedding,
    positions: nn.Module | None,
    start: int = 0,
) -> Float[Tensor, "B L D"]:
    """Return what `Transformer.embed` does."""
    stop, weights = start + ids.shape[1], layers.weights
    states = weights.embedding_rows(embedding.weight, ids) * math.sqrt(layers.model.d_model)
    if positions is not None:
        added: Tensor = positions(start, stop)
        if isinstance(positions, LearnedPositions):
            added = weights.embedding_rows(
                positions.weight, torch.arange(start, stop, device=ids.device)
            )
        states = states + added
    return layers.dropout.drop(states)


def _apply_layer(
    layers: Layers,
    layer: Layer,
    x: Float[Tensor, "*N D"],
    mask: Mask,
    *,
    packing: "_Packing | None" = None,
    past: Float[Tensor, "R L W"] | None = None,
    source: tuple[Tensor, Mask] | None = None,
) -> Float[Tensor, "*N D"]:
    """Return `x` after a layer of the encoder, or of the decoder, which has a source."""
    x = _add(layers, layer, 0, x, lambda y: _attend_to_self(layers, layer, y, mask, packing, past))
    if source is not None:
        x = _add(layers, layer, 1, x, lambda y: _attend_to_source(layers, layer, y, *source))
    return _add(layers, layer, -1, x, lambda y: _feed_forward(layers, layer, y))


def _add(
    layers: Layers, layer: Layer, number: int, x: Float[Tensor, "*N D"], sublayer: Function
) -> Float[Tensor, "*N D"]:
    """Return `x` with a sub-layer added: x + f(norm(x)) with pre-norm, else norm(x + f(x))."""
    norm, dropout = layer.norms[number], layers.dropout
    found = sublayer(norm(x) if layer.norm_first else x)
    x = dropout.add(x, found) if layers.is_cpu_training else x + dropout.drop(found)
    return x if layer.norm_first else norm(x)


def _feed_forward(layers: Layers, layer: Layer, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    hidden = layer.linear1(x)
    return layer.linear2(hidden if layers.is_cpu_training else layers.dropout.drop(hidden))


def _attend_to_self(
    layers: Layers,
    layer: Layer,
    x: Float[Tensor, "*N D"],
    mask: Mask,
    packing: "_Packing | None",
    past: Float[Tensor, "R L W"] | None,
) -> Float[Tensor, "*N D"]:
    """`past` has the keys and values up to this token; its own are written into the last place."""
    qkv = layer.self_qkv(x)
    if layers.is_cpu_training:
        rotation = layers.model.rotation
        positions = None if rotation is None else rotation(0, x.shape[1])
        query, key, value = split_heads(qkv, 3, layer.num_heads, positions)
        mixed = _attend_by_products(layers.dropout, query, key, value, mask)
        return layer.self_output(mixed.view(x.shape))
    if packing is not None:
        qkv = packing.unpack(qkv)
    rows, width = qkv.shape[0], x.shape[-1]  # not `len`: a constant in an export to ONNX
    query, key, value = _split_heads(qkv, 3, layer.num_heads, rows)
    if layers.model.rotation is not None:
        stop = key.shape[2] if past is None else past.shape[1]
        positions = layers.model.rotation(stop - key.shape[2], stop)
        query, key = rotate(query, positions), rotate(key, positions)
    if past is not None:
        past[:, -1] = qkv[:, width:]
        if layers.model.rotation is not None:
            past[:, -1, :width] = key.flatten(1)  # (R, H, 1, Dh) -> (R, D)
        key, value = _split_heads(past, 2, layer.num_heads, rows)
    mixed = _attend(layers.dropout, query, key, value, mask).reshape(*qkv.shape[:-1], width)
    return layer.self_output(mixed if packing is None else packing.pack(mixed))


def _attend_to_source(
    layers: Layers,
    layer: Layer,
    x: Float[Tensor, "*R D"],
    source: Float[Tensor, "N S W"] | Float[Tensor, "two N H S Dh"],
    mask: Mask,
) -> Float[Tensor, "*R D"]:
    """All rows of a source attend to it together, as if they were one row."""
    assert layer.cross is not None
    query = layer.cross.query(x)
    if layers.is_cpu_training:
        [query] = split_heads(query, 1, layer.num_heads)
        key, value = split_heads(source, 2, layer.num_heads)
        mixed = _attend_by_products(layers.dropout, query, key, value, mask)
    else:
        if source.ndim == 3:
            key, value = _split_heads(source, 2, layer.num_heads, source.shape[0])
        else:
            key, value = source.unbind(0)
        [query] = _split_heads(query, 1, layer.num_heads, key.shape[0])
        mixed = _attend(layers.dropout, query, key, value, mask)
    return layer.cross.output(mixed.reshape(x.shape))  # (N, L, H, Dh) -> (R, T, D)


def _attend(
    dropout: Dropout,
    query: Float[Tensor, "N H L Dh"],
    key: Float[Tensor, "N H S Dh"],
    value: Float[Tensor, "N H S Dh"],
    mask: Mask,
) -> Float[Tensor, "N L H Dh"]:
    """Return the mean of the values, weighted by attention."""
    bias = None if mask.is_causal else mask.bias  # the fastest kernels take is_causal only
    mixed = F.scaled_dot_product_attention(
        query, key, value, bias, dropout_p=dropout.p, is_causal=mask.is_causal
    )
    return mixed.transpose(1, 2)


def _attend_by_products(
    dropout: Dropout,
    query: Float[Tensor, "N H L Dh"],
    key: Float[Tensor, "N H K Dh"],
    value: Float[Tensor, "N H K Dh"],
    mask: Mask,
) -> Float[Tensor, "N L H Dh"]:
    """Return what `_attend` does, given parts of `split_heads`; the dropout is a mask only."""
    if dropout.p == 0.0 and query.shape[:3].numel() * key.shape[2] > _MAX_SCORES:
        mixed = F.scaled_dot_product_attention(query, key, value, mask.bias, scale=1.0)
    else:
        scores = query @ key.transpose(-1, -2)  # (N, H, L, K)
        if mask.bias is not None:
            scores += mask.bias
        wide = torch.promote_types(scores.dtype, torch.float32)
        # A copy in any case: the backward pass of softmax reads its result.
        weights = scores.softmax(dim=-1, dtype=wide).to(scores.dtype, copy=True)
        mixed = dropout.mask_(weights) @ value
    return mixed.transpose(1, 2).contiguous()


def _split_heads(
    x: Float[Tensor, "*N W"], count: int, num_heads: int, rows: int
) -> tuple[Float[Tensor, "N H L Dh"], ...]:
    """Return the `count` parts of `x` (query, key, value) by head, in `rows` rows; no copy."""
    width = x.shape[-1] // (count * num_heads)
    if count == 1:
        return (x.view(rows, -1, num_heads, width).transpose(1, 2),)
    by_head = x.view(rows, -1, count, num_heads, width)
    return by_head.permute(2, 0, 3, 1, 4).unbind(0)  # (N, L, count, H, Dh) -> count x (N, H, L, Dh)


class _Packing:
    """Converts between a padded batch, (B, S, W), and its tokens without padding, (P, W)."""

    def __init__(self, is_token: Bool[Tensor, "B S"]) -> None:
        self._shape = is_token.shape
        flat = is_token.flatten()
        self._places = flat.nonzero()[:, 0]
        # Padding gets the values of some token: finite, and never attended to.
        self._origins = (flat.cumsum(0) - 1).clamp_(min=0)

    def pack(self, x: Float[Tensor, "B S W"]) -> Float[Tensor, "P W"]:
        """Leave the padding out."""
        return x.flatten(0, 1).index_select(0, self._places)

    def unpack(self, x: Float[Tensor, "P W"]) -> Float[Tensor, "B S W"]:
        """Put the padding back."""
        return x.index_select(0, self._origins).view(*self._shape, -1)


def _make_mask(layers: Layers, may_attend: Bool[Tensor, "..."], *, is_causal: bool = False) -> Mask:
    if layers.is_cpu_training:
        may_attend = pad_keys(may_attend)
    # On a GPU, `all` would stall training.
    may_ask = layers.is_inference or may_attend.device.type == "cpu"
    if may_ask and bool(may_attend.all()):
        return Mask(None, is_causal)
    bias = torch.zeros_like(may_attend, dtype=layers.weights.dtype)
    return Mask(bias.masked_fill_(~may_attend, -torch.inf), is_causal)


def _make_layer(weights: Weights, layer: nn.Module, masked: Dropout | None) -> Layer:
    """`masked`: dropout without a scale, after the activation; None: there is none."""
    assert isinstance(layer, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
    own, cross, norms = layer.self_attn, None, [layer.norm1, layer.norm2]
    if isinstance(layer, nn.TransformerDecoderLayer):
        other, width = layer.multihead_attn, layer.self_attn.embed_dim
        (query_weight, kv_weight), (query_bias, kv_bias) = (
            torch.split(weights.matmul_weight(parameter), [width, 2 * width])
            for parameter in (other.in_proj_weight, other.in_proj_bias)
        )
        norms.append(layer.norm3)
        cross = CrossAttention(
            query=weights.linear(query_weight, query_bias),
            key_value=weights.linear(kv_weight, kv_bias),
            output=_make_linear(weights, other.out_proj),
        )
    activation = layer.activation
    if masked is not None:
        activation = masked.relu if activation is F.relu else partial(_activate, activation, masked)
    return Layer(
        norm_first=layer.norm_first,
        num_heads=own.num_heads,
        norms=tuple(_make_norm(weights, norm) for norm in norms),
        self_qkv=weights.linear(
            weights.matmul_weight(own.in_proj_weight), weights.matmul_weight(own.in_proj_bias)
        ),
        self_output=_make_linear(weights, own.out_proj),
        cross=cross,
        linear1=_make_linear(weights, layer.linear1, activation),
        linear2=_make_linear(weights, layer.linear2),
    )


def _activate(activation: Function, masked: Dropout, x: Float[Tensor, "*N W"]) -> Tensor:
    return masked.mask_(activation(x))


def _make_linear(
    weights: Weights, linear: nn.Linear, activation: Function | None = None
) -> Function:
    weight, bias = weights.matmul_weight(linear.weight), weights.matmul_weight(linear.bias)
    return weights.linear(weight, bias, activation)


def _make_norm(weights: Weights, norm: nn.Module | None) -> Function:
    assert isinstance(norm, nn.LayerNorm)
    shape, eps = norm.normalized_shape, norm.eps
    weight, bias = weights.norm_weight(norm.weight), weights.norm_weight(norm.bias)
    return lambda x: F.layer_norm(x, shape, weight, bias, eps)
