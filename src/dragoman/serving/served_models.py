"""The models at work, by name: loaded, adapted to the options of a request, asked, reloaded."""

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dragoman.configuration import as_settings, flatten_settings
from dragoman.engines.ctranslate2_engine import CTranslate2Engine
from dragoman.engines.parity import Sample, list_samples
from dragoman.errors import DragomanError, ModelFolderError, SettingsError
from dragoman.model_folder.calibration import CALIBRATION
from dragoman.model_folder.folder import (
    CONFIG,
    CONSTRAINT_FILES,
    METRICS,
    TOKENIZER,
    WEIGHTS,
    ModelFolder,
    list_models,
)
from dragoman.model_folder.memory import MEMORY
from dragoman.predictor import PRODUCED_NAN, Predictor
from dragoman.reading.pairs import InvalidRow, Source
from dragoman.serving.batching import Batcher, Metrics
from dragoman.serving.messages import (
    Limits,
    PredictRequest,
    RequestError,
    describe_outputs,
    make_rows,
)

_NUM_EXAMPLES = 10
_CACHED_OPTIONS = 32  # of a model: a search by other settings is made once
# The most that a request may ask for, unless the model's own setting is higher: a search cannot be
# stopped once it has begun.
_LARGEST = {
    "beam_size": 64,
    "num_samples": 256,
    "max_length_ratio": 16,
    "max_length_extra": 1000,
    "batch_tokens": 1 << 16,
}
_FILES = (WEIGHTS, CONFIG, TOKENIZER, METRICS, CALIBRATION, MEMORY, *CONSTRAINT_FILES.values())
_TEXTS = {"choices": "choices.txt", "grammar": "grammar.lark"}  # files on the command line
_RELOAD_EVERY_S = 1.0


class ServedModel:
    """One model, or an ensemble, and its searches by the options of requests.

    Args:
        folder: Holds the examples.

    Raises: DragomanError, when the first prediction fails.
    """

    def __init__(self, name: str, predictor: Predictor, folder: Path) -> None:
        self.name = name
        self.predictor = predictor
        self.digest = "+".join(predictor.weights_sha256())
        self._by_options: dict[str, Predictor] = {}
        if isinstance(predictor.engine, CTranslate2Engine):
            predictor.engine.is_shared = True
        self._samples = list[Sample]()
        with contextlib.suppress(ModelFolderError):  # an older one has none
            self._samples = list_samples(ModelFolder.read(list_models(folder)[0]))[:_NUM_EXAMPLES]
        text = self._samples[0].source if self._samples else "a"
        for row, _ in predictor.predict_window([Source(text, (), 1)]):  # loads it
            if isinstance(row, InvalidRow):
                raise DragomanError(f"the first prediction failed: {row.reason}")

    async def adapt(
        self, decoding: Mapping[str, Any], *, nbest: int | None = None, alignment: bool = False
    ) -> Predictor:
        """Return the model with the decoding settings of a request.

        Equal options give the same object, so that their requests can share a batch.

        Raises: SettingsError, when a setting is wrong, conflicts with others, or is too large.
        """
        if not decoding and nbest is None and not alignment:
            return self.predictor
        key = json.dumps([decoding, nbest, alignment], sort_keys=True)
        if key not in self._by_options:
            made = await asyncio.to_thread(self._adapt, decoding, nbest, alignment)
            if len(self._by_options) >= _CACHED_OPTIONS:
                self._by_options.pop(next(iter(self._by_options)))
            self._by_options.setdefault(key, made)
        return self._by_options[key]

    def _adapt(self, decoding: Mapping[str, Any], nbest: int | None, alignment: bool) -> Predictor:
        values, own = dict(decoding), self.predictor.settings.decoding
        if nbest is not None:
            values["num_hypotheses"] = nbest
            widths = {"beam": "beam_size", "sampling": "num_samples"}
            if width := widths.get(str(values.get("method", own.method))):
                values.setdefault(width, max(nbest, getattr(own, width)))
        if alignment:
            values["alignment"] = True
        with tempfile.TemporaryDirectory() as folder:
            for name, file in _TEXTS.items():
                if text := values.get(name):
                    values[name] = _write_text(text, Path(folder, file), f"decoding.{name}")
            if isinstance(values.get("json_schema"), dict):
                values["json_schema"] = json.dumps(values["json_schema"])
            typed = as_settings({"decoding": values}, is_whole=False)
            if "json_schema" in values and "json_schema" in typed.decoding.constraint_files:
                raise SettingsError("decoding.json_schema: expected the schema itself, an object")
            for name, largest in _LARGEST.items():
                most = max(largest, getattr(own, name))
                if (value := getattr(typed.decoding, name)) > most and name in values:
                    text = f"decoding.{name}: {value} is too large: give at most {most}"
                    raise SettingsError(text)
            try:
                return self.predictor.with_decoding(typed)
            except SettingsError as error:
                raise SettingsError(str(error).replace(f"{folder}/", "")) from error

    def describe(self) -> dict[str, Any]:
        """Return what a client should know of the model."""
        from dragoman.evaluation.metrics import find_task  # loads sacrebleu

        settings, target = self.predictor.settings, self.predictor.tokenizer.target.settings
        named = settings.decoding.constraint_files.items()
        files = {setting: Path(file).name for setting, file in named}  # not where they are
        references = [[one.target] for one in self._samples]
        task = find_task(settings.evaluation, references, has_symbols=target.kind == "symbols")
        return {
            "name": self.name,
            "digest": self.digest,
            "task": task,
            "features": list(self.predictor.feature_labels),
            "examples": [one._asdict() for one in self._samples],
            "decoding": flatten_settings(settings.decoding) | files,
        }


