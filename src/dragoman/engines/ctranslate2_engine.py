"""The quick engine: CTranslate2, for a model that was exported; PyTorch is not loaded."""

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dragoman.decoding.hypothesis import Hypothesis, Limits, limit_lengths, normalize
from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.cores import count_cores
from dragoman.engines.ctranslate2_file import check_model_file
from dragoman.engines.engine import Task
from dragoman.engines.exported import is_size, read_export, read_names
from dragoman.errors import ModelFolderError, SettingsError
from dragoman.model_folder.folder_files import FolderFile, parse_json, read_file
from dragoman.settings import DecodingSettings
from dragoman.tokenizers.special_ids import EOS_ID

if TYPE_CHECKING:
    from ctranslate2 import Translator

_MODEL, _SOURCES, _TARGETS = "model.bin", "source_vocabulary.json", "target_vocabulary.json"
_CONFIG = "config.json"
_PARTS = {  # of export.json
    "positions": is_size,
    "has_learned_positions": lambda value: isinstance(value, bool),
    "quantization": lambda value: isinstance(value, str) and len(value) < 100,
}
_LARGEST_MODEL_BYTES = 1 << 35
_LARGEST_CONFIG_BYTES = 1 << 20
_SMALL_BYTES = 200_000_000  # a model below it is quicker with a thread a replica


