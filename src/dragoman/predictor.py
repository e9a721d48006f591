"""Text in, text out: a trained model and its predictions."""

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from dragoman.characters import html_table
from dragoman.configuration import SettingsLike, as_settings, merge_for_use
from dragoman.decoding.hypothesis import Hypothesis, choose_least_risky, limit_lengths
from dragoman.decoding.search_config import SearchConfig, resolve_search
from dragoman.engines.ctranslate2_engine import unsupported_reason
from dragoman.engines.engine import Engine, Ids, QuantizationChoice, add_details
from dragoman.engines.load import EngineName, load_engine
from dragoman.errors import DragomanError, SettingsError, shorten
from dragoman.evaluation.confidence import FieldValue, find_confidence, find_score, score_fields
from dragoman.grounding import Span, find_spans, leave_out_ungrounded
from dragoman.model_folder.calibration import StoredCalibration, find_differences
from dragoman.model_folder.folder import ModelFolder, StoredWeights, read_models
from dragoman.model_folder.memory import TargetMemory, find_shared
from dragoman.reading.jsonl import read_record
from dragoman.reading.pairs import InvalidRow, Source, take_features, write_target
from dragoman.reading.row_errors import EMPTY_SIDE, RowError, find_side_error, find_value_error
from dragoman.records import SETTINGS, Format, leave_out, list_fields
from dragoman.settings import Settings
from dragoman.tokenizers.tokenizer import EOS_ID, UNKNOWN_ID, PairTokenizer

