"""`dragoman demo`: trains a small model that turns written dates into ISO 8601, and uses it."""

import json
import sys
from pathlib import Path

from dragoman.commands.date_pairs import write_date_pairs
from dragoman.errors import DragomanError
from dragoman.settings import Settings

EXAMPLES = (
    "<de> am 3. Oktober 2024",
    "<en-GB> 3/10/2024",
    "<en-US> 3/10/2024",
    "<fr> le mardi 31 décembre 2030",
    "<ja> 2041年3月23日(土)",
)
"""Sources to show after the training; their days are in the test split."""

SETTINGS = {
    "preset": "tiny",
    "model": {
        "d_model": 128,
        "dim_feedforward": 512,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "positions": "sinusoidal",
        "dropout": 0.0,
    },
    "optimization": {"learning_rate": 2e-3, "warmup_steps": 100, "label_smoothing": 0.0},
    "training": {"batch_tokens": 2048, "max_steps": 1200, "valid_every": 200, "valid_rows": 300},
}
"""A small model and a short schedule, without regularisation: every target is certain."""


def demo(folder: Path) -> None:
    """Write the pairs, train, score and predict, all in `folder`; print what the model learned.

    Raises:
        DragomanError: A package is not installed, or `folder` holds something else.
    """
    if folder.exists() and not (folder / "pairs" / "train.tsv").exists():
        raise DragomanError(f"{folder}: not a folder of this demo; choose another")
    pairs, out = write_date_pairs(folder / "pairs"), folder / "model"
    # After Babel: the error without packages names the extra that has all.
    from dragoman.commands.fit import fit

    data = {"valid": (str(pairs.valid),), "test": (str(pairs.test),), "cache": "none"}
    settings = Settings.model_validate({**SETTINGS, "data": data})
    model = fit(pairs.train, out, settings, overwrite=True)

    scores = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["test"]
    print(f"test: {scores['exact_match']:.1f}% of {scores['rows']:,} unseen dates exactly right")
    for source, text in zip(EXAMPLES, model.predict(EXAMPLES), strict=True):
        print(f"{source} -> {text}")
    print(
        f"try a line of your own: echo '<en-GB> 1 April 2027' | "
        f"{sys.executable} -m dragoman predict {out}"
    )
