"""The training path: the function of `Transformer`, from the same parameters, in less time.

What differs is how: one product for queries, keys and values; attention by plain products where
sequences are short (the backward of torch's flash attention for the CPU is slow there); dropout
with cheap random bits; products in the dtype of autocast, with each weight cast once.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from dragoman.model.transformer import LearnedPositions, Memory, Transformer

# Above so many scores, they are not held in memory: torch's fused attention takes over, which is
# slower here (1.2 to 1.3 times the processor time at 300 to 2,000 tokens, torch 2.13).
_MOST_PLAIN_SCORES = 2**22


@runtime_checkable
class Operands(Protocol):
    """Gives the parameters to a computation."""

    dtype: torch.dtype  # of the products

    def factor(self, parameter: Tensor) -> Tensor:
        """Return it in the dtype of the products."""
        ...

    def plain(self, parameter: Tensor) -> Tensor:
        """Return it in its own dtype."""
        ...

    def rows(self, table: Tensor, ids: Int[Tensor, "*L"]) -> Float[Tensor, "*L D"]:
        """Return the rows `ids` of an embedding."""
        ...


class Parameters:
    """The parameters themselves."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._cast: dict[Tensor, Tensor] = {}

    def factor(self, parameter: Tensor) -> Tensor:
        """Return it in the dtype of the products."""
        if parameter not in self._cast:
            self._cast[parameter] = parameter.to(self.dtype)
        return self._cast[parameter]

    def plain(self, parameter: Tensor) -> Tensor:
        """Return it as it is."""
        return parameter

    def rows(self, table: Tensor, ids: Int[Tensor, "*L"]) -> Float[Tensor, "*L D"]:
        """Return the rows `ids` of an embedding."""
        return F.embedding(ids, table)


