"""The model folder: what people keep, copy and serve. It is written atomically and read with checks.

    model.safetensors   weights
    config.yaml         every setting, resolved, with the version that wrote it
    tokenizer.json      the vocabularies of both sides
    metrics.json        scores, sizes, and what it was trained on
    README.md           a model card
    token_counts.json   how often each source token was in the training pairs
    calibration.json    turns log-probabilities into confidences, once calibrated
    memory.safetensors  targets of training sources, if they help: decoding.memory
    choices.txt, schema.json, grammar.lark   constraints of the outputs, if a setting names a file
    ctranslate2/, onnx/, html/, pytorch/  exports for other programs; never read here
    evaluation/         outputs and scores of each evaluation; report.html shows them

An ensemble folder (`fit --seeds`) holds models that differ only by their seed, and predict together:

    seeds.json          the seeds, and the search that was chosen for the ensemble
    seed-1/ seed-2/ …   a model folder each
    calibration.json metrics.json README.md report.html evaluation/   of the ensemble

It is written atomically, once all models are trained. Until then they are in `{out}.training/`, where
seeds.json is written first.

A model folder may come from a stranger. Nothing in it is pickled, and reading it runs no code. Other files in it
are never read.
"""

import hashlib
import json
import mmap
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal, cast

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dragoman.configuration import FORMAT, merge_for_start, merge_settings, parse_config
from dragoman.errors import DataError, ModelFolderError, SettingsError, shorten
from dragoman.model_folder.calibration import (
    CALIBRATION,
    StoredCalibration,
    read_calibration,
    write_calibration,
)
from dragoman.model_folder.memory import TargetMemory
from dragoman.reading.text_files import check_file, open_text_file
from dragoman.settings import Settings
from dragoman.storage import (
    consistent_read,
    describe_first,
    read_bytes,
    read_json,
    staged_file,
    staged_folder,
    sweep,
)
from dragoman.tokenizers.tokenizer import PairTokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.yaml", "tokenizer.json"
METRICS, CARD, TOKEN_COUNTS = "metrics.json", "README.md", "token_counts.json"
EXPORTS = ("ctranslate2", "onnx", "html", "pytorch")  # folders in it, once exported
CONSTRAINT_FILES = {
    "choices": "choices.txt",
    "json_schema": "schema.json",
    "grammar": "grammar.lark",
}
"""Copies of the files that decoding settings name. A folder whose settings name any other file is
refused: it could be made to read private files of its user."""
EVALUATION, REPORT = "evaluation", "report.html"
SEEDS = "seeds.json"  # only in a folder that holds a model folder for each seed: an ensemble
_FOLDED = "\x85\u2028\u2029\ufeff"  # ends of lines, and a byte order mark
_NEEDED = (WEIGHTS, CONFIG, TOKENIZER, METRICS)


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """The content of a model folder."""

    settings: Settings
    tokenizer: PairTokenizer
    weights: Mapping[str, NDArray[np.float32]]
    """By the names of the parameters; `StoredWeights` if it was read from a folder."""
    metrics: dict[str, Any]
    card: str
    calibration: StoredCalibration | None = None
    source_counts: tuple[int, ...] = ()
    """How often each source id was in the training pairs; (): not known."""
    memory: TargetMemory | None = None

    @classmethod
    def read(cls, path: Path) -> "ModelFolder":
        """Return the content of the model folder at `path`; the weights are read when needed.

        Whether the shapes of the weights fit the settings is checked when a network is built.

        Raises:
            ModelFolderError: It is missing, incomplete or invalid, or it was replaced while being
                read; names the file.
        """
        with consistent_read(path):
            if not path.is_dir():
                found = "a file" if path.exists() else "nothing"
                if not path.exists() and path.with_name(f"{path.name}.training").is_dir():
                    found += f"; finish its training with `dragoman fit --out {path} --resume`"
                raise ModelFolderError(
                    f"{path}: expected a model folder (as fit writes), found {found}"
                )
            if (path / SEEDS).is_file():
                first = min(path.glob(f"seed-*/{WEIGHTS}"), default=path / "seed-1" / WEIGHTS)
                raise ModelFolderError(
                    f"{path}: an ensemble, with a model for each seed, and this needs one model; "
                    f"give one of them, such as {first.parent}"
                )
            if missing := [name for name in _NEEDED if not (path / name).exists()]:
                raise ModelFolderError(
                    f"{path}: not a complete model folder: {', '.join(missing)} missing; copy it "
                    "again, or train it again with `dragoman fit`"
                )
            metrics = read_json(path / METRICS)
            if not isinstance(metrics, dict):
                raise ModelFolderError(f"{path / METRICS}: expected a JSON object")
            card = path / CARD
            return cls(
                settings=find_constraint_files(path, _read_settings(path / CONFIG)),
                tokenizer=PairTokenizer.load(path / TOKENIZER),
                weights=StoredWeights(path / WEIGHTS),
                metrics=metrics,
                card=card.read_text("utf-8", errors="replace") if card.is_file() else "",
                calibration=read_calibration(path),
                source_counts=_read_token_counts(path / TOKEN_COUNTS),
                memory=TargetMemory.read(path),
            )

    def write(self, path: Path) -> None:
        """Write the model folder to `path`, atomically; a folder at `path` is replaced.

        Raises: ModelFolderError, when it cannot be written; `path` is unchanged.
        """
        with staged_model_folder(path) as folder:
            self.fill(folder)

    def fill(self, folder: Path) -> None:
        """Write the files of the model into `folder`, which exists and is empty.

        Raises:
            OSError: A file cannot be written.
            ModelFolderError: A constraint file cannot be copied.
        """
        settings = keep_constraint_files(folder, self.settings)
        save_file(dict(self.weights), folder / WEIGHTS)
        (folder / CONFIG).write_text(dump_settings(settings), encoding="utf-8")
        # safetensors 0.8 creates its file for the owner only, whatever the umask.
        shutil.copymode(folder / CONFIG, folder / WEIGHTS)
        self.tokenizer.save(folder / TOKENIZER)
        metrics = json.dumps(self.metrics, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / METRICS).write_text(metrics + "\n", encoding="utf-8")
        (folder / CARD).write_text(self.card, encoding="utf-8")
        if self.source_counts:
            counts = json.dumps({"source": self.source_counts}, separators=(",", ":"))
            (folder / TOKEN_COUNTS).write_text(counts + "\n", encoding="utf-8")
        if self.memory is not None:
            self.memory.write(folder)
        if self.calibration is not None:
            write_calibration(folder, self.calibration)


