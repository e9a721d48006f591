"""Search settings: train with many, prune those that fall behind, and keep the best for `fit`.

Each trial is a training run without its end: no export, no scores, no model folder. It is judged by
the score that chooses checkpoints (training.monitor), on the validation pairs. The test pairs are
held out as `fit` holds them out, and never read.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dragoman.commands.fit import explain_memory, train_run
from dragoman.commands.fit_setup import lock_folder, start_run
from dragoman.commands.report import render_template
from dragoman.configuration import (
    SettingsLike,
    as_settings,
    flatten_settings,
    list_set_values,
    merge_settings,
    suggest,
)
from dragoman.errors import (
    ModelFolderError,
    SettingsError,
    Stopped,
    TrainingError,
    name_extra,
)
from dragoman.reading.in_memory import Pairs, as_files
from dragoman.reading.pairs import list_files
from dragoman.reporting.charts import draw_importance, draw_search
from dragoman.settings import Settings
from dragoman.storage import explain_failed_write, sha256, staged_file
from dragoman.training.graceful_stop import SignalHandler, handle_signals
from dragoman.training.ranks import Ranks
from dragoman.training.run_context import RunContext, StartTimer, TextConsole

with name_extra("tune"):
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

_STUDY, _TRIALS = "study.db", "trials"
_STATES: dict[TrialState, Literal["complete", "pruned", "failed"]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
_FIRST_PRUNED = 5  # trials that run to their end before any is pruned
_LEAST_KNOWN = 8  # trials with a score, to tell which settings matter
_INTERVAL = {"low", "high", "log"}
_LENGTHS = ("quality", "training.max_steps", "training.max_minutes")

Space = Mapping[str, Sequence[Any] | Mapping[str, float]]
SPACE: Space = {
    "optimization.learning_rate": {"low": 3e-4, "high": 3e-3, "log": True},
    "optimization.label_smoothing": [0.0, 0.1, 0.2],
    "model.dropout": [0.1, 0.2, 0.3, 0.4],
    "model.num_encoder_layers": [2, 3, 4, 6],
    "model.num_decoder_layers": [1, 2, 4],
}
"""What is searched by default: lists of values, or intervals."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of a search."""

    number: int
    state: Literal["complete", "pruned", "failed"]
    score: float | None  # best of its validations; None: it failed
    minutes: float
    settings: dict[str, Any]  # those that are searched; {}: as `fit` chooses them
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Search:
    """The result of `tune`."""

    monitor: str  # the score of the trials, such as valid_token_error_rate
    trials: tuple[Trial, ...]
    best: Trial
    importance: dict[str, float]  # by setting, as shares of 1; {}: too few trials
    config: Path  # settings for `fit --config`
    page: Path  # the plots

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {**asdict(self), "config": str(self.config), "page": str(self.page)}