class DropoutSource:
    """Drops elements with probability `p`; the random bits follow from torch's generator.

    One is made for each batch: it draws a single seed from torch's global generator, so whoever
    restores that generator's state gets the same masks again.
    """

    def __init__(self, p: float) -> None:
        self.p = p
        # 15 bits: the probability is met to within 2e-5, and the sum below cannot overflow.
        self._threshold = round(p * 2**15)
        self._bits = np.random.SFC64(int(torch.randint(2**62, ()))) if p > 0.0 else None

    def drop(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return `x` with elements dropped, and the rest scaled so that the mean stays."""
        if self._bits is None:
            return x
        if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float32):
            return F.dropout(x, self.p)
        dropped: Tensor = _Drop.apply(  # type: ignore[no-untyped-call]
            x, self._draw_keep(x.shape), 1 / (1 - self._threshold / 2**15)
        )
        return dropped

    def _draw_keep(self, shape: torch.Size) -> Tensor:
        """Return int16 words: all bits set where an element is kept, none where it is dropped."""
        assert self._bits is not None
        count = shape.numel()
        words = torch.from_numpy(self._bits.random_raw(-(-count // 4)).view(np.int16))[:count]
        # The sign of (15 random bits - threshold), spread over the word: set where it is dropped.
        words.bitwise_and_(0x7FFF).sub_(self._threshold).bitwise_right_shift_(15).bitwise_not_()
        return words.view(shape)


class _Drop(torch.autograd.Function):
    """x * scale where `keep` is set, else 0; the same for the gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.keep, ctx.scale = keep, scale  # type: ignore[attr-defined]
        return _mask(x, keep, scale)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _mask(grads[0], ctx.keep, ctx.scale), None, None  # type: ignore[attr-defined]


def _mask(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    scaled = x * scale
    words = torch.int16 if x.dtype == torch.bfloat16 else torch.int32
    scaled.view(words).bitwise_and_(keep.to(words))
    return scaled


def compute_states(
    model: Transformer, source_ids: Int[Tensor, "B S"], target_ids: Int[Tensor, "B T"]
) -> Float[Tensor, "B T D"]:
    """Return `model.decode_states(target_ids, model.encode(source_ids))`.

    The products have the dtype of the autocast around it, if there is one, and so have the scores
    of the attention; the residual stream and the norms are float32.
    """
    operands = Parameters(find_dtype(model))
    with torch.autocast(source_ids.device.type, enabled=False):
        return FastPass(model, operands, draw_dropout(model)).compute(source_ids, target_ids)


def find_dtype(model: Transformer) -> torch.dtype:
    """Return the dtype of products: that of the autocast around it, or of the parameters."""
    weight = model.target_embedding.weight
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def draw_dropout(model: Transformer) -> DropoutSource:
    """Return the dropout of one pass; in evaluation, one that drops nothing."""
    return DropoutSource(model.dropout.p if model.training else 0.0)


class FastPass:
    """One pass over one batch: the model, its parameters as operands, and its dropout."""

    def __init__(self, model: Transformer, operands: Operands, dropout: DropoutSource) -> None:
        self.model, self.operands = model, operands
        self.dtype, self.drop = operands.dtype, dropout.drop

    def compute(
        self, source_ids: Int[Tensor, "B S"], target_ids: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T D"]:
        """Return the decoder's states."""
        return self.decode(target_ids, self.encode(source_ids))

    def encode(self, source_ids: Int[Tensor, "B S"]) -> Memory:
        """Return what `Transformer.encode` does."""
        model, is_token = self.model, self.model.find_tokens(source_ids)
        x = self.embed(source_ids, model.source_embedding, model.source_positions)
        mask = _Mask.of(is_token[:, None, None, :], self.dtype)
        for layer in model.transformer.encoder.layers:
            assert isinstance(layer, nn.TransformerEncoderLayer)
            x = self.add_to_self(layer.self_attn, layer.norm1, x, mask, layer.norm_first)
            x = self.add_feed_forward(layer, layer.norm2, x)
        return Memory(states=self.norm(model.transformer.encoder.norm, x), is_token=is_token)

    def decode(self, target_ids: Int[Tensor, "B T"], memory: Memory) -> Float[Tensor, "B T D"]:
        """Return what `Transformer.decode_states` does."""
        model, length = self.model, target_ids.shape[1]
        x = self.embed(target_ids, model.target_embedding, model.target_positions)
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        target_mask = _Mask.of(causal[None, None], self.dtype, is_causal=True)
        source_mask = _Mask.of(memory.is_token[:, None, None, :], self.dtype)
        states = memory.states.to(self.dtype)
        for layer in model.transformer.decoder.layers:
            assert isinstance(layer, nn.TransformerDecoderLayer)
            x = self.add_to_self(layer.self_attn, layer.norm1, x, target_mask, layer.norm_first)
            x = self.add_to_source(layer, x, states, source_mask)
            x = self.add_feed_forward(layer, layer.norm3, x)
        return self.norm(model.transformer.decoder.norm, x)

    def embed(
        self, ids: Int[Tensor, "B L"], embedding: nn.Embedding, positions: nn.Module
    ) -> Float[Tensor, "B L D"]:
        """Return what `Transformer.embed` does."""
        scaled = self.operands.rows(embedding.weight, ids) * math.sqrt(self.model.d_model)
        places: Tensor = positions(0, ids.shape[1])
        if isinstance(positions, LearnedPositions):
            numbers = torch.arange(ids.shape[1], device=ids.device)
            places = self.operands.rows(positions.weight, numbers)
        return self.drop(scaled + places)

    def add_to_self(
        self,
        attention: nn.MultiheadAttention,
        norm: nn.LayerNorm,
        x: Float[Tensor, "B L D"],
        mask: "_Mask",
        norm_first: bool,
    ) -> Float[Tensor, "B L D"]:
        """Return `x` with attention to itself added: x + f(norm(x)), or norm(x + f(x))."""
        given = self.norm(norm, x) if norm_first else x
        qkv = self.linear(given, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = _by_head(qkv, 3, attention.num_heads)
        added = x + self.drop(self.attend(attention, query, key, value, mask))
        return added if norm_first else self.norm(norm, added)

    def add_to_source(
        self,
        layer: nn.TransformerDecoderLayer,
        x: Float[Tensor, "B T D"],
        states: Float[Tensor, "B S D"],
        mask: "_Mask",
    ) -> Float[Tensor, "B T D"]:
        """Return `x` with attention to the source added."""
        attention, width = layer.multihead_attn, self.model.d_model
        weight, in_bias = (
            torch.split(self.operands.factor(parameter), [width, 2 * width])
            for parameter in (attention.in_proj_weight, attention.in_proj_bias)
        )
        given = self.norm(layer.norm2, x) if layer.norm_first else x
        query = F.linear(given.to(self.dtype), weight[0], in_bias[0])
        [query] = _by_head(query, 1, attention.num_heads)
        key, value = _by_head(F.linear(states, weight[1], in_bias[1]), 2, attention.num_heads)
        added = x + self.drop(self.attend(attention, query, key, value, mask))
        return added if layer.norm_first else self.norm(layer.norm2, added)

    def add_feed_forward(
        self,
        layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer,
        norm: nn.LayerNorm,
        x: Float[Tensor, "B L D"],
    ) -> Float[Tensor, "B L D"]:
        """Return `x` with the feed-forward block added."""
        given = self.norm(norm, x) if layer.norm_first else x
        hidden = self.linear(given, layer.linear1.weight, layer.linear1.bias)
        hidden = self.drop(layer.activation(hidden))
        added = x + self.drop(self.linear(hidden, layer.linear2.weight, layer.linear2.bias))
        return added if layer.norm_first else self.norm(norm, added)

    def attend(
        self,
        attention: nn.MultiheadAttention,
        query: Float[Tensor, "B H T Dh"],
        key: Float[Tensor, "B H S Dh"],
        value: Float[Tensor, "B H S Dh"],
        mask: "_Mask",
    ) -> Float[Tensor, "B T D"]:
        """Return the mixed values, through the output projection."""
        p = self.model.dropout.p if self.model.training else 0.0
        if not _is_plain(query, key, p):
            bias = None if mask.is_causal else mask.bias  # causal alone, its quickest kernels serve
            mixed = F.scaled_dot_product_attention(
                query, key, value, bias, dropout_p=p, is_causal=mask.is_causal
            )
        else:
            scores = (query * (query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)  # (B, H, T, S)
            if mask.bias is not None:
                scores = scores + mask.bias
            mixed = self.drop(scores.softmax(dim=-1)) @ value
        joined = mixed.transpose(1, 2).flatten(2)  # (B, H, T, Dh) -> (B, T, D)
        return self.linear(joined, attention.out_proj.weight, attention.out_proj.bias)

    def linear(
        self, x: Float[Tensor, "B L I"], weight: Tensor, bias: Tensor
    ) -> Float[Tensor, "B L O"]:
        """Return x @ weight.T + bias, in the dtype of the products."""
        return F.linear(x.to(self.dtype), self.operands.factor(weight), self.operands.factor(bias))

    def norm(self, norm: nn.LayerNorm, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Return the layer norm of `x`, in float32."""
        weight, bias = self.operands.plain(norm.weight), self.operands.plain(norm.bias)
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


@dataclass(frozen=True)
class _Mask:
    """Where attention may go: 0 where it may, -inf elsewhere; None: everywhere."""

    bias: Float[Tensor, "..."] | None
    is_causal: bool

    @classmethod
    def of(
        cls, may_attend: Bool[Tensor, "..."], dtype: torch.dtype, *, is_causal: bool = False
    ) -> "_Mask":
        """Return the mask; `is_causal` says that it is so, and nothing else."""
        if may_attend.device.type == "cpu" and bool(may_attend.all()):
            return cls(None, is_causal)  # not asked on a GPU: the answer would be waited for
        bias = torch.zeros_like(may_attend, dtype=dtype).masked_fill_(~may_attend, -torch.inf)
        return cls(bias, is_causal)


def _is_plain(
    query: Float[Tensor, "B H T Dh"], key: Float[Tensor, "B H S Dh"], dropout: float
) -> bool:
    """Whether attention is computed by plain products: on the CPU, where the scores are not too many.

    With dropout, torch has nothing better there: it holds the scores too, and draws a slow random
    number for each.
    """
    num_scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    return query.device.type == "cpu" and (dropout > 0.0 or num_scores <= _MOST_PLAIN_SCORES)


def _by_head(
    projected: Float[Tensor, "B L N"], parts: int, num_heads: int
) -> tuple[Float[Tensor, "B H L Dh"], ...]:
    """Return the parts (query, key, value) of a projection, each by head."""
    by_head = projected.view(*projected.shape[:2], parts, num_heads, -1)  # (B, L, N, H, Dh)
    return by_head.permute(2, 0, 3, 1, 4).unbind(0)  # N x (B, H, L, Dh)
