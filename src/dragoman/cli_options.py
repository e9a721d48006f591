"""The options of each command, and their help; every other option is a setting."""

import argparse
import difflib
import re
import textwrap
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args, get_origin

from dragoman.errors import SettingsError

ENGINES = ("auto", "torch", "ctranslate2")
QUANTIZATIONS = ("float32", "int8", "int8_float32", "int8_float16", "float16", "bfloat16")
_FIT_SECTIONS = (
    "preset", "data", "tokenizer", "model", "optimization", "training", "decoding", "evaluation",
)  # fmt: skip
_RENAMED = {"--force-target": "--score", "--rest": "--low-confidence-output"}
_USE_SECTIONS = ("data.", "decoding.")  # what a trained model still takes


def read_command_line(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of the command that is named first, and the settings as typed.

    Raises:
        SettingsError: An option is no setting, but close to one of the command's own.
        SystemExit: Help was asked for, or a word is missing; argparse has said so.
    """
    parser, commands = build_parser()
    own: list[str] = list(words)
    settings: list[str] = []
    if own and own[0] in commands:
        own, settings = _part_settings(own, commands[own[0]])
    return parser.parse_args(own), settings


def build_parser() -> "tuple[_Parser, dict[str, _Parser]]":
    """Return the parser, and those of the commands by name."""
    parser = _Parser(
        prog="dragoman",
        description="Train an encoder-decoder Transformer on your own pairs, check it, ship it.",
        epilog="Start with: dragoman fit --help",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dragoman {version('dragoman')}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    made: dict[str, _Parser] = {}

    def add(name: str, summary: str, sections: tuple[str, ...]) -> argparse.ArgumentParser:
        made[name] = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            allow_abbrev=False,
        )
        made[name].sections = sections
        return made[name]

    summary = "write the output of a model for each line of the input"
    _add_fit(add("fit", "train a model on a file of pairs", _FIT_SECTIONS))
    _add_predict(add("predict", summary, _USE_SECTIONS))
    summary = "score a model, or outputs in a file, with intervals"
    _add_evaluate(add("evaluate", summary, (*_USE_SECTIONS, "evaluation.")))
    summary = "tell whether one run is better than another, or by chance"
    _add_compare(add("compare", summary, ("evaluation.",)))
    summary = "look for faults in pairs before a model is trained on them"
    _add_inspect(add("inspect", summary, ("preset", "data.", "tokenizer.")))
    summary = "write a model for other programs, into its folder, and check it"
    _add_export(add("export", summary, ()))
    return parser, made


def _add_fit(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "pairs", nargs="*", metavar="PAIRS", help="a file of pairs (.tsv .csv .jsonl .parquet, "
        "also .gz or .zst), or two parallel text files; with --resume they may be left out",
    )  # fmt: skip
    command.add_argument(
        "--out", type=Path, default=Path("model"), help="model folder to write (default: model)"
    )
    command.add_argument("--config", type=Path, help="YAML file of settings; those typed here win")
    command.add_argument("--overwrite", action="store_true", help="replace the model folder")
    command.add_argument(
        "--resume", nargs="?", const="must", default="no", choices=("auto", "must"), metavar="auto",
        help="go on with the run of --out that was interrupted; auto: begin it where there is none",
    )  # fmt: skip
    command.add_argument(
        "--max-time", type=_minutes, metavar="TIME",
        help="end the training after this long, such as 90m or 1h30m, with a model and a checkpoint "
        "to go on from: training.max_minutes",
    )  # fmt: skip
    command.add_argument(
        "--dry-run", action="store_true",
        help="read the data, build the model, take a few steps; show sizes and the estimated time",
    )  # fmt: skip


def _add_predict(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    command.add_argument("--input", type=Path, help="file of sources (default: standard input)")
    command.add_argument(
        "--output", type=Path,
        help="file to write (default: standard output): .jsonl, .csv or .tsv with the columns of "
        "the input, else lines of text; also .gz or .zst. If it is stopped, the same command goes "
        "on where it was",
    )  # fmt: skip
    command.add_argument(
        "--jsonl", action="store_true",
        help="one JSON object a row: text, score, confidence, is_complete; also for --output *.jsonl",
    )  # fmt: skip
    command.add_argument(
        "--score", action="store_true",
        help="read pairs, and give the probability of each target as the output of its source",
    )  # fmt: skip
    command.add_argument(
        "--prefix", default="", metavar="COLUMN",
        help="column of what the output of each row begins with: a name, or a position from 1",
    )  # fmt: skip
    command.add_argument(
        "--min-confidence", type=_share, metavar="SHARE",
        help="send rows with a confidence below this (0 to 1), truncated outputs and invalid rows to "
        "--low-confidence-output; `dragoman evaluate` suggests a value",
    )  # fmt: skip
    command.add_argument("--low-confidence-output", type=Path, help="file for these rows: .jsonl, .csv or .tsv, also .gz or .zst")  # fmt: skip
    command.add_argument(
        "--restart", action="store_true",
        help="begin an --output anew that was begun and stopped with something else",
    )  # fmt: skip


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    _add_model(command, is_optional=True)
    command.add_argument("pairs", nargs="*", metavar="PAIRS", help="a file of pairs, or two parallel text files; lines with one source are references of it")  # fmt: skip
    command.add_argument(
        "--hypotheses", type=Path, metavar="FILE",
        help="score the lines of this file, or the objects of a .jsonl, in the place of a model",
    )  # fmt: skip
    command.add_argument(
        "--references", type=Path, nargs="+", default=[], metavar="FILE",
        help="with --hypotheses: what the same lines should be; several files: any of them",
    )  # fmt: skip
    command.add_argument("--sources", type=Path, metavar="FILE", help="with --hypotheses: the same lines of the source")  # fmt: skip
    command.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="folder to write: rows.jsonl (outputs, references, scores of each row), scores.json "
        "(default: MODEL/evaluation/NAME, by the name of PAIRS; without a model: none)",
    )  # fmt: skip
    command.add_argument("--report", type=Path, metavar="FILE", help="HTML file to write, which opens offline")  # fmt: skip
    command.add_argument(
        "--calibrate", action="store_true",
        help="make the confidence of MODEL right by these pairs, which should be validation pairs: "
        "not trained on, and no test either",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print the scores as JSON")


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="the baseline, then what is compared with it: model folders, folders of evaluate, or "
        "rows.jsonl files; runs that differ by their seed only are joined by commas: a1,a2,a3",
    )  # fmt: skip
    command.add_argument("--on", default="", metavar="NAME", help="which evaluation of model folders (default: test, or the only one that all have)")  # fmt: skip
    command.add_argument("--rows", type=_positive, default=10, help="rows to show that differ most (default: %(default)s)")  # fmt: skip
    command.add_argument("--json", action="store_true", help="print it as JSON")


def _add_inspect(command: argparse.ArgumentParser) -> None:
    command.add_argument("pairs", nargs="+", metavar="PAIRS", help="a file of pairs, or two parallel text files")  # fmt: skip
    command.add_argument("--valid", nargs="+", default=[], metavar="FILE", help="file of validation pairs, or two: as --data.valid")  # fmt: skip
    command.add_argument("--test", nargs="+", default=[], metavar="FILE", help="file of test pairs, or two: as --data.test")  # fmt: skip
    command.add_argument("--config", type=Path, help="YAML file with settings, as of fit")
    command.add_argument("--json", action="store_true", help="print it as JSON")


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path, metavar="MODEL", help="model folder; the export is written into it")  # fmt: skip
    command.add_argument(
        "--to", choices=("ctranslate2", "onnx"), default="ctranslate2",
        help="ctranslate2: for other programs that use CTranslate2; onnx: for ONNX runtimes of other "
        "languages and devices (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--quantization", choices=QUANTIZATIONS, default="float32",
        help="number format of the weights, for ctranslate2 (default: %(default)s)",
    )  # fmt: skip


def _add_model(command: argparse.ArgumentParser, *, is_optional: bool = False) -> None:
    """Add the model of a command that uses one, and how it is computed."""
    nargs = "?" if is_optional else None
    command.add_argument("model", type=Path, nargs=nargs, metavar="MODEL", help="model folder")
    command.add_argument(
        "--ensemble", type=Path, action="append", default=[], metavar="MODEL",
        help="another model of the same tokenizer, to predict together with MODEL; may be repeated",
    )  # fmt: skip
    command.add_argument(
        "--engine", choices=ENGINES, default="auto",
        help="inference engine; auto: CTranslate2 if it supports the request, else PyTorch "
        "(default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--quantization", choices=QUANTIZATIONS, default="float32",
        help="number format of the weights in CTranslate2; int8 is smaller and faster "
        "(default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one")  # fmt: skip
    command.add_argument("--threads", type=_positive, help="processor threads (default: all cores)")


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number from 1")
    return int(word)


def _share(word: str) -> float:
    try:
        share = float(word)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number from 0 to 1")
    return share


def _minutes(word: str) -> float:
    parts = re.fullmatch(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", word)
    try:
        values = [float(part or 0) for part in parts.groups()] if parts and word else []
    except ValueError:
        values = []
    if not any(values):
        raise argparse.ArgumentTypeError(
            f"{word!r} is no time: give numbers with d, h, m or s, such as 90m or 1h30m"
        )
    return sum(value * unit for value, unit in zip(values, (1440, 60, 1, 1 / 60), strict=True))


class _Parser(argparse.ArgumentParser):
    """A parser whose help ends with the settings that its command takes, by section."""

    sections: tuple[str, ...] = ()

    def format_help(self) -> str:
        """Return the help; settings are listed when it is asked for, not at each start."""
        if not self.sections:
            return super().format_help()
        from dragoman.settings import Settings

        lines = ["settings (--NAME VALUE, or NAME in a YAML file):"]
        _list_section(Settings, "", self.sections, lines)
        return super().format_help() + "\n" + "\n".join(lines) + "\n"


def _list_section(
    section: object, prefix: str, sections: tuple[str, ...], lines: list[str]
) -> None:
    """Append the help of each setting whose name begins with one of `sections`."""
    from dragoman.settings import Section

    assert isinstance(section, type)
    assert issubclass(section, Section)
    for name, info in section.model_fields.items():
        dotted, kind = f"{prefix}{name}", info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            _list_section(kind, f"{dotted}.", sections, lines)
        elif dotted.startswith(sections):
            default = "none" if info.default in ("", ()) else info.default
            if isinstance(default, tuple):
                default = ", ".join(default)
            choices = (
                f" ({', '.join(map(str, get_args(kind)))})" if get_origin(kind) is Literal else ""
            )
            lines.append(f"  --{dotted}{choices}")
            told = f"{info.description} [{default}]"
            lines += textwrap.wrap(told, 88, initial_indent=" " * 8, subsequent_indent=" " * 8)


def _part_settings(
    words: list[str], command: argparse.ArgumentParser
) -> tuple[list[str], list[str]]:
    """Return the words that argparse knows, and the settings: every other option with its value.

    Raises:
        SettingsError: An option is no setting, but close to one of the command's own.
    """
    known = {option for action in command._actions for option in action.option_strings}
    own, settings = [], []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--resume" and rest[:1] != ["auto"]:
            word = "--resume=must"  # what follows is PAIRS, not its value
        name = word.partition("=")[0]
        if not word.startswith("--") or word == "--" or name in known:
            own.append(word)
            continue
        is_setting = "." in name or name.removeprefix("--") in _FIT_SECTIONS
        close = difflib.get_close_matches(_RENAMED.get(name, name), known, n=1, cutoff=0.7)
        if not is_setting and close:
            raise SettingsError(f"{name}: there is no such option; did you mean {close[0]}?")
        settings.append(word)
        if "=" not in word and rest and not rest[0].startswith("--"):
            settings.append(rest.pop(0))
    return own, settings
