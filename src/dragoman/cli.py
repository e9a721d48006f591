"""The command line: one short function a command; what it needs is imported inside it.

Results go to standard output, everything else to standard error.
"""

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dragoman.cli_options import read_command_line
from dragoman.errors import DragomanError, Stopped

if TYPE_CHECKING:
    from dragoman.evaluation.evaluation import Evaluation
    from dragoman.predictor import Predictor


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 for a fault that the user can mend."""
    commands = {
        "fit": fit, "predict": predict, "evaluate": evaluate, "compare": compare,
        "inspect": inspect,
        "export": export,
    }  # fmt: skip
    try:
        arguments, settings = read_command_line(sys.argv[1:] if argv is None else argv)
        commands[arguments.command](arguments, settings)
        sys.stdout.flush()
    except DragomanError as error:
        _say_at_last(str(error))
        return 2
    except KeyboardInterrupt as stop:
        _say_at_last(str(stop) or "stopped")
        return stop.exit_code if isinstance(stop, Stopped) else 128 + signal.SIGINT
    except (BrokenPipeError, SystemExit) as end:  # rich makes a SystemExit of a broken pipe
        if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):
            raise
        return _leave_without_reader()
    return 0


def fit(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Train a model on a file of pairs."""
    from dragoman.configuration import read_settings
    from dragoman.training.startup import StartClock

    clock = StartClock.since_process_start()
    if not arguments.pairs and arguments.resume == "no":
        raise DragomanError("fit: give PAIRS, a file of pairs or two parallel text files")
    if arguments.resume != "no" and (arguments.overwrite or arguments.dry_run):
        raise DragomanError("--resume: goes on with a run; leave out --overwrite and --dry-run")
    if arguments.max_time is not None:
        words = [*words, "--training.max_minutes", str(arguments.max_time)]
    settings = read_settings(arguments.config, words)
    from dragoman.reading.pairs import check_files

    # What is wrong with a file at first sight is told before seconds go into loading torch.
    for files in (arguments.pairs, settings.data.valid, settings.data.test):
        check_files(files, settings.data)
    from dragoman.commands import fit as run

    clock.mark("program and libraries")
    pairs, out, overwrite = arguments.pairs, arguments.out, arguments.overwrite
    if arguments.dry_run:
        run.rehearse(pairs, out, settings, overwrite=overwrite, clock=clock)
        return
    run.fit(pairs, out, settings, overwrite=overwrite, resume=arguments.resume, clock=clock)
    _show_outcome(arguments.out)
    print(f"next: {_own_name()} predict {arguments.out} < sources.txt", file=sys.stderr)


