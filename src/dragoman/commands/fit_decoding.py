"""Greedy or beam search, float32 or int8 weights, memory or not: chosen at the end of a run.

The search is chosen by scores alone, never by time, so that the same seed gives the same one.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ctranslate2

from dragoman.commands.fit_setup import Run
from dragoman.configuration import as_settings, list_set_values
from dragoman.data.run_data import RunData
from dragoman.engines.ctranslate2_engine import CTranslate2Engine, unsupported_reason
from dragoman.engines.engine import Engine, Quantization
from dragoman.evaluation.metrics import Metric, choose_metrics
from dragoman.evaluation.output_rows import Row, as_outputs, group_references
from dragoman.evaluation.significance import Difference, compare
from dragoman.model_folder.folder import ModelFolder
from dragoman.model_folder.memory import SourceGroups, TargetMemory
from dragoman.predictor import Predictor
from dragoman.reading.pairs import Source
from dragoman.settings import DecodingSettings, Settings
from dragoman.tokenizers.tokenizer import PairTokenizer
from dragoman.training.device import find_device

OPEN = ("decoding.beam_size", "decoding.length_penalty")  # chosen here, unless the user set them

_BEAM = 5
_PENALTIES = (0.5, 1.5)  # tried besides 1, where a beam is better
_CHANCE = 0.1  # two-sided p-value below which the better search is chosen
_MARGIN = 0.1  # points of the score that int8 may cost
_LEAST_GAIN = 1.2  # times as quick as float32
# Of float32 weights. On one core with AVX-512 VNNI, int8 was 1.0 to 1.3 times as quick for models of
# 0.5 and 1.7 million parameters, and 2.0 to 2.7 times for 7 and 47 million.
_FEWEST_BYTES = 16_000_000
_FEWEST_ROWS = 20
_MEMORY_BYTES = 1 << 24  # a memory may be as large, or as the weights
# Trained for one of the rows here, which then take at most about 3% of the run's time.
_TRAINED_TOKENS = 100

Values = dict[str, Any]
"""Decoding settings by dotted name."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the model predicts unless told otherwise, and why."""

    predictor: Predictor
    """With the chosen settings; on a CPU also with the chosen weights."""
    quantization: Quantization = "float32"
    """Of the weights, on a CPU."""
    reasons: Sequence[str] = ()
    trial: Mapping[str, Any] = field(default_factory=dict)
    """For metrics.json: the rows, and the score and seconds of all that was tried."""


class Trial:
    """Validation rows, the score that decides, and all that was tried on them."""

    def __init__(self, rows: Sequence[Row], metric: Metric) -> None:
        self.rows, self.metric = rows, metric
        self.tried: list[dict[str, Any]] = []

    def search(self, name: str, model: Predictor) -> tuple[list[Row], float]:
        """Return the rows with the outputs of `model`, and the seconds; keep both under `name`.

        The seconds are those of the processor: other processes do not count.
        """
        sources = [Source(row.source, row.features, row.line) for row in self.rows]
        list(model.predict_rows(sources[:2]))  # loads the weights
        start_s = time.process_time()
        found = [best_first for _, best_first in model.predict_rows(sources)]
        seconds = time.process_time() - start_s
        texts = [best_first[0].text if best_first else "" for best_first in found]
        return self.add(name, texts, seconds), seconds

    def add(self, name: str, texts: Sequence[str], seconds: float = 0.0) -> list[Row]:
        """Return the rows with outputs `texts`; keep their score under `name`."""
        counts = self.metric.count_rows(texts, [row.references for row in self.rows])
        score = float(self.metric.from_sums(counts.sum(axis=0)))
        self.tried.append({"name": name, "score": score, "seconds": round(seconds, 3)})
        return [replace(row, hypothesis=text) for row, text in zip(self.rows, texts, strict=True)]

    def compare(self, baseline: Sequence[Row], other: Sequence[Row]) -> Difference:
        """Return by how much `other` is better, and whether that is chance."""
        return compare([baseline], [other], [self.metric]).differences[self.metric.name]

    def to_dict(self) -> dict[str, Any]:
        """Return what was tried as JSON values."""
        return {"rows": len(self.rows), "score": self.metric.name, "tried": self.tried}


