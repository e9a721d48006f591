"""Draw where a model looked while it wrote: a heat map as SVG.

python examples/attention/plot.py MODEL SOURCE [FILE.svg]     (default: attention.svg)
"""

import sys
from pathlib import Path

import dragoman
from dragoman.reporting.charts import draw_attention


def main(model: str, source: str, path: Path) -> None:
    """Write the attention of each output token over the source tokens."""
    predictor = dragoman.load(model, {"decoding": {"alignment": True}})  # computed by PyTorch
    [[best]] = predictor.predict_n_best([source])
    chart = draw_attention("1", source, best.source_tokens, best.tokens, best.alignment)
    path.write_text(str(chart.drawing), encoding="utf-8")
    print(f"{source} -> {best.text}: {path}")


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], Path(sys.argv[3] if len(sys.argv) > 3 else "attention.svg"))
    except dragoman.DragomanError as error:
        sys.exit(str(error))
