"""The fast engine: CTranslate2, built in memory from the weights. PyTorch is not loaded."""

import ctypes
import logging
import os
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dragoman.decoding.hypothesis import Hypothesis, Limits, limit_lengths, normalize
from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.ctranslate2_export import convert_model, list_token_names
from dragoman.engines.engine import (
    Engine,
    Ids,
    Quantization,
    ThreadRace,
    UnsupportedError,
    name_call,
)
from dragoman.errors import DragomanError, name_extra
from dragoman.settings import DecodingSettings, ModelSettings
from dragoman.tokenizers.tokenizer import EOS_ID, PairTokenizer

if TYPE_CHECKING:
    from ctranslate2 import Translator

# Of beam search. Every other setting must be at its default: a new one is never ignored silently.
_SUPPORTED = frozenset({
    "beam_size", "num_hypotheses", "length_penalty", "max_length_ratio", "max_length_extra", "max_length",
    "min_length_ratio", "min_length", "no_repeat_ngram", "forbidden_tokens", "minimum_risk",
    "token_scores", "batch_tokens", "truncation_mark", "records", "require_grounding",
    "memory",
    # Without effect in beam search:
    "diverse_groups", "diverse_strength", "num_samples", "temperature", "top_k", "top_p", "seed",
})  # fmt: skip
_BEAM_ONLY = frozenset({"stop", "length_norm"})  # without effect in greedy search
_FIRST_POSITIONS = 4096  # sinusoidal ones; doubled when a longer source or output comes
# In a smaller model, threads would wait for each other longer than they compute, above all where the
# cores are busy.
_TINY_BYTES = 16_000_000


def unsupported_reason(config: SearchConfig, tokenizer: PairTokenizer | None = None) -> str:
    """Return why CTranslate2 cannot search like that, or ""; `tokenizer`: with its vocabulary."""
    decoding = config.decoding
    if tokenizer is not None:
        # Of fewer tokens, it fills a beam with tokens that are masked, and stops elsewhere.
        masked = {*tokenizer.never_emitted, *config.forbidden_ids, EOS_ID}
        count = tokenizer.target_vocab_size - len(masked)
        if (size := decoding.beam_size) > max(1, count):
            return f"decoding.beam_size {size} is more than the target's {count} tokens"
    if decoding.no_repeat_ngram and (decoding.min_length or decoding.min_length_ratio):
        # Where no token is left, it emits masked ones.
        return "decoding.no_repeat_ngram with a minimum length is not supported"
    for name, field in type(decoding).model_fields.items():
        is_supported = name in _SUPPORTED or (decoding.beam_size == 1 and name in _BEAM_ONLY)
        if not is_supported and (value := getattr(decoding, name)) != field.default:
            shown = f" {value}" if len(str(value)) <= 20 else ""
            return f"decoding.{name}{shown} is not supported"
    return ""