_FIRST_WINDOW_ROWS = 64
_WINDOW_ROWS = 4096  # rows that are searched together: bounds the memory of a long input
_SPELLED_PREFIX = (
    "its prefix is not made of whole fields and words of the source, to which this model points; end "
    "it after one, or train the model with tokenizer.pointers false"
)
_CALIBRATE = "run `dragoman evaluate MODEL PAIRS --calibrate`"
PRODUCED_NAN = "the model produced NaN: weights are corrupt or have overflowed"
NOT_A_RECORD = "the output is not a JSON object"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One output for a source."""

    text: str
    score: float  # log-probability of the output, in nats
    confidence: float  # probability, in [0, 1], that it is exactly right: see `find_confidence`
    is_complete: bool  # False: truncated at its longest length (see decoding.max_length_ratio)
    # The score by which hypotheses are compared: decoding.length_norm.
    normalized_score: float = field(repr=False)
    num_unknown: int = field(repr=False)  # source tokens that are not in the vocabulary
    tokens: tuple[str, ...] = field(repr=False)  # of the output, with its end if it is complete
    log_probs: tuple[float, ...] = field(repr=False)  # of `tokens`, with decoding.token_scores
    source_tokens: tuple[str, ...] = field(repr=False)
    # (tokens, source_tokens), with decoding.alignment.
    alignment: tuple[tuple[float, ...], ...] = field(repr=False)
    source: str = field(default="", repr=False)  # without features and leading tags
    record_format: Format | None = field(default=None, repr=False)  # None: the text is no record
    emitted: str = field(default="", repr=False)  # the text before values were left out
    num_left_out: int = field(default=0, repr=False)  # values: decoding.require_grounding
    memory_row: str = ""  # the training pair whose target it is; "": the model wrote it
    _fields: tuple[FieldValue, ...] | Callable[[], tuple[FieldValue, ...]] = field(
        default=(), repr=False, compare=False
    )
    # See `PairTokenizer.find_pointed`.
    _pointed: Callable[[], Mapping[int, int]] = field(default=dict, repr=False, compare=False)
    # Of the values that are left, if some were left out: their places stay. None: not computed.
    _spans: tuple[Span, ...] | None = field(default=None, repr=False, compare=False)

    @property
    def spans(self) -> list[Span]:
        """Where each value of a record stands in `source`; []: it is no record.

        Computed when it is asked for.
        """
        if self._spans is not None or not self.record_format:
            return list(self._spans or ())
        return find_spans(self.source, self.text, self.record_format, self._pointed())

    @property
    def placed_fields(self) -> list[tuple[FieldValue, Span | None]]:
        """Each of `fields` with its span; an empty value has none."""
        spans = iter(self.spans)
        return [(one, next(spans) if one.value.strip() else None) for one in self.fields]

    @property
    def is_record(self) -> bool:
        """Whether the text is a record, in the format of the model."""
        form = self.record_format
        return form is not None and list_fields(self.emitted, form) is not None

    @property
    def fields(self) -> tuple[FieldValue, ...]:
        """The values of a record, each with its confidence; (): it is no record.

        Computed when it is asked for, together with those of all outputs of the same window.
        """
        found = self._fields() if callable(self._fields) else self._fields
        if self._spans is None or not self.record_format:
            return found
        rest, kept = iter(found), []  # the values of the shorter record, with their places there
        for left in list_fields(self.text, self.record_format, splits_items=True) or ():
            value = next(one for one in rest if (one.field, one.value) == (left.name, left.text))
            kept.append(value._replace(start=left.start, end=left.end))
        return tuple(kept)

    def without(self, values: Sequence[FieldValue]) -> "Prediction":
        """Return it without these values of the record; the places of the others stay."""
        assert self.record_format is not None
        starts = {one.start for one in values}
        kept = [(one, span) for one, span in self.placed_fields if one.start not in starts]
        return replace(
            self,
            text=leave_out(self.text, self.record_format, starts),
            _fields=tuple(one for one, _ in kept),
            _spans=tuple(span for _, span in kept if span),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values |= {"_fields": self.fields, "_spans": tuple(self.spans), "_pointed": dict}
        return partial(Prediction, **values), ()

    def marked(self, truncation_mark: str) -> str:
        """Return the text, followed by `truncation_mark` if it was truncated."""
        return self.text if self.is_complete else self.text + truncation_mark

    @property
    def record(self) -> dict[str, Any] | None:
        """The JSON object that the text is, for a model of such records; None: it is none."""
        return read_record(self.text) if self.record_format == "json" else None

    @property
    def is_malformed(self) -> bool:
        """Whether the text is to be a JSON object, and the model emitted none."""
        return self.record_format == "json" and read_record(self.emitted) is None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, such as a row of a pandas DataFrame."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        del values["_fields"], values["_spans"], values["_pointed"]
        for name in ("spans", "fields"):
            values[name] = [one._asdict() for one in getattr(self, name)]
        return values

    def _repr_html_(self) -> str:
        shown = ("text", "score", "confidence", "is_complete")
        return html_table((name, getattr(self, name)) for name in shown)


class Predictor:
    """A trained model and its inference engine.

    Args:
        settings: The settings of the model; it predicts by `settings.decoding`.
        model_folders: The content of the model folders that were loaded.
        config: `settings.decoding`, resolved; None: it is resolved here.
        calibrations: Of its models, where they have one: see `temperature`.
        memory: Answers for sources of the training pairs: see decoding.memory.
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
        memory: TargetMemory | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.settings = settings
        names = settings.data.record_fields
        self.config = config or resolve_search(settings.decoding, tokenizer, names)
        self.calibrations = tuple(calibrations)
        self.memory = memory
        self.model_folders = tuple(model_folders)
        self.record_format = SETTINGS.get(settings.decoding.records)
        if settings.decoding.require_grounding != "none" and self.record_format is None:
            raise SettingsError(
                "decoding.require_grounding: this model does not say whether its outputs are records; "
                f"name their format in decoding.records: {', '.join(SETTINGS)}"
            )
        self.folders: tuple[Path, ...] = ()
        """Where its models are stored, for `pickle` and `copy`, which load them; (): nowhere."""
        self.options: dict[str, Any] = {}
        """With which, and its settings, `load` gives the same predictor from `folders`."""
        models = [one.settings.model for one in model_folders] or [settings.model]
        self._num_positions = min(
            (model.max_positions for model in models if model.positions == "learned"), default=None
        )

    @classmethod
    def load(
        cls,
        path: str | Path | Sequence[str | Path],
        settings: SettingsLike = None,
        *,
        engine: EngineName = "auto",
        device: str = "auto",
        threads: int | None = None,
        quantization: QuantizationChoice = "auto",
    ) -> "Predictor":
        """Return the model in the folder `path`; several folders, or seeds in one, form an ensemble.

        Args:
            settings: Its data and decoding sections override the settings of the model.
            engine: "auto": CTranslate2 if it supports the request, else PyTorch.
            device: "cpu", "cuda", or "auto": a GPU if there is one.
            threads: Processor threads; None: all cores.
            quantization: Number format of the weights; PyTorch has float32 only. "auto": the one
                that `fit` chose for a CPU.

        Raises:
            ModelFolderError: A folder is missing, incomplete or no model folder; names the file.
            SettingsError: The settings conflict with each other, the model or the engine.
        """
        paths = [Path(one) for one in ([path] if isinstance(path, str | Path) else path)]
        named = [(one, model_folder) for one in paths for model_folder in read_models(one)]
        model_folders = [model_folder for _, model_folder in named]
        first = model_folders[0]
        for one, model_folder in named:
            if model_folder.tokenizer.to_dict() != first.tokenizer.to_dict():
                raise SettingsError(
                    f"{one}: its tokenizer differs from that of {paths[0]}, and an ensemble needs "
                    "one tokenizer; train its models on the same pairs, with different "
                    "training.seed"
                )
        merged = merge_for_use(as_settings(settings, is_whole=False), first.settings)
        config = resolve_search(merged.decoding, first.tokenizer, merged.data.record_fields)
        loaded = cls(
            load_engine(model_folders, config, engine, device, threads, quantization),
            first.tokenizer,
            merged,
            model_folders,
            config=config,
            calibrations=[one.calibration for one in model_folders if one.calibration is not None],
            memory=find_shared([one.memory for one in model_folders]),
        )
        loaded.folders = tuple(one.absolute() for one in paths)
        loaded.options = {"engine": engine, "device": device, "threads": threads,
                          "quantization": quantization}  # fmt: skip
        return loaded

    def __reduce__(self) -> tuple[Callable[[], "Predictor"], tuple[()]]:
        """Load it again where it is unpickled or copied: an engine cannot be stored."""
        if not self.folders:
            raise DragomanError("pickle, copy: this model is in memory only; load it from a folder")
        sections = ("data", "decoding", "evaluation")  # those that `load` takes
        settings = {name: getattr(self.settings, name) for name in sections}
        return partial(Predictor.load, self.folders, settings, **self.options), ()

    def _describe_itself(self) -> dict[str, object]:
        model, tokenizer = self.settings.model, self.tokenizer
        return {
            "model": ", ".join(map(str, self.folders)) or "in memory",
            "engine": f"{self.engine.name}, {self.engine.quantization}",
            "layers": f"{model.num_encoder_layers} + {model.num_decoder_layers}, d_model {model.d_model}",
            "vocabulary": f"{tokenizer.source_vocab_size:,} source, {tokenizer.target_vocab_size:,} target",
        }

    def __repr__(self) -> str:
        described = self._describe_itself().items()
        return f"Predictor({'; '.join(f'{name}: {value}' for name, value in described)})"

    def _repr_html_(self) -> str:
        return html_table(self._describe_itself().items())

    def with_decoding(self, settings: Settings) -> "Predictor":
        """Return this model with `settings.decoding` over its own; both share the engine.

        Raises:
            SettingsError: The settings conflict with each other or the model.
        """
        other = Predictor(
            self.engine,
            self.tokenizer,
            merge_for_use(settings, self.settings),
            self.model_folders,
            calibrations=self.calibrations,
            memory=self.memory,
        )
        other.folders, other.options = self.folders, self.options
        return other

    @property
    def feature_labels(self) -> tuple[str, ...]:
        """The names of its features, in the order of training."""
        folders = self.model_folders
        return (folders[0].settings if folders else self.settings).data.features

    def find_unknown(self, features: Iterable[str]) -> list[str]:
        """Return those of a row's features that the training pairs did not have."""
        return [symbol for symbol in features if symbol not in self.tokenizer.features]

    @cached_property
    def needs_torch(self) -> bool:
        """Whether PyTorch computes this search."""
        reason = unsupported_reason(self.config, self.tokenizer)
        return bool(reason) or self.engine.name == "torch"

    @property
    def temperature(self) -> float:
        """The temperature from log-probability to confidence; 1 without a calibration.

        Other decoding settings than at the calibration do not change it. An ensemble takes the
        geometric mean of its models' temperatures.
        """
        return _find_mean([one.temperature for one in self.calibrations])

    def find_field_temperature(self, name: str) -> float:
        """Return the temperature for the values of a field, as `temperature` is that of outputs."""
        stored = [one.records for one in self.calibrations]
        return _find_mean([one.find(name).temperature for one in stored if one is not None])

    def describe_calibration(self) -> str:
        """Return a warning if the calibration does not apply to these settings, else ""."""
        if not self.calibrations:
            return f"confidence: not calibrated; {_CALIBRATE}"
        if len(self.folders) > 1:
            return "confidence: calibrated for each model, not for the ensemble"
        if changed := find_differences(self.calibrations[0], self.settings.decoding):
            return f"confidence: calibrated with other settings: {', '.join(changed[:3])}"
        if self.record_format and self.calibrations[0].records is None:
            return f"confidence: calibrated for whole outputs, not for their fields; {_CALIBRATE}"
        return ""

    def predict(
        self, sources: Iterable[str], features: Iterable[Sequence[str]] | None = None
    ) -> list[str]:
        """Return the output for each source; a truncated one ends with the truncation mark.

        The output of an empty source is empty, as on the command line.

        With `data.leading_tags`, a source begins with its tags: "<de> 3. Oktober 2024".

        Args:
            features: Values of `data.features` for each source, in that order.

        Raises:
            DragomanError: `sources` are not a list of strings, or `features` do not fit the model.
        """
        mark = self.settings.decoding.truncation_mark
        found = self.predict_n_best(sources, features)
        return [best_first[0].marked(mark) if best_first else "" for best_first in found]

    def predict_n_best(
        self,
        sources: Iterable[str],
        features: Iterable[Sequence[str]] | None = None,
        prefixes: Iterable[str] | None = None,
    ) -> list[list[Prediction]]:
        """Return `decoding.num_hypotheses` outputs for each source, the best first.

        An empty source has none.

        Args:
            features: As in `predict`.
            prefixes: Text at the start of each output. It is tokenized separately: end it where a
                token may end, such as the end of a word.

        Raises:
            DragomanError: `sources` are not a list of strings, one is too long, `features` or
                `prefixes` do not fit, or the model produced NaN.
        """
        return self._predict_all(self._make_rows(sources, features, "prefixes", prefixes))

    def score(
        self,
        sources: Iterable[str],
        targets: Iterable[str],
        features: Iterable[Sequence[str]] | None = None,
    ) -> list[Prediction]:
        """Return each of `targets` with its log-probability as the output of its source.

        `score` is the sum of `log_probs`, one for each token; `text` is the decoded target.

        Raises:
            DragomanError: `sources` are not a list of strings, one is empty or too long, `targets`
                or `features` do not fit, or the model produced NaN.
        """
        rows = self._make_rows(sources, features, "targets", targets)
        return [one for [one] in self._predict_all(rows, scores_targets=True)]

    def _predict_all(
        self, rows: Sequence[Source | InvalidRow], *, scores_targets: bool = False
    ) -> list[list[Prediction]]:
        """Return the outputs of each row, best first; an empty source has none, and no score."""
        predicted = self.predict_window(rows, scores_targets=scores_targets)
        for given, (row, _) in zip(rows, predicted, strict=True):
            if isinstance(row, InvalidRow) and (scores_targets or isinstance(given, Source)):
                if row.reason == PRODUCED_NAN:
                    raise self.nan_error()
                raise DragomanError(f"sources[{row.line}]: {row.reason}")
        return [best_first for _, best_first in predicted]

    def predict_rows(
        self, rows: Iterable[Source | InvalidRow]
    ) -> Iterator[tuple[Source | InvalidRow, list[Prediction]]]:
        """Yield each row with its outputs, best first, in order; an invalid row has none.

        Holds at most 4096 rows in memory.
        """
        for window in make_windows(rows):
            yield from self.predict_window(window)

    def predict_window(
        self, window: Sequence[Source | InvalidRow], *, scores_targets: bool = False
    ) -> list[tuple[Source | InvalidRow, list[Prediction]]]:
        """Return each row with its outputs, best first; an invalid row has none.

        A row that is too long for the model, gives NaN, or has a prefix or target with a token
        outside of the vocabulary, becomes an invalid row with the reason.

        Args:
            scores_targets: `given` of a row is a target to score, not the start of the output.
        """
        rows, outputs = list(window), [list[Prediction]() for _ in window]
        places = [place for place, row in enumerate(rows) if isinstance(row, Source)]
        read = [row for row in rows if isinstance(row, Source)]
        texts = [row.source for row in read]
        sources = self.tokenizer.encode_sources(texts, [row.features for row in read])
        encoded = self.tokenizer.encode_targets([row.given for row in read], texts)
        given = [ids[1:-1] for ids in encoded]
        most = self._num_positions or sys.maxsize

        def reject(i: int, reason: str) -> None:
            rows[places[i]] = InvalidRow(read[i].line, "", reason, read[i].columns)

        kept: list[int] = []  # rows of `read`
        for i, source in enumerate(sources):
            length = max(len(source), len(given[i]) + 1)
            if not scores_targets and (answer := self._remember(read[i], length)):
                outputs[places[i]] = [self._leave_out(answer)]
            elif UNKNOWN_ID in given[i]:
                names = self.tokenizer.target.name_unknown(read[i].given)
                reject(
                    i,
                    f"the {'target' if scores_targets else 'prefix'} {read[i].given[:40]!r} has "
                    f"{names}, which the target's vocabulary lacks: no output has it",
                )
            elif not scores_targets and self.tokenizer.spells(given[i]):
                reject(i, _SPELLED_PREFIX)
            elif length > most:
                reject(
                    i, f"{length:,} tokens, more than the {most:,} learned positions of the model"
                )
            else:
                kept.append(i)
        kept_sources, kept_given = [sources[i] for i in kept], [given[i] for i in kept]
        kept_texts = [texts[i] for i in kept]
        if scores_targets:
            scored = self.engine.score(kept_sources, kept_given, self.config)
            hypotheses = [[one] for one in scored]
        else:
            hypotheses = self._search(kept_sources, kept_texts, kept_given)
        found = self._describe(kept_sources, kept_texts, hypotheses)
        for i, best_first in zip(kept, found, strict=True):
            if any(math.isnan(one.score) for one in best_first):
                reject(i, PRODUCED_NAN)
            else:  # a given target stays as it is
                outputs[places[i]] = (
                    best_first if scores_targets else [self._leave_out(one) for one in best_first]
                )
        return list(zip(rows, outputs, strict=True))

    def weights_sha256(self) -> list[str]:
        """Return the SHA-256 of the weights of each of its model folders."""
        return [one.sha256 for one in self.list_weights()]

    def nan_error(self) -> DragomanError:
        """Return the error for an output whose score is NaN."""
        other = "" if self.engine.name == "torch" else ", or --engine torch"
        return DragomanError(f"{PRODUCED_NAN}; use another model{other}")

    def list_weights(self) -> list[StoredWeights]:
        """Return the weights of each of its model folders."""
        return [one.weights for one in self.model_folders if isinstance(one.weights, StoredWeights)]

    def make_row(
        self, text: str, features: Sequence[str], line: int = 0, given: str = ""
    ) -> Source | RowError:
        """Return the row of a source, by the rules of a file, or what is wrong with it."""
        data = self.settings.data
        rest, symbols = take_features(text, features, self.feature_labels, data)
        error = find_value_error("", line, "the source", rest)
        error = error or find_side_error("", line, "source", rest, data.max_characters)
        return error or Source(rest, symbols, line, given)

    def _make_rows(
        self,
        sources: Iterable[str],
        features: Iterable[Sequence[str]] | None,
        name: str,
        given: Iterable[str] | None,
    ) -> list[Source | InvalidRow]:
        """Return a row for each source; an empty one is invalid.

        `name` is that of the argument `given`, a prefix or target for each.
        """
        texts, data = _list_texts("sources", sources), self.settings.data
        starts = [""] * len(texts) if given is None else _list_texts(name, given, len(texts))
        if name == "targets" and data.records == "json":
            for i, target in enumerate(starts):
                written = write_target("", i, target, data)
                if isinstance(written, RowError):
                    raise DragomanError(f"targets[{i}]: {written.detail}")
                starts[i] = written
        if features is None:
            features = [()] * len(texts)
        values = list(features) if _is_list(features) else []
        labels = self.feature_labels
        if len(values) != len(texts) or not all(
            isinstance(row, list | tuple)
            and len(row) == len(labels)
            and all(isinstance(value, str) for value in row)
            for row in values
        ):
            if not labels:
                raise DragomanError("features: the model has none; leave them out")
            raise DragomanError(
                f"features: give {len(labels)} values for each of the {len(texts)} sources, as a list "
                f"of tuples of strings (data.features of this model: {', '.join(labels) or 'none'})"
            )
        rows: list[Source | InvalidRow] = []
        unseen = dict[str, None]()
        for line, (text, value, start) in enumerate(zip(texts, values, starts, strict=True)):
            row = self.make_row(text, value, line, start)
            if isinstance(row, Source):
                rows.append(row)
                unseen.update(dict.fromkeys(self.find_unknown(row.features)))
            elif row.kind == EMPTY_SIDE:
                rows.append(InvalidRow(line, "", row.detail))
            else:
                raise DragomanError(f"sources[{line}]: {row.detail}")
        if unseen:
            shown = shorten(", ".join(unseen))
            warnings.warn(f"features that the model has never seen: {shown}", stacklevel=4)
        return rows

    @cached_property
    def may_remember(self) -> bool:
        """Whether this search may be answered from memory: nothing is asked that it cannot give."""
        one = self.settings.decoding
        names = "forbidden_tokens", "no_repeat_ngram", "token_scores", "alignment"
        is_plain = one.method != "sampling" and one.num_hypotheses == 1
        is_plain &= self.config.constraint is None and not any(getattr(one, name) for name in names)
        return one.memory == "auto" and is_plain

    def _remember(self, row: Source, num_tokens: int) -> Prediction | None:
        """Return the target of a training source of `num_tokens`; None: the model is to predict."""
        if self.memory is None or not self.may_remember or row.given:
            return None
        if (found := self.memory.find(row.source, row.features)) is None:
            return None
        [limit] = limit_lengths([num_tokens], self.settings.decoding, self._num_positions)
        [[_, *ids, _]] = self.tokenizer.encode_targets([found.target], [row.source])
        if not limit.shortest <= len(ids) < limit.longest:
            return None
        confidence, form = self.memory.confidence, self.record_format
        score = find_score(confidence, self.temperature)
        values = list_fields(found.target, form, splits_items=True) if form else None
        return Prediction(
            text=found.target, score=score, confidence=confidence, is_complete=True,
            normalized_score=score, num_unknown=0, tokens=(), log_probs=(), source_tokens=(),
            alignment=(), source=row.source, record_format=form, emitted=found.target,
            memory_row=found.row,
            _fields=tuple(
                FieldValue(
                    one.name, one.text, confidence,
                    find_score(confidence, self.find_field_temperature(one.name)), one.start, one.end,
                ) for one in values or ()
            ),
        )  # fmt: skip

    def _search(
        self, sources: Ids, source_texts: Sequence[str], prefixes: Ids
    ) -> list[list[Hypothesis]]:
        found = self.engine.search(sources, self.config, prefixes if any(prefixes) else None)
        decoding = self.settings.decoding
        if decoding.minimum_risk != "none":
            for i, candidates in enumerate(found):
                if self.config.constraint is not None:  # only complete ones conform
                    candidates = [one for one in candidates if one.is_complete] or candidates
                read = partial(self.tokenizer.read_target, source=source_texts[i])
                texts = [read(one.ids) for one in candidates]
                found[i] = choose_least_risky(candidates, texts, decoding)
        if decoding.token_scores or decoding.alignment:
            found = add_details(self.engine, sources, found, self.config, self._num_positions)
        return found

    def _describe(
        self, sources: Ids, source_texts: Sequence[str], found: Sequence[Sequence[Hypothesis]]
    ) -> list[list[Prediction]]:
        """Return the outputs of each source as texts, with their confidence."""
        names, temperature, form = self._target_names, self.temperature, self.record_format
        scored: dict[int, list[list[Hypothesis]]] = {}  # by rank: few want more than the best

        def find_fields(row: int, rank: int, text: str) -> tuple[FieldValue, ...]:
            assert form is not None
            one = found[row][rank]
            if not one.log_probs:
                if rank not in scored:
                    decoding = self.config.decoding.model_copy(update={"alignment": False})
                    config = replace(self.config, decoding=decoding)
                    ranked = [best_first[rank : rank + 1] for best_first in found]
                    scored[rank] = add_details(
                        self.engine, sources, ranked, config, self._num_positions
                    )
                one = scored[rank][row][0]
            values = []
            ends = self.tokenizer.find_target_ends(one.ids, source_texts[row])
            for value, score in score_fields(text, form, ends, one.log_probs):
                own = self.find_field_temperature(value.name)
                confidence = find_confidence(score, own, is_complete=one.is_complete)
                values.append(
                    FieldValue(value.name, value.text, confidence, score, value.start, value.end)
                )
            return tuple(values)

        def describe(row: int, rank: int) -> Prediction:
            source_ids, one = sources[row], found[row][rank]
            ids = (*one.ids, EOS_ID) if one.is_complete else one.ids
            text = self.tokenizer.read_target(one.ids, source_texts[row])
            return Prediction(
                text=text,
                score=one.score,
                confidence=find_confidence(one.score, temperature, is_complete=one.is_complete),
                normalized_score=one.normalized_score,
                is_complete=one.is_complete,
                num_unknown=source_ids.count(UNKNOWN_ID),
                tokens=tuple(names[i] for i in ids),
                log_probs=one.log_probs,
                source_tokens=tuple(self._source_names[i] for i in source_ids),
                alignment=one.alignment,
                source=source_texts[row],
                record_format=form,
                emitted=text,
                _fields=partial(find_fields, row, rank, text) if form else (),
                _pointed=partial(self.tokenizer.find_pointed, one.ids, source_texts[row]),
            )

        return [
            [describe(row, rank) for rank in range(len(best_first))]
            for row, best_first in enumerate(found)
        ]

    def _leave_out(self, one: Prediction) -> Prediction:
        """Return a prediction without the values that must stand in its source and do not."""
        form, required = self.record_format, self.settings.decoding.require_grounding
        if form is None or required == "none":
            return one
        text, spans, count = leave_out_ungrounded(
            one.source, one.text, form, required, one._pointed()
        )
        return replace(one, text=text, num_left_out=count, _spans=tuple(spans))

    @cached_property
    def _source_names(self) -> list[str]:
        return self.tokenizer.source_names()

    @cached_property
    def _target_names(self) -> list[str]:
        return self.tokenizer.target_names()


