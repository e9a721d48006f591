"""Text in, text out: a trained model and its predictions."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeVar

from dragoman.configuration import merge_for_use
from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.search_config import SearchConfig, resolve_search
from dragoman.engines.engine import Engine, Quantization, add_details
from dragoman.engines.load import EngineName, load_engine
from dragoman.errors import DragomanError, SettingsError
from dragoman.evaluation.confidence import find_confidence
from dragoman.model_folder.calibration import StoredCalibration, find_differences
from dragoman.model_folder.folder import ModelFolder
from dragoman.model_folder.weights import StoredWeights
from dragoman.reading.pairs import InvalidRow, Source, take_features
from dragoman.settings import Settings
from dragoman.tokenizers.tokenizer import EOS_ID, PairTokenizer

_FIRST_WINDOW_ROWS = 64
_WINDOW_ROWS = 4096  # rows that are searched together: bounds the memory of a long input
PRODUCED_NAN = "the model produced NaN: weights are corrupt or have overflowed"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One output for a source."""

    text: str
    score: float  # log-probability of the output, in nats
    confidence: float  # probability, in [0, 1], that it is exactly right: see `find_confidence`
    normalized_score: float  # the score by which hypotheses are compared: decoding.length_norm
    is_complete: bool  # False: cut at its longest length (see decoding.max_length_ratio)
    num_unknown: int  # tokens of the source that the model has never seen
    tokens: tuple[str, ...]  # of the output, and its end where it is complete
    log_probs: tuple[float, ...]  # of each of `tokens`, with decoding.token_scores
    source_tokens: tuple[str, ...]
    alignment: tuple[tuple[float, ...], ...]  # (tokens, source_tokens), with decoding.alignment

    def marked(self, truncation_mark: str) -> str:
        """Return the text, with `truncation_mark` behind it if it was cut."""
        return self.text if self.is_complete else self.text + truncation_mark


