"""JoeyNMT: the published baseline of the task, in the form of configs/transformer_reverse.yaml."""

import subprocess
import sys
from pathlib import Path

import task as shared
import yaml

SIDE = {
    "type": "transformer",
    "num_layers": 4,
    "num_heads": 4,
    "embeddings": {"embedding_dim": 256, "scale": True},
    "hidden_size": 256,
    "ff_size": 1024,
    "dropout": 0.3,
    "layer_norm": "pre",
    "activation": "relu",
}


def train(task: Path, own: Path) -> None:
    """Train, with a validation and a checkpoint every 50 steps."""
    language = {"level": "word", "max_length": 1000}
    config = {
        "name": "peers",
        "joeynmt_version": "2.3.0",
        "model_dir": str(own / "model"),
        "use_cuda": False,
        "fp16": False,
        "random_seed": 1,
        "data": {
            "train": str(task / "train"),
            "dev": str(task / "valid"),
            "dataset_type": "plain",
            "src": {"lang": "source", **language},
            "trg": {"lang": "target", **language},
            "special_symbols": {
                "unk_token": "<unk>", "unk_id": 0, "pad_token": "<pad>", "pad_id": 1,
                "bos_token": "<s>", "bos_id": 2, "eos_token": "</s>", "eos_id": 3,
            },
        },
        "testing": {
            "beam_size": 1, "batch_size": 100, "batch_type": "sentence",
            "eval_metrics": ["sequence_accuracy"], "max_output_length": shared.find_longest(task),
        },
        "training": {
            "optimizer": "adamw", "learning_rate": 0.001, "learning_rate_min": 1e-8,
            "scheduling": "warmupinversesquareroot", "learning_rate_warmup": 360,
            "loss": "crossentropy", "label_smoothing": 0.1, "normalization": "tokens",
            "clip_grad_norm": 1.0, "batch_size": 100, "batch_type": "sentence",
            "early_stopping_metric": "loss", "epochs": 1_000_000, "validation_freq": 50,
            "logging_freq": 50, "shuffle": True, "print_valid_sents": [0], "keep_best_ckpts": -1,
        },
        "model": {
            "initializer": "xavier_uniform", "bias_initializer": "zeros",
            "embed_initializer": "xavier_uniform", "tied_softmax": True, "tied_embeddings": False,
            "encoder": SIDE, "decoder": SIDE,
        },
    }  # fmt: skip
    (own / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "joeynmt", "train", str(own / "config.yaml"), "--skip-test"],
        check=True,
    )


def decode(task: Path, own: Path) -> None:
    """Decode with the checkpoints."""
    sources = shared.write_held_out(task, own / "held-out.txt")
    config = yaml.safe_load((own / "model/config.yaml").read_text(encoding="utf-8"))
    for weights in shared.choose(
        path for path in (own / "model").glob("*.ckpt") if path.stem.isdecimal()
    ):
        config["testing"]["load_model"] = str(weights)
        (own / "decode.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        # Not --output-path: it fails (2.3.0: 'BaseConfig' object has no attribute 'n_best').
        command = [sys.executable, "-m", "joeynmt", "translate", str(own / "decode.yaml")]
        with sources.open() as lines, shared.place_outputs(own, weights).open("w") as outputs:
            subprocess.run(command, stdin=lines, stdout=outputs, check=True)


if __name__ == "__main__":
    shared.call(train, decode)
