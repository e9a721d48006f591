"""The command line: for each command its options and one short function, and a table of all.

Results go to standard output, everything else to standard error. What a command needs is imported
inside its function, so that the others start fast.
"""
# PYTHON_ARGCOMPLETE_OK: where argcomplete is switched on for all programs, it looks for this.

import json
import os
import shlex
import shutil
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dragoman.characters import printed_streams, write_data
from dragoman.cli_options import (
    QUANTIZATIONS,
    Add,
    Command,
    add_engine,
    add_model,
    fraction,
    minutes,
    part,
    positive,
    read_command_line,
)
from dragoman.errors import DragomanError, Stopped, is_out_of_memory, name_extra, shorten

if TYPE_CHECKING:
    from dragoman.settings import Settings

_WORTH_BYTES = (500_000, 100_000_000)  # of PAIRS that are prepared while torch is imported


@printed_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 for an error in the input, 1 for one of the system."""
    try:
        given = sys.argv[1:] if argv is None else argv
        arguments, words = read_command_line(given, COMMANDS)
        arguments.given = given
        command = COMMANDS[arguments.command]
        with name_extra(f"dragoman {arguments.command}"):
            settings = [_read_settings(arguments, words)] if command.sections else []
            command.run(arguments, *settings)
        sys.stdout.flush()
    except DragomanError as error:
        _print_last(str(error))
        return 2
    except KeyboardInterrupt as stop:
        _print_last(str(stop) or "stopped")
        return stop.exit_code if isinstance(stop, Stopped) else 128 + signal.SIGINT
    except (BrokenPipeError, SystemExit) as end:  # rich turns a broken pipe into SystemExit
        if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):
            raise
        _discard_output()
        return 128 + getattr(signal, "SIGPIPE", 13)  # Windows has none
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        cause = str(error).partition("\n")[0] or "the memory of the machine"
        _print_last(f"out of memory ({cause}): lower decoding.batch_tokens or decoding.beam_size")
        return 1
    except OSError as error:  # such as a full disk
        reason = os.strerror(error.errno) if error.errno else str(error)
        _print_last(f"{error.filename}: {reason}" if error.filename else reason)
        _discard_output()
        return 1
    return 0


# ------------------------------------------------------------------ fit


def _add_fit(add: Add) -> None:
    _add_pairs(add,
        "training pairs: files (.tsv .csv .jsonl .parquet .arrow, also .gz or .zst; 'a/*.tsv'; "
        "a folder of .parquet or .arrow; a URL such as s3://bucket/a.tsv; - for standard input), or two "
        "parallel text files; not needed with --resume or data.train")  # fmt: skip
    add("--out", type=Path, default=Path("model"), help="model folder to write (default: model)")
    add("--from", dest="training.start_from", metavar="MODEL",
        help="start from the weights of this model folder, with its vocabulary and sizes; symbols and "
        "features that it lacks are added; short for --training.start_from")  # fmt: skip
    add("--seeds", type=positive, metavar="N",
        help="train N models, with the seeds from training.seed on, one after the other; --out becomes "
        "an ensemble folder: an ensemble wherever a model folder is taken")  # fmt: skip
    add("--teacher", dest="training.teacher", metavar="MODEL",
        help="train on the outputs of this model, too (distillation), best an ensemble of `fit --seeds`; "
        "short for --training.teacher")  # fmt: skip
    add("--unlabelled", dest="data.unlabelled", metavar="FILE",
        help="file of sources without targets, for the teacher; short for --data.unlabelled")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the model folder")
    add("--resume", nargs="?", const="must", default="no", choices=("auto", "must"), metavar="auto",
        help="resume the interrupted run of --out; auto: start a new run if there is none")  # fmt: skip
    add("--max-time", dest="training.max_minutes", type=minutes, metavar="TIME",
        help="the best model for this time, such as 90m or 1h30m: fit measures its speed and plans the "
        "steps; short for --training.max_minutes")  # fmt: skip
    add("--on", choices=("ray",),
        help="train on training.devices workers of a Ray cluster: the one at RAY_ADDRESS, else the one of "
        "this machine, by `ray start --head`; all share the disk of PAIRS and --out")  # fmt: skip
    add("--dry-run", action="store_true",
        help="print sizes, steps and estimated time, and to standard output the settings, as --config "
        "reads them; train nothing")  # fmt: skip


def _fit(arguments: Namespace, settings: "Settings") -> None:
    from dragoman.training.run_context import StartTimer

    timer = StartTimer.since_process_start()
    if arguments.resume != "no" and (arguments.overwrite or arguments.dry_run):
        raise DragomanError("--resume: leave out --overwrite and --dry-run")
    if arguments.on is not None and (
        arguments.dry_run or arguments.seeds or "-" in arguments.pairs
    ):
        raise DragomanError("--on ray: leave out --dry-run, --seeds, and standard input as PAIRS")
    from dragoman.reading.pairs import describe_layout

    # Errors that the first lines show are reported before torch is loaded, which takes seconds. Of
    # several processes (torchrun, srun), `fit` lets one report.
    num_ranks = os.environ.get("WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    groups = (arguments.pairs, settings.data.valid, settings.data.test)
    for i, files in enumerate(groups):
        # The columns of a run from a model are those of the model, which is not read yet.
        if files and num_ranks == "1" and not settings.training.start_from:
            describe_layout(files, settings.data, before=groups[:i])
    if arguments.on is not None:
        from dragoman.commands.on_ray import fit

        if code := fit(arguments.given, arguments.out, settings.training):
            sys.exit(code)
        return
    is_new = num_ranks == "1" and arguments.resume == "no"
    with _preparing(arguments.pairs, settings) if is_new else nullcontext():
        from dragoman.commands import fit as command
    timer.mark("program and libraries")
    pairs, out, overwrite = arguments.pairs, arguments.out, arguments.overwrite
    if arguments.dry_run:
        from dragoman.commands.fit_decoding import OPEN
        from dragoman.configuration import list_set_values
        from dragoman.model_folder.folder import dump_settings

        seeds = arguments.seeds
        used = command.dry_run(pairs, out, settings, seeds=seeds, overwrite=overwrite, timer=timer)
        still_open = set(OPEN) - dict(list_set_values(settings)).keys()
        write_data(dump_settings(used, still_open))
        return
    model = command.fit(
        pairs, out, settings,
        seeds=arguments.seeds, overwrite=overwrite, resume=arguments.resume, timer=timer,
    )  # fmt: skip
    from dragoman.evaluation.evaluation import list_scores, list_seeds
    from dragoman.evaluation.field_confidence import list_field_confidence
    from dragoman.model_folder.folder import write_example

    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    for split in ("valid", "test"):
        if split in metrics:
            level = f"{metrics['confidence_level']:.4g}"
            print(f"{split}, in percent or points of 100 [confidence interval, level {level}]:",
                *list_scores(metrics[split]), *list_seeds(metrics.get("seeds", {}).get(split), metrics[split]),
                *list_field_confidence(metrics.get("fields", {}).get(split, ())),
                sep="\n", file=sys.stderr)  # fmt: skip
            if num := metrics.get("num_truncated", {}).get(split):
                print(f"  {num:,} of {metrics[split]['rows']:,} outputs were truncated at the maximum "
                    "length (decoding.max_length_ratio, decoding.max_length_extra)", file=sys.stderr)  # fmt: skip
    print("samples, source -> output (= as expected, ≠ expected instead):", file=sys.stderr)
    for sample in metrics["samples"][:5]:
        names = ("source", "prediction", "reference")
        source, output, expected = (shorten(sample[name], 60) for name in names)
        is_right = sample["prediction"] == sample["reference"]
        print(f"  {source} -> {output}  {'=' if is_right else f'≠  {expected}'}", file=sys.stderr)
    print(f"model folder: {out}", file=sys.stderr)
    # The path of this interpreter, if a shell would not find `dragoman`.
    name = "dragoman" if shutil.which("dragoman") else f"{sys.executable} -m dragoman"
    predict = f"{name} predict {shlex.quote(str(out))}"
    print(f"next: {write_example(predict, model.settings, metrics)}", file=sys.stderr)


@contextmanager
def _preparing(pairs: Sequence[str], settings: "Settings") -> Iterator[None]:
    """Prepare the pairs in another process, into the cache, while this one imports torch (4 s)."""
    training, files = settings.training, [Path(one) for one in pairs if one != "-"]
    size = sum(file.stat().st_size for file in files if file.is_file())
    is_cached = settings.data.cache != "none" and not (training.teacher or training.start_from)
    if not (is_cached and _WORTH_BYTES[0] < size < _WORTH_BYTES[1]):
        yield
        return
    from dragoman.data.preparation import computing_apart

    with computing_apart(_prepare, pairs, settings):
        yield


def _prepare(pairs: Sequence[str], settings: "Settings") -> None:
    """Put the prepared pairs into the cache; if anything is wrong with them, `fit` will say so."""
    from dragoman.data.run_data import RunData
    from dragoman.presets import choose_settings

    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        data = RunData.read(pairs, settings, Path(folder))
        choice = choose_settings(settings, data.statistics, is_parallel=data.is_parallel)
        data.encode(choice.settings)


# ------------------------------------------------------------------ predict


def _add_predict(add: Add) -> None:
    add_model(add)
    add("--input", metavar="FILE", help="file of sources, or its URL (default: standard input)")
    add("--output", type=Path,
        help="file to write (default: standard output): .jsonl, .parquet, .csv or .tsv with the "
        "columns of the input, else lines of text; also .gz or .zst. Repeat the command to resume "
        "after a crash")  # fmt: skip
    add("--jsonl", action="store_true",
        help="write JSON lines (text, score, confidence, is_complete, n-best lists), as for --output "
        "*.jsonl")  # fmt: skip
    add("--score", action="store_true",
        help="read pairs, and give the log-probability of each target for its source")  # fmt: skip
    add("--prefix", default="", metavar="COLUMN",
        help="column with the start of each output: a name, or a position from 1")  # fmt: skip
    add("--require-grounding", dest="decoding.require_grounding", choices=("exact", "near"),
        help="leave out values of records that do not stand in the source, and count them; short for "
        "--decoding.require_grounding")  # fmt: skip
    add("--memory", dest="decoding.memory", choices=("none", "auto"),
        help="auto: answer sources of the training pairs by their targets, where fit found that this "
        "helps; none: always by the model; short for --decoding.memory")  # fmt: skip
    add("--min-confidence", type=fraction, metavar="THRESHOLD",
        help="send rows with calibrated confidence below THRESHOLD (0 to 1), truncated outputs and "
        "invalid rows to --low-confidence-output; of outputs that are records, only the values below "
        "it: they leave their records; `dragoman evaluate` suggests thresholds")  # fmt: skip
    add("--low-confidence-output", type=Path, metavar="FILE",
        help="file for these rows: .jsonl, .parquet, .csv or .tsv, also .gz or .zst")  # fmt: skip
    add("--part", type=part, metavar="K/N",
        help="predict part K of N only, such as 3/8, on this machine, and write OUTPUT.part-K-of-N; "
        "`dragoman join OUTPUT` puts the parts together")  # fmt: skip
    add("--on", choices=("ray",),
        help="predict on the machines of a Ray cluster: the one at RAY_ADDRESS, else the one of this "
        "machine, by `ray start --head`; all share the disk of the model, --input and --output")  # fmt: skip
    add("--workers", type=positive, metavar="N", help="with --on ray: predict N parts side by side")
    add("--restart", action="store_true",
        help="start over, instead of resuming an interrupted prediction of --output")  # fmt: skip


def _predict(arguments: Namespace, settings: "Settings") -> None:
    if arguments.score and arguments.prefix:
        raise DragomanError("--prefix: --score gives the whole output; leave one of them out")
    if (arguments.min_confidence is None) != (arguments.low_confidence_output is None):
        raise DragomanError(
            "--min-confidence and --low-confidence-output must be given together: low-confidence "
            "rows are written to --low-confidence-output"
        )
    _check_workers(arguments)
    from dragoman.commands.predict import Job, run_job

    job = Job(
        input=None if arguments.input == "-" else arguments.input,
        output=arguments.output,
        low_confidence_output=arguments.low_confidence_output,
        min_confidence=arguments.min_confidence or 0.0,
        is_jsonl=arguments.jsonl,
        scores_targets=arguments.score,
        prefix=arguments.prefix,
        restart=arguments.restart,
        part=arguments.part,
    )
    folders, options = [arguments.model, *arguments.ensemble], _take_engine(arguments)
    if arguments.on is not None:
        from dragoman.commands.on_ray import predict

        lines = predict(folders, settings, job, workers=arguments.workers, options=options)
    else:
        from dragoman.predictor import Predictor

        model = Predictor.load(folders, settings, **options)
        if arguments.low_confidence_output and (warning := model.describe_calibration()):
            _report(warning)
        lines = run_job(model, job)
    for line in lines:
        _report(line)


def _add_join(add: Add) -> None:
    add("output", type=Path, metavar="OUTPUT",
        help="the --output of the parts, which lie beside it; they are removed at the end")  # fmt: skip


def _join(arguments: Namespace) -> None:
    from dragoman.commands.join import join

    for line in join(arguments.output):
        _report(line)


def _take_engine(arguments: Namespace) -> dict[str, Any]:
    if arguments.verbose:
        import logging

        logging.basicConfig(format="%(message)s")
        logging.getLogger("dragoman").setLevel(logging.INFO)
    names = ("engine", "device", "threads", "quantization")
    return {name: getattr(arguments, name) for name in names}


# ------------------------------------------------------------------ evaluate, compare


def _add_evaluate(add: Add) -> None:
    add_model(add, is_optional=True)
    add("pairs", nargs="*", metavar="PAIRS",
        help="a file of pairs, or two parallel text files; rows with the same source are references "
        "of it, or rows of running text: evaluation.repeated_sources")  # fmt: skip
    add("--hypotheses", metavar="FILE",
        help="score the lines of this file (or the objects of a .jsonl, or the column prediction of a "
        "table) instead of a model")  # fmt: skip
    add("--references", nargs="+", default=[], metavar="FILE",
        help="with --hypotheses: the expected lines; with several files, any of them is right")  # fmt: skip
    add("--sources", metavar="FILE", help="with --hypotheses: the lines of the source")
    add("--out", type=Path, metavar="FOLDER",
        help="folder to write: scores.json, and rows.jsonl with the output and scores of each row "
        "(default: MODEL/evaluation/NAME, by the name of PAIRS and the settings that are not "
        "MODEL's own; without a model: none)")  # fmt: skip
    add("--report", type=Path, metavar="FILE", help="HTML report to write; it opens offline")
    add("--calibrate", action="store_true",
        help="calibrate MODEL's confidence on these pairs (use validation data)")  # fmt: skip
    add("--json", action="store_true", help="print the scores as JSON")


def _evaluate(arguments: Namespace, settings: "Settings") -> None:
    from dragoman.commands.evaluate import evaluate, evaluate_outputs
    from dragoman.evaluation.evaluation import summarize
    from dragoman.evaluation.field_confidence import list_field_confidence
    from dragoman.reading.pairs import RowErrors
    from dragoman.storage import is_same_file

    model, hypotheses, report = arguments.model, arguments.hypotheses, arguments.report
    of_outputs = (*arguments.references, arguments.sources)
    inputs = [Path(one) for one in (*arguments.pairs, hypotheses, *of_outputs) if one]
    if report is not None and any(is_same_file(report, one) for one in inputs):
        raise DragomanError(f"--report {report}: this file is read too; give another name")
    if hypotheses is not None:
        if model is not None or not arguments.references:
            raise DragomanError("--hypotheses: needs --references, and no MODEL")
        of_models = {"--calibrate": arguments.calibrate, "--ensemble": arguments.ensemble,
                     "--engine": arguments.engine != "auto", "--device": arguments.device != "auto",
                     "--threads": arguments.threads, "--quantization": arguments.quantization != "auto"}  # fmt: skip
        if given := [option for option, is_given in of_models.items() if is_given]:
            raise DragomanError(f"{', '.join(given)}: for a model only; --hypotheses uses none")
        evaluation = evaluate_outputs(
            hypotheses, arguments.references, arguments.sources, settings,
            out=arguments.out, report=report,
        )  # fmt: skip
    elif model is None or not arguments.pairs:
        raise DragomanError(
            "evaluate: give MODEL and PAIRS, or outputs of any system by --hypotheses and "
            "--references"
        )
    elif any(of_outputs):
        raise DragomanError("--references, --sources: are for --hypotheses; leave them out")
    else:
        row_errors = RowErrors()
        evaluation = evaluate(
            [model, *arguments.ensemble], arguments.pairs, settings, **_take_engine(arguments),
            calibrate=arguments.calibrate, out=arguments.out, into_model=True, report=report,
            row_errors=row_errors,
        )  # fmt: skip
        for line in row_errors.layouts:
            _report(line)
        if row_errors.total:
            _report(f"rows skipped: {row_errors.report()}")
    content, confidence = evaluation.to_dict(), evaluation.confidence
    lines = summarize(content)
    if confidence is not None:
        lines = [*lines, *confidence.describe(), *list_field_confidence(confidence.fields)]
    _print_result(arguments, content, lines)
    for path in (evaluation.folder, report):
        if path is not None:
            print(f"written: {path}", file=sys.stderr)


def _add_compare(add: Add) -> None:
    add("runs", nargs="+", metavar="RUN",
        help="the baseline, then the runs to compare with it: model folders, folders that evaluate "
        "wrote, or rows.jsonl files; join runs that differ only by their seed: a1,a2,a3")  # fmt: skip
    add("--on", default="", metavar="NAME",
        help="name of the evaluation in model folders (default: test, or the only one)")  # fmt: skip
    add("--rows", type=positive, default=10,
        help="number of rows to show, of those that differ most (default: %(default)s)")  # fmt: skip
    add("--json", action="store_true", help="print the comparison as JSON")


def _compare(arguments: Namespace, settings: "Settings") -> None:
    from dragoman.commands.compare import compare, describe_comparison

    found = compare(arguments.runs, settings, on=arguments.on, num_rows=arguments.rows)
    text = "\n\n".join("\n".join(describe_comparison(one)) for one in found)
    _print_result(arguments, [one.to_dict() for one in found], [text])


def _add_explain(add: Add) -> None:
    add("model", type=Path, metavar="MODEL", help="model folder")
    add("source", metavar="SOURCE", help="the source whose output is to be explained")
    add(
        "features",
        nargs="*",
        default=[],
        metavar="FEATURE",
        help="its values of the model's data.features",
    )
    add("--pairs", nargs="+", default=[], metavar="FILE",
        help="the training pairs (default: the files that MODEL names)")  # fmt: skip
    add("--rows", type=positive, default=5,
        help="number of nearest rows to show, by characters and by encoder state (default: %(default)s)")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one")
    add("--json", action="store_true", help="print the explanation as JSON")


def _explain(arguments: Namespace, settings: "Settings") -> None:
    from dragoman.commands.explain import describe_explanation, explain

    found = explain(
        arguments.model,
        arguments.source,
        arguments.features,
        pairs=arguments.pairs,
        settings=settings,
        num_rows=arguments.rows,
        device=arguments.device,
    )
    _print_result(arguments, found.to_dict(), describe_explanation(found))


# ------------------------------------------------------------------ inspect, export


def _add_inspect(add: Add) -> None:
    _add_pairs(add, "files of pairs, or two parallel ones, as for fit")
    add("--model", type=Path, metavar="MODEL",
        help="also rank the targets of PAIRS that may be wrong, by the model in this folder, best an "
        "ensemble of `fit --seeds`; it may have been trained on them")  # fmt: skip
    add("--json", action="store_true", help="print the findings as JSON")
    add("--schema", nargs="?", const="", metavar="FILE.json",
        help="instead derive a JSON schema from the training records, for --decoding.json_schema; "
        "print it, or write it to the file")  # fmt: skip


def _add_pairs(add: Add, help_text: str = "training pairs, as for fit") -> None:
    """Add the options of a command that reads training pairs, and so has all settings."""
    add("pairs", nargs="*", metavar="PAIRS", help=help_text)
    for name, pairs in (("valid", "validation"), ("test", "test")):
        add(f"--{name}", dest=f"data.{name}", nargs="+", metavar="FILE",
            help=f"{pairs} pairs: a file, or two parallel ones; short for --data.{name}")  # fmt: skip
    add("--config", type=Path, help="YAML file of settings; arguments override it")


def _inspect(arguments: Namespace, settings: "Settings") -> None:
    from dragoman.commands.inspect import (
        derive_schema,
        inspect,
        print_inspection,
        print_schema_check,
    )

    if arguments.schema is not None:
        found = derive_schema(arguments.pairs, settings, out=arguments.schema or None)
        print_schema_check(found)
        if not arguments.schema:
            _print_json(found.schema)
        return
    inspection = inspect(arguments.pairs, settings, model=arguments.model)
    if arguments.json:
        _print_json(inspection.to_dict())
    else:
        print_inspection(inspection)


def _add_tune(add: Add) -> None:
    _add_pairs(add)
    add("--out", type=Path, default=Path("tuned"),
        help="folder of the search (default: tuned): best.yaml, search.html, study.db; repeat the "
        "command to continue an interrupted search")  # fmt: skip
    add("--space", type=Path, metavar="FILE.yaml",
        help="what to search: by setting, a list of values, or low, high and (true) log; default: "
        "learning rate, dropout, label smoothing, layers")  # fmt: skip
    add("--trials", type=positive, default=20, help="training runs (default: 20)")
    add("--max-time", type=minutes, metavar="TIME", help="start no trial after it, such as 3h")
    add("--on", choices=("ray",),
        help="run trials side by side on the machines of a Ray cluster: the one at RAY_ADDRESS, else the "
        "one of this machine, by `ray start --head`; all share the disk of PAIRS and --out")  # fmt: skip
    add("--workers", type=positive, metavar="N",
        help="with --on ray: run N trials at a time, on OMP_NUM_THREADS processors (default: 1) or a GPU "
        "each")  # fmt: skip
    add("--overwrite", action="store_true", help="start over, instead of continuing")
    add("--json", action="store_true", help="print the trials as JSON")


def _tune(arguments: Namespace, settings: "Settings") -> None:
    _check_workers(arguments)
    from dragoman.commands.tune import print_search, read_space, tune

    search = tune(
        arguments.pairs,
        arguments.out,
        settings,
        space=read_space(arguments.space) if arguments.space else None,
        trials=arguments.trials,
        minutes=arguments.max_time,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
    )
    if arguments.json:
        _print_json(search.to_dict())
    else:
        print_search(search)


def _add_learning_curve(add: Add) -> None:
    _add_pairs(add)
    add("--out", type=Path, default=Path("curve"),
        help="folder of the models and of curve.html (default: curve); repeat the command to continue an "
        "interrupted one")  # fmt: skip
    add("--seeds", type=positive, default=2, help="models for each point (default: 2)")
    add("--metric", default="", metavar="NAME",
        help="score of the curve, such as exact_match or chrf (default: the first of the task)")  # fmt: skip
    add("--json", action="store_true", help="print the curve as JSON")


def _learning_curve(arguments: Namespace, settings: "Settings") -> None:
    from dragoman.commands.learning_curve import learning_curve

    curve = learning_curve(
        arguments.pairs, arguments.out, settings, seeds=arguments.seeds, metric=arguments.metric
    )
    _print_result(arguments, curve.to_dict(), [repr(curve), f"picture: {curve.page}"])


def _add_suggest(add: Add) -> None:
    add("model", type=Path, metavar="MODEL", help="model folder; best an ensemble of `fit --seeds`")
    add("unlabelled", metavar="UNLABELLED", help="file of sources, as for predict --input")
    add("--rows", type=positive, default=200,
        help="number of sources to suggest (default: %(default)s)")  # fmt: skip
    add("--output", type=Path, default=Path("todo.tsv"), metavar="FILE",
        help="table to write, .csv or .tsv (default: %(default)s); fill in its targets, and give it "
        "to fit")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one")
    add("--json", action="store_true", help="print the rows as JSON, too")


def _suggest(arguments: Namespace, settings: "Settings") -> None:
    from dataclasses import asdict

    from dragoman.commands.suggest import suggest

    if arguments.output.exists():
        raise DragomanError(f"--output {arguments.output}: it exists; give the name of a new file")
    found = suggest(
        arguments.model, arguments.unlabelled, rows=arguments.rows, output=arguments.output,
        settings=settings, device=arguments.device, report=_report,
    )  # fmt: skip
    _report(f"{len(found):,} sources to label: {arguments.output}")
    if arguments.json:
        _print_json([asdict(one) for one in found])


def _check_workers(arguments: Namespace) -> None:
    if (arguments.on is None) != (arguments.workers is None):
        raise DragomanError("--on ray and --workers must be given together")


def _add_export(add: Add) -> None:
    add("model", type=Path, metavar="MODEL", help="model folder; the export is written into it")
    add("--to", choices=("ctranslate2", "onnx", "html", "pytorch"), default="ctranslate2",
        help="ctranslate2: for other programs that use CTranslate2; onnx: for ONNX runtimes of other "
        "languages and devices; html: one page that predicts offline, in a browser; pytorch: weights "
        "of nn.Transformer, and a script (default: %(default)s)")  # fmt: skip
    add("--quantization", choices=QUANTIZATIONS,
        help="number format of the weights (default: float32); for html float16 or int8 (default: "
        "float16)")  # fmt: skip


def _export(arguments: Namespace) -> None:
    from dragoman.commands.export import export

    result = export(arguments.model, arguments.to, arguments.quantization, report=_report)
    print(f"{arguments.model / arguments.to}: {result}", file=sys.stderr)


def _add_import(add: Add) -> None:
    add("folder", type=Path, metavar="FOLDER", help="folder of the trained model")
    add("--from", dest="program", required=True, choices=("pytorch", "joeynmt", "yoyodyne"),
        help="pytorch: a state dictionary with nn.Transformer in it, vocabularies, and import.yaml, which "
        "says what they do not; joeynmt: its model_dir; yoyodyne: a checkpoint, index.pkl and the "
        "configuration")  # fmt: skip
    add("--check", type=Path, required=True, metavar="PAIRS",
        help="sources, each with the output of the old program, to compare with")  # fmt: skip
    add("--out", type=Path, default=Path("model"), help="model folder to write (default: model)")
    add("--min-equal", type=fraction, default=0.95, metavar="SHARE",
        help="share of outputs, 0 to 1, that must be equal, else nothing is written (default: 0.95)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the model folder")


def _import(arguments: Namespace, settings: "Settings") -> None:
    from dragoman.commands.import_model import import_model

    import_model(
        arguments.folder,
        arguments.program,
        arguments.check,
        arguments.out,
        settings,
        min_equal=arguments.min_equal,
        overwrite=arguments.overwrite,
        report=lambda line: print(line, file=sys.stderr),
    )
    print(f"model folder: {arguments.out}", file=sys.stderr)


# ------------------------------------------------------------------ serve


def _add_serve(add: Add) -> None:
    add("models", nargs="+", metavar="MODEL",
        help="model folder; NAME=MODEL names it otherwise than its folder, NAME=MODEL,MODEL is an "
        "ensemble")  # fmt: skip
    add("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    add("--port", type=int, default=8000,
        help="port to listen at; 0: a free one (default: %(default)s)")  # fmt: skip
    add("--workers", type=positive, default=1, metavar="N",
        help="processes, which share the cores, if HTTP takes more than one (default: %(default)s)")  # fmt: skip
    add("--token-file", type=Path, metavar="FILE",
        help="file with a token, readable by its owner only; requests must give it, as "
        "Authorization: Bearer TOKEN")  # fmt: skip
    add("--allow-host", action="append", default=[], metavar="NAME",
        help="name by which clients reach this server, besides localhost and IP addresses")  # fmt: skip
    add("--allow-origin", action="append", default=[], metavar="ORIGIN",
        help="origin of web pages that may send requests, such as https://example.org (CORS)")  # fmt: skip
    add("--corrections", type=Path, metavar="FILE",
        help="TSV to which POST /v1/corrections appends rows to train on")  # fmt: skip
    add("--libretranslate", action="store_true", help="also answer LibreTranslate's clients")
    add("--timeout", type=positive, default=30, metavar="SECONDS",
        help="longest time of a request (default: %(default)s)")  # fmt: skip
    add("--max-body", type=positive, default=1024, metavar="KIB",
        help="largest body of a request, in KiB (default: %(default)s)")  # fmt: skip
    add("--max-requests", type=positive, default=512, metavar="N",
        help="requests at the same time (default: %(default)s)")  # fmt: skip
    add("--max-queue", type=positive, default=4096, metavar="ROWS",
        help="texts that wait (default: %(default)s)")  # fmt: skip
    add_engine(add)


def _serve(arguments: Namespace, settings: "Settings") -> None:
    from dragoman.commands.serve import serve
    from dragoman.serving.messages import Limits

    serve(
        arguments.models,
        settings,
        host=arguments.host,
        port=arguments.port,
        workers=arguments.workers,
        limits=Limits(
            hosts=arguments.allow_host,
            origins=[one.rstrip("/").lower() for one in arguments.allow_origin],
            body_bytes=arguments.max_body << 10,
            timeout_s=arguments.timeout,
            concurrent=arguments.max_requests,
            queue_rows=arguments.max_queue,
        ),
        token_file=arguments.token_file,
        corrections=arguments.corrections,
        libretranslate=arguments.libretranslate,
        **_take_engine(arguments),
    )


# ------------------------------------------------------------------ demo, doctor


def _add_demo(add: Add) -> None:
    add("folder", nargs="?", type=Path, default=Path("demo-dates"), metavar="FOLDER",
        help="where the pairs and the model are written (default: %(default)s)")  # fmt: skip


def _demo(arguments: Namespace) -> None:
    from dragoman.commands.demo import demo

    demo(arguments.folder)


def _doctor(_: Namespace) -> None:
    from dragoman.commands.doctor import describe_installation

    print("\n".join(describe_installation()))


# ------------------------------------------------------------------ all commands

_ALL_SECTIONS = (
    "preset", "quality", "data.", "tokenizer.", "model.", "optimization.", "training.", "decoding.",
    "evaluation.",
)  # fmt: skip
_FOR_TRAINING = (
    "preset", "quality", "data.source", "data.target", "data.features", "tokenizer.source.kind",
    "tokenizer.source.vocab_size", "tokenizer.target.kind", "tokenizer.target.vocab_size",
    "model.d_model", "model.num_encoder_layers", "model.num_decoder_layers", "model.dropout",
    "optimization.learning_rate", "optimization.warmup_steps", "training.max_steps",
    "training.batch_tokens", "training.seed", "training.valid_every", "training.patience",
    "decoding.beam_size",
)  # fmt: skip
_FOR_USE = (
    "data.source", "data.target", "data.features", "decoding.method", "decoding.beam_size",
    "decoding.num_hypotheses", "decoding.length_penalty", "decoding.max_length",
    "decoding.temperature", "decoding.top_k", "decoding.regex", "decoding.json_schema",
    "decoding.choices", "decoding.batch_tokens", "evaluation.task",
)  # fmt: skip
_OF_FIT = (
    "data.train", "data.train_fraction", "data.weights", "data.unlabelled", "data.valid", "data.test",
    "data.cache", "data.max_tokens",
)  # fmt: skip
_OF_PAIRS = (*_OF_FIT, "data.broken_rows", "data.long_rows")
_OF_OUTPUTS = (  # of the formats that predict writes
    "decoding.num_hypotheses", "decoding.token_scores", "decoding.alignment", "decoding.truncation_mark",
)  # fmt: skip
COMMANDS = {
    "fit": Command(
        run=_fit, add_options=_add_fit,
        summary="train a model on a file of pairs",
        examples=(
            "dragoman fit pairs.tsv",
            "dragoman fit train.csv --valid dev.csv --test test.csv --out g2p --max-time 1h",
            "dragoman fit pairs.tsv --model.d_model 512 --optimization.learning_rate 0.0005",
            "dragoman fit corrections.tsv pairs.tsv --from model --out better",
            "dragoman fit pairs.tsv --teacher ensemble --unlabelled more.txt --preset fast --out small",
            "dragoman fit pairs.tsv --dry-run",
            "dragoman fit --out g2p --resume",
        ),
        sections=_ALL_SECTIONS, common=_FOR_TRAINING,
    ),
    "predict": Command(
        run=_predict, add_options=_add_predict,
        summary="write the output of a model for each line of the input",
        examples=(
            "dragoman predict model < sources.txt",
            "dragoman predict model --input big.csv.gz --output out.jsonl --decoding.beam_size 5",
        ),
        sections=("data.", "decoding."), unused=_OF_PAIRS, common=_FOR_USE,
    ),
    "join": Command(
        run=_join, add_options=_add_join,
        summary="put the parts of a prediction together",
        examples=(
            "dragoman predict model --input big.jsonl --output out.jsonl --part 1/8",
            "dragoman join out.jsonl",
        ),
        sections=(),
    ),
    "evaluate": Command(
        run=_evaluate, add_options=_add_evaluate,
        summary="score a model, or outputs in a file, with confidence intervals",
        examples=(
            "dragoman evaluate model test.tsv --report report.html",
            "dragoman evaluate --hypotheses out.txt --references ref.txt",
        ),
        sections=("data.", "decoding.", "evaluation."),
        unused=(*_OF_FIT, *_OF_OUTPUTS, "evaluation.report"),
        common=_FOR_USE,
    ),
    "compare": Command(
        run=_compare, add_options=_add_compare,
        summary="test whether one run is better than another, or differs by chance",
        examples=("dragoman compare baseline larger", "dragoman compare a1,a2,a3 b1,b2,b3"),
        sections=("evaluation.",), unused=("evaluation.report", "evaluation.repeated_sources"),
    ),
    "explain": Command(
        run=_explain, add_options=_add_explain,
        summary="show the training pairs that bear on an output, and what is unsure in it",
        examples=("dragoman explain model 'am 3. Oktober' --pairs train.tsv",),
        sections=("data.", "decoding."), unused=(*_OF_FIT, *_OF_OUTPUTS), common=_FOR_USE,
    ),
    "inspect": Command(
        run=_inspect, add_options=_add_inspect,
        summary="look for problems in pairs before training",
        examples=("dragoman inspect train.tsv --valid dev.tsv --test test.tsv",),
        sections=("preset", "data.", "tokenizer."),
        unused=(
            "data.cache", "data.processes", "data.train_fraction", "data.unlabelled", "data.weights",
        ),
        common=_FOR_TRAINING,
    ),
    "tune": Command(
        run=_tune, add_options=_add_tune,
        summary="search settings that score better on the validation pairs",
        examples=(
            "dragoman tune pairs.tsv --trials 30 --max-time 4h",
            "dragoman tune pairs.tsv --trials 60 --on ray --workers 8",
            "dragoman fit pairs.tsv --config tuned/best.yaml",
        ),
        sections=_ALL_SECTIONS, common=_FOR_TRAINING,
    ),
    "learning-curve": Command(
        run=_learning_curve, add_options=_add_learning_curve,
        summary="show the score by the number of training pairs, and what twice as many would bring",
        examples=("dragoman learning-curve pairs.tsv --seeds 3",),
        sections=_ALL_SECTIONS, unused=("data.train_fraction",), common=_FOR_TRAINING,
    ),
    "suggest": Command(
        run=_suggest, add_options=_add_suggest,
        summary="choose the sources to label next, as a table to fill in",
        examples=(
            "dragoman suggest model unlabelled.txt --rows 200 --output todo.tsv",
            "dragoman fit pairs.tsv todo.tsv --out better",
        ),
        sections=("data.", "decoding."), unused=(*_OF_PAIRS, *_OF_OUTPUTS, "decoding.memory"),
        common=_FOR_USE,
    ),
    "export": Command(
        run=_export, add_options=_add_export,
        summary="write a model in the format of another program, and check it",
        examples=("dragoman export model --to onnx", "dragoman export model --to html"),
        sections=(),
    ),
    "import": Command(
        run=_import, add_options=_add_import,
        summary="take over a model of PyTorch, JoeyNMT or yoyodyne, and check it",
        examples=("dragoman import old --from pytorch --check outputs.tsv",),
        sections=("data.", "decoding."), unused=("data.features", *_OF_PAIRS), common=_FOR_USE,
    ),
    "serve": Command(
        run=_serve, add_options=_add_serve,
        summary="answer requests over HTTP",
        examples=(
            "dragoman serve model",
            "dragoman serve de-en=model_a en-de=model_b --port 5000 --libretranslate",
        ),
        sections=("data.", "decoding."),
        unused=(
            *_OF_PAIRS, *_OF_OUTPUTS, "data.format", "data.header", "data.separator", "data.encoding",
            "data.processes",
        ),
        common=_FOR_USE,
    ),
    "demo": Command(
        run=_demo, add_options=_add_demo,
        summary="train a small model on written dates of ten languages, and use it",
        examples=("dragoman demo",),
        sections=(),
    ),
    "doctor": Command(
        run=_doctor, add_options=lambda add: None,
        summary="print versions, devices, and packages that are missing, for a bug report",
        examples=("dragoman doctor",),
        sections=(),
    ),
}  # fmt: skip


def _read_settings(arguments: Namespace, words: Sequence[str]) -> "Settings":
    """Return the settings of --config, of `words`, and of options that are short for one.

    Such an option has the name of its setting as `dest`. A command with --config reads pairs and has all
    settings; PAIRS may be data.train. Those of others will be merged with the settings of a model.
    """
    from dragoman.configuration import merge_settings, read_settings

    reads_pairs = hasattr(arguments, "config")
    config = arguments.config if reads_pairs else None
    settings = read_settings(config, words, is_whole=reads_pairs)
    typed = {word.partition("=")[0] for word in words}
    given = {name: one for name, one in vars(arguments).items() if "." in name and one is not None}
    for name in given:
        if f"--{name}" in typed:
            raise DragomanError(
                f"--{name}: a shorter option gives the same setting; leave one of them out"
            )
    settings = merge_settings(settings, given, overrule=True)
    if reads_pairs:
        arguments.pairs = arguments.pairs or list(settings.data.train)
        if not arguments.pairs and getattr(arguments, "resume", "no") == "no":
            place = " before --schema" if getattr(arguments, "schema", None) else ""
            raise DragomanError(
                f"{arguments.command}: give PAIRS{place}, a file of pairs or two parallel text files"
            )
    return settings


def _print_result(arguments: Namespace, content: object, lines: Sequence[str]) -> None:
    """Print `content`, with --json, or `lines`."""
    if arguments.json:
        _print_json(content)
    else:
        print("\n".join(lines))


def _print_json(content: object) -> None:
    write_data(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _report(message: str) -> None:
    print(f"dragoman: {message}", file=sys.stderr)


def _print_last(message: str) -> None:
    """Print a message to standard error, if it still has a reader."""
    try:
        _report(message)
    except OSError:
        _discard_output()


def _discard_output() -> None:
    """Discard pending output: the reader has closed the pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