def _write_text(text: object, path: Path, where: str) -> str:
    """Write what is a file on the command line, a text or a list of texts; return its path."""
    if isinstance(text, list) and all(type(one) is str for one in text):
        if any({*"\r\n"} & {*one} for one in text):
            raise SettingsError(f"{where}: a line break in one of the texts")
        text = "\n".join(text)
    if not isinstance(text, str):
        raise SettingsError(f"{where}: expected a text or a list of texts")
    path.write_text(text, "utf-8")
    return str(path)


class ServedModels:
    """All models by name; each is replaced when its folder is.

    Args:
        folders: Of each model, by name; several are an ensemble.
        load: Loads them.

    Raises: DragomanError, when one cannot be loaded.
    """

    def __init__(
        self, folders: Mapping[str, Sequence[Path]], load: Callable[[Sequence[Path]], Predictor]
    ) -> None:
        self._folders, self._load = folders, load
        self._loaded: dict[str, object] = {}  # fingerprints
        self._last: dict[str, object] = {}
        self.by_name = {name: self._read(name) for name in folders}

    def find(self, name: str | None) -> ServedModel:
        """Return the model `name`; None: the only one.

        Raises: RequestError, when there is no such model, or more than one.
        """
        names = ", ".join(self.by_name)
        if name is None and len(self.by_name) > 1:
            raise RequestError.invalid("model", f"give one of {names}")
        found = next(iter(self.by_name.values())) if name is None else self.by_name.get(name)
        if found is None:
            raise RequestError.invalid("model", f"there is no such model; give one of {names}")
        return found

    async def reload(self, *, all_of_them: bool = False) -> dict[str, bool]:
        """Load the models whose folders have changed; return whether each could be loaded.

        One that cannot stays as it was, with a line on standard error. Requests that have begun
        are answered by the model of their start.
        """
        done: dict[str, bool] = {}
        for name in self._folders:
            found, before = self._fingerprint(name), self._last.get(name)
            self._last[name] = found
            # One that still changes is being copied.
            if not all_of_them and (found == self._loaded[name] or found != before):
                continue
            problem = ""
            try:
                self.by_name[name] = await asyncio.to_thread(self._read, name)
            except Exception as error:  # whatever it is
                problem = f"not reloaded, the earlier model stays: {error}"
            print(f"dragoman: {name}: {problem or 'reloaded'}", file=sys.stderr, flush=True)
            done[name] = not problem
        return done

    def _read(self, name: str) -> ServedModel:
        self._loaded[name] = self._fingerprint(name)
        folders = self._folders[name]
        return ServedModel(name, self._load(folders), folders[0])

    def _fingerprint(self, name: str) -> object:
        """Return what differs when a file of the model is written or replaced."""
        found = []
        seeds = [one for folder in self._folders[name] for one in sorted(folder.glob("seed-*"))]
        for path in (folder / file for folder in (*self._folders[name], *seeds) for file in _FILES):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((path, status.st_ino, status.st_mtime_ns, status.st_size))
        return found


