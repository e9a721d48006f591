"""eole: the published baseline of the task, in the form of recipes/wmt17/wmt17_ende.yaml."""

import subprocess
import sys
from pathlib import Path

import task as shared
import yaml

EOLE = str(Path(sys.executable).with_name("eole"))


def train(task: Path, own: Path) -> None:
    """Train, with a checkpoint every 50 steps."""
    config = {
        "seed": 1,
        "save_data": str(own / "data"),
        "src_vocab": str(own / "source.vocab"),
        "tgt_vocab": str(own / "target.vocab"),
        "data": {
            name: {
                "path_src": str(task / f"{part}.source"),
                "path_tgt": str(task / f"{part}.target"),
            }
            for name, part in (("corpus_1", "train"), ("valid", "valid"))
        },
        "training": {
            "model_path": str(own / "model"),
            "keep_checkpoint": -1,
            "save_checkpoint_steps": 50,
            "train_steps": 1_000_000,
            "valid_steps": 1_000_000,
            "num_workers": 0,
            "batch_type": "sents",
            "batch_size": 100,
            "dropout": [0.3],
            "attention_dropout": [0.1],
            "compute_dtype": "bf16",
            "optim": "adamw",
            "learning_rate": 0.3,  # 0.001 at the end of the warm-up: 0.3 / sqrt(256 * 360)
            "warmup_steps": 360,
            "decay_method": "noam",
            "max_grad_norm": 1.0,
            "label_smoothing": 0.1,
            "param_init_method": "xavier_uniform",
            "normalization": "tokens",
        },
        "model": {
            "architecture": "transformer",
            "hidden_size": 256,
            "layers": 4,
            "heads": 4,
            "transformer_ff": 1024,
            "share_decoder_embeddings": True,
            "embeddings": {"word_vec_size": 256, "position_encoding_type": "SinusoidalInterleaved"},
        },
    }
    path = own / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    subprocess.run([EOLE, "build_vocab", "-config", str(path), "-n_sample", "-1"], check=True)
    subprocess.run([EOLE, "train", "-config", str(path)], check=True)


def decode(task: Path, own: Path) -> None:
    """Decode with the checkpoints."""
    sources = shared.write_held_out(task, own / "held-out.txt")
    for weights in shared.choose((own / "model").glob("step_*/*.safetensors")):
        subprocess.run(
            [EOLE, "predict", "-model_path", str(weights.parent), "-src", str(sources), "-gpu_ranks", "-1",
             "-output", str(shared.place_outputs(own, weights)), "-max_length", str(shared.find_longest(task)), "-beam_size", "1", "-batch_size", "100"],
            check=True,
        )  # fmt: skip


if __name__ == "__main__":
    shared.call(train, decode)
