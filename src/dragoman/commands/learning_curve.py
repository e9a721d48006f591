"""`dragoman learning-curve`: the score by the number of training pairs, and what twice as many bring.

Each point is a model, or one for each seed, trained by `fit` on a part of the training pairs
(data.train_fraction). All are scored on the same held-out pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dragoman.commands.evaluate import find_run
from dragoman.commands.fit import fit
from dragoman.commands.report import render_template, write_page
from dragoman.configuration import SettingsLike, as_settings, merge_settings, suggest
from dragoman.errors import SettingsError
from dragoman.evaluation.metrics import Metric, choose_metrics, list_known_metrics
from dragoman.evaluation.output_rows import Row
from dragoman.evaluation.significance import draw_counts
from dragoman.model_folder.folder import ModelFolder
from dragoman.reading.in_memory import Pairs, as_files
from dragoman.reporting.charts import draw_learning_curve
from dragoman.settings import Settings
from dragoman.training.run_context import TextConsole, print_plain

FRACTIONS = (1.0, 1 / 2, 1 / 4, 1 / 8)
_EXPONENTS = np.linspace(0.05, 2.0, 40)  # c of a + b * n^-c

Estimate = tuple[float, float, float]  # value, and the ends of its interval


@dataclass(frozen=True, kw_only=True)
class Point:
    """The score with a part of the training pairs."""

    fraction: float
    num_pairs: int
    by_seed: tuple[float, ...]
    score: Estimate  # of the mean over the seeds


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """The result of `learning_curve`; all scores in percent or points of 100."""

    metric: str
    title: str
    is_higher_better: bool
    split: str  # on which the models are scored
    level: float  # of the intervals
    points: tuple[Point, ...]  # fewest pairs first
    doubled: Estimate  # the score with twice the pairs, as a power law continues the points
    gain: Estimate  # by how much that is better than now; below 0: worse
    conclusion: str
    page: Path

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {**asdict(self), "page": str(self.page)}

    def __repr__(self) -> str:
        lines = [f"{self.title} on {self.split}, mean over seeds [interval, level {self.level:g}]:"]
        for one in self.points:
            by_seed = ", ".join(f"{score:.2f}" for score in one.by_seed)
            lines.append(f"  {one.num_pairs:>9,} pairs  {_show(one.score)}: {by_seed}")
        lines.append(
            f"  {2 * self.points[-1].num_pairs:>9,} pairs  {_show(self.doubled)}: expected"
        )
        return "\n".join([*lines, self.conclusion])


def learning_curve(
    pairs: Pairs,
    out: str | Path,
    settings: SettingsLike = None,
    *,
    seeds: int = 2,
    metric: str = "",
    console: Console | None = None,
) -> LearningCurve:
    """Train on all pairs, a half, a quarter and an eighth of them, and continue the curve to twice.

    Every run has the settings that `fit` chooses for its number of pairs, and the same held-out
    pairs: those of the test, if there are any, else of the validation. A power law a + b * n^-c of
    the error is fitted to the means over the seeds. Its interval covers other rows (drawn again) and
    other seeds (their spread, pooled over the points; with one seed it does not).

    Repeated with the same pairs and settings, it keeps complete runs and resumes an interrupted one.

    Args:
        out: Folder of the model folders, and of curve.html.
        seeds: Models for each point, with the seeds from training.seed on.
        metric: Such as exact_match or chrf; "": the first of the task.

    Raises:
        SettingsError: The metric is not one of the task; or see `fit`.
        CheckpointError: The folder has a curve of other pairs.
    """
    console, typed, out = console or TextConsole(stderr=True), as_settings(settings), Path(out)
    if typed.data.train_fraction != 1.0:
        raise SettingsError("data.train_fraction: the curve varies it; leave it out")
    if metric.partition(".")[0] not in {"", *(known := list_known_metrics())}:
        raise SettingsError(f"--metric {metric}: there is no such score{suggest(metric, [*known])}")
    runs = dict[float, list[Path]]()
    with as_files(pairs) as files:
        for fraction in FRACTIONS:
            for seed in range(typed.training.seed, typed.training.seed + max(1, seeds)):
                folder = out / f"{fraction:g}-seed-{seed}"
                print_plain(console, f"{fraction:g} of the training pairs, seed {seed}: {folder}")
                own = {"data.train_fraction": fraction, "training.seed": seed}
                model = fit(
                    files, folder, merge_settings(typed, own, overrule=True), resume="auto",
                    console=console,
                )  # fmt: skip
                _choose_metric(*find_run(folder), model.settings, metric)  # before hours are spent
                runs.setdefault(fraction, []).append(folder)
                held_out = {  # for fewer pairs `fit` would choose other fractions
                    f"data.{name}": getattr(model.settings.data, name)
                    for name in ("valid_fraction", "test_fraction")
                }
                typed = merge_settings(typed, held_out)
    return _estimate(out, runs, model.settings, metric)


def _estimate(
    out: Path, runs: Mapping[float, Sequence[Path]], settings: Settings, wanted: str
) -> LearningCurve:
    """Return the curve through the scores of `runs`, by fraction; write its page."""
    found = [[find_run(folder) for folder in runs[fraction]] for fraction in sorted(runs)]
    rows, content = found[-1][0]
    # data.long_rows leaves rows out by their tokens, which are others with fewer pairs.
    by_run = [[{_name(row): row for row in one} for one, _ in seeds] for seeds in found]
    shared = [name for name in map(_name, rows) if all(name in one for one in chain(*by_run))]
    used, references = settings.evaluation, [name[-1] for name in shared]
    metric = _choose_metric(rows, content, settings, wanted)
    statistics = np.array([
        [metric.count_rows([one[name].hypothesis for name in shared], references) for one in seeds]
        for seeds in by_run
    ])  # (points, seeds, N, k)  # fmt: skip
    by_seed = metric.from_sums(statistics.sum(axis=2))  # (points, seeds)
    scores, num_seeds = by_seed.mean(axis=1), by_seed.shape[1]
    generator = np.random.default_rng(used.seed)
    counts = draw_counts(len(shared), used.resamples, generator)
    drawn = np.concatenate(
        [metric.from_sums(chunk @ statistics).mean(axis=1) for chunk in counts], axis=1
    )  # (points, resamples)
    if num_seeds > 1:
        error = np.sqrt(by_seed.var(axis=1, ddof=1).mean() / num_seeds)
        drawn += error * generator.standard_t(len(found) * (num_seeds - 1), drawn.shape)
    level, best = used.confidence_level, 100.0 if metric.is_higher_better else 0.0
    halves = np.quantile(np.abs(drawn - scores[:, None]), level, axis=1)
    num_pairs = [
        int(ModelFolder.read(runs[fraction][0]).metrics["data"]["pairs"]["train"])
        for fraction in sorted(runs)
    ]
    errors = np.abs(best - np.column_stack([scores, drawn]))
    now, later = continue_curve(np.array(num_pairs, float), errors)
    gain = _bound(now - later, level)
    doubled = _bound(best - later if metric.is_higher_better else later, level)
    points = tuple(
        Point(
            fraction=fraction, num_pairs=count, by_seed=tuple(map(float, of_seeds)),
            score=(float(score), float(score - half), float(score + half)),
        )
        for fraction, count, of_seeds, score, half in zip(
            sorted(runs), num_pairs, by_seed, scores, halves, strict=True
        )
    )  # fmt: skip
    curve = LearningCurve(
        metric=metric.name, title=metric.title, is_higher_better=metric.is_higher_better,
        split="test" if settings.data.test or settings.data.test_fraction else "valid", level=level,
        points=points, doubled=doubled, gain=gain, page=out / "curve.html",
        conclusion=_conclude(gain, num_seeds, len(rows) - len(shared)),
    )  # fmt: skip
    chart = draw_learning_curve(
        [(one.num_pairs, one.score) for one in points], (2 * num_pairs[-1], doubled), curve.title
    )
    page = render_template("curve.html.jinja", curve=curve, chart=chart, title=out.name)
    write_page(curve.page, page)
    return curve


def _name(row: Row) -> tuple[str, int, str, tuple[str, ...], tuple[str, ...]]:
    return row.file, row.line, row.source, row.features, row.references


def _choose_metric(
    rows: Sequence[Row], content: Mapping[str, Any], settings: Settings, wanted: str
) -> Metric:
    """Return the metric named `wanted` of an evaluated run; "": the first of its task."""
    references, sources = [row.references for row in rows], [row.source for row in rows]
    metrics = choose_metrics(settings.evaluation, references, sources=sources, **content["cut"])
    names = {metric.name: metric for metric in metrics}
    if wanted and wanted not in names:
        raise SettingsError(
            f"--metric {wanted}: not one of these pairs{suggest(wanted, list(names))}; give one of: "
            f"{', '.join(names)}"
        )
    return names[wanted] if wanted else metrics[0]


def continue_curve(
    num_pairs: NDArray[np.float64], errors: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the error with the most pairs, and with twice as many, by the nearest a + b * n^-c.

    Errors of 40, 20, 10 and 5 with 100, 200, 400 and 800 pairs are 4000 / n: 2.5 with 1,600.

    Args:
        num_pairs: Of the points, (P,).
        errors: Of each point in M draws, (P, M).

    Source: Hestness et al. 2017 (power laws of the error); a is at least 0.
    """
    nearest = np.full(errors.shape[1], np.inf)
    now, later = np.zeros_like(nearest), np.zeros_like(nearest)
    for exponent in _EXPONENTS:
        x = (num_pairs / num_pairs.max()) ** -exponent
        centered = x - x.mean()
        slope = centered @ errors / (centered @ centered)
        limit = errors.mean(axis=0) - slope * x.mean()
        slope = np.where(limit < 0, x @ errors / (x @ x), slope)
        limit = np.maximum(limit, 0.0)
        distance = ((limit + np.outer(x, slope) - errors) ** 2).sum(axis=0)
        is_nearer = distance < nearest
        nearest = np.where(is_nearer, distance, nearest)
        now = np.where(is_nearer, limit + slope, now)
        later = np.where(is_nearer, limit + slope * 2.0**-exponent, later)
    return now, later


def _bound(values: NDArray[np.float64], level: float) -> Estimate:
    """Return the first of `values`, and the ends of the interval of the others."""
    low, high = np.quantile(values[1:], [0.5 - level / 2, 0.5 + level / 2])
    return float(values[0]), float(low), float(high)


def _conclude(gain: Estimate, num_seeds: int, num_left_out: int) -> str:
    value, low, high = gain
    told = f"Twice the pairs would make the score better by {value:.2f} [{low:.2f}, {high:.2f}]."
    if low <= 0:
        told = "These runs cannot tell whether twice the pairs help: "
        told += (
            f"the score may change by {low:+.2f} to {high:+.2f} (above 0 is better). More seeds or more "
            "held-out pairs would narrow it."
            if low < high
            else "all points have the same score."
        )
    if num_left_out:
        told += f" Without {num_left_out:,} held-out rows that are too long for some models (data.long_rows)."
    if num_seeds == 1:
        told += " With one seed, the intervals do not cover other seeds."
    return told


def _show(estimate: Estimate) -> str:
    value, low, high = estimate
    return f"{value:6.2f} [{low:.2f}, {high:.2f}]"