class Service:
    """The models at work.

    Args:
        workers: Batches that CTranslate2 computes at the same time; PyTorch computes one.
    """

    def __init__(self, models: ServedModels, limits: Limits, *, workers: int) -> None:
        self.models, self.metrics = models, Metrics()
        rows, size = limits.queue_rows, limits.queue_bytes
        self._fast = Batcher("ctranslate2", workers, rows, size, self.metrics)
        self._slow = Batcher("torch", 1, max(1, rows // 8), max(1, size // 8), self.metrics)

    def check_queue(self) -> None:
        """Raise the error that a request of one row would get, where the queue is full."""
        self._fast.check(1, 1)

    async def predict(self, asked: PredictRequest) -> dict[str, Any]:
        """Return the response to a request: see `PredictResponse`.

        Raises:
            RequestError: It is wrong, the queue is full, or a row is too long for the model.
        """
        model = self.models.find(asked.model)
        rows = make_rows(asked, model.predictor)
        try:
            predictor = await model.adapt(
                asked.decoding, nbest=asked.nbest, alignment=asked.alignment
            )
            batcher = self._slow if predictor.needs_torch else self._fast
            answers = await batcher.search(predictor, rows)
        except DragomanError as error:  # of decoding settings, it begins with the setting
            where, _, message = str(error).partition(": ")
            if not isinstance(error, SettingsError) or not where.startswith("decoding."):
                where, message = "decoding", str(error)
            raise RequestError.invalid(where, message) from error
        for i, (row, _) in enumerate(answers):
            if isinstance(row, InvalidRow):
                if row.reason == PRODUCED_NAN:
                    raise RequestError(500, "internal", "model", row.reason)
                where = "source" if isinstance(asked.source, str) else f"source[{i}]"
                raise RequestError.invalid(where, row.reason)
        best = [best_first[0] for _, best_first in answers]
        find, tokens = self.metrics.find, self.metrics.tokens
        find(tokens, model.name, "source").inc(sum(len(one.source_tokens) for one in best))
        find(tokens, model.name, "output").inc(sum(len(one.tokens) for one in best))
        confidence = find(self.metrics.confidence, model.name)
        for one in best:
            confidence.observe(one.confidence)

        def describe() -> list[dict[str, Any]]:
            texts = [asked.source] if isinstance(asked.source, str) else asked.source
            both = zip(answers, texts, strict=True)
            return [describe_outputs(best_first, asked, text) for (_, best_first), text in both]

        # Of records in a thread: it searches each value in the source.
        is_plain = predictor.record_format is None
        predictions = describe() if is_plain else await asyncio.to_thread(describe)
        return {"model": model.name, "digest": model.digest, "predictions": predictions}

    async def watch(self) -> None:
        """Load models again whose folders are replaced, and all on SIGHUP; runs until cancelled."""
        hangup = asyncio.Event()
        if hasattr(signal, "SIGHUP"):  # not on Windows
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hangup.wait(), _RELOAD_EVERY_S)
            is_asked = hangup.is_set()
            hangup.clear()
            for name, is_loaded in (await self.models.reload(all_of_them=is_asked)).items():
                result = "loaded" if is_loaded else "failed"
                self.metrics.reloads.labels(name, result).inc()
