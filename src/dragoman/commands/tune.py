"""Search settings: train with many, prune those that fall behind, and keep the best for `fit`.

Each trial is a training run without its end: no export, no scores, no model folder. It is judged by
the score that chooses checkpoints (training.monitor), on the validation pairs. The test pairs are
held out as `fit` holds them out, and never read. Trials run here, one after the other, or side by side
on a Ray cluster; either way, this process alone writes the study.
"""

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dragoman.commands.fit import explain_memory, train_run, validate_last
from dragoman.commands.fit_setup import lock_folder, name_folders, start_run, sweep_folders
from dragoman.commands.report import render_template, write_page
from dragoman.configuration import (
    SettingsLike,
    as_settings,
    flatten_settings,
    list_set_values,
    merge_settings,
    suggest,
)
from dragoman.errors import (
    DataError,
    ModelFolderError,
    SettingsError,
    Stopped,
    TrainingError,
    name_extra,
)
from dragoman.reading.in_memory import Pairs, as_files
from dragoman.reading.pairs import list_files
from dragoman.reading.text_files import check_file, spool
from dragoman.reporting.charts import draw_importance, draw_search
from dragoman.settings import Settings
from dragoman.storage import explain_failed_write, sha256, staged_file
from dragoman.training.graceful_stop import SignalHandler, handle_signals
from dragoman.training.ranks import Ranks
from dragoman.training.run_context import RunContext, StartTimer, TextConsole, print_plain

with name_extra("tune"):
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

