"""Decode greedily with PyTorch alone, ids in, ids out: `python decode.py 4 5 6`."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

folder = Path(__file__).parent
config = json.loads((folder / "config.json").read_text("utf-8"))
weights, width = load_file(folder / "embeddings.safetensors"), config["transformer"]["d_model"]


def _turn(length: int, width: int) -> Tensor:  # cosines + i sines of the positions: (L, D / 2)
    angles = torch.arange(length)[:, None] * 10000 ** (torch.arange(0, width, 2) / -width)
    return torch.polar(torch.ones(()), angles)


class _Rotary(nn.MultiheadAttention):  # its queries and keys are turned by their positions
    def forward(self, x: Tensor, *_: Tensor, **given: Tensor | None) -> tuple[Tensor, None]:  # type: ignore[override]
        qkv = x @ self.in_proj_weight.T + self.in_proj_bias
        split = qkv.view(1, x.shape[1], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        turned = torch.complex(*split[:2].chunk(2, -1)) * _turn(x.shape[1], split.shape[-1])
        q, k = torch.cat((turned.real, turned.imag), -1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, split[2], given["attn_mask"])
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


transformer = nn.Transformer(**config["transformer"], batch_first=True).eval()
if config["positions"] == "rotary":
    for layer in (*transformer.encoder.layers, *transformer.decoder.layers):
        layer.self_attn = _Rotary(width, config["transformer"]["nhead"])
transformer.load_state_dict(load_file(folder / "transformer.safetensors"))


def _embed(ids: list[int], side: str) -> Tensor:  # (1, L, D)
    states: Tensor = weights[f"{side}_embedding"][ids] * width**0.5
    if config["positions"] == "learned":
        states = states + weights[f"{side}_positions"][: len(ids)]
    elif config["positions"] == "sinusoidal":  # sines and cosines in turn
        states = states + torch.view_as_real(_turn(len(ids), width)).flip(-1).flatten(1)[:, :width]
    return states[None]


@torch.no_grad()
def score(source: list[int], target: list[int]) -> Tensor:
    """Return the log-probabilities (T, V) of the token after each of `target`."""
    mask = transformer.generate_square_subsequent_mask(len(target))
    states = transformer(_embed(source, "source"), _embed(target, "target"), tgt_mask=mask)[0]
    logits: Tensor = states @ weights["output_weight"].T + weights["output_bias"]
    logits[:, config["never_emitted"]] = -torch.inf
    return logits.log_softmax(-1)


def decode(source: list[int], longest: int = 100) -> list[int]:
    """Return the output, at most `longest` tokens, of a source with its end."""
    ids = [config["bos_id"]]
    while len(ids) <= longest and ids[-1] != config["eos_id"]:
        ids.append(int(score(source, ids)[-1].argmax()))
    return ids[1:]


if __name__ == "__main__":
    print(*decode([*map(int, sys.argv[1:]), config["eos_id"]]))
