"""Decode greedily with PyTorch alone, ids in, ids out: `python decode.py 4 5 6`."""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

folder = Path(__file__).parent
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
begin, end = config["bos_id"], config["eos_id"]
weights = load_file(folder / "embeddings.safetensors")
transformer = torch.nn.Transformer(**config["transformer"], batch_first=True).eval()
transformer.load_state_dict(load_file(folder / "transformer.safetensors"))


def embed(ids: list[int], side: str) -> torch.Tensor:
    """Return the scaled embeddings of `ids` with their positions: (1, L, D)."""
    states = weights[f"{side}_embedding"][ids]
    width = states.shape[1]
    if (positions := weights.get(f"{side}_positions")) is None:  # sinusoidal, without an end
        rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        angles = torch.arange(len(ids))[:, None] * rates
        positions = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
    return (states * math.sqrt(width) + positions[: len(ids), :width])[None]


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