class CTranslate2Engine:
    """A model in CTranslate2.

    Args:
        weights: Read here, and again when more positions are needed, or another number of replicas.
        device: "cpu", "cuda", or "auto": a GPU if there is one that CTranslate2 can use.
        threads: Processor threads; None: all cores. A replica of the model for each, or one
            replica with all: a `ThreadRace` finds out what is quicker. int8 and tiny models, and
            models that several threads share, have a replica for each.
        load_fallback: Returns the engine for requests that CTranslate2 does not support, such as a
            prefix; called for each of them. None: they raise UnsupportedError.

    Raises:
        ModelFolderError: The weights do not fit the settings.
        UnsupportedError: CTranslate2 cannot compute the model, or not on this device.
    """

    name = "ctranslate2"
    is_shared = False
    """Whether several threads search at once: then each takes one processor thread."""

    def __init__(
        self,
        model: ModelSettings,
        tokenizer: PairTokenizer,
        weights: Mapping[str, NDArray[np.float32]],
        *,
        device: str = "auto",
        threads: int | None = None,
        quantization: Quantization = "float32",
        load_fallback: Callable[[], Engine] | None = None,
    ) -> None:
        import ctranslate2

        has_gpu = device != "cpu" and ctranslate2.get_cuda_device_count() > 0
        if device == "cuda" and not has_gpu:
            raise UnsupportedError("--device cuda: CTranslate2 finds no GPU with an NVIDIA driver")
        self.quantization: Quantization = quantization
        self._device = "cuda" if has_gpu else "cpu"
        self._threads = threads or count_cores()
        self._load_fallback = load_fallback
        self._num_learned = model.max_positions if model.positions == "learned" else None
        self._num_positions = self._num_learned or _FIRST_POSITIONS
        self._model, self._tokenizer, self._weights = model, tokenizer, weights
        self._files: dict[str, bytes] | None = self._convert()  # until one is loaded
        is_tiny = sum(map(len, self._files.values())) < _TINY_BYTES
        # In int8 one thread alone is several times faster than two, whatever the size.
        self._is_split = self._device == "cpu" and (is_tiny or quantization.startswith("int8"))
        self._races: dict[str, ThreadRace] = {}
        self._loaded: dict[int, Translator] = {}  # by the number of replicas
        self._loading = Lock()  # a server searches in several threads
        _ENGINES.add(self)
        self._source_names, self._target_names = list_token_names(tokenizer)
        self._ids = {name: id_ for id_, name in enumerate(self._target_names)}
        if has_gpu:
            try:
                self._get_translator(1, 1)
            except UnsupportedError as error:
                if device == "cuda":
                    raise
                logging.getLogger(__name__).warning(f"dragoman: {error.reason}; using the CPU")
                self._device = "cpu"

    def search(
        self, sources: Ids, config: SearchConfig, prefixes: Ids | None = None
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each source, best first: see `Engine.search`."""
        if not sources:  # all were answered from memory: there is nothing to load
            return []
        decoding = config.decoding
        if reason := unsupported_reason(config, self._tokenizer):
            return self._fall_back(reason).search(sources, config, prefixes)
        if prefixes is not None:  # the other rows stay here: no output depends on its neighbours
            other = self._fall_back("the score of an output with a prefix is computed by PyTorch")
            given = [i for i, prefix in enumerate(prefixes) if prefix]
            chosen = [sources[i] for i in given], config, [prefixes[i] for i in given]
            by_row = dict(zip(given, other.search(*chosen), strict=True))
            rest = [i for i in range(len(sources)) if i not in by_row]
            by_row |= zip(rest, self.search([sources[i] for i in rest], config), strict=True)
            return [by_row[i] for i in range(len(sources))]
        lengths = [len(ids) for ids in sources]
        limits = limit_lengths(lengths, decoding, self._num_learned)
        longest = max([*lengths, *(limit.longest for limit in limits)], default=0)
        race = self._get_race(len(sources), decoding.beam_size)
        replicas, started_s = race.choose(), time.perf_counter()
        translator = self._get_translator(replicas, longest)
        groups: dict[Limits, list[int]] = defaultdict(list)
        for i, limit in enumerate(limits):
            groups[limit].append(i)
        running: list[tuple[list[int], Any]] = []
        for limit, rows in groups.items():  # all are queued, then waited for
            results = translator.translate_batch(
                [self._name_source(sources[i]) for i in rows],
                asynchronous=True,
                max_batch_size=max(1, decoding.batch_tokens // decoding.beam_size),
                batch_type="tokens",
                beam_size=decoding.beam_size,
                num_hypotheses=decoding.num_searched,
                length_penalty=decoding.length_penalty,
                no_repeat_ngram_size=decoding.no_repeat_ngram,
                suppress_sequences=[[self._target_names[i]] for i in config.forbidden_ids] or None,
                return_end_token=True,
                return_scores=True,
                max_input_length=0,
                max_decoding_length=limit.longest,
                min_decoding_length=limit.shortest,
            )
            running.append((rows, results))
        found: list[list[Hypothesis]] = [[] for _ in sources]
        for rows, results in running:
            for i, waiting in zip(rows, results, strict=True):
                with self._explain_errors():
                    result = waiting.result()
                found[i] = [
                    self._make_hypothesis(tokens, score, decoding)
                    for tokens, score in zip(result.hypotheses, result.scores, strict=True)
                ]
        num_tokens = sum(lengths) + sum(len(one[0].ids) for one in found if one)
        race.record(replicas, (time.perf_counter() - started_s) / max(1, num_tokens))
        return found

    def score(self, sources: Ids, targets: Ids, config: SearchConfig) -> list[Hypothesis]:
        """Return each target with its log-probabilities: see `Engine.score`."""
        if config.decoding.alignment:
            other = self._fall_back("decoding.alignment is not supported")
            return other.score(sources, targets, config)
        lengths = [*map(len, sources), *(len(ids) + 1 for ids in targets)]
        race = self._get_race(len(sources), 0)
        replicas, started_s = race.choose(), time.perf_counter()
        translator = self._get_translator(replicas, max(lengths, default=0))
        with self._explain_errors():
            scored = translator.score_batch(
                [self._name_source(ids) for ids in sources],
                [[self._target_names[i] for i in ids] for ids in targets],
                max_batch_size=config.decoding.batch_tokens,
                batch_type="tokens",
                max_input_length=0,
            )
        race.record(replicas, (time.perf_counter() - started_s) / max(1, sum(lengths)))
        return [
            Hypothesis(
                ids=tuple(ids),
                score=sum(result.log_probs),
                normalized_score=normalize(
                    sum(result.log_probs), len(result.log_probs), config.decoding
                ),
                is_complete=True,
                log_probs=tuple(result.log_probs),
            )
            for ids, result in zip(targets, scored, strict=True)
        ]

    def _fall_back(self, reason: str) -> Engine:
        if self._load_fallback is None:
            raise UnsupportedError(reason)
        with name_extra(f"CTranslate2: {reason}; PyTorch"):
            return self._load_fallback()

    def _name_source(self, ids: Sequence[int]) -> list[str]:
        return [self._source_names[i] for i in ids]

    def _make_hypothesis(
        self, tokens: list[str], normalized: float, decoding: DecodingSettings
    ) -> Hypothesis:
        is_complete = bool(tokens) and self._ids[tokens[-1]] == EOS_ID
        length = max(1, len(tokens))  # its end is counted
        score = normalized * length**decoding.length_penalty
        return Hypothesis(
            ids=tuple(self._ids[token] for token in (tokens[:-1] if is_complete else tokens)),
            score=score,
            normalized_score=normalize(score, length, decoding),
            is_complete=is_complete,
        )

    def _get_race(self, num_rows: int, beam_size: int) -> "ThreadRace":
        """Return the race for calls of this kind; `beam_size` 0: scores of given targets."""
        kind = name_call(num_rows, beam_size)
        if kind not in self._races:
            layouts = (self._threads,) if self._is_split or self.is_shared else (self._threads, 1)
            self._races[kind] = ThreadRace(
                layouts if self._device == "cpu" else (1,),
                f"CTranslate2, {kind}: models that share {self._threads} threads",
            )
        return self._races[kind]

    def _get_translator(self, replicas: int, longest: int) -> "Translator":
        """Return one for sequences of at most `longest` tokens, loaded where it was not."""
        with self._loading:
            if longest > self._num_positions:
                if self._num_learned is not None:
                    raise DragomanError(
                        f"a sequence of {longest:,} tokens is longer than the "
                        f"{self._num_learned:,} learned positions: shorten it, or train with a "
                        "larger model.max_positions"
                    )
                while longest > self._num_positions:
                    self._num_positions *= 2
                self._files = None
                self._loaded.clear()
            if replicas not in self._loaded:
                self._loaded[replicas] = self._load(replicas)
            return self._loaded[replicas]

    def _convert(self) -> dict[str, bytes]:
        return convert_model(
            self._model, self._tokenizer, self._weights, self.quantization, self._num_positions
        )

    def _load(self, replicas: int) -> "Translator":
        import ctranslate2

        files, self._files = self._files or self._convert(), None

        def load() -> "Translator":
            share = self._threads // replicas
            translator = ctranslate2.Translator(
                "model", self._device, inter_threads=replicas, intra_threads=share, files=files
            )
            if self._device == "cuda":  # it opens the libraries of the GPU at the first batch
                translator.translate_batch([self._name_source([EOS_ID])], max_decoding_length=1)
            return translator

        # In a thread of its own: CTranslate2 4.8.5 sets the number of OpenMP threads of the one
        # that loads a model, and a later training in it would use that number.
        with self._explain_errors(), ThreadPoolExecutor(1) as loader:
            return loader.submit(load).result()

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        """Give an error of CTranslate2 one message, with a remedy."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            cause, remedy = str(error).partition("\n")[0], ""
            if "out of memory" in cause:
                remedy = ": lower decoding.batch_tokens"
            elif self._device == "cuda":
                remedy = (
                    ": it needs the driver and cuBLAS of CUDA 12 (libcublas.so.12 in "
                    "LD_LIBRARY_PATH); or give --device cpu"
                )
            raise UnsupportedError(
                f"--device {self._device}: CTranslate2 failed ({cause}){remedy}"
            ) from error


_ENGINES: "weakref.WeakSet[CTranslate2Engine]" = weakref.WeakSet()


def _forget_threads() -> None:
    """Let a forked process load its own translators: the threads of these are not in it.

    They are never freed: that would wait for their threads for ever (CTranslate2 4.8.5).
    """
    for engine in _ENGINES:
        for translator in engine._loaded.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(translator))
        engine._loaded.clear()
        engine._loading = Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_forget_threads)


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
