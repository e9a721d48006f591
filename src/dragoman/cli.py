"""The command line: one short function a command; what it needs is imported inside it.

Results go to standard output, everything else to standard error.
"""

import argparse
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from dragoman.errors import DragomanError
from dragoman.options import read_command_line

if TYPE_CHECKING:
    from dragoman.predictor import Prediction, Predictor
    from dragoman.text.pairs import BadRow, Source

_NAMED_ROWS = 5  # rows of a kind that are named on standard error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 for a fault that the user can mend."""
    commands = {"fit": fit, "predict": predict, "evaluate": evaluate, "demo": demo}
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

    settings = read_settings(arguments.config, words)
    from dragoman.training import run

    if arguments.dry_run:
        run.rehearse(arguments.pairs, arguments.out, settings, overwrite=arguments.overwrite)
        return
    run.fit(arguments.pairs, arguments.out, settings, overwrite=arguments.overwrite)
    _show_outcome(arguments.out)
    print(f"next: {_own_name()} predict {arguments.out} < sources.txt", file=sys.stderr)


def predict(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Write the output of a model for each line of the input."""
    from dragoman.text.pairs import read_sources

    model = _load_model(arguments.model, words)
    faults: dict[str, list[int]] = {}
    with _open_output(arguments.output) as output:
        is_jsonl = arguments.jsonl or str(arguments.output).endswith(".jsonl")
        source = sys.stdin.buffer if arguments.input is None else arguments.input
        for row, best_first in model.predict_rows(read_sources(source, model.settings.data)):
            prediction = best_first[0] if best_first else None
            for fault in _find_faults(row, prediction):
                faults.setdefault(fault, []).append(row.line)
            mark = model.settings.decoding.cut_mark
            print(_format(row, prediction, mark, is_jsonl), file=output)
    for fault, lines in faults.items():
        named = ", ".join(map(str, lines[:_NAMED_ROWS])) + (
            ", …" if len(lines) > _NAMED_ROWS else ""
        )
        print(f"dragoman: {len(lines):,} rows {fault}: line {named}", file=sys.stderr)


def evaluate(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Score a model on a file of pairs; lines with one source are references of it."""
    from dragoman.text.pairs import RowFaults, read_pairs

    model = _load_model(arguments.model, words)
    faults = RowFaults()
    pairs = read_pairs(arguments.pairs, model.settings.data, faults)
    scores = model.evaluate(pairs).to_dict()
    if faults.total:
        print(f"dragoman: rows left out: {faults.report()}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(scores, indent=2))
    else:
        print(_table(scores))


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


def _load_model(path: Path, words: Sequence[str]) -> "Predictor":
    """Return the model of a folder; settings typed on the command line replace its own."""
    from dragoman.configuration import read_settings

    typed = read_settings(None, words)
    from dragoman.predictor import Predictor

    return Predictor.load(path, typed)


@contextmanager
def _open_output(path: Path | None) -> Iterator[TextIO]:
    """Give the stream to write to; a file appears under its name once it is whole."""
    if path is None:
        assert isinstance(sys.stdout, io.TextIOWrapper)
        sys.stdout.reconfigure(encoding="utf-8")
        yield sys.stdout
        sys.stdout.flush()
        return
    partial = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        raise DragomanError(f"--output {path}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _find_faults(row: "Source | BadRow", prediction: "Prediction | None") -> list[str]:
    """Return what is to be said of a row, for its report on standard error."""
    if prediction is None:
        return [f"without an output ({getattr(row, 'reason', '')})"]
    faults = []
    if not prediction.is_complete:
        faults.append("cut at their longest length (raise decoding.max_length_extra)")
    if prediction.num_unknown:
        faults.append("with tokens that the model has never seen")
    if "\n" in prediction.text or "\r" in prediction.text:
        faults.append("with a line break in the output, written as a space (--jsonl keeps it)")
    return faults


def _format(
    row: "Source | BadRow", prediction: "Prediction | None", cut_mark: str, is_jsonl: bool
) -> str:
    if not is_jsonl:
        text = "" if prediction is None else prediction.marked(cut_mark)
        return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")
    if prediction is None:
        content = {"line": row.line, "text": "", "error": getattr(row, "reason", "")}
    else:
        content = {
            "line": row.line,
            "text": prediction.text,
            "score": round(prediction.score, 6),
            "is_complete": prediction.is_complete,
            "num_unknown": prediction.num_unknown,
        }
    return json.dumps(content, ensure_ascii=False)


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