def choose_decoding(
    run: Run,
    engine: Engine,
    fast: CTranslate2Engine | None,
    model_folder: ModelFolder,
    valid: Sequence[Row],
) -> Choice:
    """Return how the model of `run` predicts best, by a sample of its validation rows `valid`.

    Args:
        engine: PyTorch on the device of the training.
        fast: CTranslate2 on the CPU; None: it does not compute the model as PyTorch does.
    """
    settings, tokenizer = run.settings, run.data.tokenizer
    typed = {name for name, _ in list_set_values(run.typed)}
    predictor = Predictor(engine, tokenizer, settings)
    if fast is not None and unsupported_reason(predictor.config, tokenizer):
        fast = None
    is_on_cpu = find_device(settings.training) == "cpu"
    is_open = settings.decoding.method == "beam" and "decoding.beam_size" not in typed
    is_large = sum(one.nbytes for one in model_folder.weights.values()) >= _FEWEST_BYTES
    if not is_open and (fast is None or not is_large):
        return Choice(predictor=predictor)
    most = _count_rows(settings, run.trainer.global_step, run.data)
    if len(rows := _sample_rows(valid, most)) < _FEWEST_ROWS:
        why = "too short a run, or too few validation rows, to compare beam search and int8"
        return Choice(predictor=predictor, reasons=[f"decoding: as set; {why}"])
    trial, reasons = Trial(rows, _find_metric(settings, tokenizer, rows)), list[str]()
    if is_open:
        measured = predictor if fast is None or not is_on_cpu else _share(predictor, fast)
        penalties = () if "decoding.length_penalty" in typed else _PENALTIES
        chosen, why = choose_search(measured, trial, penalties)
        reasons.append(f"decoding: {why}")
        if chosen:
            predictor = _decode(measured, chosen)
    quantization: Quantization = "float32"
    if fast is not None and not is_large:
        reasons.append("weights: float32; int8 makes so small a model hardly quicker")
    elif fast is not None and "int8" in ctranslate2.get_supported_compute_types("cpu"):
        small = CTranslate2Engine(
            settings.model, tokenizer, model_folder.weights,
            device="cpu", quantization="int8", load_fallback=lambda: engine,
        )  # fmt: skip
        is_right, why = accept_int8(_share(predictor, fast), _share(predictor, small), trial)
        reasons.append(f"weights: {why}")
        if is_right:
            quantization = "int8"
            predictor = _share(predictor, small) if is_on_cpu else predictor
    return Choice(
        predictor=predictor, quantization=quantization, reasons=reasons, trial=trial.to_dict()
    )


def choose_ensemble_search(
    model: Predictor, typed: Collection[str], num_steps: int, data: RunData
) -> tuple[Values, str]:
    """Return the search of an ensemble, for all of whose models `fit` chose one, and the reason.

    Args:
        model: Searches as its first model does.
        typed: Names of the settings that the user set.
        num_steps: Of the training of each model, on `data`.
    """
    settings, valid = model.settings, group_references(data.read_split("valid"), model.settings)
    rows = _sample_rows(valid, _count_rows(settings, num_steps, data))
    if settings.decoding.method != "beam" or "decoding.beam_size" in typed:
        return {}, ""
    is_penalty_open = "decoding.length_penalty" not in typed
    plain: Values = {"decoding.beam_size": 1}
    if is_penalty_open:
        plain["decoding.length_penalty"] = DecodingSettings().length_penalty
    if len(rows) < _FEWEST_ROWS:
        return plain, "greedy; too short a run, or too few validation rows, to compare beam search"
    trial = Trial(rows, _find_metric(settings, model.tokenizer, rows))
    found, why = choose_search(_decode(model, plain), trial, _PENALTIES if is_penalty_open else ())
    return {**plain, **found}, why


def choose_search(
    model: Predictor, trial: Trial, penalties: Sequence[float] = ()
) -> tuple[Values, str]:
    """Return the settings of a beam that is better than greedy search by a paired test; the reason.

    Args:
        penalties: Other length penalties to try where a beam is better.
    """
    greedy, greedy_s = trial.search("greedy", _decode(model, {"decoding.beam_size": 1}))
    best, chosen = greedy, Values()
    for penalty in (model.settings.decoding.length_penalty, *penalties):
        values = {"decoding.beam_size": _BEAM, "decoding.length_penalty": penalty}
        name = f"beam {_BEAM}, length penalty {penalty:g}"
        rows, beam_s = trial.search(name, _decode(model, values))
        found, difference = trial.compare(best, rows), trial.compare(greedy, rows)
        figures = (
            f"on {len(rows):,} validation rows ({difference.title} {difference.other:.2f} against "
            f"{difference.baseline:.2f}, p {difference.randomization_p:.3f}; "
            f"{beam_s / max(greedy_s, 1e-9):.1f} times the time)"
        )
        if found.is_better and found.randomization_p < _CHANCE:
            best, chosen, why = rows, values, f"{name}; better than greedy {figures}"
        elif not chosen:
            better = "not surely better" if found.is_better else "no better"
            return chosen, f"greedy; beam {_BEAM} is {better} {figures}"
    return chosen, why


