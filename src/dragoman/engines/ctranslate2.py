"""The quick engine: CTranslate2, for a model that was exported; PyTorch is not loaded."""

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.length import Limits, limit_lengths, normalize
from dragoman.decoding.plan import SearchPlan
from dragoman.engines.cores import count_cores
from dragoman.engines.engine import Task
from dragoman.engines.exported import read_export
from dragoman.errors import ModelFolderError, SettingsError
from dragoman.settings import DecodingSettings
from dragoman.text.special_ids import EOS_ID

if TYPE_CHECKING:
    from ctranslate2 import Translator

_MODEL, _SOURCES, _TARGETS = "model.bin", "source_vocabulary.json", "target_vocabulary.json"
_KEYS = ("positions", "has_learned_positions", "quantization")  # of export.json
_SMALL_BYTES = 200_000_000  # a model below it is quicker with a thread a replica


class CTranslate2Engine:
    """The exported model in `folder`.

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
        about = read_export(folder, self.name, (_MODEL, _SOURCES, _TARGETS), _KEYS)
        self._num_positions = int(about["positions"])
        self._has_learned_positions = bool(about["has_learned_positions"])
        self._folder, self._device = folder, device
        self._threads = threads or count_cores()
        is_small = (folder / _MODEL).stat().st_size < _SMALL_BYTES
        # In int8 a thread alone is several times quicker than two, whatever the size.
        self._has_lone_threads = str(about["quantization"]).startswith("int8")
        self._has_replicas = is_small or self._has_lone_threads
        self._source_names = _read_names(folder / _SOURCES)
        self._target_names = _read_names(folder / _TARGETS)
        self._eos = self._target_names[EOS_ID]
        self._ids = {name: id_ for id_, name in enumerate(self._target_names)}

    def find_obstacle(self, task: Task) -> str:
        """Return why CTranslate2 cannot do `task`, or "": see `Engine.find_obstacle`."""
        decoding, longest_target = task.plan.decoding, task.longest_target
        if longest_target is None:
            [limit] = self._limit_lengths([task.longest_source], decoding)
            longest_target = limit.longest
        if max(task.longest_source, longest_target) > self._num_positions:
            return (
                f"a source of {task.longest_source} tokens with an output of up to {longest_target} is "
                f"longer than the {self._num_positions} positions that were exported"
            )
        if task.plan.constraint is not None:
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
        plan: SearchPlan,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each source, best first: see `Engine.search`."""
        assert prefixes is None
        decoding = plan.decoding
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
                suppress_sequences=[[self._target_names[i]] for i in plan.forbidden_ids] or None,
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
        plan: SearchPlan,
    ) -> list[Hypothesis]:
        """Return each target with its log-probabilities: see `Engine.score`."""
        scored = self._choose_translator(len(sources)).score_batch(
            [self._name_source(ids) for ids in sources],
            [[self._target_names[i] for i in ids] for ids in targets],
            max_batch_size=plan.decoding.batch_tokens,
            batch_type="tokens",
            max_input_length=0,
        )
        return [
            Hypothesis(
                ids=tuple(ids),
                score=sum(result.log_probs),
                normalized_score=normalize(
                    sum(result.log_probs), len(result.log_probs), plan.decoding
                ),
                is_complete=True,
                log_probs=tuple(result.log_probs),
            )
            for ids, result in zip(targets, scored, strict=True)
        ]

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
        return ctranslate2.Translator(
            str(self._folder),
            device,
            inter_threads=1 if device == "cuda" else replicas,
            intra_threads=threads,
        )


def _read_names(path: Path) -> list[str]:
    """Return the names of the tokens of one side, in the order of their ids."""
    try:
        names: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFolderError(
            f"{path}: cannot be read: {error}; export the model again"
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelFolderError(f"{path}: expected a list of tokens; export the model again")
    return names
