"""The engine that runs anywhere: ONNX Runtime, greedy search on the processor; no PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dragoman.decoding.hypothesis import Hypothesis, limit_lengths, normalize
from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.batching import make_batches
from dragoman.engines.cores import count_cores
from dragoman.engines.engine import Task
from dragoman.engines.exported import is_id, is_size, read_export
from dragoman.engines.onnx_file import read_graph
from dragoman.errors import DataError, ModelFolderError, SettingsError
from dragoman.settings import DecodingSettings

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ENCODER, DECODER_STEP = "encoder.onnx", "decoder_step.onnx"
_PARTS = {  # of export.json
    "positions": lambda value: value is None or is_size(value),
    "pad_id": is_id, "bos_id": is_id, "eos_id": is_id,
    "heads": is_size, "head_width": is_size,
    "source_vocab_size": is_size, "target_vocab_size": is_size,
}  # fmt: skip

Ids = NDArray[np.int64]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class _State:
    """What a step needs of the sources and of the past, by the names of its inputs."""

    source: Arrays
    cache: Arrays


class OnnxEngine:
    """The exported model in `folder`.

    Args:
        device: "cpu", or "auto", which is the same.
        threads: Processor threads; None: all cores.

    Raises:
        ModelFolderError: There is no export, it is broken, or older than the weights beside it.
        SettingsError: The device is another one, or onnxruntime is not installed.
    """

    name = "onnx"

    def __init__(self, folder: Path, device: str = "auto", threads: int | None = None) -> None:
        if device not in ("auto", "cpu"):
            raise SettingsError(f"--device {device}: the engine onnx runs on cpu")
        if find_spec("onnxruntime") is None:
            raise SettingsError(
                "--engine onnx: onnxruntime is not installed: `pip install onnxruntime`"
            )
        threads = threads or count_cores()
        self._open(folder, threads)

    def _open(self, folder: Path, threads: int) -> None:
        about = read_export(folder, "onnx", (ENCODER, DECODER_STEP), _PARTS)
        self.vocab_sizes = about["source_vocab_size"], about["target_vocab_size"]
        self._num_positions: int | None = about["positions"]
        self._pad, self._bos, self._eos = (about[f"{name}_id"] for name in ("pad", "bos", "eos"))
        self._head_shape = (about["heads"], 0, about["head_width"])
        self._encoder = _load(folder / ENCODER, threads)
        self._decoder_step = _load(folder / DECODER_STEP, threads)
        self._source_names = [value.name for value in self._encoder.get_outputs()]
        names = [value.name for value in self._decoder_step.get_inputs()]
        self._cache_names = [name for name in names if name.startswith("target_")]
        if not names or self._decoder_step.get_outputs()[0].shape[-1:] != [self.vocab_sizes[1]]:
            raise ModelFolderError(
                f"{folder}: the model in it is not the one that export.json tells of; write the "
                "export again"
            )

    def find_obstacle(self, task: Task) -> str:
        """Return why it cannot do `task`, or "": see `Engine.find_obstacle`."""
        config, decoding = task.config, task.config.decoding
        if decoding.method != "beam" or decoding.beam_size > 1:
            return "it has greedy search alone (decoding.method beam, decoding.beam_size 1)"
        rules = {
            "a constraint": config.constraint is not None,
            "decoding.forbidden_tokens": bool(config.forbidden_ids),
            "decoding.no_repeat_ngram": decoding.no_repeat_ngram > 0,
            "decoding.min_length": decoding.min_length > 0,
            "decoding.min_length_ratio": decoding.min_length_ratio > 0,
            "decoding.alignment": decoding.alignment,
            "a prefix of the output": task.has_prefixes,
        }
        if found := [rule for rule, is_set in rules.items() if is_set]:
            return f"it cannot search with {found[0]}"
        return self._find_excess(max(task.longest_source, task.longest_target or 0))

    def search(
        self,
        sources: Sequence[Sequence[int]],
        config: SearchConfig,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return the hypothesis of each source: see `Engine.search`.

        Raises:
            DataError: A source is longer than the learned positions of the model.
        """
        assert prefixes is None
        lengths = [len(ids) for ids in sources]
        self._check_length(max(lengths, default=0))
        limits = limit_lengths(lengths, config.decoding, self._num_positions)
        longest = [limit.longest for limit in limits]
        found: list[list[Hypothesis]] = [[] for _ in sources]
        for batch in make_batches(lengths, config.decoding.batch_tokens):
            hypotheses = self._search_batch(
                [sources[i] for i in batch], np.array([longest[i] for i in batch]), config.decoding
            )
            for i, hypothesis in zip(batch, hypotheses, strict=True):
                found[i] = [hypothesis]
        return found

    def score(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        config: SearchConfig,
    ) -> list[Hypothesis]:
        """Return each target with its log-probabilities: see `Engine.score`.

        Raises:
            DataError: A source or a target is longer than the learned positions of the model.
        """
        costs = [max(len(s), len(t) + 1) for s, t in zip(sources, targets, strict=True)]
        self._check_length(max(costs, default=0))
        found: dict[int, Hypothesis] = {}
        for batch in make_batches(costs, config.decoding.batch_tokens):
            rows = [[self._bos, *targets[i], self._eos] for i in batch]
            log_probs = self._force([sources[i] for i in batch], self._pad_rows(rows))
            for i, values in zip(batch, log_probs.tolist(), strict=True):
                found[i] = _make_complete(targets[i], values, config.decoding)
        return [found[i] for i in range(len(sources))]

    def _search_batch(
        self, sources: Sequence[Sequence[int]], longest: Ids, decoding: DecodingSettings
    ) -> list[Hypothesis]:
        """Return the greedy hypothesis of each source, of at most `longest` tokens with its end."""
        count = len(sources)
        tokens = np.full((count, int(longest.max())), self._pad, np.int64)
        log_probs = np.zeros(tokens.shape, np.float32)
        rows = np.arange(count)  # those that are still in the batch
        ids = np.full(count, self._bos, np.int64)
        state = self._start(sources)
        for position in range(tokens.shape[1]):
            predicted, state = self._step(ids, state)
            ids = predicted.argmax(axis=1)
            tokens[rows, position] = ids
            log_probs[rows, position] = predicted.max(axis=1)
            staying = np.flatnonzero((ids != self._eos) & (position + 1 < longest[rows]))
            if not len(staying):
                break
            if len(staying) < len(rows):
                rows, ids, state = rows[staying], ids[staying], _select(state, staying)
        return [
            self._make_hypothesis(row, sum(values), decoding)
            for row, values in zip(tokens.tolist(), log_probs.tolist(), strict=True)
        ]

    def _force(self, sources: Sequence[Sequence[int]], targets: Ids) -> NDArray[np.float32]:
        """Return the log-probability of each token of `targets` (B, T) but the first: (B, T - 1)."""
        state = self._start(sources)
        spoken = []
        for ids, following in zip(targets.T[:-1], targets.T[1:], strict=True):
            predicted, state = self._step(ids, state)
            spoken.append(np.take_along_axis(predicted, following[:, None], axis=1)[:, 0])
        return np.stack(spoken, axis=1)

    def _start(self, sources: Sequence[Sequence[int]]) -> _State:
        found = self._encoder.run(None, {"source_ids": self._pad_rows(sources)})
        empty = np.zeros((len(sources), *self._head_shape), np.float32)
        return _State(
            source=dict(zip(self._source_names, found, strict=True)),
            cache=dict.fromkeys(self._cache_names, empty),
        )

    def _step(self, ids: Ids, state: _State) -> tuple[NDArray[np.float32], _State]:
        """Return the log-probabilities (B, V) of the token after `ids` (B,), and the state then."""
        log_probs, *grown = self._decoder_step.run(
            None, {"ids": ids, **state.source, **state.cache}
        )
        cache = dict(zip(self._cache_names, grown, strict=True))
        return log_probs, _State(source=state.source, cache=cache)

    def _pad_rows(self, rows: Sequence[Sequence[int]]) -> Ids:
        """Return `rows` padded on the right to the longest, which is 1 at least."""
        padded = np.full((len(rows), max(1, *map(len, rows))), self._pad, np.int64)
        for row, filled in zip(rows, padded, strict=True):
            filled[: len(row)] = row
        return padded

    def _make_hypothesis(
        self, tokens: list[int], score: float, decoding: DecodingSettings
    ) -> Hypothesis:
        said = [token for token in tokens if token != self._pad]  # padding itself is never said
        is_complete = said[-1] == self._eos
        return Hypothesis(
            ids=tuple(said[:-1] if is_complete else said),
            score=score,
            normalized_score=normalize(score, len(said), decoding),
            is_complete=is_complete,
        )

    def _check_length(self, longest: int) -> None:
        if excess := self._find_excess(longest):
            raise DataError(f"{excess}: shorten it")

    def _find_excess(self, longest: int) -> str:
        if self._num_positions is None or longest <= self._num_positions:
            return ""
        return (
            f"a sequence of {longest} tokens is longer than the {self._num_positions} learned "
            "positions of the model"
        )


def _load(path: Path, threads: int) -> "InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False  # it keeps a plan for each length of the cache
    options.log_severity_level = 3  # errors, which are raised too
    content = read_graph(path)
    try:
        return onnxruntime.InferenceSession(
            path if content is None else content,
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # onnxruntime 1.32 prints to standard output before it tries again
        )
    except Exception as error:  # onnxruntime's dozen kinds have no other class in common
        raise ModelFolderError(f"{path}: cannot be run: {error}; write the export again") from error


def _select(state: _State, rows: Ids) -> _State:
    """Return the state of the given rows."""
    return _State(
        source={name: value[rows] for name, value in state.source.items()},
        cache={name: value[rows] for name, value in state.cache.items()},
    )


def _make_complete(
    ids: Sequence[int], log_probs: list[float], decoding: DecodingSettings
) -> Hypothesis:
    spoken = log_probs[: len(ids) + 1]  # padding of the batch behind them
    return Hypothesis(
        ids=tuple(ids),
        score=sum(spoken),
        normalized_score=normalize(sum(spoken), len(spoken), decoding),
        is_complete=True,
        log_probs=tuple(spoken),
    )
