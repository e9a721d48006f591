"""What each section of the page shows, from the content of a report; None leaves the section out."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dragoman.configuration import flatten_settings
from dragoman.evaluation import metrics
from dragoman.evaluation.breakdown import find_closest, find_unit, split_units
from dragoman.evaluation.output_rows import Row
from dragoman.grounding import find_spans
from dragoman.inspection.findings import SEVERITIES
from dragoman.reading.row_errors import name_row
from dragoman.records import Format
from dragoman.reporting.charts import (
    MOST_TOKENS,
    Estimate,
    Point,
    draw_attention,
    draw_calibration,
    draw_curves,
    draw_intervals,
    draw_risk,
)
from dragoman.reporting.text import show_differences
from dragoman.settings import Settings

Shown = dict[str, Any]

_MOST_CURVES = 4
_MOST_MAPS = 3
_MOST_CONFUSIONS = 30
_MOST_SAMPLES = 6  # of a list
_FEWEST_ROWS = 10  # right ones, and wrong ones, for a confidence that says something
_LOSSES = {"train_loss": "training", "valid_loss": "validation", "update_loss": "single steps"}
_TEACHER_FORCED = ("valid_loss", "valid_perplexity", "valid_token_accuracy")


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything in a report; sections without content are left out.

    Texts may hold anything: the page shows them as text.
    """

    name: str  # of the model, or of what else the report is about
    summary: str = ""  # what the model does, its data and size, in a line under its name
    created: str = ""  # time of its making, as in "2027-03-01 12:00 UTC"; "": not shown
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """(step, value) points by name. `update_loss`, `train_loss` and `valid_loss` share a chart;
    `learning_rate` and `tokens_per_s` have one each; every other `valid_` name is a validation
    score, unless it is teacher-forced. Other names are not drawn."""
    inspection: Mapping[str, Any] | None = None
    """The findings in the data, as `Inspection.to_dict` gives them."""
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Content of each `scores.json`, by the name of the evaluation; each key may be missing. The
    one named `test`, else the last one, is the main one."""
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    """Rows by the name of the evaluation, all or some of them: the samples come from these."""
    attention: Sequence[Mapping[str, Any]] = ()
    """Outputs with `source` (optional), `source_tokens` (S texts), `tokens` (T texts), and
    `weights` (T lists of S values from 0 to 1), the attention of each token over the source."""
    neighbours: Mapping[str, Any] = field(default_factory=dict)
    """Wrong outputs with training pairs that bear on them, as `report.find_neighbours` gives them."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every resolved setting by its dotted name."""
    user_settings: Collection[str] | None = None  # names of those that the user set; None: unknown
    versions: Mapping[str, str] = field(default_factory=dict)  # version of each program and library
    facts: Mapping[str, str] = field(default_factory=dict)
    """Anything else, by a label: command, machine, time, memory."""
    hashes: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of each file of pairs

    @property
    def main_evaluation(self) -> str:
        """Name of the evaluation at the top of the page; "" without evaluations."""
        return "test" if "test" in self.evaluations else ["", *self.evaluations][-1]


def show_training(content: ReportContent) -> Shown | None:
    """Return the charts of the training: losses and validation scores; learning rate and speed.

    A validation score has the title of the same score of the main evaluation, else its own name.
    """
    curves: dict[str, Sequence[Point]] = {}
    for name, points in content.curves.items():
        if finite := [(step, value) for step, value in points if math.isfinite(value)]:
            curves[name] = finite
    losses = {title: curves[name] for name, title in _LOSSES.items() if name in curves}
    scores = {
        name.removeprefix("valid_"): points
        for name, points in curves.items()
        if name.startswith("valid_") and name not in _TEACHER_FORCED
    }
    main = content.evaluations.get(content.main_evaluation, {})
    charts = []
    if losses:
        charts.append(draw_curves("loss", "Loss", losses, unit="nats per token"))
    monitored = str(content.settings.get("training.monitor", "")).removeprefix("valid_")
    for key, title, is_higher in (
        ("errors", "Validation: error rates", False),
        ("valid", "Validation: scores", True),
    ):
        names = [name for name in scores if is_higher_better(main, name) == is_higher]
        names = sorted(names, key=lambda name: name != monitored)[:_MOST_CURVES]
        if names:
            best = None
            if monitored in names:
                choose = max if is_higher else min
                point = choose(scores[monitored], key=lambda point: point[1])
                best = (find_title(main, monitored), point)
            unit = name_unit(is_higher_better=is_higher)
            drawn = {find_title(main, name): scores[name] for name in names}
            charts.append(draw_curves(key, title, drawn, unit=unit, best=best, is_percent=True))
    folded = [
        draw_curves(key, title, {title: curves[name]}, unit=unit, begins_at_zero=True)
        for key, name, title, unit in (
            ("learningrate", "learning_rate", "Learning rate", "learning rate"),
            ("tokenspers", "tokens_per_s", "Speed", "tokens per second"),
        )
        if name in curves
    ]
    return {"charts": charts, "folded": folded} if charts or folded else None


