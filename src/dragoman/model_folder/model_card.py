"""The README of a model folder: what the model does, how well, and how to use it."""

from collections.abc import Mapping
from typing import Any

from dragoman.settings import Settings


def write_model_card(name: str, settings: Settings, metrics: Mapping[str, Any]) -> str:
    """Return the model card, in Markdown, from the content of `metrics.json`."""
    model, data = settings.model, metrics["data"]
    lines = [
        f"# {name}",
        "",
        "An encoder-decoder Transformer trained with dragoman "
        f"{settings.version} on pairs of text.",
        "",
        "## Use",
        "```",
        f"dragoman predict {name} < sources.txt",
        "```",
        "```python",
        f"import dragoman\nmodel = dragoman.load({name!r})\nmodel.predict({_example(metrics)})",
        "```",
        "",
        "## Data",
        f"- files: {', '.join(data['files'])}",
        *(f"- {split}: {rows:,} pairs" for split, rows in data["pairs"].items() if rows),
        "",
        "## Scores",
        *_score_table(metrics),
        "",
        "## Sizes",
        f"- {metrics['num_parameters']:,} parameters: d_model {model.d_model}, {model.nhead} heads, "
        f"{model.num_encoder_layers} + {model.num_decoder_layers} layers, "
        f"feed-forward {model.dim_feedforward}",
        f"- source tokens: {settings.tokenizer.source.kind}, {metrics['source_vocab_size']:,}; "
        f"target tokens: {settings.tokenizer.target.kind}, {metrics['target_vocab_size']:,}"
        + ("; one vocabulary" if settings.tokenizer.shared else ""),
        f"- {metrics['num_steps']:,} steps in {metrics['minutes']:.1f} minutes, "
        f"{metrics['precision']}",
        "",
        "Every setting is in `config.yaml`; all figures are in `metrics.json`.",
    ]
    return "\n".join(lines) + "\n"


def _score_table(metrics: Mapping[str, Any]) -> list[str]:
    """Return a row for each score, with its interval, and a column for each split."""
    splits = [split for split in ("valid", "test") if split in metrics]
    first = metrics[splits[0]]
    rows = ["| score | " + " | ".join(splits) + " |", "|---|" + "---|" * len(splits)]
    for name, title in first["titles"].items():
        cells = (_show(metrics[split], name) for split in splits)
        rows.append(f"| {title} | {' | '.join(cells)} |")
    rows.append("| sources | " + " | ".join(f"{metrics[s]['rows']:,}" for s in splits) + " |")
    level = f"{100 * metrics['confidence_level']:g}%"
    rows += [
        "",
        f"In percent, or points of 100; in brackets the {level} interval, unless too few rows "
        "are wrong (or right) for one.",
    ]
    rows += [
        f"{title}: `{first[f'{name}_signature']}`"
        for name, title in first["titles"].items()
        if f"{name}_signature" in first
    ]
    if splits == ["valid"]:
        rows += [
            "",
            "The best checkpoint was chosen by these validation pairs, so these scores are "
            "optimistic; no test pairs were given.",
        ]
    return rows


def _show(scores: Mapping[str, Any], name: str) -> str:
    if name not in scores:  # a field that no record of this split has
        return ""
    interval = scores["intervals"][name]
    if interval is None:
        return f"{scores[name]:.2f}"
    return f"{scores[name]:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _example(metrics: Mapping[str, Any]) -> str:
    """Return the arguments of a call of `predict`."""
    sample = metrics["samples"][0]
    features = f", features=[{sample['features']!r}]" if sample["features"] else ""
    return f"[{sample['source']!r}]{features}"
