"""What all contenders of training.py are given: pairs, sizes, batches; and the work that this is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_NEVER = 1_000_000_000  # updates: a turn ends long before


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the Transformer; as many layers in the decoder as in the encoder."""

    d_model: int = 256
    nhead: int = 4
    num_layers: int = 3  # of each side
    dim_feedforward: int = 1024
    dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """The lengths of pairs, summed over all: S of a source with its end, T of a target's labels.

    Labels are the tokens of the target and its end, without begin.
    """

    num_pairs: int
    source: int  # S
    target: int  # T
    source_squares: int  # S * S
    target_triangles: int  # T * (T + 1) / 2: a token attends to those up to itself
    products: int  # S * T


@dataclass(frozen=True, kw_only=True)
class Task:
    """On what, in what sizes, in what batches. One vocabulary, one embedding for all."""

    data: Path  # pairs, as `dragoman fit` takes them
    ids: Path  # those of its training split, ready made, for those who have no tokenizer
    folder: Path  # for logs and the like
    sizes: Sizes
    tokens: int  # target tokens that an update should have
    tokenizer: Literal["bpe", "symbols"] = "bpe"
    vocab_size: int = 8000  # of bpe
    max_tokens: int = 1024  # of the longest row

    def make_settings(self, device: str, precision: str, implementation: str) -> dict[str, Any]:
        """Return the settings of dragoman, as a config file has them; the rest is its default."""
        side: dict[str, Any] = {"kind": self.tokenizer}
        if self.tokenizer == "bpe":
            side["vocab_size"] = self.vocab_size
        return {
            "data": {"max_tokens": self.max_tokens, "max_characters": 20 * self.max_tokens},
            "tokenizer": {"source": side, "target": side, "shared": True},
            "model": {
                "d_model": self.sizes.d_model,
                "nhead": self.sizes.nhead,
                "num_encoder_layers": self.sizes.num_layers,
                "num_decoder_layers": self.sizes.num_layers,
                "dim_feedforward": self.sizes.dim_feedforward,
                "dropout": self.sizes.dropout,
                "tie_embeddings": True,
            },
            "training": {
                "batch_tokens": self.tokens,
                "accumulate": 1,
                "max_steps": _NEVER,
                "valid_every": _NEVER,
                "accelerator": device,
                "precision": precision,
                "implementation": implementation,
            },
        }


def count_flops(sizes: Sizes, vocab_size: int, lengths: Lengths) -> float:
    """Return the floating-point operations of a target token with its source, in training.

    Matrix products alone, and useful ones alone: none of padding, none for scores that the mask
    hides. A pair of S source tokens and T labels, with d = d_model, f = dim_feedforward, takes in
    multiplications going forward:

    - an encoder layer: S (4 d d + 2 d f), and for attention 2 S S d
    - a decoder layer: T (4 d d + 2 d d + 2 d f) for self-attention, query and output of
      cross-attention, feed-forward; S 2 d d for its keys and values; for attention
      2 d T (T + 1) / 2 to itself and 2 S T d to the source
    - the output: T d V

    Each is two operations, and comes three times: forward, the gradient of the input, the gradient
    of the weight (in attention: of both factors).
    """
    d, f = sizes.d_model, sizes.dim_feedforward
    encoder = lengths.source * (4 * d * d + 2 * d * f) + 2 * d * lengths.source_squares
    decoder = lengths.target * (6 * d * d + 2 * d * f) + lengths.source * 2 * d * d
    decoder += 2 * d * (lengths.target_triangles + lengths.products)
    output = lengths.target * d * vocab_size
    total = sizes.num_layers * (encoder + decoder) + output
    return 2 * 3 * total / lengths.target
