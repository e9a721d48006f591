"""The command line: one short function a command; what it needs is imported inside it.

Results go to standard output, everything else to standard error.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dragoman.errors import DragomanError
from dragoman.options import read_command_line

if TYPE_CHECKING:
    from dragoman.predictor import Predictor


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 for a fault that the user can mend."""
    commands = {
        "fit": fit, "predict": predict, "evaluate": evaluate, "export": export, "demo": demo,
    }  # fmt: skip
    try:
        arguments, settings = read_command_line(sys.argv[1:] if argv is None else argv)
        commands[arguments.command](arguments, settings)
    except DragomanError as error:
        print(f"dragoman: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"dragoman: {stop or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def fit(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Train a model on a file of pairs."""
    from dragoman.configuration import read_settings
    from dragoman.training.startup import StartClock

    clock = StartClock.since_process_start()
    settings = read_settings(arguments.config, words)
    from dragoman.training import run

    clock.mark("program and libraries")
    start = run.rehearse if arguments.dry_run else run.fit
    start(arguments.pairs, arguments.out, settings, overwrite=arguments.overwrite, clock=clock)
    if arguments.dry_run:
        return
    _show_outcome(arguments.out)
    print(f"next: {_own_name()} predict {arguments.out} < sources.txt", file=sys.stderr)


def predict(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Write the output of a model for each line of the input."""
    from dragoman.predicting.job import Job, choose_layout, run_job

    if arguments.force_target and arguments.prefix:
        raise DragomanError(
            "--prefix: --force-target gives the whole output; leave one of them out"
        )
    model = _load_model(arguments, words)
    job = Job(
        input=arguments.input,
        output=arguments.output,
        layout=choose_layout(arguments.output, is_jsonl=arguments.jsonl),
        is_forced=arguments.force_target,
        prefix=arguments.prefix,
        restarts=arguments.restart,
    )
    for told in run_job(model, job):
        print(f"dragoman: {told}", file=sys.stderr)


def evaluate(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Score a model on a file of pairs; lines with one source are references of it."""
    from dragoman.text.pairs import RowFaults, read_pairs

    model = _load_model(arguments, words)
    faults = RowFaults()
    pairs = read_pairs(arguments.pairs, model.settings.data, faults)
    scores = model.evaluate(pairs).to_dict()
    if faults.total:
        print(f"dragoman: rows left out: {faults.report()}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(scores, indent=2))
    else:
        print(_table(scores))


def export(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Write a model in the form of another program, into its folder, and check it."""
    if words:
        raise DragomanError(f"{words[0]}: export takes no settings; see dragoman export --help")
    if arguments.to == "onnx":
        from dragoman.exporting.onnx import export_onnx

        if arguments.quantization != "float32":
            raise DragomanError("--quantization: is for --to ctranslate2; ONNX is float32")
        check = export_onnx(arguments.model)
    else:
        from dragoman.exporting.ctranslate2 import export_ctranslate2

        check = export_ctranslate2(arguments.model, arguments.quantization)
    print(f"{arguments.model / arguments.to}: {check}", file=sys.stderr)


def demo(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Train on written dates of several languages, and show what was learned."""
    from dragoman.configuration import merge_settings, read_settings
    from dragoman.demo import EXAMPLES, SETTINGS, write_date_pairs

    typed = read_settings(None, words)
    if arguments.out.exists() and not (arguments.out / "pairs" / "train.tsv").exists():
        raise DragomanError(f"{arguments.out}: not a folder of this demo; choose another --out")
    pairs, out = write_date_pairs(arguments.out / "pairs"), arguments.out / "model"
    print(f"{pairs.train}: written dates of several languages, by CLDR", file=sys.stderr)
    from dragoman.training import run

    files = {"data.valid": [str(pairs.valid)], "data.test": [str(pairs.test)]}
    settings = merge_settings(typed, {**SETTINGS, **files})
    model = run.fit(pairs.train, out, settings, overwrite=True)
    _show_outcome(out, num_samples=0)
    print("dates that it was not trained on:", file=sys.stderr)
    for source, text in zip(EXAMPLES, model.predict(EXAMPLES), strict=True):
        print(f"{source} -> {text}")
    print(
        f"next, a line of your own: echo '<en-GB> 1 April 2027' | {_own_name()} predict {out}",
        file=sys.stderr,
    )


def _own_name() -> str:
    """Return how this program is called from here: by its path, where no shell would find it."""
    return "dragoman" if shutil.which("dragoman") else f"{sys.executable} -m dragoman"


def _load_model(arguments: argparse.Namespace, words: Sequence[str]) -> "Predictor":
    """Return the model of a folder; settings typed on the command line replace its own."""
    from dragoman.configuration import read_settings

    typed = read_settings(None, words)
    from dragoman.predictor import Predictor

    return Predictor.load(
        [arguments.model, *arguments.ensemble],
        typed,
        engine=arguments.engine,
        device=arguments.device,
        threads=arguments.threads,
    )


def _show_outcome(out: Path, num_samples: int = 5) -> None:
    """Show the scores and some predictions of a model folder, and what to do next."""
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    for split in ("valid", "test"):
        if split in metrics:
            print(f"{split}:\n{_table(metrics[split])}", file=sys.stderr)
    for sample in metrics["samples"][:num_samples]:
        is_right = "=" if sample["prediction"] == sample["reference"] else "≠"
        print(f"  {sample['source']} -> {sample['prediction']}  {is_right}  {sample['reference']}", file=sys.stderr)  # fmt: skip
    print(f"model folder: {out}", file=sys.stderr)


def _table(scores: Mapping[str, object]) -> str:
    lines = []
    for name, value in scores.items():
        shown = f"{value:.2f}" if isinstance(value, float) else f"{value}"
        lines.append(f"  {name.replace('_', ' '):<22} {shown}")
    return "\n".join(lines)
