"""Write the model folders of this version of dragoman into a new folder: see README.md beside this.

    python tests/folders/make.py tests/folders/0.1

Two tiny models are trained to read numbers, written out in English and German, as digits,
and a JSON file beside each holds its outputs, by PyTorch, for numbers that it was not trained on.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

import dragoman
from dragoman import Predictor, Tokenizer, read_settings
from dragoman.settings import DecodingSettings, Settings, SideSettings

EN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
EN_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
DE = (
    "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn "
    "sechzehn siebzehn achtzehn neunzehn"
)
DE_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"
HELD_OUT = [17, 42, 205, 318, 555, 580, 693, 707, 864, 999]

LANGUAGES = ["en", "de"]

COMMON = [
    "--model.nhead", "2", "--model.num_encoder_layers", "1", "--model.num_decoder_layers", "1",
    "--model.dropout", "0", "--optimization.learning_rate", "0.005",
    "--optimization.warmup_steps", "100", "--optimization.label_smoothing", "0",
    "--optimization.average_decay", "0.99", "--training.batch_tokens", "1024",
    "--training.valid_every", "500", "--training.precision", "32-true",
    "--evaluation.report", "none",
]  # fmt: skip
MODELS = {
    # Features, bytes in pairs, letters taken apart, learned positions.
    "features": {
        "data": {"features": ["language"], "valid_fraction": 0.02, "max_tokens": 64},
        "tokenizer": {
            "source": {"kind": "bpe", "vocab_size": 300, "unicode_form": "nfd"},
            "target": {"kind": "characters"},
        },
        "model": {
            "d_model": 16,
            "dim_feedforward": 32,
            "positions": "learned",
            "max_positions": 64,
        },
        "training": {"max_steps": 3000},
    },
    # Tags, one vocabulary, tied embeddings, post-norm, sinusoidal positions.
    "tied": {
        "data": {"leading_tags": True, "valid_fraction": 0.02},
        "tokenizer": {
            "source": {"kind": "characters"},
            "target": {"kind": "characters"},
            "shared": True,
        },
        "model": {
            "d_model": 24,
            "dim_feedforward": 48,
            "tie_embeddings": True,
            "norm_first": False,
            "activation": "gelu",
        },
        "training": {"max_steps": 3000},
        "decoding": {"beam_size": 4},
    },
}
SIDES = {
    "bpe": SideSettings(kind="bpe", vocab_size=280),
    "unigram": SideSettings(kind="unigram", vocab_size=280),
    "characters": SideSettings(kind="characters", unicode_form="nfd"),
    "symbols": SideSettings(kind="symbols", separator="|"),
    "regex": SideSettings(kind="regex", pattern=r"\w+|[^\w]"),
}
TEXTS = ["a|ab|abc", "Größe: 12 m², fünf", "e\u0301t\u00e9 🙂 <unk> </s>\t", "한국어 abc|"]


def main(out: Path) -> None:
    """Write everything to `out`."""
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)  # for short paths in what is written
        for name in MODELS:
            make_model(name)
            write_json(out / f"{name}.json", list_outputs(name))
            shutil.move(name, out / name)
    kinds = [make_tokenizer(kind) for kind in SIDES]
    write_json(out / "tokenizers.json", {"texts": TEXTS, "tokenizers": kinds})


def make_model(name: str) -> None:
    """Train the model `name` into the folder of that name."""
    trained_on = [(n, x) for n in range(1000) if n not in HELD_OUT for x in LANGUAGES]
    if name == "tied":
        pairs = Path("numbers.tsv")
        pairs.write_text("".join(f"{tag(n, x)}\t{n}\n" for n, x in trained_on))
    else:
        pairs = Path("numbers.csv")
        rows = "".join(f"{x},{write_out(n, x)},{n}\n" for n, x in trained_on)
        pairs.write_text("language,source,target\n" + rows)
    (Path(name).with_suffix(".yaml")).write_text(yaml.safe_dump(MODELS[name]))
    dragoman.fit(pairs, name, read_settings(Path(name).with_suffix(".yaml"), COMMON))


def list_outputs(name: str) -> list[dict[str, Any]]:
    """Return what the model `name` says, by PyTorch, greedily and by beam search."""
    greedy = load(name, beam_size=1, token_scores=True)
    beam = load(name, beam_size=4, num_hypotheses=4)
    found = []
    for number in HELD_OUT:
        for language in LANGUAGES:
            has_tags = name == "tied"
            source = tag(number, language) if has_tags else write_out(number, language)
            features = [[language]] if not has_tags else None
            [[best]] = greedy.predict_n_best([source], features)
            [several] = beam.predict_n_best([source], features)
            [given] = greedy.score([source], ["1000"], features)
            found.append(
                {
                    "source": source,
                    "features": features,
                    "number": str(number),
                    "text": best.text,
                    "source_tokens": best.source_tokens,
                    "tokens": best.tokens,
                    "log_probs": best.log_probs,
                    "confidence": best.confidence,
                    "beam": [[one.text, one.score] for one in several],
                    "score_of_1000": given.score,
                }
            )
    return found


def load(name: str, **decoding: Any) -> Predictor:
    """Return the model `name`, by PyTorch."""
    return dragoman.load(name, Settings(decoding=DecodingSettings(**decoding)), engine="torch")


def make_tokenizer(kind: str) -> dict[str, Any]:
    """Return a tokenizer of `kind`, as it is in a file, with the ids of some texts."""
    side = Tokenizer.train(TEXTS * 3, SIDES[kind])
    ids = side.encode_batch(TEXTS)
    return {"side": side.to_dict(), "ids": ids, "read": [side.decode(row) for row in ids]}


def tag(number: int, language: str) -> str:
    """Return `number` in words, behind the tag of its language."""
    return f"<{language}> {write_out(number, language)}"


def write_out(number: int, language: str) -> str:
    """Return `number`, below 1000, in words."""
    hundreds, rest = divmod(number, 100)
    if language == "en":
        head = f"{EN.split()[hundreds]} hundred" if hundreds else ""
        tail = _write_english(rest) if rest or not hundreds else ""
        return " and ".join(part for part in (head, tail) if part)
    head = f"{DE.split()[hundreds]}hundert" if hundreds else ""
    return head + (_write_german(rest) if rest or not hundreds else "")


def _write_english(number: int) -> str:
    tens, ones = divmod(number, 10)
    if number < 20:
        return EN.split()[number]
    return EN_TENS.split()[tens - 2] + (f"-{EN.split()[ones]}" if ones else "")


def _write_german(number: int) -> str:
    tens, ones = divmod(number, 10)
    if number < 20:
        return "eins" if number == 1 else DE.split()[number]
    return (f"{DE.split()[ones]}und" if ones else "") + DE_TENS.split()[tens - 2]


def write_json(path: Path, content: object) -> None:
    """Write `content` to `path`."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
