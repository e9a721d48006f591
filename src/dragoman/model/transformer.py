"""The reference model: embeddings, positions, a stock `torch.nn.Transformer`, a projection.

Masks are boolean and True means "attend"; they are inverted at the call to torch, whose convention
is the opposite. The faster code in block.py computes the same function from the same parameters; it
is tested against this file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dragoman.errors import DataError, DragomanError, SettingsError

if TYPE_CHECKING:
    from dragoman.decoding.hypothesis import Hypothesis


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The encoder's output: its states, and which of them are tokens (not padding)."""

    states: Float[Tensor, "B S D"]
    is_token: Bool[Tensor, "B S"]


class Transformer(nn.Module):
    """An encoder-decoder Transformer from ids to logits; `transformer` is the stock module.

    Args:
        vocab_size: Ids of the source; also of the target, unless `target_vocab_size` is given.
        d_model: Width; a multiple of `nhead`.
        num_layers: Encoder layers; also decoder layers, unless `num_decoder_layers` is given.
        max_seq_len: Number of learned positions (others are unlimited), and the longest output of
            `generate`.
        target_vocab_size: None: source and target share one vocabulary, and one embedding if tied.
        norm_first: Pre-norm, which is more stable in deep models. Source: Xiong et al. 2020.
        positions: Added to the embeddings (sinusoidal, learned), or rotary: queries and keys of
            self-attention are rotated by angles that grow with the position. Source: Su et al. 2021.
        tie_embeddings: One matrix for the target's embedding and the output (and for the source's
            embedding, with a shared vocabulary); None: tied if the vocabulary is shared.
            Source: Press and Wolf 2017.
        never_emitted: Ids that no output has, such as that of unknown tokens, besides `pad_id` and
            `bos_id`.

    Sequences are padded on the right with `pad_id`. Matrices are rounded up to a multiple of 8 rows
    for speed, but logits have only a column for each id of the vocabulary.

    Raises: SettingsError, when the sizes do not fit together.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 256,
        nhead: int = 4,
        num_layers: int = 3,
        dim_feedforward: int = 1024,
        max_seq_len: int = 1024,
        dropout: float = 0.1,
        *,
        target_vocab_size: int | None = None,
        num_decoder_layers: int | None = None,
        activation: Literal["relu", "gelu"] = "relu",
        norm_first: bool = True,
        positions: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal",
        tie_embeddings: bool | None = None,
        pad_id: int = 0,
        bos_id: int = 1,
        eos_id: int = 2,
        never_emitted: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if d_model % nhead:
            raise SettingsError(
                f"d_model {d_model} is not a multiple of nhead {nhead}: heads have equal widths; "
                f"use nhead {math.gcd(d_model, nhead)}, or d_model {-(-d_model // nhead) * nhead}"
            )
        if positions == "rotary" and d_model // nhead % 2:
            raise SettingsError(
                f"d_model {d_model} over nhead {nhead} gives heads of width {d_model // nhead}: rotary "
                "positions rotate pairs of values, so it must be even"
            )
        is_shared = target_vocab_size is None
        self.is_tied = is_shared if tie_embeddings is None else tie_embeddings
        self.source_vocab_size = vocab_size
        self.target_vocab_size = vocab_size if target_vocab_size is None else target_vocab_size
        self.d_model, self.nhead, self.max_seq_len = d_model, nhead, max_seq_len
        self.pad_id, self.bos_id, self.eos_id = pad_id, bos_id, eos_id
        self.never_emitted = tuple(dict.fromkeys((pad_id, bos_id, *never_emitted)))
        ids = (pad_id, bos_id, eos_id)
        if len(set(ids)) < 3 or not all(0 <= i < self.target_vocab_size for i in ids):
            raise SettingsError(
                f"pad_id, bos_id and eos_id are {pad_id}, {bos_id} and {eos_id}: they must be "
                f"different ids below the target's vocabulary size, {self.target_vocab_size}"
            )

        self.transformer = _stock_transformer(
            d_model, nhead, (num_layers, num_decoder_layers or num_layers), dim_feedforward,
            dropout, activation, norm_first,
        )  # fmt: skip
        self.target_embedding = _embedding(self.target_vocab_size, d_model)
        self.source_embedding = (
            self.target_embedding if is_shared and self.is_tied else _embedding(vocab_size, d_model)
        )
        self.output: nn.Linear | None = None
        if not self.is_tied:
            self.output = nn.Linear(d_model, _round_up(self.target_vocab_size))
            nn.init.normal_(self.output.weight, std=d_model**-0.5)
            nn.init.zeros_(self.output.bias)
        self.source_positions, self.target_positions, self.rotation = None, None, None
        if positions == "rotary":
            self.rotation = SinusoidalPositions(d_model // nhead)
            for layer in (*self.transformer.encoder.layers, *self.transformer.decoder.layers):
                layer.self_attn = _RotaryAttention(d_model, nhead, dropout, self.rotation)
        else:
            self.source_positions, self.target_positions = (
                LearnedPositions(d_model, max_seq_len)
                if positions == "learned"
                else SinusoidalPositions(d_model)
                for _ in ("source", "target")
            )
        self.dropout = nn.Dropout(dropout)

    def encode(self, source_ids: Int[Tensor, "B S"]) -> Memory:
        """Return the encoder's states of the sources."""
        is_token = self.find_tokens(source_ids)
        states = self.transformer.encoder(
            self.embed(source_ids, self.source_embedding, self.source_positions),
            src_key_padding_mask=~is_token,
        )
        return Memory(states=states, is_token=is_token)

    def find_tokens(self, source_ids: Int[Tensor, "B S"]) -> Bool[Tensor, "B S"]:
        """Return which of `source_ids` are attended to: all but padding.

        A row with only padding attends to its first position: a softmax over nothing is NaN.
        """
        is_token = source_ids != self.pad_id
        is_empty = ~is_token.any(dim=1, keepdim=True)
        return is_token | (
            is_empty & (torch.arange(is_token.shape[1], device=is_token.device) == 0)
        )

    def decode_states(
        self, target_ids: Int[Tensor, "B T"], memory: Memory
    ) -> Float[Tensor, "B T D"]:
        """Return the decoder's states; the state at t depends on the source and on targets up to t.

        The target needs no padding mask: padding comes after the tokens, so causality hides it.
        """
        length = target_ids.shape[1]
        may_attend = torch.ones(length, length, dtype=torch.bool, device=target_ids.device).tril()
        states: Tensor = self.transformer.decoder(
            self.embed(target_ids, self.target_embedding, self.target_positions),
            memory.states,
            tgt_mask=~may_attend,
            tgt_is_causal=True,
            memory_key_padding_mask=~memory.is_token,
        )
        return states

    def project(self, states: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """Return the logits of `states` over the target's vocabulary."""
        if self.output is None:
            logits = F.linear(states, self.target_embedding.weight)
        else:
            logits = self.output(states)
        return logits[..., : self.target_vocab_size]  # without the rows that round up

    def decode(self, target_ids: Int[Tensor, "B T"], memory: Memory) -> Float[Tensor, "B T V"]:
        """Return the logits of the token after each of `target_ids`."""
        return self.project(self.decode_states(target_ids, memory))

    def forward(
        self, source_ids: Int[Tensor, "B S"], target_ids: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T V"]:
        """Return the logits of the token after each of `target_ids`, which start with `bos_id`."""
        source_ids = self.check_ids(source_ids, "source")
        return self.decode(self.check_ids(target_ids, "target"), self.encode(source_ids))

    def check_ids(self, ids: Tensor, side: Literal["source", "target"]) -> Int[Tensor, "B L"]:
        """Return the ids of one side as int64; sources of no length become one padding token.

        The training of `fit` and the engines need no check: their ids are those of a tokenizer.

        Raises: DataError, when they are not whole numbers in rows, or not in the vocabulary.
        """
        if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
            raise DataError(
                f"{side}_ids: expected whole numbers in a tensor of rows, (rows, length), found "
                f"{str(ids.dtype).removeprefix('torch.')} in one of shape {tuple(ids.shape)}"
            )
        if side == "source" and ids.shape[1] == 0:
            ids = F.pad(ids, (0, 1), value=self.pad_id)
        vocab_size = self.source_vocab_size if side == "source" else self.target_vocab_size
        low, high = 0, 0
        if ids.numel() and not torch.compiler.is_compiling():  # which has no values
            low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= vocab_size:
            raise DataError(
                f"{side}_ids: found id {low if low < 0 else high}, and the vocabulary has 0 to "
                f"{vocab_size - 1}: vocab_size or target_vocab_size is too small, or these are ids "
                "of another tokenizer"
            )
        return ids.long()

    def generate(
        self, source_ids: Int[Tensor, "B S"], max_length: int | None = None, beam_size: int = 1
    ) -> list[list[int]]:
        """Return the best output of each source, without `bos_id` and `eos_id`.

        Args:
            max_length: Most tokens of an output, its end included; None: `max_seq_len`.
            beam_size: 1: greedy search.
        """
        # Imports inside the functions: decoding imports the model.
        from dragoman.decoding.search import search
        from dragoman.decoding.search_config import SearchConfig
        from dragoman.settings import DecodingSettings

        decoding = DecodingSettings(
            max_length_ratio=0.0,
            max_length_extra=max_length or self.max_seq_len,
            beam_size=beam_size,
        )
        source_ids = self.check_ids(source_ids, "source")
        found = search([self], source_ids, SearchConfig(decoding=decoding))
        return [list(best_first[0].ids) for best_first in found]

    def score(
        self, source_ids: Int[Tensor, "B S"], target_ids: Int[Tensor, "B T"]
    ) -> "list[Hypothesis]":
        """Return the log-probability of each target given its source, in total and by token.

        `target_ids`: as in training: `bos_id`, tokens, `eos_id`, padding.
        """
        from dragoman.decoding.search import score_targets
        from dragoman.settings import DecodingSettings

        special = {self.pad_id, self.bos_id, self.eos_id}
        source_ids = self.check_ids(source_ids, "source")
        target_ids = self.check_ids(target_ids, "target")
        targets = [[i for i in row if i not in special] for row in target_ids.tolist()]
        return score_targets([self], source_ids, targets, DecodingSettings())

    @property
    def longest_target(self) -> int | None:
        """The number of learned target positions; None: unlimited."""
        positions = self.target_positions
        return len(positions.weight) if isinstance(positions, LearnedPositions) else None

    def embed(
        self,
        ids: Int[Tensor, "B L"],
        embedding: nn.Embedding,
        positions: nn.Module | None,
    ) -> Float[Tensor, "B L D"]:
        """Return the scaled embeddings of `ids`, plus the positions, if any."""
        states = embedding(ids) * math.sqrt(self.d_model)
        if positions is not None:
            states = states + positions(0, ids.shape[1])
        dropped: Tensor = self.dropout(states)
        return dropped


def _stock_transformer(
    d_model: int,
    nhead: int,
    num_layers: tuple[int, int],
    dim_feedforward: int,
    dropout: float,
    activation: str,
    norm_first: bool,
) -> nn.Transformer:
    """Return an `nn.Transformer` whose encoder uses no nested tensors.

    They change shapes and results (pytorch 86120), and warn with pre-norm.
    """
    layer = (d_model, nhead, dim_feedforward, dropout, activation)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(*layer, batch_first=True, norm_first=norm_first),
        num_layers[0],
        nn.LayerNorm(d_model),
        enable_nested_tensor=False,
    )
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(*layer, batch_first=True, norm_first=norm_first),
        num_layers[1],
        nn.LayerNorm(d_model),
    )
    return nn.Transformer(
        d_model, nhead, custom_encoder=encoder, custom_decoder=decoder, batch_first=True
    )