def _find_mean(temperatures: Sequence[float]) -> float:
    """Return the geometric mean; 1 if there are none."""
    return float(math.prod(temperatures) ** (1 / len(temperatures))) if temperatures else 1.0


def make_windows(rows: Iterable[T], first: int = 0) -> Iterator[list[T]]:
    """Yield `rows` in windows of 64, 128, ... 4096: the first outputs come early.

    `first` is the number of earlier rows, at the end of a window: a resumed job has the same windows.
    """
    iterator, num_rows = iter(rows), first
    while window := list(islice(iterator, min(num_rows + _FIRST_WINDOW_ROWS, _WINDOW_ROWS))):
        yield window
        num_rows += len(window)


def _list_texts(name: str, values: Iterable[str], count: int | None = None) -> list[str]:
    """Return `values`, `count` strings, as a list."""
    if not _is_list(values):
        raise DragomanError(
            f"{name}: expected a list of {name}, found {type(values).__name__}; give the strings in "
            "[ ], or one column of a table"
        )
    texts = (
        values.to_pylist() if hasattr(values, "to_pylist") else list(values)
    )  # a column of Arrow
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise DragomanError(
                f"{name}[{place}]: expected a string, found {shorten(repr(text))} "
                f"({type(text).__name__})"
            )
    if count not in (None, len(texts)):
        raise DragomanError(f"{name}: give one for each of the {count} sources, not {len(texts)}")
    return texts


def _is_list(values: object) -> bool:
    is_other = isinstance(values, str | bytes | Mapping | set | frozenset)
    return isinstance(values, Iterable) and not is_other and not hasattr(values, "columns")