class StoredWeights(Mapping[str, NDArray[np.float32]]):
    """The tensors of a safetensors file by name, each read when it is asked for.

    The file is mapped into memory: the tensors stay the same if another file replaces it later.

    Raises: ModelFolderError, when the file is missing or invalid, or a tensor is not float32.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = cast(Any, safe_open(path, framework="np"))  # untyped
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, SafetensorError) as error:
            raise ModelFolderError(
                f"{path}: the weights cannot be read: truncated, or not a safetensors file: {error}"
            ) from error
        self._names = sorted(self._file.keys())
        for name in self._names:
            if (dtype := self._file.get_slice(name).get_dtype()) != "F32":
                raise ModelFolderError(f"{path}: {name} is of type {dtype}; weights are F32")

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self:
            raise KeyError(name)
        tensor: NDArray[np.float32] = self._file.get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file, in hexadecimal."""
        return hashlib.sha256(self._bytes).hexdigest()


@contextmanager
def staged_model_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder; at the end, it replaces the folder at `path` atomically.

    Raises: ModelFolderError, when it cannot be written; `path` is unchanged.
    """
    try:
        with staged_folder(path) as folder:
            yield folder
    except (OSError, SafetensorError) as error:  # the latter: a full disk, in words of safetensors
        raise ModelFolderError(f"{path}: the model folder cannot be written: {error}") from error


def sweep_model_folder(path: Path) -> None:
    """Remove what killed processes left beside and in the model folder at `path`.

    If `path` is missing because its writer was killed while replacing it, the old folder is put back.
    """
    evaluations = path / EVALUATION
    inner = [path / name for name in (*EXPORTS, CALIBRATION)]
    try:
        sweep(path)
        for one in [*inner, *(evaluations.iterdir() if evaluations.is_dir() else [])]:
            sweep(one)
    except OSError as error:
        raise ModelFolderError(
            f"{path}: the copy that a killed process left cannot be put back: {error}"
        ) from error


def is_model_folder(path: Path) -> bool:
    """Return whether `path` looks like a model folder, or an ensemble folder."""
    return ((path / WEIGHTS).is_file() and (path / CONFIG).is_file()) or (path / SEEDS).is_file()


def find_start(typed: Settings) -> tuple[Settings, ModelFolder | None]:
    """Return typed settings with those that training.start_from fixes, and that folder, if any.

    Without it, those are fixed by the teacher whose probabilities are learned, if any.

    Raises:
        ModelFolderError: It is missing, incomplete or invalid.
        SettingsError: Typed settings contradict it.
    """
    if typed.training.start_from:
        folder = ModelFolder.read(Path(typed.training.start_from))
    elif typed.token_teacher:
        folder = read_models(Path(typed.token_teacher))[0]
    else:
        return typed, None
    return merge_for_start(typed, folder.settings), folder


def dump_settings(settings: Settings, left_out: Collection[str] = ()) -> str:
    """Return every setting but those of `left_out` as YAML that `read_settings` takes."""
    content = {"format": FORMAT, **settings.model_dump(mode="json")}
    for section, _, name in (one.partition(".") for one in left_out):
        del content[section][name]
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if any(character in text for character in _FOLDED):  # PyYAML 6 would read a space instead
        text = yaml.safe_dump(content, sort_keys=False)
    return text


def find_constraint_errors(settings: Settings) -> list[str]:
    """Return an error for each constraint file that cannot be copied into a model folder."""
    errors = []
    for setting, name in settings.decoding.constraint_files.items():
        try:
            check_file(Path(name))
        except DataError as error:
            errors.append(f"decoding.{setting}: {error}")
    return errors


def keep_constraint_files(folder: Path, settings: Settings) -> Settings:
    """Copy the files that `settings.decoding` names to `folder`; return settings that name these."""
    kept = {}
    for setting, given in settings.decoding.constraint_files.items():
        kept[setting] = name = CONSTRAINT_FILES[setting]
        try:
            with open_text_file(Path(given)) as source, (folder / name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
        except (DataError, OSError) as error:
            raise ModelFolderError(
                f"decoding.{setting}: the file cannot be kept with the model: {error}"
            ) from error
    decoding = settings.decoding.model_copy(update=kept)
    return settings.model_copy(update={"decoding": decoding})


def find_constraint_files(folder: Path, settings: Settings) -> Settings:
    """Return the `settings` of the model folder `folder` with full paths of its constraint files.

    Raises: ModelFolderError, when they name a file outside the folder, or it is missing.
    """
    found = {}
    for setting, given in settings.decoding.constraint_files.items():
        name = CONSTRAINT_FILES[setting]
        if given != name:
            raise ModelFolderError(
                f"{folder}: decoding.{setting} names the file {shorten(given)}, and a model may "
                f"only read files in its folder; copy it to {folder / name} and write {name} in config.yaml"
            )
        if not (folder / name).is_file():
            raise ModelFolderError(
                f"{folder / name}: missing, and decoding.{setting} names it; copy the folder again"
            )
        found[setting] = str(folder / name)
    decoding = settings.decoding.model_copy(update=found)
    return settings.model_copy(update={"decoding": decoding})


def write_model_card(name: str, settings: Settings, metrics: Mapping[str, Any]) -> str:
    """Return the model card, in Markdown, from the content of `metrics.json`."""
    from jinja2 import Environment, StrictUndefined  # on demand

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["repr"] = repr
    template = Path(__file__).with_name("model_card.md.jinja").read_text("utf-8")
    splits = [split for split in ("valid", "test") if split in metrics]
    return environment.from_string(template).render(
        name=name,
        settings=settings,
        metrics=metrics,
        splits=splits,
        titles={key: title for one in splits for key, title in metrics[one]["titles"].items()},
        any_scores={key: value for one in splits for key, value in metrics[one].items()},
        sample=metrics["samples"][0],
        command=write_example(f"dragoman predict {quote(name)}", settings, metrics),
    )


def write_example(command: str, settings: Settings, metrics: Mapping[str, Any]) -> str:
    """Return a shell command that gives a sample, in columns, to `command`: predict and a model."""
    data, decoding = settings.data, settings.decoding
    wanted = (data.source, *data.features)
    places = [int(one) if one.isdigit() else i for i, one in enumerate(wanted, start=1)]
    rows = ((sample["source"], *sample["features"]) for sample in metrics["samples"])
    printable = [row for row in rows if all(cell.isprintable() for cell in row)]
    if not printable:
        return f"{command} < sources.txt"
    row = min(printable, key=lambda row: len(row[0]))
    cells = [quote(cell) for _, cell in sorted(zip(places, row, strict=True))]
    other = {
        "--data.format tsv": data.format not in ("auto", "tsv", "parallel"),
        "--data.header no": data.header == "yes",
        "--data.separator tab": data.separator not in ("auto", "\t"),
        "--data.encoding utf-8": data.encoding not in ("auto", "utf-8"),
        "--jsonl": decoding.num_hypotheses > 1 or decoding.token_scores or decoding.alignment,
    }
    form = "\\t".join(["%s"] * len(cells))
    options = "".join(f" {option}" for option, is_needed in other.items() if is_needed)
    return f"printf '{form}\\n' {' '.join(cells)} | {command}{options}"


def _read_settings(path: Path) -> Settings:
    content = read_bytes(path)
    try:
        return parse_config(content, str(path))
    except SettingsError as error:
        named = re.search(rb"^version: ['\"]?([0-9.]{1,30})", content, re.MULTILINE)
        written_by = named[1].decode() if named else "0"
        written, own = (
            tuple(map(int, re.findall(r"\d+", one)[:3]))
            for one in (written_by, version("dragoman"))
        )
        if written > own:
            raise ModelFolderError(
                f"{path}: dragoman {written_by} wrote it, and this is an older one, that does not "
                f"know all of it; upgrade with `pip install --upgrade dragoman` ({error})"
            ) from error
        raise ModelFolderError(f"{path}: not settings of this version: {error}") from error


def _read_token_counts(path: Path) -> tuple[int, ...]:
    """Return how often each source token was in the training pairs, by id; (): not known."""
    if not path.exists():
        return ()
    match read_json(path):
        case {"source": [*counts]} if all(type(count) is int for count in counts):
            return tuple(counts)
    raise ModelFolderError(f'{path}: expected {{"source": [counts of the tokens]}}')


class SeedIndex(BaseModel):
    """The content of seeds.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    version: Literal[1] = 1
    seeds: Annotated[tuple[int, ...], Field(min_length=1, max_length=1000, strict=False)]
    decoding: dict[Literal["beam_size", "length_penalty"], int | float] = {}
    """Of the ensemble, in place of those of the first model."""

    @classmethod
    def read(cls, folder: Path) -> "SeedIndex | None":
        """Return the index in `folder`; None: there is none.

        Raises: ModelFolderError, when it is invalid.
        """
        path = folder / SEEDS
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(read_bytes(path))
        except ValidationError as error:
            raise ModelFolderError(f"{path}: {describe_first(error)}; copy it again") from error

    def write(self, folder: Path) -> None:
        """Write it into `folder`, atomically."""
        with staged_file(folder / SEEDS) as temporary:
            temporary.write_text(self.model_dump_json() + "\n", encoding="utf-8")

    def list_models(self, folder: Path) -> list[Path]:
        """Return the model folder of each seed in `folder`, which may not be there yet."""
        return [folder / f"seed-{seed}" for seed in self.seeds]


