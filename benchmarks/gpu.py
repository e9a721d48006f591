"""Checks and measures dragoman on a GPU, in under eight minutes: prints tables and bars.

python benchmarks/gpu.py --json FILE      # needs the project, and a torch that finds the GPU
python benchmarks/gpu.py --smoke          # the same script on the CPU, with tiny sizes

Four parts, each in a process with a time limit: the tests marked `gpu`, training at 8 and at 60
million parameters, decoding. One that fails or takes longer is named, and the others go on.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invented_pairs import Language, write_pairs
from machine import describe_machine
from parts import Outcome, Part, run_all
from tables import Bar

_PACKAGES = ("dragoman", "torch", "lightning", "transformers", "accelerate", "ctranslate2")
_OURS, _PLAIN, _COMPILED = "dragoman", "usual loop bf16", "usual loop bf16 compiled"
_LARGE = ("--d-model", "512", "--nhead", "8", "--num-layers", "6", "--dim-feedforward", "2048")
_LEAST_OF_PRODUCTS, _LEAST_PLAIN, _LEAST_COMPILED = 0.45, 3.0, 1.3

_TINY = (
    *("--d-model", "32", "--nhead", "2", "--num-layers", "1", "--dim-feedforward", "64"),
    *("--vocab-size", "300", "--tokens", "256", "--rounds", "1", "--turn-s", "0.2"),
    *("--only", r"^dragoman$|products bf16"),
)
_TINY_MODEL = (
    *("--model.d_model", "32", "--model.nhead", "2", "--model.dim_feedforward", "64"),
    *("--model.num_encoder_layers", "1", "--model.num_decoder_layers", "1"),
    *("--optimization.learning_rate", "0.005", "--optimization.warmup_steps", "20"),
    *("--training.batch_tokens", "512", "--training.max_steps", "80"),
    *("--training.valid_every", "80", "--training.valid_rows", "20"),
    *("--decoding.beam_size", "1", "--evaluation.report", "none", "--data.cache", "none"),
)


def main() -> None:
    """Run the parts; print what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to it too")
    arguments = parser.parse_args()
    gpu = "none: a smoke test of this script, whose figures mean nothing"
    if not arguments.smoke:
        gpu = find_gpu()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if arguments.smoke:
            model, *others = list_tiny_parts(Path(folder))
            outcomes = run_all([model], Path(folder)) | run_all(others, Path(folder), at_once=2)
        else:
            outcomes = run_all(list_parts(Path(folder)), Path(folder))
    facts = {"GPU": gpu, **describe_machine(_PACKAGES)}
    bars = list_bars(outcomes)
    print(describe(facts, outcomes, bars))
    if arguments.json is not None:
        content = {
            "facts": facts,
            "parts": {name: vars(one) for name, one in outcomes.items()},
            "bars": [vars(bar) | {"verdict": bar.verdict} for bar in bars],
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if any(one.reason for one in outcomes.values()):
        raise SystemExit(1)


def find_gpu() -> str:
    """Return the name of the GPU. Raises SystemExit if torch finds none."""
    script = "import torch; print(torch.cuda.get_device_name(), torch.version.cuda, sep=', CUDA ')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise SystemExit(f"torch finds no GPU ({' '.join(last)}); --smoke runs on the CPU")
    return done.stdout.strip()


def list_parts(folder: Path) -> list[Part]:
    """Return the parts on a GPU; their limits are eight minutes in all."""
    pairs = folder / "pairs.tsv"
    write_pairs(pairs, 100_000, Language(num_words=16_000))  # enough for 32,000 pieces
    training = (
        *("training.py", "--device", "cuda", "--data", str(pairs), "--tokens", "16384"),
        *("--rounds", "2", "--turn-s", "3", "--only", rf"^{_OURS}$|bf16"),
    )
    decoding = (
        *("decoding.py", "--device", "cuda", "--folder", str(folder / "decoding")),
        *("--rows", "512", "--rows-slow", "256", "--rows-single", "20", "--rounds", "2"),
        *("--only", "dragoman|Hugging Face|CTranslate2"),
    )
    return [
        Part(name="tests", command=_tests("-m", "gpu"), limit_s=60),
        Part(name="training, 8 M", command=training, limit_s=110),
        Part(
            name="training, 60 M",
            command=(*training, *_LARGE, "--vocab-size", "32000"),
            limit_s=180,
        ),
        Part(name="decoding", command=decoding, limit_s=130),
    ]


def list_tiny_parts(folder: Path) -> list[Part]:
    """Return the same parts on the CPU; the first trains the model of the last for some seconds."""
    pairs, model, sources = folder / "pairs.tsv", folder / "model", folder / "sources.txt"
    write_pairs(pairs, 500, Language(num_words=20, shortest=1, longest=2))
    lines = pairs.read_text("utf-8").splitlines()[:20]
    sources.write_text("".join(line.partition("\t")[0] + "\n" for line in lines), "utf-8")
    decoding = (
        *("decoding.py", "--model", str(model), "--sources", str(sources), "--threads", "1"),
        *("--rows", "8", "--rows-slow", "8", "--rows-single", "2", "--rounds", "1"),
        *("--only", "dragoman torch, greedy"),
    )
    training = ("training.py", "--data", str(pairs), "--threads", "1", *_TINY)
    return [
        Part(
            name="model",
            command=("-m", "dragoman", "fit", str(pairs), "--out", str(model), *_TINY_MODEL),
            limit_s=250,
        ),
        Part(name="tests", command=_tests("-k", "cpu and decoding"), limit_s=250),
        Part(name="training, 8 M", command=training, limit_s=250),
        Part(name="decoding", command=decoding, limit_s=250),
    ]


def list_bars(outcomes: Mapping[str, Outcome]) -> list[Bar]:
    """Return what the project wants of itself on a GPU; ratios are of turns of one round."""
    bars = []
    for size in ("8 M", "60 M"):
        outcome = outcomes.get(f"training, {size}")
        content = outcome.content if outcome and outcome.content else {}
        ours = _find_rates(content, "measured", _OURS)
        for least, kind, name in (
            (_LEAST_PLAIN, "measured", _PLAIN),
            (_LEAST_COMPILED, "measured", _COMPILED),
            (_LEAST_OF_PRODUCTS, "products", "products bf16"),
        ):
            if name != "products bf16" or size == "60 M":
                bars.append(
                    Bar(
                        claim=f"{size} parameters: dragoman >= {least:g}x {name}",
                        least=least,
                        ratios=_divide(ours, _find_rates(content, kind, name)),
                    )
                )
    decoding = outcomes["decoding"].content or {"bars": []}
    return bars + [
        Bar(claim=one["claim"], least=one["least"], ratios=one["ratios"])
        for one in decoding["bars"]
    ]


def describe(facts: Mapping[str, str], outcomes: Mapping[str, Outcome], bars: Sequence[Bar]) -> str:
    """Return facts, tables and bars, as Markdown."""
    parts = ["\n".join(f"- {name}: {value}" for name, value in facts.items())]
    for name, one in outcomes.items():
        told = one.reason or one.last_line
        if one.content is not None:
            told = "\n\n".join(one.content["tables"])
        parts.append(f"## {name} ({one.seconds:.0f} s)\n\n{told}")
    return "\n\n".join([*parts, "\n".join(map(str, bars))])


def _find_rates(content: Mapping[str, Any], kind: str, name: str) -> list[float]:
    """Return the target tokens a second of a contender, round by round."""
    for one in content.get(kind, ()):
        if one["name"] == name:
            return [turn["rate"] for turn in one["turns"]]
    return []


def _divide(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)] if ours and theirs else []


def _tests(*chosen: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-n", "0", "tests/test_gpu.py", *chosen)


if __name__ == "__main__":
    main()