def predict(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Write the output of a model for each line of the input."""
    from dragoman.commands.predict import Job, run_job

    if arguments.score and arguments.prefix:
        raise DragomanError("--prefix: --score gives the whole output; leave one of them out")
    if (arguments.min_confidence is None) != (arguments.low_confidence_output is None):
        raise DragomanError(
            "--min-confidence and --low-confidence-output must be given together: low-confidence "
            "rows are written to --low-confidence-output"
        )
    model = _load_model(arguments, words)
    if arguments.low_confidence_output and (warning := model.describe_calibration()):
        print(f"dragoman: {warning}", file=sys.stderr)
    job = Job(
        input=arguments.input,
        output=arguments.output,
        low_confidence_output=arguments.low_confidence_output,
        min_confidence=arguments.min_confidence or 0.0,
        is_jsonl=arguments.jsonl,
        scores_targets=arguments.score,
        prefix=arguments.prefix,
        restart=arguments.restart,
    )
    for line in run_job(model, job):
        print(f"dragoman: {line}", file=sys.stderr)


def evaluate(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Score a model on a file of pairs, or outputs in a file; lines with one source are references."""
    if arguments.hypotheses is not None:
        _evaluate_files(arguments, words)
        return
    if arguments.model is None or not arguments.pairs:
        raise DragomanError(
            "evaluate: give MODEL and PAIRS, or outputs of any system by --hypotheses and "
            "--references"
        )
    if arguments.references or arguments.sources:
        raise DragomanError("--references, --sources: belong to --hypotheses; leave them out")
    model = _load_model(arguments, words)
    from dragoman.commands.evaluate import evaluate_model, name_evaluation
    from dragoman.commands.report import report_model
    from dragoman.evaluation.evaluation import write_evaluation
    from dragoman.model_folder.calibration import write_calibration
    from dragoman.model_folder.folder import EVALUATION
    from dragoman.reading.pairs import RowErrors, read_pairs
    from dragoman.training.logs import read_curves

    faults, paths = RowErrors(), [Path(path) for path in arguments.pairs]
    pairs = read_pairs(paths, model.settings.data, faults)
    bundle = model.bundles[0]
    evaluation, confidence = evaluate_model(
        model, pairs, counts=bundle.source_counts, calibrates=arguments.calibrate
    )
    if faults.total:
        print(f"dragoman: rows left out: {faults.report()}", file=sys.stderr)
    name = name_evaluation(paths)
    out = arguments.out or arguments.model / EVALUATION / name
    if not model.is_in_place():
        raise DragomanError(
            f"{arguments.model}: another model has taken its place while it was evaluated; do it again"
        )
    write_evaluation(out, evaluation)
    if arguments.calibrate:
        stored = confidence.to_stored(list(map(str, paths)), model.settings.decoding)
        write_calibration(arguments.model, stored)
    if arguments.report is not None:
        folder = arguments.model.resolve()  # "." has no name
        report_model(
            arguments.report,
            model,
            folder.name,
            {name: evaluation},
            metrics=bundle.metrics,
            curves=read_curves(folder.with_name(f"{folder.name}.training")),
        )
    _show_evaluation(evaluation, arguments, out, confidence.describe())


def compare(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Tell whether one run is better than another, or by chance."""
    from dragoman.configuration import read_settings

    typed = read_settings(None, words).evaluation
    from dragoman.commands.compare import compare_runs, describe_comparison

    found = compare_runs(arguments.runs, typed, on=arguments.on, num_rows=arguments.rows)
    if arguments.json:
        print(json.dumps([one.to_dict() for one in found], indent=2, ensure_ascii=False))
    else:
        print("\n\n".join("\n".join(describe_comparison(one)) for one in found))


def inspect(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Look for problems in pairs before a model is trained on them."""
    from dragoman.commands import inspect as command
    from dragoman.configuration import merge_settings, read_settings

    files = {"data.valid": arguments.valid, "data.test": arguments.test}
    given = {name: paths for name, paths in files.items() if paths}
    settings = merge_settings(read_settings(arguments.config, words), given, overrule=True)
    inspection = command.inspect(arguments.pairs, settings)
    if arguments.json:
        print(json.dumps(inspection.to_dict(), indent=2, ensure_ascii=False))
    else:
        command.print_inspection(inspection)


def export(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Write a model in the form of another program, into its folder, and check it."""
    if words:
        raise DragomanError(f"{words[0]}: export takes no settings; see dragoman export --help")
    from dragoman.commands import export as command

    check = command.export(arguments.model, arguments.to, arguments.quantization)
    print(f"{arguments.model / arguments.to}: {check}", file=sys.stderr)


def _evaluate_files(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Score outputs of any system, that lie in a file."""
    from dragoman.configuration import read_settings

    typed = read_settings(None, words)
    if arguments.model is not None or not arguments.references:
        raise DragomanError(
            "--hypotheses: takes the outputs from the file, and needs --references; no MODEL"
        )
    if arguments.calibrate:
        raise DragomanError("--calibrate: makes the confidence of a model right; give MODEL")
    from dragoman.commands.evaluate import name_evaluation
    from dragoman.commands.report import report_outputs
    from dragoman.evaluation.evaluation import evaluate_rows, write_evaluation
    from dragoman.evaluation.rows import read_outputs

    rows = read_outputs(arguments.hypotheses, arguments.references, arguments.sources)
    evaluation = evaluate_rows(rows, typed.evaluation)
    if arguments.out is not None:
        write_evaluation(arguments.out, evaluation)
    if arguments.report is not None:
        name = name_evaluation([arguments.hypotheses])
        report_outputs(arguments.report, name, evaluation)
    _show_evaluation(evaluation, arguments, arguments.out)


def _show_evaluation(
    evaluation: "Evaluation",
    arguments: argparse.Namespace,
    out: Path | None,
    told: Sequence[str] = (),
) -> None:
    from dragoman.evaluation.evaluation import summarize

    content = evaluation.to_dict()
    if arguments.json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        print("\n".join([*summarize(content), *told]))
    for path in (out, arguments.report):
        if path is not None:
            print(f"written: {path}", file=sys.stderr)


def _say_at_last(message: str) -> None:
    """Write a message to standard error, if anybody still reads it."""
    try:
        print(f"dragoman: {message}", file=sys.stderr)
    except OSError:
        _write_nowhere()


def _leave_without_reader() -> int:
    """Return the exit code of a process whose output nobody reads any longer, as in `| head`."""
    _write_nowhere()
    return 128 + signal.SIGPIPE


def _write_nowhere() -> None:
    """Let what is still to be written to a stream that has gone be lost, without a complaint."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


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
        quantization=arguments.quantization,
    )


def _show_outcome(out: Path) -> None:
    """Show the scores and some predictions of a model folder, and what to do next."""
    from dragoman.evaluation.evaluation import list_scores

    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    for split in ("valid", "test"):
        if split in metrics:
            print(f"{split}:", *list_scores(metrics[split]), sep="\n", file=sys.stderr)
    for sample in metrics["samples"][:5]:
        is_right = "=" if sample["prediction"] == sample["reference"] else "≠"
        print(f"  {sample['source']} -> {sample['prediction']}  {is_right}  {sample['reference']}", file=sys.stderr)  # fmt: skip
    print(f"model folder: {out}", file=sys.stderr)
