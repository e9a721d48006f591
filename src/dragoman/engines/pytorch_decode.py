"""Decode greedily with PyTorch alone, ids in, ids out: `python decode.py 4 5 6`."""

import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

folder = Path(__file__).parent
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
begin, end = config["bos_id"], config["eos_id"]
weights = load_file(folder / "embeddings.safetensors")


def compute_angles(length: int, width: int) -> torch.Tensor:
    """Return the angles of the sinusoidal and rotary positions: (L, D / 2)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.arange(length)[:, None] * rates


class RotaryAttention(torch.nn.MultiheadAttention):
    """Self-attention whose queries and keys are rotated by their positions; the same parameters."""

    def forward(  # type: ignore[override]
        self, states: torch.Tensor, *_: object, attn_mask: torch.Tensor | None = None, **__: object
    ) -> tuple[torch.Tensor, None]:
        """Return the attention of `states` (1, L, D) to themselves."""
        qkv = F.linear(states, self.in_proj_weight, self.in_proj_bias)
        by_head = qkv.view(1, len(states[0]), 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        angles = compute_angles(states.shape[1], by_head.shape[-1])
        first, second = by_head[:2].chunk(2, dim=-1)
        sine, cosine = angles.sin(), angles.cos()
        rotated = first * cosine - second * sine, second * cosine + first * sine
        queries, keys = torch.cat(rotated, dim=-1)
        mixed = F.scaled_dot_product_attention(queries, keys, by_head[2], attn_mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


transformer = torch.nn.Transformer(**config["transformer"], batch_first=True).eval()
if config["positions"] == "rotary":
    for layer in (*transformer.encoder.layers, *transformer.decoder.layers):
        width, heads = config["transformer"]["d_model"], config["transformer"]["nhead"]
        layer.self_attn = RotaryAttention(width, heads)
        layer.self_attn._qkv_same_embed_dim = False  # the stock layer then calls `forward`
transformer.load_state_dict(load_file(folder / "transformer.safetensors"))


def embed(ids: list[int], side: str) -> torch.Tensor:
    """Return the scaled embeddings of `ids`, with positions unless they are rotary: (1, L, D)."""
    width = config["transformer"]["d_model"]
    states = weights[f"{side}_embedding"][ids] * math.sqrt(width)
    if config["positions"] == "learned":
        states = states + weights[f"{side}_positions"][: len(ids)]
    if config["positions"] == "sinusoidal":
        angles = compute_angles(len(ids), width)
        states = states + torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :width]
    return states[None]


@torch.no_grad()
def score(source: list[int], target: list[int]) -> torch.Tensor:
    """Return the log-probabilities (T, V) of the token after each of `target`."""
    mask = torch.nn.Transformer.generate_square_subsequent_mask(len(target))
    states: torch.Tensor = transformer(
        embed(source, "source"), embed(target, "target"), tgt_mask=mask
    )[0]
    logits = states @ weights["output_weight"].T + weights["output_bias"]
    logits[:, config["never_emitted"]] = -torch.inf
    log_probs: torch.Tensor = logits.log_softmax(dim=-1)
    return log_probs


def decode(source: list[int], longest: int = 100) -> list[int]:
    """Return the output of a source, which ends with `end`; `longest` counts the output's end."""
    ids = [begin]
    while len(ids) <= longest and ids[-1] != end:
        ids.append(int(score(source, ids)[-1].argmax()))
    return ids[1:]


if __name__ == "__main__":
    print(*decode([*map(int, sys.argv[1:]), end]))
