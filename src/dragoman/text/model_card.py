"""The README of a model folder: what the model does, how well, and how to use it."""

from collections.abc import Mapping
from typing import Any

from dragoman.settings import Settings

_NAMES = {
    "exact_match": "exact match, %",
    "token_error_rate": "token error rate, %",
    "character_error_rate": "character error rate, %",
    "bleu": "BLEU",
    "chrf": "chrF",
}


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
        f"- {metrics['num_steps']:,} updates in {metrics['minutes']:.1f} minutes, "
        f"{metrics['precision']}",
        "",
        "Every setting is in `config.yaml`; all figures are in `metrics.json`.",
    ]
    return "\n".join(lines) + "\n"


def _score_table(metrics: Mapping[str, Any]) -> list[str]:
    splits = [split for split in ("valid", "test") if split in metrics]
    rows = [
        "| score | " + " | ".join(splits) + " |",
        "|---|" + "---|" * len(splits),
    ]
    for key, label in _NAMES.items():
        rows.append(f"| {label} | " + " | ".join(f"{metrics[s][key]:.2f}" for s in splits) + " |")
    rows.append("| sources | " + " | ".join(f"{metrics[s]['rows']:,}" for s in splits) + " |")
    rows += ["", f"BLEU: `{metrics[splits[0]]['bleu_signature']}`"]
    rows += [f"chrF: `{metrics[splits[0]]['chrf_signature']}`"]
    if splits == ["valid"]:
        rows += ["", "The best checkpoint was chosen by these validation pairs, so the scores lean "
                 "to the bright side; no test pairs were given."]  # fmt: skip
    return rows


def _example(metrics: Mapping[str, Any]) -> str:
    """Return the arguments of a call of `predict`."""
    sample = metrics["samples"][0]
    features = f", features=[{sample['features']!r}]" if sample["features"] else ""
    return f"[{sample['source']!r}]{features}"
