"""Parsing of the command line: options of a command are argparse's, every other one is a setting."""

import argparse
import os
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn, get_args, get_origin

from dragoman.errors import SettingsError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from dragoman.settings import Section

ENGINES = ("auto", "torch", "ctranslate2")
QUANTIZATIONS = ("float32", "int8", "int8_float32", "int8_float16", "float16", "bfloat16")
_RENAMED = {"--force-target": "--score", "--rest": "--low-confidence-output"}
# Words that some settings take as more values, without commas.
_MORE_VALUES = {"--data.weights": r"[\d.]+$", "--data.train": r"(?!--)"}
_TOP_LEVEL = (
    "preset", "quality", "data", "tokenizer", "model", "optimization", "training", "decoding", "evaluation",
)  # fmt: skip


Add = Callable[..., argparse.Action]


class Command(NamedTuple):
    """A command: its options, and what runs it."""

    run: Callable[..., None]
    """Takes the options, and, if there are `sections`, the settings."""
    add_options: Callable[[Add], None]
    """Adds the options, by the `add_argument` of a parser."""
    summary: str
    examples: tuple[str, ...]
    sections: tuple[str, ...]  # beginnings of the names of the settings that it takes
    unused: tuple[str, ...] = ()  # beginnings of those among them that it does not use
    common: tuple[str, ...] = ()
    """Those that are set most often: --help lists them, --help all every one. None: it lists all."""

    def takes(self, setting: str) -> bool:
        """Return whether the command uses this setting."""
        return setting.startswith(self.sections) and not setting.startswith(self.unused)


