"""What the tests share: random ids, small random models, one small trained model."""

import io
import itertools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

# Tests run side by side: with a thread a core each, torch's threads would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch
from rich.console import Console

from dragoman import Predictor, fit, read_settings
from dragoman.model.transformer import Transformer

PAD, BOS, EOS = 0, 1, 2

# The same few examples each time, however busy the machine is. Others: --hypothesis-profile random.
_UNTIMED = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("random", **_UNTIMED)
hypothesis.settings.register_profile("fixed", derandomize=True, max_examples=30, **_UNTIMED)
hypothesis.settings.load_profile("fixed")


def random_ids(rows: int, length: int, vocab_size: int, *, seed: int = 0) -> torch.Tensor:
    """Ids without special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab_size, (rows, length), generator=generator)


def pad_right(ids: torch.Tensor, extra: int) -> torch.Tensor:
    return torch.nn.functional.pad(ids, (0, extra), value=PAD)


OPTIONS = [
    {"norm_first": n, "activation": a, "positions": p, "tie_embeddings": t, "target_vocab_size": v}
    for (n, a), p, (t, v) in itertools.product(
        [(True, "relu"), (False, "gelu")],
        ["sinusoidal", "learned", "rotary"],
        [(True, None), (False, 23), (True, 23)],
    )
]


@pytest.fixture(params=OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def network(request: pytest.FixtureRequest) -> Transformer:
    """A small random model in evaluation mode, for every combination of options."""
    torch.manual_seed(0)
    model = Transformer(30, 32, 4, 2, 64, num_decoder_layers=3, **request.param)
    return model.eval()


# A model that learns to write words in capitals in seconds.
SMALL = [
    "--model.d_model", "64", "--model.num_encoder_layers", "1", "--model.num_decoder_layers", "1",
    "--model.dim_feedforward", "128", "--model.positions", "sinusoidal",
    "--model.dropout", "0", "--optimization.label_smoothing", "0",
    "--optimization.learning_rate", "0.003", "--optimization.warmup_steps", "50",
    "--training.batch_tokens", "512", "--training.max_steps", "250", "--training.valid_every", "125",
    "--data.valid_fraction", "0.1",
]  # fmt: skip

BRIEF = [
    "--training.max_steps", "3", "--optimization.warmup_steps", "0", "--evaluation.report", "none",
]  # fmt: skip


def make_words(count: int, *, seed: int = 0) -> list[str]:
    """Distinct words of 3 to 6 letters."""
    chance = random.Random(seed)
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(chance.choices("abcdefgh", k=chance.randint(3, 6)))] = None
    return list(words)


def write_pairs(path: Path, count: int = 1500) -> Path:
    path.write_text("".join(f"{word}\t{word.upper()}\n" for word in make_words(count)))
    return path


def quiet_console() -> Console:
    return Console(file=io.StringIO(), width=100)


@pytest.fixture(autouse=True)
def _own_seed() -> None:
    """The same random numbers whichever tests ran before in this process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests, and of the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Predictor]:
    """The folder of a small trained model, and the model as `fit` returned it."""
    folder = tmp_path_factory.mktemp("trained")
    pairs = write_pairs(folder / "pairs.tsv")
    settings, console = read_settings(None, SMALL), quiet_console()
    model = fit(pairs, folder / "model", settings, console=console)
    assert isinstance(console.file, io.StringIO)
    (folder / "console.txt").write_text(console.file.getvalue())
    return folder / "model", model


def write_record_pairs(path: Path, count: int = 700) -> Path:
    """Records with a field that is in the source, one of chance, one always the same, a rare one."""
    chance, lines = random.Random(0), []
    for word in make_words(count, seed=1):
        record = {"name": word.upper(), "sale": chance.random() < 0.7, "currency": "EUR"}
        if word < "ab":
            record["note"] = "new"
        lines.append(f"{word}\t{json.dumps(record)}\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="session")
def trained_on_records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Predictor]:
    """A model whose outputs are records, as `trained`."""
    folder = tmp_path_factory.mktemp("trained_on_records")
    words = [*SMALL, "--training.max_steps", "150", "--data.valid_fraction", "0.3"]
    words += ["--training.valid_every", "150", "--evaluation.report", "none"]
    settings = read_settings(None, words)
    pairs = write_record_pairs(folder / "pairs.tsv")
    return folder / "model", fit(pairs, folder / "model", settings, console=quiet_console())


@pytest.fixture(scope="module")
def no_shape_checks() -> Iterator[None]:
    """No checks of shapes: while a model is traced for ONNX, its sizes are tensors."""
    was_disabled = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", was_disabled)