def accept_int8(plain: Predictor, small: Predictor, trial: Trial) -> tuple[bool, str]:
    """Return whether int8 weights are clearly quicker and cost at most 0.1 points; the reason."""
    baseline, plain_s = trial.search("float32", plain)
    other, small_s = trial.search("int8", small)
    difference = trial.compare(baseline, other)
    gain = difference.difference if difference.is_higher_better else -difference.difference
    different = sum(a.hypothesis != b.hypothesis for a, b in zip(baseline, other, strict=True))
    figures = (
        f"{different:,} of {len(trial.rows):,} outputs differ, {difference.title} "
        f"{difference.other:.2f} against {difference.baseline:.2f}, "
        f"{plain_s / max(small_s, 1e-9):.1f} times as quick"
    )
    if gain >= -_MARGIN and plain_s >= _LEAST_GAIN * small_s:
        return True, f"int8; {figures} as float32"
    return False, f"float32; with int8 {figures}"


def choose_memory(
    run: Run, model: Predictor, valid: Sequence[Row]
) -> tuple[TargetMemory | None, str, dict[str, Any]]:
    """Return the targets of training sources, if they are better outputs than those of `model`.

    Compared are the validation rows `valid` whose sources are training sources, and training sources
    that occur again: one row of each is left out, and the others answer. Also returns the reason,
    and what was tried.
    """
    most = _count_rows(run.settings, run.trainer.global_step, run.data)
    if not model.may_remember or most < _FEWEST_ROWS:
        return None, "", {}
    form = model.settings.tokenizer.target.unicode_form
    groups = SourceGroups.collect(as_outputs(run.data.read_split("train"), form))
    seen = [(row, groups.find(row.source, row.features)) for row in valid]
    asked: list[tuple[Row | int, int]] = [(row, place) for row, place in seen if place is not None]
    asked += zip(groups.left_out.tolist(), groups.others.tolist(), strict=True)
    if len(asked) < _FEWEST_ROWS:
        return None, f"memory: none; {len(asked):,} repeated sources are too few to test it", {}
    count = min(len(asked), most)
    asked = [asked[i * len(asked) // count] for i in range(count)]
    wanted = {one for both in asked for one in both if isinstance(one, int)}
    training = as_outputs(run.data.read_split("train"), form)
    pairs = {i: pair for i, pair in enumerate(training) if i in wanted}
    rows = [one if isinstance(one, Row) else group_references([pairs[one]])[0] for one, _ in asked]
    trial = Trial(rows, _find_metric(model.settings, model.tokenizer, rows))
    baseline, _ = trial.search("model", model)
    other = trial.add("memory", [pairs[place].target for _, place in asked])
    difference = trial.compare(baseline, other)
    figures = (
        f"on {count:,} repeated sources, each without one of its rows ({difference.title} "
        f"{difference.other:.2f} against {difference.baseline:.2f}, p {difference.randomization_p:.3f})"
    )
    if not difference.is_better or difference.randomization_p >= _CHANCE:
        better = "not surely better" if difference.is_better else "no better"
        return None, f"memory: none; it is {better} than the model {figures}", trial.to_dict()
    weights = sum(one.nbytes for one in run.module.network.state_dict().values())
    confidence = (sum(row.is_exact for row in other) + 1) / (count + 2)
    training = as_outputs(run.data.read_split("train"), form)
    found = groups.remember(training, run.data.paths, confidence, max(weights, _MEMORY_BYTES))
    if found is None:
        why = f"none; better than the model {figures}, but its table is larger than the weights"
        return None, f"memory: {why}", trial.to_dict()
    why = (
        f"{len(found):,} sources, {found.num_bytes / 1e6:,.2f} MB; better than the model {figures}"
    )
    return found, f"memory: {why}", trial.to_dict()


def _count_rows(settings: Settings, num_steps: int, data: RunData) -> int:
    """Return the most rows to compare."""
    training = settings.training
    trained = num_steps * training.accumulate * training.batch_tokens
    length = float(data.ids("valid").target_lengths.mean())
    return min(training.valid_rows, int(trained / (_TRAINED_TOKENS * length)))


def _sample_rows(rows: Sequence[Row], most: int) -> list[Row]:
    """Return at most so many of the validation rows, evenly over their file."""
    count = min(len(rows), most)
    return [rows[i * len(rows) // count] for i in range(count)]


def _find_metric(settings: Settings, tokenizer: PairTokenizer, rows: Sequence[Row]) -> Metric:
    """Return the score that chooses the checkpoint; or the task's own, where it is not over texts."""
    metrics = choose_metrics(
        settings.evaluation,
        [row.references for row in rows],
        separator=settings.tokenizer.target.separator,
        has_symbols=bool(tokenizer.target.separator),
    )
    found, name = {one.name: one for one in metrics}, settings.training.monitor
    if name == "token_error_rate" and name not in found:  # tokens are characters
        name = "character_error_rate"
    return found.get(name, metrics[0])


def _decode(model: Predictor, values: Values) -> Predictor:
    return model.with_decoding(as_settings(values, is_whole=False))


def _share(model: Predictor, engine: Engine) -> Predictor:
    """Return `model` with another engine."""
    return Predictor(engine, model.tokenizer, model.settings, config=model.config)