class CTranslate2Engine:
    """The exported model in `folder`, as it is now: another may take its place later.

    Args:
        device: "cpu", "cuda", or "auto": a GPU if there is one.
        threads: Processor threads; None: all cores. Small models take one each for as many
            replicas, which beats several threads in one; a single source takes one replica with
            all threads, but for int8, which is quickest with one.

    Raises:
        ModelFolderError: There is no export, or it is older than the weights beside it.
        SettingsError: The device is none of CTranslate2's.
    """

    name = "ctranslate2"

    def __init__(self, folder: Path, device: str = "auto", threads: int | None = None) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise SettingsError(f"--device {device}: CTranslate2 runs on auto, cpu and cuda")
        self._device = device
        self._threads = threads or count_cores()
        self._open(folder)

    def find_obstacle(self, task: Task) -> str:
        """Return why CTranslate2 cannot do `task`, or "": see `Engine.find_obstacle`."""
        decoding, longest_target = task.config.decoding, task.longest_target
        if longest_target is None:
            [limit] = self._limit_lengths([task.longest_source], decoding)
            longest_target = limit.longest
        if max(task.longest_source, longest_target) > self._num_positions:
            return (
                f"a source of {task.longest_source} tokens with an output of up to {longest_target} is "
                f"longer than the {self._num_positions} positions that were exported"
            )
        if task.config.constraint is not None:
            return "it cannot constrain its outputs"
        if decoding.method != "beam":
            return f"it has no decoding.method {decoding.method} as PyTorch has it"
        if decoding.beam_size > 1 and decoding.stop != "full":
            return f"it has no decoding.stop {decoding.stop}"
        if decoding.beam_size > 1 and decoding.length_norm != "average":
            return f"it has no decoding.length_norm {decoding.length_norm}"
        if decoding.alignment:
            return "decoding.alignment is computed by PyTorch"
        if task.has_prefixes:
            return "the score of an output with a prefix is computed by PyTorch"
        return ""

    def search(
        self,
        sources: Sequence[Sequence[int]],
        config: SearchConfig,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each source, best first: see `Engine.search`."""
        assert prefixes is None
        decoding = config.decoding
        limits = self._limit_lengths([len(ids) for ids in sources], decoding)
        groups: dict[Limits, list[int]] = defaultdict(list)
        for i, limit in enumerate(limits):
            groups[limit].append(i)
        translator = self._choose_translator(len(sources))
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
                result = waiting.result()
                found[i] = [
                    self._make_hypothesis(tokens, score, decoding)
                    for tokens, score in zip(result.hypotheses, result.scores, strict=True)
                ]
        return found

    def score(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        config: SearchConfig,
    ) -> list[Hypothesis]:
        """Return each target with its log-probabilities: see `Engine.score`."""
        scored = self._choose_translator(len(sources)).score_batch(
            [self._name_source(ids) for ids in sources],
            [[self._target_names[i] for i in ids] for ids in targets],
            max_batch_size=config.decoding.batch_tokens,
            batch_type="tokens",
            max_input_length=0,
        )
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

    @property
    def vocab_sizes(self) -> tuple[int, int]:
        """Numbers of tokens of the source and of the target."""
        return len(self._source_names), len(self._target_names)

    def _open(self, folder: Path) -> None:
        """Take all that is in the folder, but for the weights: their file is kept open.

        Raises:
            ModelFolderError: A part is missing, broken or foreign.
        """
        about = read_export(folder, self.name, (_MODEL, _SOURCES, _TARGETS), _PARTS)
        self._num_positions = int(about["positions"])
        self._has_learned_positions = bool(about["has_learned_positions"])
        sources, self._source_names = read_names(folder / _SOURCES)
        targets, self._target_names = read_names(folder / _TARGETS)
        if min(self.vocab_sizes) <= EOS_ID:
            raise ModelFolderError(f"{folder}: tokens are missing; export the model again")
        self._folder = folder
        self._file = FolderFile(folder / _MODEL, _LARGEST_MODEL_BYTES)
        self._check_model()
        # What CTranslate2 is given beside the model: nothing else of the folder is opened by it.
        self._files = {
            _SOURCES: sources,
            _TARGETS: targets,
            _CONFIG: _make_config(folder / _CONFIG, self._target_names),
        }
        self._eos = self._target_names[EOS_ID]
        self._ids = {name: id_ for id_, name in enumerate(self._target_names)}
        # In int8 a thread alone is several times quicker than two, whatever the size.
        self._has_lone_threads = str(about["quantization"]).startswith("int8")
        self._has_replicas = self._file.size < _SMALL_BYTES or self._has_lone_threads

    def _check_model(self) -> None:
        num_sources, num_targets = self.vocab_sizes
        check_model_file(
            self._file,
            num_sources=num_sources,
            num_targets=num_targets,
            num_positions=self._num_positions,
        )

    def _name_source(self, ids: Sequence[int]) -> list[str]:
        return [self._source_names[i] for i in ids]

    def _make_hypothesis(
        self, tokens: list[str], normalized: float, decoding: DecodingSettings
    ) -> Hypothesis:
        is_complete = bool(tokens) and tokens[-1] == self._eos
        length = max(1, len(tokens))  # its end is counted
        score = normalized * length**decoding.length_penalty
        return Hypothesis(
            ids=tuple(self._ids[token] for token in (tokens[:-1] if is_complete else tokens)),
            score=score,
            normalized_score=normalize(score, length, decoding),
            is_complete=is_complete,
        )

    def _limit_lengths(
        self, source_lengths: Sequence[int], decoding: DecodingSettings
    ) -> list[Limits]:
        learned = self._num_positions if self._has_learned_positions else None
        return limit_lengths(source_lengths, decoding, learned)

    def _choose_translator(self, num_rows: int) -> "Translator":
        has_many = num_rows > 1 and self._threads > 1 and self._has_replicas
        return self._many if has_many else self._single

    @cached_property
    def _single(self) -> "Translator":
        return self._load(1, 1 if self._has_lone_threads else self._threads)

    @cached_property
    def _many(self) -> "Translator":
        return self._load(self._threads, 1)

    def _load(self, replicas: int, threads: int) -> "Translator":
        import ctranslate2

        device = self._device
        if device == "auto":
            device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
        self._check_model()
        return ctranslate2.Translator(
            str(self._folder),
            device,
            inter_threads=1 if device == "cuda" else replicas,
            intra_threads=threads,
            files={**self._files, _MODEL: self._file.read()},
        )


def _make_config(path: Path, names: Sequence[str]) -> bytes:
    """Return config.json with the parts of it that an export writes, once each is of its kind.

    Raises:
        ModelFolderError: One is not.
    """
    content = read_file(path, _LARGEST_CONFIG_BYTES)
    try:
        found: object = parse_json(content, 100)
    except ValueError as error:
        raise ModelFolderError(
            f"{path}: cannot be read: {error}; export the model again"
        ) from error
    tokens = {"unk_token", "bos_token", "eos_token", "decoder_start_token"}
    switches = {"add_source_bos", "add_source_eos", "multi_query_attention"}
    expected = {*tokens, *switches, "layer_norm_epsilon"}
    if not isinstance(found, dict) or found.keys() != expected:
        raise ModelFolderError(f"{path}: expected {', '.join(sorted(expected))}; export it again")
    is_right = (
        {found[name] for name in tokens if isinstance(found[name], str)} <= set(names)
        and all(isinstance(found[name], str) for name in tokens)
        and found["eos_token"] == names[EOS_ID]
        and all(found[name] is False for name in switches)
        and isinstance(found["layer_norm_epsilon"], float)
        and 0.0 < found["layer_norm_epsilon"] < 1.0
    )
    if not is_right:
        raise ModelFolderError(f"{path}: it is not as dragoman writes it; export the model again")
    return json.dumps(found).encode()
