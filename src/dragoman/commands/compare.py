"""`dragoman compare`: compare the first of several evaluations, on the same rows, with the others."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dragoman.commands.evaluate import find_run
from dragoman.configuration import (
    SettingsLike,
    as_settings,
    check_sections,
    merge_settings,
    update_stored,
)
from dragoman.errors import DataError, shorten
from dragoman.evaluation.evaluation import TargetTokenization, choose_metrics_of
from dragoman.evaluation.significance import Comparison
from dragoman.evaluation.significance import compare as compare_rows
from dragoman.model_folder.folder import list_models
from dragoman.reading.row_errors import name_row
from dragoman.settings import EvaluationSettings, Settings


def compare(
    runs: Sequence[str | Path], settings: SettingsLike = None, *, on: str = "", num_rows: int = 10
) -> list[Comparison]:
    """Compare the first of `runs`, the baseline, with each of the others.

    Args:
        runs: Model folders, folders that `evaluate` wrote, or rows.jsonl files; runs of one system
            with different seeds are joined by commas. An ensemble folder means its models, each alone.
        settings: Its evaluation section overrides that of the first run.
        on: The name of the evaluation, for model folders; "": test, or the only one.

    Raises:
        DataError: There are fewer than two runs, one has no evaluation, or their rows differ.
    """
    names = [str(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    if len(names) < 2:
        raise DataError(f"{' '.join(names)}: give two runs or more; the first is the baseline")
    check_sections(as_settings(settings), "compare", ("evaluation",))
    systems = {}
    for name in names:  # an existing path with a comma is one run
        of_seeds = [name] if Path(name).exists() else [one for one in name.split(",") if one]
        systems[name] = [
            find_run(model, on) for one in of_seeds for model in list_models(Path(one))
        ]
    if len(systems) < len(names):
        raise DataError(f"{' '.join(names)}: a run is given twice")
    rows = {name: [of_seed for of_seed, _ in found] for name, found in systems.items()}
    baseline = names[0]
    evaluation, tokenization = _find_settings(
        systems[baseline][0][1], as_settings(settings).evaluation, baseline
    )
    metrics = choose_metrics_of(rows[baseline][0], evaluation, tokenization)
    used = {
        name: [_list_settings(content) for _, content in runs] for name, runs in systems.items()
    }
    return [
        replace(
            compare_rows(
                rows[baseline],
                rows[other],
                metrics,
                evaluation,
                names=(baseline, other),
                num_rows=num_rows,
            ),
            different_settings=_find_differences(used[baseline], used[other]),
        )
        for other in names[1:]
    ]


def describe_comparison(found: Comparison) -> list[str]:
    """Return the comparison as lines for the terminal."""
    width = max(len(one.title) for one in found.differences.values())
    head = f"{found.other} against {found.baseline}: {found.rows:,} rows"
    if max(found.baseline_runs, found.other_runs) > 1:
        head += f", {found.other_runs} against {found.baseline_runs} runs"
    level = f"{100 * found.level:g}%"
    lines = [head]
    if found.different_settings:
        differing = found.different_settings.items()
        shown = [f"{name} {shorten(one)} -> {shorten(two)}" for name, (one, two) in differing]
        lines.append(f"  settings that differ: {'; '.join(shown)}")
    lines += [
        f"  {'':<{width}}  baseline    other  difference [{level}]          p (bootstrap, swaps)"
    ]
    for one in found.differences.values():
        interval = f"{one.difference:+.2f}"
        if one.low is not None:
            interval += f" [{one.low:+.2f}, {one.high:+.2f}]"
        better = "better" if one.is_better else "worse" if one.difference else "equal"
        is_sure = max(one.bootstrap_p, one.randomization_p) < 1 - found.level
        verdict = better if is_sure or better == "equal" else f"{better}, may be chance"
        lines.append(
            f"  {one.title:<{width}}  {one.baseline:>8.2f} {one.other:>8.2f}  {interval:<26}  "
            f"{one.bootstrap_p:.4f}, {one.randomization_p:.4f}  {verdict}"
        )
    if found.different_rows:
        lines.append(f"rows that differ most, by {found.differences[found.different_by].title}:")
    for row in found.different_rows:
        where = name_row(row.file, row.line) if row.file and row.line else f"row {row.row + 1}"
        lines += [
            f"  {where}: {row.source}",
            f"    reference  {' | '.join(row.references)}",
            f"    baseline   {row.baseline}  ({row.baseline_score:.1f})",
            f"    other      {row.other}  ({row.other_score:.1f})",
        ]
    return lines


def _list_settings(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a stored evaluation, as text; {}: it has none."""
    model, speed = (dict(content.get(name) or {}) for name in ("model", "speed"))
    decoding = update_stored(model.get("decoding") or {}, "decoding.")  # all that 0.1 stored
    settings = model.get("settings") or {f"decoding.{name}": decoding[name] for name in decoding}
    given = {f"--{name}": speed[name] for name in ("engine", "quantization") if name in speed}
    if settings:
        given["--ensemble"] = f"{max(1, len(model.get('models') or ()))} models"
    return {name: str(value) for name, value in {**given, **settings}.items() if name != "version"}


def _find_differences(
    baseline: Sequence[Mapping[str, str]], other: Sequence[Mapping[str, str]]
) -> dict[str, tuple[str, str]]:
    """Return the values of each setting that is not the same in all runs of both systems."""
    found, runs = {}, [*baseline, *other]

    def show(name: str, of: Sequence[Mapping[str, str]]) -> str:
        return ", ".join(dict.fromkeys(run.get(name, "not recorded") for run in of))

    for name in dict.fromkeys(name for run in runs for name in run):
        if len({run.get(name) for run in runs if run}) > 1:
            found[name] = show(name, baseline), show(name, other)
    if any(runs) and not all(runs):
        known = ["recorded" if all(of) else "not recorded" for of in (baseline, other)]
        found["settings"] = known[0], known[1]
    return found


def _find_settings(
    content: Mapping[str, Any], typed: EvaluationSettings, place: str
) -> tuple[EvaluationSettings, TargetTokenization]:
    """Return the settings of a stored evaluation, overridden by the typed ones."""
    if not content:
        return typed, TargetTokenization()
    try:
        stored = EvaluationSettings.model_validate(content["settings"])
        tokenization = TargetTokenization.model_validate(content["cut"])
    except (ValidationError, KeyError, TypeError) as error:
        raise DataError(f"{place}: its scores.json is not of this version: {error}") from error
    both = merge_settings(
        Settings(evaluation=typed), {f"evaluation.{name}": value for name, value in stored}
    )
    return both.evaluation, tokenization