def list_models(path: Path) -> list[Path]:
    """Return the model folders of an ensemble folder; [path] if it is none.

    Raises: ModelFolderError, when one is missing; names it.
    """
    index = SeedIndex.read(path)
    if index is None:
        return [path]
    found = index.list_models(path)
    if missing := [one.name for one in found if not is_model_folder(one)]:
        out = re.sub(r"\.training$", "", str(path))
        raise ModelFolderError(
            f"{path}: not all of its {len(found)} models are there: {', '.join(missing)} missing; "
            f"resume the training with `dragoman fit --out {out} --resume`, or copy it again"
        )
    return found


def read_models(path: Path) -> list[ModelFolder]:
    """Return the model at `path`, or all models of an ensemble folder.

    The models of an ensemble have its search, and the first one its calibration.

    Raises: ModelFolderError: see `ModelFolder.read`.
    """
    index = SeedIndex.read(path)
    if index is None:
        return [ModelFolder.read(path)]
    search: dict[str, Any] = {f"decoding.{name}": one for name, one in index.decoding.items()}
    with consistent_read(path):
        models = [
            replace(
                one, settings=merge_settings(one.settings, search, overrule=True), calibration=None
            )
            for one in map(ModelFolder.read, list_models(path))
        ]
        return [replace(models[0], calibration=read_calibration(path)), *models[1:]]
