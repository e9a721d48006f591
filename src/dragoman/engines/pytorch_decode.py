"""Decode greedily with PyTorch alone, ids in, ids out: `python decode.py 4 5 6`."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

folder = Path(__file__).parent
config = json.loads((folder / "config.json").read_text("utf-8"))
tables = load_file(folder / "embeddings.safetensors")  # scaled; the output bias forbids tokens
transformer = nn.Transformer(**config["transformer"], batch_first=True).eval()


# [rotary sinusoidal]
def _turn(length: int, width: int) -> Tensor:  # cosines + i sines of the positions: (L, D / 2)
    angles = torch.arange(length)[:, None] * 10000 ** (torch.arange(0, width, 2) / -width)
    return torch.polar(torch.ones(()), angles)


# [end]
# [rotary]
class _Rotary(nn.MultiheadAttention):  # its queries and keys are turned by their positions
    def forward(self, x: Tensor, *_: Tensor, **given: Tensor | None) -> tuple[Tensor, None]:  # type: ignore[override]
        qkv = nn.functional.linear(x[0], self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.view(len(qkv), 3, self.num_heads, -1).transpose(0, 2)  # (H, 3, L, D / H)
        turned = torch.complex(*qkv[:, :2].chunk(2, -1)) * _turn(*qkv.shape[2:])
        q, k = torch.cat((turned.real, turned.imag), -1).unbind(1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, qkv[:, 2], given["attn_mask"])
        return self.out_proj(mixed.transpose(0, 1).flatten(1))[None], None


for layer in (*transformer.encoder.layers, *transformer.decoder.layers):
    layer.self_attn = _Rotary(layer.self_attn.embed_dim, layer.self_attn.num_heads)
# [end]
transformer.load_state_dict(load_file(folder / "transformer.safetensors"))


def _embed(ids: list[int], side: str) -> Tensor:  # (1, L, D)
    states = tables[f"{side}_embedding"][ids]
    # [learned]
    states += tables[f"{side}_positions"][: len(ids)]
    # [end]
    # [sinusoidal]  sines and cosines in turn
    states += torch.view_as_real(_turn(*states.shape)).flip(-1).flatten(1)[:, : states.shape[1]]
    # [end]
    return states[None]


@torch.no_grad()
def score(source: list[int], target: list[int]) -> Tensor:
    """Return the log-probabilities (T, V) of the token after each of `target`."""
    mask = transformer.generate_square_subsequent_mask(len(target))
    states = transformer(_embed(source, "source"), _embed(target, "target"), tgt_mask=mask)[0]
    logits = nn.functional.linear(states, tables["output_weight"], tables["output_bias"])
    return logits.log_softmax(-1)


def decode(source: list[int], longest: int = 100) -> list[int]:
    """Return the output, at most `longest` tokens, of a source with its end."""
    ids = [config["bos_id"]]
    while len(ids) <= longest and ids[-1] != config["eos_id"]:
        ids.append(int(score(source, ids)[-1].argmax()))
    return ids[1:]


if __name__ == "__main__":
    print(*decode([*map(int, sys.argv[1:]), config["eos_id"]]))