def read_command_line(
    words: Sequence[str], commands: Mapping[str, Command]
) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of the command, and the settings as typed.

    Raises:
        SettingsError: An option is not a setting, but similar to an option of the command; or the
            command does not use a setting.
        SystemExit: Help was asked for, or an argument is missing; argparse has printed it.
    """
    parser, parsers = build_parser(commands)
    if "_ARGCOMPLETE" in os.environ:
        _complete(parser, parsers)
    options: list[str] = list(words)
    settings: list[str] = []
    if options and not options[0].startswith("-") and options[0] not in parsers:
        from dragoman.configuration import suggest

        guess = suggest(options[0], [*parsers]) or f"; give one of {', '.join(parsers)}"
        raise SettingsError(f"{options[0]}: there is no such command{guess}")
    if options and options[0] in parsers:
        options, settings = _split_settings(options, parsers[options[0]])
        if not {"-h", "--help"} & {*options}:
            _check_used(settings, options[0], commands[options[0]])
    arguments, others = parser.parse_known_args(options)
    if others:
        hint = f"see dragoman {options[0]} --help"
        if options[0] == "predict" and not others[0].startswith("-"):
            hint = f"a file of sources is given as --input {others[0]}"
        raise SettingsError(f"{others[0]}: {options[0]} does not take it; {hint}")
    return arguments, settings


def _complete(parser: "_Parser", parsers: "Mapping[str, _Parser]") -> None:
    """Write what can stand at the cursor of a shell, and exit; only here are settings options."""
    import argcomplete

    for one in parsers.values():
        assert one.command is not None
        one._option_string_actions["--help"].choices = ("all",)
        for name, info in _list_settings(one.command):
            option = one.add_argument(f"--{name}", help=info.description,
                nargs="?" if info.annotation is bool else None)  # fmt: skip
            # Not as choices of the option: "a,b" and "yes" are right, too.
            if choices := dict.fromkeys(_list_choices(info), ""):
                option.completer = argcomplete.ChoicesCompleter(choices)  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)


def _check_used(settings: Sequence[str], name: str, command: Command) -> None:
    """Refuse settings that exist, perhaps, but that this command does not use."""
    errors = []
    for word in settings:
        setting, _, _ = word.removeprefix("--").partition("=")
        section, dot, _ = setting.partition(".")
        is_group = section in _TOP_LEVEL and not dot and section not in ("preset", "quality")
        if not word.startswith("--") or section not in _TOP_LEVEL or is_group:
            continue  # a value; or an error that `read_settings` reports
        if not command.takes(setting):
            is_use = section in ("data", "decoding", "evaluation")
            why = f"{name} does not use it" if is_use else "is for training only"
            errors.append(
                f"--{setting}: {why}; `dragoman {name} --help all` lists what {name} takes"
            )
    if settings and not command.sections and not errors:
        errors.append(f"{settings[0]}: {name} takes no settings; see dragoman {name} --help")
    if errors:
        raise SettingsError.gather(errors)


def build_parser(commands: Mapping[str, Command]) -> "tuple[_Parser, dict[str, _Parser]]":
    """Return the parser, and those of the commands by name."""
    parser = _Parser(
        prog="dragoman",
        description="Train an encoder-decoder Transformer on your own pairs, check it, ship it.",
        epilog="Start with: dragoman fit pairs.tsv. More about a command: dragoman COMMAND --help",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dragoman {version('dragoman')}")
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    parsers: dict[str, _Parser] = {}
    for name, command in commands.items():
        examples = "".join(f"\n  {example}" for example in command.examples)
        parsers[name] = subparsers.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.\n\nexamples:{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        parsers[name].command = command
        parsers[name].add_argument("-h", "--help", action=_Help, nargs="?", metavar="all",
            help="show this help; all: with every setting")  # fmt: skip
        command.add_options(parsers[name].add_argument)
    return parser, parsers


def add_model(add: Add, *, is_optional: bool = False) -> None:
    """Add the options of a command that uses a model."""
    add(
        "model", type=Path, nargs="?" if is_optional else None, metavar="MODEL", help="model folder"
    )
    add("--ensemble", type=Path, action="append", default=[], metavar="MODEL",
        help="another model with the same tokenizer: average the predictions; may be repeated")  # fmt: skip
    add_engine(add)


def add_engine(add: Add) -> None:
    """Add the options of what computes a model."""
    add("--engine", choices=ENGINES, default="auto",
        help="inference engine; auto: CTranslate2 if it supports the request, else PyTorch")  # fmt: skip
    add("--quantization", choices=("auto", *QUANTIZATIONS), default="auto",
        help="number format of the weights in CTranslate2; auto: the one that fit chose, int8 where "
        "it is quicker and as good")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one")
    add("--threads", type=positive,
        help="processor threads (default: all cores, or fewer where that is measured as quicker)")  # fmt: skip
    add("--verbose", action="store_true", help="show which threads were measured as quickest")


def positive(word: str) -> int:
    """Return a whole number from 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number from 1")
    return int(word)


def fraction(word: str) -> float:
    """Return a number from 0 to 1."""
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number from 0 to 1")
    return value


def part(word: str) -> tuple[int, int]:
    """Return K and N of a word K/N."""
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", word)
    if not found or int(found[1]) > int(found[2]):
        raise argparse.ArgumentTypeError(
            f"{word!r} is not K/N with K from 1 to N: 1/8 is the first of 8 parts, 8/8 the last"
        )
    return int(found[1]), int(found[2])


