"""The quick engine: CTranslate2, for a model that was exported; PyTorch is not loaded."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.length import Limits, limit_lengths, normalize
from dragoman.decoding.plan import SearchPlan
from dragoman.errors import DataError, ModelFolderError, SettingsError
from dragoman.settings import DecodingSettings
from dragoman.text.bundle import WEIGHTS

if TYPE_CHECKING:
    from ctranslate2 import Translator

EXPORT = "export.json"  # what was exported, and how it compared with PyTorch
_SMALL_BYTES = 200_000_000  # a model below it is quicker with a thread a replica


class CTranslate2Engine:
    """The exported model in `folder`.

    Args:
        device: "cpu", "cuda", or "auto": a GPU if there is one.
        threads: Processor threads; None: all cores. Small models take one each for as many
            replicas, which beats several threads in one; a single source takes one replica with
            all threads.

    Raises:
        ModelFolderError: There is no export, or it is older than the weights beside it.
        SettingsError: The device is none of CTranslate2's.
    """

    name = "ctranslate2"

    def __init__(self, folder: Path, device: str = "auto", threads: int | None = None) -> None:
        if not (folder / "model.bin").is_file():
            raise ModelFolderError(
                f"{folder}: there is no exported model; write it with "
                f"`dragoman export {folder.parent} --to ctranslate2`"
            )
        _check_age(folder)
        if device not in ("auto", "cpu", "cuda"):
            raise SettingsError(f"--device {device}: CTranslate2 runs on auto, cpu and cuda")
        self._folder, self._device = folder, device
        self._threads = threads or len(os.sched_getaffinity(0))
        config, sources, targets = _read_vocabularies(folder)
        self._eos = config["eos_token"]
        self._source_names, self._target_names = sources, targets
        self._ids = {name: id_ for id_, name in enumerate(targets)}

    def find_obstacle(self, plan: SearchPlan, *, has_prefixes: bool = False) -> str:
        """Return why CTranslate2 cannot search by `plan`, or ""."""
        decoding = plan.decoding
        if plan.constraint is not None:
            return "it cannot constrain its outputs"
        if decoding.method != "beam":
            return f"it has no decoding.method {decoding.method} as PyTorch has it"
        if decoding.beam_size > 1 and decoding.stop != "full":
            return f"it has no decoding.stop {decoding.stop}"
        if decoding.beam_size > 1 and decoding.length_norm != "average":
            return f"it has no decoding.length_norm {decoding.length_norm}"
        if decoding.alignment:
            return "decoding.alignment is computed by PyTorch"
        if has_prefixes:
            return "the score of an output with a prefix is computed by PyTorch"
        return ""

    def search(
        self,
        sources: Sequence[Sequence[int]],
        plan: SearchPlan,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each source, best first: see `Engine.search`."""
        decoding = plan.decoding
        limits = limit_lengths([len(ids) for ids in sources], decoding)
        self._check_lengths(sources, max((limit.longest for limit in limits), default=0))
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
        self._check_lengths(sources, max((len(ids) + 1 for ids in targets), default=0))
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

    def _check_lengths(self, sources: Sequence[Sequence[int]], longest_target: int) -> None:
        """Refuse what has no position in the export: CTranslate2 would fail the whole batch."""
        longest = max((len(ids) for ids in sources), default=0)
        if max(longest, longest_target) > self._num_positions:
            raise DataError(
                f"a source of {longest} tokens, or an output of up to {longest_target}, is longer "
                f"than the {self._num_positions} positions of the export: take --engine torch, "
                "or lower decoding.max_length_ratio"
            )

    @cached_property
    def _num_positions(self) -> int:
        return int(_read_json(self._folder / EXPORT)["positions"])

    def _choose_translator(self, num_rows: int) -> "Translator":
        return self._single if num_rows == 1 or self._threads == 1 else self._many

    @cached_property
    def _single(self) -> "Translator":
        return self._load(1, self._threads)

    @cached_property
    def _many(self) -> "Translator":
        is_small = (self._folder / "model.bin").stat().st_size < _SMALL_BYTES
        return self._load(self._threads, 1) if is_small else self._single

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


def fingerprint(weights: Path) -> str:
    """Return what tells these weights from others: the SHA-256 of their file."""
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_age(folder: Path) -> None:
    weights = folder.parent / WEIGHTS
    if not weights.is_file() or not (folder / EXPORT).is_file():
        return
    if _read_json(folder / EXPORT).get("weights", "") not in ("", fingerprint(weights)):
        raise ModelFolderError(
            f"{folder}: it was exported from other weights than {weights}; write it again with "
            f"`dragoman export {folder.parent} --to ctranslate2`, or take --engine torch"
        )


def _read_vocabularies(folder: Path) -> tuple[dict[str, Any], list[str], list[str]]:
    config = _read_json(folder / "config.json")
    shared = folder / "shared_vocabulary.json"
    if shared.is_file():
        names = _read_json(shared)
        return config, names, names
    sides = [_read_json(folder / f"{side}_vocabulary.json") for side in ("source", "target")]
    return config, sides[0], sides[1]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFolderError(
            f"{path}: cannot be read: {error}; write the export again"
        ) from error
    return content