def tune(
    pairs: Pairs,
    out: str | Path,
    settings: SettingsLike = None,
    *,
    space: Space | None = None,
    trials: int = 20,
    minutes: float | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Search:
    """Train `trials` runs with settings of `space`, and write the best ones to `{out}/best.yaml`.

    The first trial has the settings that `fit` would choose. The others are proposed by a
    tree-structured Parzen estimator; after five of them a trial ends whose score is below the median
    of the others at the same step. A search of the same pairs, settings and space is continued where
    it stopped; trials that were interrupted are repeated.

    Args:
        settings: Those of all trials. Trials have the length of quality quick, unless they set it.
        space: By setting, the values, or {"low": a, "high": b, "log": True}; None: `SPACE`, without
            what `settings` set.
        minutes: No trial starts after so many.
        overwrite: Start over, instead of continuing.

    Raises:
        SettingsError: The space is none, or the search in `out` is another one.
        TrainingError: The first trial, or every one, failed.
        Stopped: By SIGINT, SIGTERM or SIGHUP; the search can be continued.
    """
    started_s, out = time.monotonic(), Path(out)
    console, settings = console or TextConsole(stderr=True), as_settings(settings)
    typed = dict(list_set_values(settings))
    if not any(name in typed for name in _LENGTHS):
        settings = merge_settings(settings, {"quality": "quick"})
    if space is None:
        space = {name: values for name, values in SPACE.items() if name not in typed}
    _check_space(space, typed)
    with as_files(pairs) as files, lock_folder(out), handle_signals(console) as signals:
        with explain_failed_write(out, ModelFolderError):
            if overwrite and (out / _STUDY).exists():
                shutil.rmtree(out)
            (out / _TRIALS).mkdir(parents=True, exist_ok=True)
        hashes = [sha256(path) for path in list_files(files or settings.data.train)]
        what = {"pairs": hashes, "settings": flatten_settings(settings), "space": dict(space)}
        study = _open_study(out, json.dumps(what, sort_keys=True))
        runner = _Runner(study, files, out / _TRIALS, settings, space, console, signals)
        while len(_list_ended(study)) < trials:
            if minutes is not None and time.monotonic() - started_s > 60 * minutes:
                break
            runner.run_next()
        return _finish(study, out, typed)


def read_space(path: Path) -> Space:
    """Return the space in a YAML file.

    Raises: SettingsError, when it cannot be read, or is no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: the space cannot be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: not YAML in UTF-8: {error}") from error
    if not isinstance(content, dict):
        raise SettingsError(
            f"{path}: expected settings with their values, such as model.dropout: [0.1]"
        )
    return content


def print_search(search: Search) -> None:
    """Print the trials, best first, and what to do with them."""
    table = Table("trial", "state", search.monitor, "minutes", "settings", box=None)
    is_known = [one for one in search.trials if one.score is not None]
    others = [one for one in search.trials if one.score is None]
    best_first = sorted(is_known, key=lambda one: abs((one.score or 0) - (search.best.score or 0)))
    for one in (*best_first, *others):
        shown = ", ".join(f"{name} {_show(value)}" for name, value in one.settings.items())
        score = "" if one.score is None else f"{one.score:.4g}"
        table.add_row(str(one.number), one.state, score, f"{one.minutes:.1f}",
                      Text(one.error or shown or "as fit chooses them"))  # fmt: skip
    console = TextConsole()
    console.print(table)
    for name, share in sorted(search.importance.items(), key=lambda item: -item[1]):
        console.print(f"{share:5.0%} of the differences: {name}", highlight=False)
    console.print(f"plots: {search.page}\nnext: dragoman fit PAIRS --config {search.config}",
                  markup=False, highlight=False, soft_wrap=True)  # fmt: skip


def _show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _check_space(space: Space, typed: Mapping[str, Any]) -> None:
    """Check names and values, by what `Settings` takes."""
    errors, known = list[str](), flatten_settings(Settings())
    for name, values in space.items():
        if name not in known:
            errors.append(f"space: {name}: no such setting{suggest(name, list(known))}")
        elif name in typed:
            errors.append(f"space: {name}: also set for all trials; leave one of them out")
        elif isinstance(values, Mapping) and {"low", "high"} <= values.keys() <= _INTERVAL:
            wrong = list(_find_errors(name, [values["low"], values["high"]]))
            if not wrong and not _is_interval(values):
                wrong = [f"space: {name}: low must be a number below high; with log, above 0"]
            errors += wrong
        elif isinstance(values, list | tuple) and values:
            errors += _find_errors(name, values)
        else:
            errors.append(f"space: {name}: give a list of values, or low, high and log")
    if typed.get("training.teacher"):
        errors.append("--teacher: a search trains without it; leave it out")
    errors += [
        f"--{name}: a search trains on one device; leave it out"
        for name in ("training.devices", "training.num_nodes", "training.strategy")
        if name in typed
    ]
    if errors or not space:
        raise SettingsError.gather(errors or ["space: it has no setting"])


def _is_interval(values: Mapping[str, object]) -> bool:
    low, high = values["low"], values["high"]
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return False
    return low < high and (low > 0 or not values.get("log"))


def _find_errors(name: str, values: Sequence[Any]) -> Iterator[str]:
    for value in values:
        try:
            as_settings({name: value}, is_whole=False)
        except SettingsError as error:
            yield f"space: {error}"


def _open_study(out: Path, what: str) -> optuna.Study:
    """Return the study in `out`, made if there is none; an interrupted trial is queued again.

    Scores are minimized: one of which higher is better is stored negative.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=f"sqlite:///{(out / _STUDY).absolute()}",
        study_name="tune",
        pruner=optuna.pruners.MedianPruner(_FIRST_PRUNED, n_warmup_steps=1),
        load_if_exists=True,
    )
    if study.user_attrs.get("what", what) != what:
        raise SettingsError(
            f"--out {out}: a search with other pairs, settings or space; choose another --out, or "
            "replace it with --overwrite"
        )
    study.set_user_attr("what", what)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)
    return study


def _list_ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that ended by themselves."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    ended = study.get_trials(states=states)
    return [one for one in ended if one.state != TrialState.FAIL or "error" in one.user_attrs]