def show_inspection(content: ReportContent) -> Shown | None:
    """Return the findings, the sizes of the splits, the preset; and how many findings there are."""
    if content.inspection is None:
        return None
    found = content.inspection["findings"]
    ordered = sorted(found, key=lambda one: SEVERITIES.index(one["severity"]))
    counts = Counter(finding["severity"] for finding in ordered)
    return {**content.inspection, "findings": ordered, "counts": counts}


def show_scores(content: ReportContent) -> Shown | None:
    """Return the scores of all evaluations side by side."""
    splits = sorted(content.evaluations, key=lambda name: name != content.main_evaluation)
    by_split = {
        name: {score.name: score for score in list_scores(content.evaluations[name])}
        for name in splits
    }
    known = {name: score for scores in by_split.values() for name, score in scores.items()}
    signatures = {
        f"{split}, {find_title(one, name.removesuffix('_signature'))}": value
        for split, one in content.evaluations.items()
        for name, value in one.get("scores", {}).items()
        if name.endswith("_signature") and value
    }
    return {"by_split": by_split, "known": known, "signatures": signatures} if known else None


def show_breakdowns(content: ReportContent) -> Shown | None:
    """Return, by evaluation, the groups of each breakdown, with a chart of their first score."""
    shown: dict[str, list[Shown]] = {}
    for number, (split, evaluation) in enumerate(content.evaluations.items()):
        for place, (kind, groups) in enumerate(evaluation.get("breakdown", {}).items()):
            if not groups:
                continue
            names = [name for name in groups[0] if name not in ("group", "rows")]
            titles = {name: find_title(evaluation, name) for name in names}
            chart = draw_intervals(
                f"group{number}x{place}",
                titles[names[0]],
                {str(group["group"]): take_estimate(group.get(names[0])) for group in groups},
                unit=name_unit(is_higher_better=is_higher_better(evaluation, names[0])),
            )
            shown.setdefault(split, []).append(
                {"title": kind, "titles": titles, "groups": groups, "charts": [chart]}
            )
    return _by_split(content, shown)


def show_confusions(content: ReportContent) -> Shown | None:
    """Return, by evaluation, the most frequent confusions, and the unit of their differences."""
    shown = {
        split: {"lines": found[:_MOST_CONFUSIONS], "unit": _find_unit(content, split)}
        for split, evaluation in content.evaluations.items()
        if (found := evaluation.get("confusions"))
    }
    has_truncated = any(one.get("truncated") for one in content.evaluations.values())
    return _by_split(content, shown, {"excludes_truncated": has_truncated})


def show_confidence(content: ReportContent) -> Shown | None:
    """Return, by evaluation, how well confidence is calibrated, and the rows above each threshold.

    Left out where nearly all rows are right, or wrong: then it says nothing.
    """
    shown = {}
    for number, (split, evaluation) in enumerate(content.evaluations.items()):
        confidence = evaluation.get("confidence")
        if not confidence:
            continue
        exact = confidence.get("exact", 0.5)
        if min(exact, 1 - exact) * confidence.get("rows", math.inf) < _FEWEST_ROWS:
            if fields := confidence.get("fields"):  # some of them may be uncertain
                shown[split] = {"thresholds": [], "charts": [], "fields": fields}
            continue
        charts = []
        bins = {
            title: [(100 * mean, 100 * exact) for mean, exact, _ in confidence.get(name, [])]
            for name, title in (("bins", "calibrated"), ("uncalibrated_bins", "uncalibrated"))
        }
        if bins["calibrated"]:
            drawn = {title: points for title, points in bins.items() if points}
            charts.append(draw_calibration(f"calibration{number}", drawn))
        curve = [(100 * point[0], 100 * point[1]) for point in confidence.get("curve", [])]
        if curve:
            marks = {  # the nearest point of the curve
                f"{one['precision']:.0%} exact": min(
                    (abs(point[0] - 100 * one["coverage"]), point) for point in curve
                )[1]
                for one in confidence.get("thresholds", [])
            }
            charts.append(draw_risk(f"risk{number}", curve, marks))
        shown[split] = {"thresholds": [], "fields": [], **confidence, "charts": charts}
    return _by_split(content, shown)