_STUDY, _TRIALS, _CACHE = "study.db", "trials", "cache"
_STATES: dict[TrialState, Literal["complete", "pruned", "failed"]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
_FIRST_PRUNED = 5  # trials that run to their end before any is pruned
_LEAST_KNOWN = 8  # trials with a score, to tell which settings matter
_MOST_LOSSES = 3  # of the worker of a trial, until it has failed
_DEFAULT, _LOSSES, _ERROR = "is_default", "losses", "error"  # what is known of a trial
_INTERVAL = {"low", "high", "log"}
_OF_SCORES = ("training.monitor", "training.valid_rows", "data.valid", "data.test", "evaluation.")
_TEXT_SCORES = ("chrf", "bleu", "exact_match", "character_error_rate")
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

    def describe_settings(self) -> str:
        """Return the settings in one line."""
        shown = (
            (name, f"{value:.4g}" if isinstance(value, float) else f"{value}")
            for name, value in self.settings.items()
        )
        return ", ".join(f"{name} {value}" for name, value in shown) or "as fit chooses them"


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
    workers: int | None = None,
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
        workers: Run so many trials side by side, on the Ray cluster at RAY_ADDRESS, whose machines share
            the disk of the pairs and of `out`; None: one after the other, here.
        overwrite: Start over, instead of continuing.

    Raises:
        SettingsError: The space is none, or the search in `out` is another one.
        TrainingError: The first trial failed.
        DragomanError: There is no Ray cluster, or it has no room for `workers`.
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
        read = [spool(path) for path in list_files(files or settings.data.train)]
        for path in read:
            check_file(path)
        hashes = [sha256(path) for path in read]
        with explain_failed_write(out, ModelFolderError):
            if overwrite and (out / _STUDY).exists():
                shutil.rmtree(out)
            (out / _TRIALS).mkdir(parents=True, exist_ok=True)
        what = {"pairs": hashes, "settings": flatten_settings(settings), "space": dict(space)}
        study = _open_study(out, json.dumps(what, sort_keys=True))
        end_s = None if minutes is None else started_s + 60 * minutes
        if workers is not None and "data.cache" not in typed:  # one that all machines share
            settings = merge_settings(settings, {"data.cache": str(out / _CACHE)})
        runner = Runner(study, files, out / _TRIALS, settings, space, console, trials, end_s)
        try:
            if workers is None:
                while runner.may_start(0):
                    trial, train = runner.ask()
                    report = partial(runner.report, trial)
                    runner.finish(trial, partial(train, report, signals))
            else:
                with name_extra("tune on a Ray cluster"):
                    from dragoman.commands.on_ray import run_trials

                    run_trials(runner, workers, signals)
                shutil.rmtree(out / _CACHE, ignore_errors=True)
        except KeyboardInterrupt as stop:  # while Ray waits, it makes it a plain one
            received = signals.received or signal.SIGINT
            message = f"{received.name}: stopped; repeat the command to continue the search"
            raise Stopped(message, received) from stop
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
        score = "" if one.score is None else f"{one.score:.4g}"
        table.add_row(str(one.number), one.state, score, f"{one.minutes:.1f}",
                      Text(one.error or one.describe_settings()))  # fmt: skip
    console = TextConsole()
    console.print(table)
    for name, share in sorted(search.importance.items(), key=lambda item: -item[1]):
        console.print(f"{share:5.0%} of the differences: {name}", highlight=False)
    console.print(f"plots: {search.page}\nnext: dragoman fit PAIRS --config {search.config}",
                  markup=False, highlight=False, soft_wrap=True)  # fmt: skip


def _check_space(space: Space, typed: Mapping[str, Any]) -> None:
    """Check names and values, by what `Settings` takes."""
    errors, known = list[str](), flatten_settings(Settings())
    for name, values in space.items():
        if name not in known:
            errors.append(f"space: {name}: no such setting{suggest(name, list(known))}")
        elif name in typed:
            errors.append(f"space: {name}: also set for all trials; leave one of them out")
        elif name.startswith(_OF_SCORES):
            errors.append(f"space: {name}: decides how trials are scored; set it for all of them")
        elif isinstance(values, Mapping) and {"low", "high"} <= values.keys() <= _INTERVAL:
            bounds = values["low"], values["high"]
            wrong = list(_find_errors(name, bounds))
            low, high = (0, 0) if wrong else (_read_value(name, one) for one in bounds)
            are_numbers = isinstance(low, int | float) and isinstance(high, int | float)
            if not wrong and not (
                are_numbers and low < high and (low > 0 or not values.get("log"))
            ):
                wrong = [f"space: {name}: low must be a number below high; with log, above 0"]
            errors += wrong
        elif isinstance(values, list | tuple) and values:
            errors += _find_errors(name, values)
        else:
            errors.append(f"space: {name}: give a list of values, or low, high and log")
    has_tokenizers = any(name.startswith("tokenizer.") for name in space)
    if has_tokenizers and typed.get("training.monitor") not in _TEXT_SCORES:
        errors.append(
            "space: trials with other tokens are comparable only by their texts; set training.monitor to "
            f"{', '.join(_TEXT_SCORES[:-1])} or {_TEXT_SCORES[-1]}"
        )
    if typed.get("training.teacher") or "optimization.distillation" in {*typed, *space}:
        errors.append(
            "--teacher, optimization.distillation: a search trains without; leave them out"
        )
    errors += [
        f"--{name}: a search trains on one device; leave it out"
        for name in ("training.devices", "training.num_nodes", "training.strategy")
        if name in typed
    ]
    if errors or not space:
        raise SettingsError.gather(errors or ["space: it has no setting"])


def _find_errors(name: str, values: Sequence[Any]) -> Iterator[str]:
    for value in values:
        try:
            as_settings({name: value}, is_whole=False)
        except SettingsError as error:
            yield f"space: {error}"


def _read_value(name: str, value: object) -> Any:  # noqa: ANN401 (of any type)
    """Return a value as the setting has it: 0 as 0.0, and 1e-4, which YAML takes for text, as a number."""
    return dict(list_set_values(as_settings({name: value}, is_whole=False)))[name]


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
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial({}, {_DEFAULT: True})
    study.set_user_attr("what", what)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        _repeat(study, trial)
        _sweep(out / _TRIALS / str(trial.number))
    return study


def _repeat(
    study: optuna.Study, trial: optuna.trial.FrozenTrial | optuna.Trial, **known: int
) -> None:
    """Fail a trial that was cut, and queue it again."""
    if trial.params or _DEFAULT in trial.user_attrs:
        study.enqueue_trial(trial.params, {**trial.user_attrs, **known})
    study.tell(trial.number, state=TrialState.FAIL)


def _sweep(out: Path) -> None:
    """Remove what the training of a trial left when it was killed."""
    sweep_folders(out)
    shutil.rmtree(name_folders(out)[1], ignore_errors=True)


def _list_ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that ended by themselves."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    ended = study.get_trials(states=states)
    return [one for one in ended if one.state != TrialState.FAIL or _ERROR in one.user_attrs]


Report = Callable[[str, float | None, int], bool]


class WorkerLostError(TrainingError):
    """The process or the machine that trained a trial is lost."""


@dataclass(frozen=True)
class Runner:
    """Chooses the next trial of a search, and stores how each goes and ends, wherever it trains."""

    study: optuna.Study
    files: Sequence[str | Path]
    folder: Path  # of logs and checkpoints
    settings: Settings
    space: Space
    console: Console
    trials: int
    end_s: float | None  # on `time.monotonic`: no trial starts after it

    def may_start(self, num_running: int) -> bool:
        """Return whether another trial is to start, beside those that run."""
        is_late = self.end_s is not None and time.monotonic() > self.end_s
        return not is_late and len(_list_ended(self.study)) + num_running < self.trials

    def ask(self) -> tuple[optuna.Trial, Callable[..., float]]:
        """Return a new trial, and `train_trial` with its first arguments, ready to send to a worker."""
        trials = self.study.get_trials(deepcopy=False)
        num_before = sum(one.state != TrialState.WAITING for one in trials)
        seed = self.settings.training.seed + num_before
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        trial = self.study.ask()
        names = () if _DEFAULT in trial.user_attrs else self.space
        chosen = {name: _suggest(trial, name, self.space) for name in names}
        out = self.folder / str(trial.number)
        return trial, partial(train_trial, self.files, out, self.settings, chosen)

    def report(self, trial: optuna.Trial, monitor: str, best: float | None, count: int) -> bool:
        """Store the best score of a trial after `count` validations; return whether to prune it."""
        self.study.set_user_attr("monitor", monitor)
        if best is None:
            return False
        trial.report(best, count)
        return trial.should_prune()

    def finish(self, trial: optuna.Trial, train: Callable[[], float]) -> None:
        """Store how a trial ends: with the score that `train` returns, or by what it raises."""
        try:
            self.study.tell(trial, train())
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        except (TrainingError, SettingsError, DataError) as error:
            if isinstance(error, WorkerLostError):
                _sweep(self.folder / str(trial.number))
                losses = 1 + trial.user_attrs.get(_LOSSES, 0)
                if losses < _MOST_LOSSES:
                    _repeat(self.study, trial, **{_LOSSES: losses})
                    print_plain(self.console, f"trial {trial.number}: {error}; it is repeated")
                    return
            trial.set_user_attr(_ERROR, str(error))
            self.study.tell(trial, state=TrialState.FAIL)
            if _DEFAULT in trial.user_attrs:
                raise
        ended = _describe(self.study.get_trials(deepcopy=False)[trial.number])
        score = f"{ended.score:.4g}" if ended.score is not None else ended.error
        print_plain(
            self.console,
            f"trial {ended.number}: {ended.state}, {score}, {ended.minutes:.1f} minutes; "
            f"settings {ended.describe_settings()}",
        )


def train_trial(
    files: Sequence[str | Path],
    out: Path,
    settings: Settings,
    chosen: Mapping[str, Any],
    report: Report,
    signals: SignalHandler | None = None,
) -> float:
    """Train one trial, with a log beside `out`; return its best score, negative if higher is better.

    Args:
        chosen: Settings of this trial, over `settings`.
        report: Is given the name of the score, the best so far (None: the data are ready) and the number
            of validations; returns whether to prune.
        signals: The handler of this process; None: it handles none.

    Raises: optuna.TrialPruned, and the errors of a training.
    """
    settings = merge_settings(settings, chosen)
    with out.with_suffix(".log").open("w", encoding="utf-8") as log:
        console = TextConsole(file=log)
        context = RunContext(
            console=console,
            timer=StartTimer(),
            signals=signals or SignalHandler(console),
            ranks=Ranks(console),
        )
        with start_run(files, out, settings, True, context) as run:
            monitor = run.checkpoints.monitor
            report(monitor, None, 0)
            judge = _Judge(partial(report, monitor), monitor, run.checkpoints.mode)
            run.trainer.callbacks.append(judge)  # type: ignore[attr-defined]
            try:
                with explain_memory(run):
                    train_run(run)
                    validate_last(run)
            finally:
                shutil.rmtree(run.folder, ignore_errors=True)
    return judge.best


def _suggest(trial: optuna.Trial, name: str, space: Space) -> float | int | str | bool | None:
    values = space[name]
    if not isinstance(values, Mapping):
        return trial.suggest_categorical(name, values)
    low, high = (_read_value(name, values[end]) for end in ("low", "high"))
    log = bool(values.get("log", False))
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, low, high, log=log)