class _RotaryAttention(nn.MultiheadAttention):
    """Self-attention of a stock layer, with rotary positions; the same parameters."""

    def __init__(
        self, d_model: int, nhead: int, dropout: float, rotation: "SinusoidalPositions"
    ) -> None:
        super().__init__(d_model, nhead, dropout, batch_first=True)
        self.rotation = rotation
        self._qkv_same_embed_dim = False  # the stock layer then calls `forward`, in evaluation too

    def forward(  # type: ignore[override]
        self,
        query: Float[Tensor, "B L D"],
        key: Float[Tensor, "B L D"],
        value: Float[Tensor, "B L D"],
        key_padding_mask: Float[Tensor, "B L"] | None = None,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "B L D"], None]:
        """Return the attention of `query` to itself; masks are biases."""
        assert query is key is value
        rows, length, width = query.shape
        qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        by_head = qkv.view(rows, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        positions = self.rotation(0, length)
        bias = None if is_causal else attn_mask
        if key_padding_mask is not None:
            padding = key_padding_mask[:, None, None]  # (B, L) -> (B, 1, 1, L)
            bias = padding if bias is None else padding + bias
        mixed = F.scaled_dot_product_attention(
            rotate(by_head[0], positions),
            rotate(by_head[1], positions),
            by_head[2],
            bias,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
        )
        return self.out_proj(mixed.transpose(1, 2).reshape(rows, length, width)), None


def rotate(
    x: Float[Tensor, "N H L Dh"], positions: Float[Tensor, "L Dh"]
) -> Float[Tensor, "N H L Dh"]:
    """Return `x` rotated: value i of each head with value i + Dh / 2, by the angle of `positions`.

    A score of two rotated vectors depends on the distance of their positions only.

    `positions`: sines and cosines interleaved, as `sinusoidal_positions` gives them.
    """
    sine, cosine = positions[:, 0::2].to(x.dtype), positions[:, 1::2].to(x.dtype)  # (L, Dh / 2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def _embedding(vocab_size: int, d_model: int) -> nn.Embedding:
    embedding = nn.Embedding(_round_up(vocab_size), d_model)
    # With the scale sqrt(d_model) of `embed`, inputs have unit variance; so have logits, if tied.
    nn.init.normal_(embedding.weight, std=d_model**-0.5)
    return embedding


def _round_up(vocab_size: int) -> int:
    return -(-vocab_size // 8) * 8


def sinusoidal_positions(start: int, stop: int, d_model: int) -> Float[Tensor, "L D"]:
    """Return the encodings of positions `start` to `stop` - 1, sines and cosines interleaved.

    Source: Vaswani et al. 2017, section 3.5.
    """
    position = torch.arange(start, stop, dtype=torch.float32)[:, None]
    even = torch.arange(0, d_model, 2, dtype=torch.float32)
    angle = position * torch.exp(even * (-math.log(10000.0) / d_model))  # (L, ceil(D/2))
    interleaved = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)
    return interleaved[:, :d_model]  # an odd d_model ends with a sine


class SinusoidalPositions(nn.Module):
    """Sinusoidal encodings: the first `length` from a table, later ones computed on demand."""

    def __init__(self, d_model: int, length: int = 1024) -> None:
        super().__init__()
        self.d_model = d_model
        self.table: Tensor
        # Not persistent, so that checkpoints do not depend on its length.
        self.register_buffer("table", sinusoidal_positions(0, length, d_model), persistent=False)

    def forward(self, start: int, stop: int) -> Float[Tensor, "L D"]:
        """Return the encodings of positions `start` to `stop` - 1."""
        if stop > len(self.table):
            return sinusoidal_positions(start, stop, self.d_model).to(self.table)
        return self.table[start:stop]


class LearnedPositions(nn.Module):
    """One learned vector per position; longer sequences are an error."""

    def __init__(self, d_model: int, length: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, d_model).normal_(std=0.02))

    def forward(self, start: int, stop: int) -> Float[Tensor, "L D"]:
        """Return the vectors of positions `start` to `stop` - 1.

        Raises: DragomanError, when `stop` is beyond the last learned position.
        """
        if stop > len(self.weight):
            raise DragomanError(
                f"a sequence of {stop} tokens is longer than the {len(self.weight)} learned "
                "positions: shorten it, or train with a larger model.max_positions or with "
                "model.positions sinusoidal, which is unlimited"
            )
        return self.weight[start:stop]
