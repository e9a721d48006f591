"""yoyodyne with its examples configs/rotary_transformer.yaml and trainer.yaml."""

import sys
from pathlib import Path

import task as shared
import yaml

MODEL = {
    "class_path": "yoyodyne.models.RotaryTransformerModel",
    "init_args": {
        "source_encoder": {
            "class_path": "yoyodyne.models.modules.RotaryTransformerEncoder",
            "init_args": {"dropout": 0.3, "embedding_size": 256, "hidden_size": 100, "layers": 4},
        },
        "decoder_dropout": 0.3,
        "decoder_hidden_size": 100,
        "decoder_layers": 4,
        "embedding_size": 256,
        "label_smoothing": 0.1,
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}},
        "scheduler": {
            "class_path": "yoyodyne.schedulers.WarmupInverseSquareRoot",
            "init_args": {"warmup_epochs": 10},
        },
    },
}
TRAINER = {
    "accelerator": "cpu",
    "precision": "bf16-mixed",
    "gradient_clip_val": 3,
    "max_epochs": -1,
}


def train(task: Path, own: Path) -> None:
    """Train; each epoch has a validation and a checkpoint."""
    for part in ("train", "valid"):
        rows = zip(
            shared.read_rows(task, f"{part}.source"),
            shared.read_rows(task, f"{part}.target"),
            strict=True,
        )
        text = "".join(f"{source}\t{target}\n" for source, target in rows)
        (own / f"{part}.tsv").write_text(text, encoding="utf-8")
    data = {"train": str(own / "train.tsv"), "val": str(own / "valid.tsv"), "batch_size": 100}
    checkpoint = {"dirpath": str(own / "checkpoints"), "save_top_k": -1}
    run(task, own, "fit", data, {"checkpoint": checkpoint})


def decode(task: Path, own: Path) -> None:
    """Decode with the checkpoints."""
    sources = shared.write_held_out(task, own / "held-out.tsv")
    for weights in shared.choose((own / "checkpoints").glob("*.ckpt")):
        path = str(shared.place_outputs(own, weights))
        data = {"predict": str(sources), "target_col": 0, "batch_size": 100}
        run(
            task,
            own,
            "predict",
            data,
            {"prediction": {"path": path, "target_sep": " "}, "ckpt_path": str(weights)},
        )


def run(
    task: Path, own: Path, command: str, data: dict[str, object], more: dict[str, object]
) -> None:
    """Call yoyodyne's command line."""
    from yoyodyne.cli.main import python_interface

    data = {
        "model_dir": str(own),
        "source_sep": " ",
        "target_sep": " ",
        "max_target_length": shared.find_longest(task),
        **data,
    }
    config = own / f"{command}.yaml"
    config.write_text(
        yaml.safe_dump(
            {"seed_everything": 1, "trainer": TRAINER, "model": MODEL, "data": data, **more}
        )
    )
    sys.argv = ["yoyodyne"]
    python_interface([command, "--config", str(config)])


if __name__ == "__main__":
    shared.call(train, decode)
