"""Draws the six masks of nn.Transformer: blue is attended to. `python docs/draw_masks.py` prints SVG."""

import io
from collections.abc import Iterator
from html import escape

import matplotlib.style
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

import dragoman.reporting.charts as charts

SOURCES = (("c", "a", "t", "</s>"), ("o", "x", "</s>", "pad"))
TARGETS = (("<s>", "C", "A", "T"), ("<s>", "O", "X", "pad"))


def draw_all() -> str:
    """Return the pictures of the second of two pairs in a batch, which is the shorter one."""
    return "\n".join(f'<div class="chart">{svg}</div>' for svg in _draw())


def _draw() -> Iterator[str]:
    source, target = SOURCES[1], TARGETS[1]
    is_source = torch.tensor([token != "pad" for token in source])
    is_target = torch.tensor([token != "pad" for token in target])
    length = len(target)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    everything = torch.ones(length, len(source), dtype=torch.bool)
    for name, rows, columns, may_attend in (
        ("src_mask", source, source, torch.ones(len(source), len(source), dtype=torch.bool)),
        ("src_key_padding_mask", source, source, is_source.expand(len(source), -1)),
        ("tgt_mask", target, target, causal),
        ("tgt_key_padding_mask", target, target, is_target.expand(length, -1)),
        ("memory_mask", target, source, everything),
        ("memory_key_padding_mask", target, source, everything & is_source),
    ):
        style = charts.__file__.replace("charts.py", "charts.mplstyle")
        with matplotlib.style.context(["default", style, {"svg.hashsalt": name}]):
            axes = Figure(figsize=(2.6, 2.4), layout="constrained").add_subplot()
            shades = ListedColormap(["#3b82d600", "#3b82d6"])
            axes.pcolormesh(may_attend.int(), cmap=shades, vmin=0, vmax=1, edgecolor="#7f8b98")
            axes.set_xticks([place + 0.5 for place in range(len(columns))], columns)
            axes.set_yticks([place + 0.5 for place in range(len(rows))], rows)
            axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0), aspect="equal")
            axes.set(xlabel="may be looked at", ylabel="position that looks")
            axes.set_title(name, fontsize=11)
            axes.grid(visible=False)
            file = io.StringIO()
            metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            axes.figure.savefig(file, format="svg", metadata=metadata)
        svg = file.getvalue()
        label = f'<svg role="img" aria-label="{escape(name)}"'
        yield svg[svg.index("<svg") :].replace("<svg", label, 1).replace("\n", " ")


if __name__ == "__main__":
    print(draw_all())