def minutes(word: str) -> float:
    """Return a time such as 1h30m, in minutes."""
    parts = re.fullmatch(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", word)
    try:
        values = [float(part or 0) for part in parts.groups()] if parts and word else []
    except ValueError:
        values = []
    if not any(values):
        raise argparse.ArgumentTypeError(
            f"{word!r} is not a time: give numbers with d, h, m or s, such as 90m or 1h30m"
        )
    return sum(value * unit for value, unit in zip(values, (1440, 60, 1, 1 / 60), strict=True))


class _Help(argparse.Action):
    """The option --help: prints the help, with every setting after `all`."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: object,
                 option_string: object = None) -> None:  # fmt: skip
        """Print the help, and exit."""
        assert isinstance(parser, _Parser)
        parser.lists_all = values == "all"
        parser.print_help()
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """A parser whose help ends with the settings that its command takes."""

    command: Command | None = None
    lists_all = False

    def error(self, message: str) -> NoReturn:
        """Print one message, without the usage, and exit with code 2."""
        self.exit(2, f"dragoman: {message.removeprefix('argument ')}; see {self.prog} --help\n")

    def format_help(self) -> str:
        """Return the help; only then are the settings loaded and listed."""
        every = dict(_list_settings(self.command)) if self.command else {}
        if self.command is None or not every:
            return super().format_help()
        listed = every if self.lists_all else self.command.common or every
        lines = [line for name in every if name in listed for line in _describe(name, every[name])]
        file = ", or NAME in the YAML file of --config"
        title = (
            f"settings (--NAME VALUE{file if '--config' in self._option_string_actions else ''}):"
        )
        if not every.keys() <= {*listed}:
            title = f"the most common {title}"
            lines.append(f"\nall {len(every)} settings: {self.prog} --help all")
        return super().format_help() + "\n" + "\n".join([title, *lines]) + "\n"


def _list_settings(command: Command) -> "Iterator[tuple[str, FieldInfo]]":
    """Yield the settings that the command takes, by dotted name."""
    from dragoman.settings import Section, Settings

    def walk(section: "type[Section]", prefix: str) -> "Iterator[tuple[str, FieldInfo]]":
        for name, info in section.model_fields.items():
            kind = info.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from walk(kind, f"{prefix}{name}.")
            elif command.takes(f"{prefix}{name}"):
                yield f"{prefix}{name}", info

    return walk(Settings, "")


def _list_choices(info: "FieldInfo") -> tuple[str, ...]:
    """Return the values that a setting, or each of several in it, can have; none: any."""
    kind = info.annotation
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    if kind is bool:
        return ("true", "false")
    return get_args(kind) if get_origin(kind) is Literal else ()


def _describe(name: str, info: "FieldInfo") -> list[str]:
    """Return the help of a setting."""
    choices, default = _list_choices(info), info.default
    if isinstance(default, tuple):
        default = ", ".join(default)
    if isinstance(default, str) and default != default.strip():
        default = repr(default)
    if isinstance(default, bool):
        default = str(default).lower()
    text = f"{info.description} [{'none' if default == '' else default}]"
    indent = " " * 8
    return [
        f"  --{name} ({', '.join(choices)})" if choices else f"  --{name}",
        *textwrap.wrap(text, 88, initial_indent=indent, subsequent_indent=indent),
    ]


def _split_settings(words: list[str], command: "_Parser") -> tuple[list[str], list[str]]:
    """Return the words for argparse, and the settings: every other option with its value."""
    known = {option for action in command._actions for option in action.option_strings}
    options, settings, errors = [], [], []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--resume" and rest[:1] != ["auto"]:
            word = "--resume=must"  # the next word is PAIRS, not a value
        name = word.partition("=")[0]
        if not word.startswith("--") or word == "--" or name in known:
            options.append(word)
            continue
        is_setting = "." in name or name.removeprefix("--") in _TOP_LEVEL
        if not is_setting:
            errors += _explain_unknown(name, command, known)
        settings.append(word)
        if "=" not in word and rest and not rest[0].startswith("--"):
            settings.append(rest.pop(0))
            more = _MORE_VALUES.get(name)
            while more and rest and re.match(more, rest[0]):
                settings[-1] += f",{rest.pop(0)}"
    if errors:
        raise SettingsError.gather(errors)
    return options, settings


def _explain_unknown(name: str, command: "_Parser", options: Collection[str]) -> list[str]:
    """Return the error that names a similar option or setting of the command, if there is one."""
    from dragoman.configuration import suggest

    assert command.command is not None
    settings = [setting for setting, _ in _list_settings(command.command)]
    known = [*settings, *(option.removeprefix("--") for option in sorted(options))]
    hint = suggest(_RENAMED.get(name, name).removeprefix("--"), known)
    return [f"{name}: there is no such option{hint.replace('mean ', 'mean --')}"] if hint else []