def show_samples(content: ReportContent) -> Shown | None:
    """Return, by evaluation, the lists of samples."""
    shown, has_spans = {}, False
    for split, rows in content.rows.items():
        if rows:
            unit = _find_unit(content, split)
            evaluation = content.evaluations.get(split, {})
            task, form = evaluation.get("task"), None
            if task == "records":
                form = metrics.find_format([row.references for row in rows])
            disagreed = (evaluation.get("seeds") or {}).get("most_disagreed", ())
            shown[split] = {
                "lists": choose_samples(rows, unit, form=form, disagreed=disagreed),
                "unit": "phones" if task == "phones" else "words" if unit else "characters",
            }
            has_spans = has_spans or form is not None
    return _by_split(content, shown, {"has_spans": has_spans})


def choose_samples(
    rows: Sequence[Row],
    unit: str = "",
    form: Format | None = None,
    disagreed: Sequence[Mapping[str, Any]] = (),
) -> list[Shown]:
    """Return up to five lists of up to six rows each; empty lists are left out.

    Each has a title, a note, and samples: a row, its closest reference and its output with their
    differences by `unit`, its edits and its place; where its values stand in the source, and which
    do not, if outputs are records in the format `form`. Ties keep the order of the rows.
    `disagreed`: as `score_seeds` found them.
    """
    closest = [find_closest(row.hypothesis, row.references, unit) for row in rows]
    wrong = [place for place, row in enumerate(rows) if not row.is_exact]
    confidence = {i: row.confidence for i, row in enumerate(rows) if row.confidence is not None}
    if len(rows) - len(wrong) < _FEWEST_ROWS:
        confidence = {}

    def find_error_rate(place: int) -> float:
        reference, edits = closest[place]
        return edits / max(1, len(split_units(reference, unit)))

    typical = [place * len(rows) // _MOST_SAMPLES for place in range(_MOST_SAMPLES)]
    if len(rows) <= _MOST_SAMPLES:
        typical = list(range(len(rows)))
    least_confident = sorted(confidence, key=lambda place: confidence[place])
    most_confident = sorted(confidence, key=lambda place: -confidence[place])
    outputs = {one["row"]: one["outputs"] for one in disagreed}
    lists = (
        (
            "The seeds disagree",
            "The fewest models behind one output: hard rows, or wrong labels in the training pairs. In "
            "brackets, how many models write each output.",
            list(outputs),
        ),
        (
            "Typical rows",
            "Spread evenly over the file, right or wrong: what to expect.",
            typical,
        ),
        (
            "Confident and wrong",
            "Outputs that are not exact, with the highest confidence: errors above every threshold, "
            "or references worth a second look.",
            [place for place in most_confident if not rows[place].is_exact],
        ),
        (
            "Least confident",
            "The lowest confidence, right or wrong: the first rows to check by hand.",
            least_confident,
        ),
        (
            "Furthest off",
            "The most edits to the closest reference, relative to its length.",
            sorted(wrong, key=lambda place: -find_error_rate(place)),
        ),
    )

    def show(place: int) -> Shown:
        row, (reference, edits) = rows[place], closest[place]
        spans = row.spans or (find_spans(row.source, row.hypothesis, form) if form else [])
        return {
            "row": row,
            "spans": spans,
            "absent": [span.field for span in spans if span.kind == "none"],
            "shown": show_differences(reference, row.hypothesis, unit),
            "edits": edits,
            "confidence": confidence.get(place),
            "outputs": outputs.get(place, {}),
            "place": _name_place(row.file, row.line),
        }

    return [
        {"title": title, "note": note, "samples": [show(place) for place in chosen[:_MOST_SAMPLES]]}
        for title, note, chosen in lists
        if chosen
    ]


def show_neighbours(content: ReportContent) -> Shown | None:
    """Return wrong outputs with their differences, and the training pairs that bear on them."""
    if not content.neighbours:
        return None
    unit, outputs = _find_unit(content, content.main_evaluation), []
    for one in content.neighbours["outputs"]:
        row = one["row"]
        reference, _ = find_closest(row.hypothesis, row.references, unit)
        outputs.append(
            {
                **one,
                "shown": show_differences(reference, row.hypothesis, unit),
                "place": _name_place(row.file, row.line),
                "otherwise": sorted(one["otherwise"].items(), key=lambda item: -len(item[1])),
            }
        )
    return {**content.neighbours, "outputs": outputs}


def show_attention(content: ReportContent) -> Shown | None:
    """Return a heat map for each of up to three outputs."""
    maps = [one for one in content.attention if one["tokens"] and one["source_tokens"]][:_MOST_MAPS]
    if not maps:
        return None
    charts = []
    for number, one in enumerate(maps, start=1):
        title = one.get("source") or f"Output {number}"
        sides = one["source_tokens"], one["tokens"]
        charts.append(draw_attention(f"attention{number}", title, *sides, one["weights"]))
    longest = max(len(side) for one in maps for side in (one["tokens"], one["source_tokens"]))
    return {
        "charts": charts[:1],
        "folded": charts[1:],
        "is_truncated": longest > MOST_TOKENS,
        "most": MOST_TOKENS,
        "layer": content.settings.get("model.num_decoder_layers"),
        "heads": content.settings.get("model.nhead"),
    }


def show_settings(content: ReportContent) -> Shown | None:
    """Return the settings: those that the user set, those that were chosen, and the defaults."""
    if not content.settings:
        return None
    defaults = flatten_settings(Settings())
    user, chosen, left = "set by you", "chosen for these pairs", "defaults"
    if content.user_settings is None:
        chosen = "not the default"
    groups: dict[str, list[Shown]] = {user: [], chosen: [], left: []}
    for name, value in content.settings.items():
        shown, default = _write_setting(value), _write_setting(defaults.get(name, value))
        is_changed = name != "version" and shown != default
        group = user if name in (content.user_settings or ()) else chosen if is_changed else left
        line = {"name": name, "value": shown, "default": default if is_changed else None}
        groups[group].append(line)
    return {"groups": {group: lines for group, lines in groups.items() if lines}}


def _name_place(file: str, line: int) -> str:
    """Return file and line as far as they are known, without folders."""
    name = Path(file).name
    return name_row(name, line) if name and line else name


def _write_setting(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    shown = str(value)
    return shown if shown == shown.strip() else f'"{shown}"'


def _find_unit(content: ReportContent, split: str) -> str:
    """Return what separates the units that are compared: phones, words of running text, or ""."""
    evaluation = content.evaluations.get(split, {})
    if evaluation.get("task") == "phones":
        return evaluation.get("cut", {}).get("separator") or " "
    rows = content.rows.get(split, ())
    return find_unit(rows) if rows else ""


def _by_split(
    content: ReportContent, shown: Mapping[str, Any], notes: Mapping[str, bool] | None = None
) -> Shown | None:
    """Return what is shown by evaluation, the main one first, and `notes`."""
    names = sorted(shown, key=lambda name: name != content.main_evaluation)
    return {"splits": {name: shown[name] for name in names}, **(notes or {})} if shown else None


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score with its interval, in percent or in points of 100."""

    name: str
    title: str
    estimate: Estimate
    is_higher_better: bool
    is_tile: bool  # among the few at the top of the page


def list_scores(evaluation: Mapping[str, Any]) -> list[Score]:
    """Return the scores of a scores.json, in its order."""
    scores = evaluation.get("scores", {})
    intervals, tiles = scores.get("intervals", {}), scores.get("tiles", ())
    return [
        Score(
            name=name,
            title=find_title(evaluation, name),
            estimate=(value, *(intervals.get(name) or (value, value))),
            is_higher_better=is_higher_better(evaluation, name),
            is_tile=name in tiles,
        )
        for name, value in scores.items()
        if name != "rows" and isinstance(value, int | float) and math.isfinite(value)
    ]


def is_higher_better(evaluation: Mapping[str, Any], name: str) -> bool:
    """Return the direction of a score from its scores.json; from an older one, by its name."""
    stored = evaluation.get("scores", {}).get("is_higher_better", {})
    return bool(stored.get(name, metrics.is_higher_better(name)))


def find_title(evaluation: Mapping[str, Any], name: str) -> str:
    """Return the title of a score from its scores.json; else one made of its name."""
    title = evaluation.get("scores", {}).get("titles", {}).get(name)
    known = {"bleu": "BLEU", "chrf": "chrF", "ter": "TER"}
    return title or known.get(name) or name.replace("_", " ")


def name_unit(*, is_higher_better: bool) -> str:
    """Return the unit of scores, and their direction."""
    return "of 100, higher is better" if is_higher_better else "percent, lower is better"


def show_number(value: float | None, digits: int = 1) -> str:
    """Return a number for a table, with one more decimal below 1."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and abs(value) < 1:
        digits += 1
    return f"{value:,.{digits}f}".replace("-", "−")


def show_estimate(found: Sequence[float | None] | None) -> str:
    """Return a value and its interval, as in "93.1 (92.0 to 94.2)"."""
    if (estimate := take_estimate(found)) is None:
        return "–"
    value, low, high = estimate
    digits = 2 if high < 1 else 1
    shown = [f"{each:,.{digits}f}".replace("-", "−") for each in (value, low, high)]
    return shown[0] if low == high == value else f"{shown[0]} ({shown[1]} to {shown[2]})"


def take_estimate(found: Sequence[float | None] | None) -> Estimate | None:
    """Return an estimate of scores.json; without an interval, its ends are the value."""
    if found is None:
        return None
    value, low, high = found
    assert value is not None
    return value, value if low is None else low, value if high is None else high
