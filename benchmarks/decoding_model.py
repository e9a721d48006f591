"""What decoding.py measures on: a trained model, exported, and sources; both made if not given."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

from invented_pairs import Language, invent_pairs

from dragoman.model_folder.folder import is_model_folder

_NUM_PAIRS, _NUM_SOURCES = 30_000, 2_000
_MAX_STEPS, _MAX_MINUTES = 900, 6

# Run in a process of its own: this one must stay small, and without torch.
_EXPORT = """
import sys
import dragoman
dragoman.export(sys.argv[1])
"""


def train_model(pairs: Path, folder: Path, threads: int) -> None:
    """Train a model of the sizes of the benchmark on `pairs` into `folder`, unless it is there."""
    if is_model_folder(folder):
        return
    side = {"kind": "bpe", "vocab_size": 8000}
    settings = {
        "tokenizer": {"source": side, "target": side, "shared": True},
        "model": {
            "d_model": 256,
            "nhead": 4,
            "num_encoder_layers": 3,
            "num_decoder_layers": 3,
            "dim_feedforward": 1024,
            "dropout": 0.1,
            "tie_embeddings": True,
        },
        "optimization": {"learning_rate": 2e-3, "warmup_steps": 150, "average_decay": 0.99},
        "training": {
            "batch_tokens": 2048,
            "max_steps": _MAX_STEPS,
            "max_minutes": _MAX_MINUTES,
            "valid_every": _MAX_STEPS // 3,
            "valid_rows": 200,
        },
    }
    config = folder.with_name(f"{folder.name}.yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    command = ["-m", "dragoman", "fit", str(pairs), "--out", str(folder), "--config", str(config)]
    subprocess.run(
        [sys.executable, *command],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=sys.stderr,
    )


def export_model(folder: Path) -> str:
    """Export the model for CTranslate2 unless that was done; return how the export was checked."""
    path = folder / "ctranslate2" / "export.json"
    if not path.is_file():
        subprocess.run([sys.executable, "-c", _EXPORT, str(folder)], check=True)
    told = json.loads(path.read_text(encoding="utf-8"))
    if told["quantization"] != "float32":
        raise SystemExit(
            f"{path.parent}: an export in {told['quantization']}; the comparison needs float32: "
            "remove that folder, and it is written again"
        )
    return json.dumps(told["check"])


def write_invented_pairs(folder: Path) -> tuple[Path, Path]:
    """Write pairs to train on, and sources that are none of theirs; always the same ones."""
    pairs, sources = folder / "pairs.tsv", folder / "sources.txt"
    folder.mkdir(parents=True, exist_ok=True)
    with (
        pairs.open("w", encoding="utf-8", newline="\n") as pair_file,
        sources.open("w", encoding="utf-8", newline="\n") as source_file,
    ):
        invented = enumerate(invent_pairs(_NUM_PAIRS + _NUM_SOURCES, Language()))
        for row, (source, target) in invented:
            if row < _NUM_PAIRS:
                pair_file.write(f"{source}\t{target}\n")
            else:
                source_file.write(f"{source}\n")
    return pairs, sources


def read_sources(path: Path) -> list[str]:
    """Return the sources in `path`, one a line; of a TSV the first column; in an order by chance."""
    lines = path.read_text(encoding="utf-8").splitlines()
    sources = [line.partition("\t")[0] for line in lines if line.strip()]
    Random(1).shuffle(sources)  # as they come: not sorted by length, nor by topic
    return sources


def keep_ended(sources: list[str], path: Path, threads: int) -> list[str]:
    """Return those of `sources` whose greedy output ends by itself.

    One output that does not end holds its whole batch in the usual loop and in Hugging Face's until
    the longest length: with a model of little training, ratios would tell of that alone.
    """
    command = ["-m", "dragoman", "predict", str(path), "--jsonl", "--engine", "ctranslate2"]
    done = subprocess.run(
        [sys.executable, *command, "--device", "cpu", "--threads", str(threads)],
        input="\n".join(sources),
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [source for source, row in zip(sources, rows, strict=True) if row["is_complete"]]