class _Judge(lightning.Callback):
    """Reports each validation of a trial, and ends the run if the trial is to be pruned."""

    def __init__(self, report: Callable[[float, int], bool], monitor: str, mode: str) -> None:
        self._report, self._monitor = report, monitor
        self._sign = -1.0 if mode == "max" else 1.0
        self._num_validations = 0
        self.best = float("inf")

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Report the best score so far, by the number of validations."""
        self.best = min(self.best, self._sign * float(trainer.callback_metrics[self._monitor]))
        is_pruned = self._report(self.best, self._num_validations)
        self._num_validations += 1
        if is_pruned:
            raise optuna.TrialPruned


def _describe(trial: optuna.trial.FrozenTrial) -> Trial:
    reported = min(trial.intermediate_values.values(), default=None)
    lasted = trial.duration.total_seconds() / 60 if trial.duration else 0.0
    error = trial.user_attrs.get(_ERROR, "")
    return Trial(
        number=trial.number,
        state=_STATES[trial.state],
        score=None if error or reported is None else abs(reported),
        minutes=round(lasted, 2),
        settings=trial.params,
        error=error,
    )


def _finish(study: optuna.Study, out: Path, typed: Mapping[str, Any]) -> Search:
    """Write the best settings and the page."""
    ended, best = _list_ended(study), _describe(study.best_trial)
    varied = [one for one in ended if one.state == TrialState.COMPLETE and one.params]
    importance = dict[str, float]()
    if len(varied) >= _LEAST_KNOWN:
        shadow = optuna.create_study()
        shadow.add_trials(varied)
        importance = get_param_importances(shadow, evaluator=PedAnovaImportanceEvaluator())
    trials = tuple(_describe(one) for one in ended)
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
    write_page(search.page, page)
    with explain_failed_write(out, ModelFolderError), staged_file(search.config) as partial:
        partial.write_text(
            f"# {search.monitor} {best.score:.4g} in trial {best.number} of {len(trials)}\n"
            + yaml.safe_dump(settings, sort_keys=True, allow_unicode=True),
            encoding="utf-8",
        )
    return search
