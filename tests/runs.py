"""A brief run in which much happens, and what is compared of two of them."""

from safetensors.numpy import load_file

from conftest import BRIEF, SMALL
from dragoman import read_settings
from dragoman.training.logs import read_curves

# Updates of two batches, epochs of 5 updates, validations every 4: all ends of an epoch, of an
# update and of a validation meet.
STEPS = 14
WORDS = [
    *SMALL, *BRIEF, "--model.dropout", "0.2", "--training.max_steps", str(STEPS),
    "--training.valid_every", "4", "--training.checkpoint_every", "1", "--training.accumulate", "2",
    "--training.batch_tokens", "256", "--optimization.average_decay", "0.9",
    "--training.patience", "2", "--training.loggers", "none",
    "--data.cache", "none",
]  # fmt: skip


def settings(*more):
    return read_settings(None, [*WORDS, *more])


def curves_of(folder):
    curves = read_curves(folder)
    del curves["tokens_per_s"]  # how quick it is may change
    return curves


def results_of(out):
    folder = out.with_name(f"{out.name}.training")
    samples = (folder / "samples.jsonl").read_text()
    weights = {name: array.tolist() for name, array in load_file(out / "model.safetensors").items()}
    return weights, curves_of(folder), samples
