"""The encoder at inference: the function of `Transformer.encode`, without work for padding.

The tokens of a batch stand one behind the other, (P, D), but in the attention, which pads them.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dragoman.model.prepared import Prepared, PreparedLayer, split_heads
from dragoman.model.transformer import Memory


def encode(prepared: Prepared, source_ids: Int[Tensor, "B S"]) -> Memory:
    """Return the states of the sources; those at padding are of no use, and of no sense."""
    model = prepared.model
    is_token = model.find_tokens(source_ids)
    packing = _Packing(is_token)
    x = model.embed(source_ids, model.source_embedding, model.source_positions)
    x = packing.pack(x)
    for layer in prepared.encoder:
        first, second = layer.norms
        if layer.norm_first:
            x = x + _attend(layer, first(x), packing)
            x = x + layer.narrow(layer.widen(second(x)))
        else:
            x = first(x + _attend(layer, x, packing))
            x = second(x + layer.narrow(layer.widen(x)))
    return Memory(states=packing.unpack(model.transformer.encoder.norm(x)), is_token=is_token)


class _Packing:
    """Where the tokens of a padded batch stand."""

    def __init__(self, is_token: Bool[Tensor, "B S"]) -> None:
        self._shape = is_token.shape
        self.may_attend: Bool[Tensor, "B 1 1 S"] | None = None  # None: there is no padding
        if not bool(is_token.all()):
            flat = is_token.flatten()
            self._places = flat.nonzero()[:, 0]
            # At padding stands any token: its states are finite, which is all that matters there.
            self._origins = (flat.cumsum(0) - 1).clamp_(min=0)
            self.may_attend = is_token[:, None, None, :]

    def pack(self, x: Float[Tensor, "B S W"]) -> Float[Tensor, "P W"]:
        """Return the tokens of a padded batch."""
        flat = x.flatten(0, 1)
        return flat if self.may_attend is None else flat.index_select(0, self._places)

    def unpack(self, x: Float[Tensor, "P W"]) -> Float[Tensor, "B S W"]:
        """Return the padded batch of the tokens."""
        padded = x if self.may_attend is None else x.index_select(0, self._origins)
        return padded.view(*self._shape, -1)


def _attend(
    layer: PreparedLayer, x: Float[Tensor, "P D"], packing: _Packing
) -> Float[Tensor, "P D"]:
    query, key, value = packing.unpack(layer.own(x)).chunk(3, dim=-1)
    mixed = F.scaled_dot_product_attention(
        split_heads(query, layer.num_heads),
        split_heads(key, layer.num_heads),
        split_heads(value, layer.num_heads),
        attn_mask=packing.may_attend,
    )
    joined = mixed.transpose(1, 2).flatten(2)  # (B, H, S, D/H) -> (B, S, D)
    return layer.own_output(packing.pack(joined))
