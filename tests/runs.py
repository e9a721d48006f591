"""A short run with many events, and its results for comparison."""

from safetensors.numpy import load_file

from conftest import BRIEF, SMALL
from dragoman import read_settings
from dragoman.training.logs import read_curves

# Steps of two micro-batches, epochs of 5 steps, validations every 4 steps: the ends of epochs, steps
# and validations meet in every way.
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
    del curves["tokens_per_s"]  # the speed may differ
    return curves


def results_of(out):
    folder = out.with_name(f"{out.name}.training")
    samples = (folder / "samples.jsonl").read_text()
    weights = {name: array.tolist() for name, array in load_file(out / "model.safetensors").items()}
    return weights, curves_of(folder), samples