@dataclass(frozen=True)
class _Runner:
    """Runs the trials of a study, one after the other."""

    study: optuna.Study
    files: Sequence[str | Path]
    folder: Path  # of logs and checkpoints
    settings: Settings
    space: Space
    console: Console
    signals: SignalHandler

    def run_next(self) -> None:
        """Run one trial, and store how it ended."""
        seed = self.settings.training.seed + len(self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        is_first = not _list_ended(self.study)
        trial = self.study.ask()
        chosen = (
            {} if is_first else {name: _suggest(trial, name, self.space) for name in self.space}
        )
        try:
            self.study.tell(trial, self._train(trial, chosen))
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        except (TrainingError, SettingsError) as error:
            trial.set_user_attr("error", str(error))
            self.study.tell(trial, state=TrialState.FAIL)
            if is_first:
                raise
        except Stopped as stop:
            if chosen:
                self.study.enqueue_trial(chosen)
            self.study.tell(trial, state=TrialState.FAIL)
            stop.args = (f"{stop}; repeat the command to continue the search",)
            raise
        ended = _describe(self.study.get_trials(deepcopy=False)[trial.number], self.study)
        score = f"{ended.score:.4g}" if ended.score is not None else ended.error
        shown = ", ".join(f"{name} {_show(value)}" for name, value in chosen.items())
        self.console.print(
            f"trial {ended.number}: {ended.state}, {score}, {ended.minutes:.1f} minutes; "
            f"{shown or 'settings as fit chooses them'}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip

    def _train(self, trial: optuna.Trial, chosen: Mapping[str, Any]) -> float:
        """Return the best score of the run, negative if higher is better."""
        out = self.folder / str(trial.number)
        settings = merge_settings(self.settings, chosen)
        with out.with_suffix(".log").open("w", encoding="utf-8") as log:
            console = TextConsole(file=log)
            context = RunContext(
                console=console, timer=StartTimer(), signals=self.signals, ranks=Ranks(console)
            )
            with start_run(self.files, out, settings, True, context) as run:
                report = _Report(trial, run.checkpoints.monitor, run.checkpoints.mode)
                run.trainer.callbacks.append(report)  # type: ignore[attr-defined]
                self.study.set_user_attr("monitor", run.checkpoints.monitor)
                try:
                    with explain_memory(run):
                        train_run(run)
                finally:
                    shutil.rmtree(run.folder, ignore_errors=True)
        return report.best


def _suggest(trial: optuna.Trial, name: str, space: Space) -> float | int | str | bool | None:
    values = space[name]
    if not isinstance(values, Mapping):
        return trial.suggest_categorical(name, values)
    low, high, log = values["low"], values["high"], bool(values.get("log", False))
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, low, high, log=log)


class _Report(lightning.Callback):
    """Gives each validation to a trial, and ends the run if the trial is to be pruned."""

    def __init__(self, trial: optuna.Trial, monitor: str, mode: str) -> None:
        self._trial, self._monitor = trial, monitor
        self._sign = -1.0 if mode == "max" else 1.0
        self._num_validations = 0
        self.best = float("inf")

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Report the best score so far, by the number of validations."""
        self.best = min(self.best, self._sign * float(trainer.callback_metrics[self._monitor]))
        self._trial.report(self.best, self._num_validations)
        self._num_validations += 1
        if self._trial.should_prune():
            raise optuna.TrialPruned


def _describe(trial: optuna.trial.FrozenTrial, study: optuna.Study) -> Trial:
    reported = min(trial.intermediate_values.values(), default=None)
    lasted = trial.duration.total_seconds() / 60 if trial.duration else 0.0
    error = trial.user_attrs.get("error", "")
    return Trial(
        number=trial.number,
        state=_STATES[trial.state],
        score=None if error or reported is None else abs(reported),
        minutes=round(lasted, 2),
        settings=trial.params,
        error=error,
    )


def _take_value(trial: optuna.trial.FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _finish(study: optuna.Study, out: Path, typed: Mapping[str, Any]) -> Search:
    """Write the best settings and the page."""
    ended = _list_ended(study)
    complete = [one for one in ended if one.state == TrialState.COMPLETE]
    best = _describe(min(complete, key=_take_value), study)
    varied = [one for one in complete if one.params]
    importance = dict[str, float]()
    if len(varied) >= _LEAST_KNOWN:
        shadow = optuna.create_study()
        shadow.add_trials(varied)
        importance = get_param_importances(shadow, evaluator=PedAnovaImportanceEvaluator())
    trials = tuple(_describe(one, study) for one in ended)
    search = Search(
        monitor=study.user_attrs["monitor"],
        trials=trials,
        best=best,
        importance=importance,
        config=out / "best.yaml",
        page=out / "search.html",
    )
    elapsed, points = 0.0, list[tuple[float, float]]()
    for one in trials:
        elapsed += one.minutes
        if one.score is not None:
            points.append((elapsed, one.score))
    charts = [draw_search(points, search.monitor)]
    if importance:
        charts.append(draw_importance(importance))
    page = render_template("search.html.jinja", search=search, charts=charts, title=out.name)
    settings = {**typed, **best.settings}
    with explain_failed_write(out, ModelFolderError):
        with staged_file(search.page) as partial:
            partial.write_text(page, encoding="utf-8", newline="\n")
        with staged_file(search.config) as partial:
            partial.write_text(
                f"# {search.monitor} {best.score:.4g} in trial {best.number} of {len(trials)}\n"
                + yaml.safe_dump(settings, sort_keys=True, allow_unicode=True),
                encoding="utf-8",
            )
    return search