class Predictor:
    """A trained model, computed by an engine.

    Args:
        settings: The settings it was trained with; `settings.decoding` is how it predicts.
        model_folders: What was in the model folders that it came from, if it did.
        config: That of `settings.decoding`, where it is made already.
        calibrations: Those of its models, that have one: see `temperature`.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PairTokenizer,
        settings: Settings,
        model_folders: Sequence[ModelFolder] = (),
        *,
        config: SearchConfig | None = None,
        calibrations: Sequence[StoredCalibration] = (),
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.settings = settings
        self.config = resolve_search(settings.decoding, tokenizer) if config is None else config
        self.calibrations = tuple(calibrations)
        self.model_folders = tuple(model_folders)
        model = settings.model
        self._longest_source = model.max_positions if model.positions == "learned" else None

    @classmethod
    def load(
        cls,
        path: str | Path | Sequence[str | Path],
        settings: Settings | None = None,
        *,
        engine: EngineName = "auto",
        device: str = "auto",
        threads: int | None = None,
        quantization: Quantization = "float32",
    ) -> "Predictor":
        """Return the model in the folder `path`; several folders are an ensemble.

        Args:
            settings: Its data and decoding sections replace what the model was trained with.
            engine: "auto": CTranslate2 if it supports the request, else PyTorch.
            device: "cpu", "cuda", or "auto": a GPU if there is one.
            threads: Processor threads; None: all cores.
            quantization: Number format of the weights; PyTorch has float32 only.

        Raises:
            ModelFolderError: A folder is missing, incomplete or foreign; says which file.
            SettingsError: The settings do not go together, or not with this model or engine.
        """
        paths = [Path(one) for one in ([path] if isinstance(path, str | Path) else path)]
        model_folders = [ModelFolder.read(one) for one in paths]
        first = model_folders[0]
        for one, model_folder in zip(paths, model_folders, strict=True):
            if model_folder.tokenizer.to_dict() != first.tokenizer.to_dict():
                raise SettingsError(
                    f"{one}: its tokenizer is not that of {paths[0]}, and an ensemble needs one; "
                    "train its models on the same pairs, with different training.seed"
                )
        merged = merge_for_use(settings or Settings(), first.settings)
        config = resolve_search(merged.decoding, first.tokenizer)
        made = load_engine(model_folders, config, engine, device, threads, quantization)
        found = [
            model_folder.calibration
            for model_folder in model_folders
            if model_folder.calibration is not None
        ]
        return cls(made, first.tokenizer, merged, model_folders, config=config, calibrations=found)

    @property
    def temperature(self) -> float:
        """What makes log-probabilities confidences; 1 where nothing was calibrated.

        It is used as it is with other decoding settings than it was found for. An ensemble has none
        of its own: the geometric mean of its models' stands in.
        """
        found = [one.temperature for one in self.calibrations]
        return float(math.prod(found) ** (1 / len(found))) if found else 1.0

    def describe_calibration(self) -> str:
        """Return why its confidences may be off, for people; "" if they are as they were measured."""
        if not self.calibrations:
            return "confidence: the model was never calibrated; `dragoman evaluate` does it"
        if len(self.model_folders) > 1:
            return "confidence: calibrated for each model, not for them together"
        if changed := find_differences(self.calibrations[0], self.settings.decoding):
            return f"confidence: calibrated for outputs made otherwise: {', '.join(changed[:3])}"
        return ""

    def predict(
        self, sources: Sequence[str], features: Sequence[Sequence[str]] | None = None
    ) -> list[str]:
        """Return the output for each source; one cut at its longest length ends with the cut mark.

        With `data.leading_tags`, a source begins with its tags: "<de> 3. Oktober 2024".

        Args:
            features: For a model with `data.features`: their values for each source, in that order.

        Raises:
            DragomanError: `sources` is one string, or `features` do not fit the model.
        """
        mark = self.settings.decoding.truncation_mark
        return [best[0].marked(mark) for best in self.predict_n_best(sources, features)]

    def predict_n_best(
        self,
        sources: Sequence[str],
        features: Sequence[Sequence[str]] | None = None,
        prefixes: Sequence[str] | None = None,
    ) -> list[list[Prediction]]:
        """Return `decoding.num_hypotheses` outputs for each source, the best first.

        Args:
            features: As in `predict`.
            prefixes: What the output of each source begins with. It is cut into tokens by itself:
                end it where a token may end, as at the end of a word.

        Raises:
            DragomanError: `sources` is one string, `features` or `prefixes` do not fit, or the
                model produced NaN.
        """
        rows = self._make_rows(sources, features)
        if prefixes is not None:
            _check_count("prefixes", prefixes, len(rows))
        starts = None if prefixes is None else self._encode_targets(prefixes)
        return self._refuse_nan(self._search(self._encode(rows), starts))

    def score(
        self,
        sources: Sequence[str],
        targets: Sequence[str],
        features: Sequence[Sequence[str]] | None = None,
    ) -> list[Prediction]:
        """Return each of `targets` with its log-probability as the output of its source.

        `log_probs` has it token by token, `score` in all, `text` what the tokens read.

        Raises:
            DragomanError: `sources` is one string, `targets` or `features` do not fit, or the
                model produced NaN.
        """
        rows = self._make_rows(sources, features)
        _check_count("targets", targets, len(rows))
        found = self._force(self._encode(rows), self._encode_targets(targets))
        return [one for [one] in self._refuse_nan(found)]

    def predict_rows(
        self, rows: Iterable[Source | InvalidRow]
    ) -> Iterator[tuple[Source | InvalidRow, list[Prediction]]]:
        """Yield each row with its outputs, best first, in the order of the rows; a bad row has none.

        Holds some thousand rows at a time, whatever the length of the input.
        """
        for window in make_windows(rows):
            yield from self.predict_window(window)

    def predict_window(
        self, window: Sequence[Source | InvalidRow], *, is_forced: bool = False
    ) -> list[tuple[Source | InvalidRow, list[Prediction]]]:
        """Return each row with its outputs, best first; a bad row has none.

        A row that is too long for the model comes back as a bad one, with the reason; so does one
        for which the model produced NaN.

        Args:
            is_forced: What a row gives is its output, to be scored; else what its output begins
                with.
        """
        rows = list(window)
        good = [place for place, row in enumerate(rows) if isinstance(row, Source)]
        read = [row for row in rows if isinstance(row, Source)]
        sources, given = self._encode(read), self._encode_given(read)
        fitting: list[int] = []  # places in `good`
        for i, place in enumerate(good):
            if fault := self._find_fault(sources[i], given[i] if is_forced else None):
                rows[place] = InvalidRow(read[i].line, "", fault, read[i].columns)
            else:
                fitting.append(i)
        kept = [sources[i] for i in fitting]
        if is_forced:
            found = self._force(kept, [given[i] for i in fitting])
        else:
            prefixes = [given[i] for i in fitting]
            found = self._search(kept, prefixes if any(prefixes) else None)
        answers: list[list[Prediction]] = [[] for _ in rows]
        for i, best_first in zip(fitting, found, strict=True):
            if _has_nan(best_first):
                rows[good[i]] = InvalidRow(read[i].line, "", PRODUCED_NAN, read[i].columns)
            else:
                answers[good[i]] = best_first
        return list(zip(rows, answers, strict=True))

    def weights_sha256(self) -> list[str]:
        """Return the SHA-256 of the weights of each of its model folders."""
        return [one.sha256 for one in self._list_weights()]

    def is_in_place(self) -> bool:
        """Return whether none of its model folders has been replaced since it was loaded."""
        return all(one.is_in_place() for one in self._list_weights())

    def _refuse_nan(self, found: list[list[Prediction]]) -> list[list[Prediction]]:
        if any(map(_has_nan, found)):
            raise self.nan_error()
        return found

    def nan_error(self) -> DragomanError:
        """Return the error for an output whose score is NaN."""
        other = "" if self.engine.name == "torch" else ", or --engine torch"
        return DragomanError(f"{PRODUCED_NAN}; use another model{other}")

    def _list_weights(self) -> list[StoredWeights]:
        return [one.weights for one in self.model_folders if isinstance(one.weights, StoredWeights)]

    def _make_rows(
        self, sources: Sequence[str], features: Sequence[Sequence[str]] | None
    ) -> list[Source]:
        data = self.settings.data
        values = self._check_features(sources, features)
        rows = []
        for line, (text, row) in enumerate(zip(sources, values, strict=True), start=1):
            rest, symbols = take_features(text, row, data.features, data)
            rows.append(Source(source=rest, features=symbols, line=line))
        return rows

    def _check_features(
        self, sources: Sequence[str], features: Sequence[Sequence[str]] | None
    ) -> Sequence[Sequence[str]]:
        if isinstance(sources, str):
            raise DragomanError("predict takes a list of sources: put the one in [ ]")
        columns = self.settings.data.features
        values = [()] * len(sources) if features is None else features
        if len(values) != len(sources) or any(len(row) != len(columns) for row in values):
            raise DragomanError(
                f"features: give {len(columns)} values for each of the {len(sources)} sources "
                f"(data.features of this model: {', '.join(columns) or 'none'})"
            )
        return values

    def _find_fault(self, source: Sequence[int], target: Sequence[int] | None) -> str:
        """Return why this source, with this target if one is forced, is too long; or ""."""
        num_source, num_target = len(source), len(target) + 1 if target is not None else None
        longest = self._longest_source
        if longest is not None and max(num_source, num_target or 0) > longest:
            return (
                f"{max(num_source, num_target or 0):,} tokens, more than the {longest:,} learned "
                "positions of the model"
            )
        return ""

    def _search(
        self, sources: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]] | None
    ) -> list[list[Prediction]]:
        """Return the outputs of each source, best first."""
        found = self.engine.search(sources, self.config, prefixes)
        decoding = self.settings.decoding
        if decoding.minimum_risk != "none":
            found = [self._choose_least_risky(candidates) for candidates in found]
        if decoding.token_scores or decoding.alignment:
            found = add_details(self.engine, sources, found, self.config, self._longest_source)
        return [
            self._describe(ids, hypotheses) for ids, hypotheses in zip(sources, found, strict=True)
        ]

    def _choose_least_risky(self, candidates: Sequence[Hypothesis]) -> list[Hypothesis]:
        from dragoman.decoding.minimum_risk import choose_least_risky  # rapidfuzz, on demand

        if self.config.constraint is not None:  # only complete ones conform
            candidates = [one for one in candidates if one.is_complete] or candidates
        texts = self.tokenizer.decode_targets([one.ids for one in candidates])
        return choose_least_risky(candidates, texts, self.settings.decoding)

    def _force(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[list[Prediction]]:
        """Return each target as the one output of its source."""
        scored = self.engine.score(sources, targets, self.config)
        return [self._describe(ids, [one]) for ids, one in zip(sources, scored, strict=True)]

    def _encode(self, rows: Sequence[Source]) -> list[list[int]]:
        return self.tokenizer.encode_sources(
            [row.source for row in rows], [row.features for row in rows]
        )

    def _encode_given(self, rows: Sequence[Source]) -> list[list[int]]:
        texts = [row.given for row in rows]
        return self._encode_targets(texts) if any(texts) else [[] for _ in texts]

    def _encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids[1:-1] for ids in self.tokenizer.encode_targets(texts)]

    def _describe(
        self, source_ids: Sequence[int], hypotheses: Sequence[Hypothesis]
    ) -> list[Prediction]:
        texts = self.tokenizer.decode_targets([one.ids for one in hypotheses])
        names, end = self._target_names, self._target_names[EOS_ID]
        temperature = self.temperature
        return [
            Prediction(
                text=text,
                score=one.score,
                confidence=find_confidence(one.score, temperature, is_complete=one.is_complete),
                normalized_score=one.normalized_score,
                is_complete=one.is_complete,
                num_unknown=self.tokenizer.count_unknown(source_ids),
                tokens=(*(names[i] for i in one.ids), *([end] if one.is_complete else [])),
                log_probs=one.log_probs,
                source_tokens=tuple(self._source_names[i] for i in source_ids),
                alignment=one.alignment,
            )
            for text, one in zip(texts, hypotheses, strict=True)
        ]

    @cached_property
    def _source_names(self) -> list[str]:
        return self.tokenizer.source_names()

    @cached_property
    def _target_names(self) -> list[str]:
        return self.tokenizer.target_names()


def make_windows(rows: Iterable[T], first: int = 0) -> Iterator[list[T]]:
    """Yield `rows` in windows of 64, 128, ... 4096: the first answers come soon, later ones cheaper.

    `first` is the number of rows that went before, at the end of a window: so the windows are the
    same wherever one begins.
    """
    iterator, num_rows = iter(rows), first
    while window := list(islice(iterator, min(num_rows + _FIRST_WINDOW_ROWS, _WINDOW_ROWS))):
        yield window
        num_rows += len(window)


def _check_count(name: str, values: Sequence[str], count: int) -> None:
    if isinstance(values, str) or len(values) != count:
        raise DragomanError(f"{name}: give one for each of the {count} sources")


def _has_nan(predictions: Sequence[Prediction]) -> bool:
    return any(math.isnan(one.score) for one in predictions)
