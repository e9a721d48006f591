"""The data doctor: what is in the pairs, and what is wrong with them, before training."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dragoman.configuration import SettingsLike, as_settings, list_set_values, merge_settings
from dragoman.errors import DataError
from dragoman.evaluation.output_rows import as_outputs
from dragoman.inspection import character_checks, row_checks
from dragoman.inspection.findings import (
    MOST_EXAMPLES,
    SEVERITIES,
    Example,
    Finding,
    HeldRows,
    Inspection,
    SplitFigures,
    SplitRows,
    Suspect,
    group_rows,
    show_text,
)
from dragoman.inspection.schemas import DerivedSchema, derive_from_splits
from dragoman.predictor import Predictor, make_windows
from dragoman.presets import Choice, choose_settings
from dragoman.reading.in_memory import Pairs, as_files
from dragoman.reading.pairs import (
    Pair,
    RowErrors,
    Source,
    are_parallel,
    give_same_pairs,
    read_pairs,
)
from dragoman.reading.row_errors import NO_RECORD, OVER_LONG, name_file, name_row
from dragoman.reading.statistics import collect_statistics, is_in_part, split_of
from dragoman.settings import DataSettings, Settings, UnicodeForm
from dragoman.storage import explain_failed_write
from dragoman.tokenizers.tokenizer import PairTokenizer
from dragoman.tokenizers.vocabularies import to_unicode_form
from dragoman.training.run_context import TextConsole

_SHOWN = 5  # examples of a finding
_NEVER = -1e6  # log-probability of a target that the model cannot emit
_STYLES = {"fault": "bold red", "warning": "bold yellow", "note": "bold cyan"}
_WIDE = 1000  # characters per line in a file or a pipe
_CHECKS_OF_A_FILE = (
    character_checks.find_mojibake,
    character_checks.find_replacements,
    character_checks.find_hidden_characters,
    character_checks.find_spaces,
    row_checks.find_duplicates,
    row_checks.find_several_targets,
    row_checks.find_copies,
    row_checks.find_odd_lengths,
)


def inspect(
    pairs: Pairs,
    settings: SettingsLike = None,
    tokenizer: PairTokenizer | None = None,
    *,
    model: str | Path | None = None,
) -> Inspection:
    """Inspect pairs, as `fit` takes them, and those of data.valid and data.test.

    Continues after invalid rows. Of a file of more than 500,000 rows or 100 million characters, an
    evenly spread sample is held and checked. Lengths in tokens and some checks of characters are
    measured on smaller ones. The notes and findings say so.

    Args:
        tokenizer: That of a model trained on these pairs; None: one is trained.
        model: A model folder, best one of `fit --seeds`: it tells which targets may be wrong, see
            `rank_targets`.

    Raises:
        DataError: A file cannot be read, or has no valid row.
        SettingsError: The settings contradict each other, or those of the model.
        ModelFolderError: `model` is no model folder.
    """
    chosen = as_settings(settings)
    with as_files(pairs) as paths:
        files = paths or chosen.data.train
        pairs, choice, row_errors, stride = _read_files(files, chosen)
        found = inspect_pairs(
            pairs,
            files,
            choice.settings,
            tokenizer=tokenizer,
            row_errors=row_errors,
            reasons=choice.reasons,
            stride=stride,
        )
        return found if model is None else _add_suspects(found, Path(model), files, chosen)


def _add_suspects(
    found: Inspection, folder: Path, files: Sequence[str | Path], typed: Settings
) -> Inspection:
    """Return the inspection with the targets that the model in `folder` contradicts."""
    data = {name: one for name, one in list_set_values(typed) if name.startswith("data.")}
    settings = as_settings({**data, "decoding.memory": "none"}, is_whole=False)
    model, held = Predictor.load(folder, settings), HeldRows()
    used = _skip_invalid(model.settings.data)
    for pair in read_pairs(files, used, RowErrors(), model.feature_labels):
        held.add(pair)
    suspects = rank_targets(model, held.pairs)
    finding = Finding(
        kind="doubtful_targets",
        title="targets that may be wrong",
        severity="note",
        count=len(suspects),
        message=f"{len(suspects):,} of {len(held.pairs):,} rows have another target than the model "
        "writes; the least likely targets come first",
        remedy="check them in this order (--json lists all), correct them, and train again",
        examples=tuple(
            Example(
                file=one.file,
                line=one.line,
                text=f"{show_text(one.source)} → {show_text(one.target)}   "
                f"(the model: {show_text(one.output)})",
            )
            for one in suspects[:MOST_EXAMPLES]
        ),
    )
    return replace(found, findings=(*found.findings, finding), suspects=tuple(suspects))


def rank_targets(model: Predictor, pairs: Sequence[Pair]) -> list[Suspect]:
    """Return the pairs whose target is not the output of the model, the most doubtful first.

    The rank is that of the log-probability of the output minus that of the target. So rows come first
    on which the models of an ensemble agree with each other and not with the target, also if it was
    trained on these rows: benchmarks/doubtful_targets.py measures it.
    """
    form, ranked = model.settings.tokenizer.target.unicode_form, list[tuple[Pair, str]]()
    pairs = list(as_outputs(pairs, form))
    rows = (Source(pair.source, pair.features, pair.line) for pair in pairs)
    for pair, (_, found) in zip(pairs, model.predict_rows(rows), strict=True):
        if found and found[0].text != pair.target:
            ranked.append((pair, found[0].text))
    targets = _score(model, [pair for pair, _ in ranked])
    outputs = _score(model, [pair._replace(target=output) for pair, output in ranked])
    suspects = [
        Suspect(
            file=name_file(pair.file), line=pair.line, source=" ".join([*pair.features, pair.source]),
            target=pair.target, output=output, log_odds=of_output - of_target,
        )
        for (pair, output), of_target, of_output in zip(ranked, targets, outputs, strict=True)
    ]  # fmt: skip
    return sorted(suspects, key=lambda one: -one.log_odds)


def _score(model: Predictor, pairs: Sequence[Pair]) -> list[float]:
    """Return the log-probability of each target; very low: the model cannot emit it."""
    rows = [Source(pair.source, pair.features, pair.line, pair.target) for pair in pairs]
    windows = (model.predict_window(one, scores_targets=True) for one in make_windows(rows))
    return [found[0].score if found else _NEVER for one in windows for _, found in one]


def derive_schema(
    pairs: Pairs, settings: SettingsLike = None, *, out: str | Path | None = None
) -> DerivedSchema:
    """Derive a JSON schema from the training records, for decoding.json_schema.

    It has their types and fields, the values of closed fields, and patterns of dates and amounts
    that all of them match. It is checked on the validation records, as `fit` would split them.

    Args:
        pairs: This and the next: as of `inspect`.
        out: A new file to write, whose name ends with .json.

    Raises:
        DataError: A file cannot be read or written, or a target is not a JSON object.
        SettingsError: llguidance is not installed, or the schema is too complex for it.
    """
    if out is not None and (Path(out).suffix != ".json" or Path(out).exists()):  # such as the pairs
        raise DataError(
            f"--schema {out}: {'it exists' if Path(out).exists() else 'no name for a schema'}; give "
            "the name of a new file that ends with .json, after PAIRS"
        )
    chosen = merge_settings(as_settings(settings), {"data.records": "json"}, overrule=True)
    with as_files(pairs) as paths:
        files = paths or chosen.data.train
        found, choice, row_errors, stride = _read_files(files, chosen)
        form = choice.settings.tokenizer.target.unicode_form
        split_pairs = ((split, _to_forms(pair, "none", form)) for split, pair in found)
        splits = group_rows(split_pairs, files, chosen.data, stride)[1]
        for error in row_errors.examples:
            if error.kind == NO_RECORD:
                where = name_row(error.file, error.line)
                raise DataError(f"--schema: {where}: {error.detail}")
        derived = derive_from_splits(splits)
    if out is not None:
        with explain_failed_write(f"--schema {out}", DataError):
            text = json.dumps(derived.schema, indent=2, ensure_ascii=False)
            Path(out).write_text(text + "\n", "utf-8")
    return derived


def _read_files(
    paths: Sequence[str | Path], settings: Settings
) -> tuple[Iterator[tuple[str, Pair]], Choice, RowErrors, int]:
    """Return the valid pairs, each with its split; the settings that fit would choose; the invalid
    rows, counted while the pairs are taken; of how many training rows one is held.
    """
    row_errors = RowErrors()
    train = HeldRows()
    statistics = collect_statistics(
        train.hold(read_pairs(paths, _skip_invalid(settings.data), row_errors))
    )
    given = (settings.data.valid, settings.data.test)
    is_parallel = are_parallel((paths, *given), settings.data)
    choice = choose_settings(settings, statistics, is_parallel=is_parallel)
    data = _skip_invalid(choice.settings.data)
    if not give_same_pairs(data, settings.data):  # without their tags, other rows may be invalid
        row_errors, train = RowErrors(), HeldRows()
        for pair in read_pairs(paths, data, row_errors):
            train.add(pair)

    def split_pairs() -> Iterator[tuple[str, Pair]]:
        valid_fraction = 0.0 if data.valid else data.valid_fraction
        test_fraction = 0.0 if data.test else data.test_fraction
        for pair in train.pairs:
            own = split_of(pair.source, pair.features, valid_fraction, test_fraction)
            if own != "train" or is_in_part(pair.source, data.train_fraction):
                yield own, pair
        groups = (("train", paths), ("valid", data.valid), ("test", data.test))
        for i, (split, files) in enumerate(groups[1:], start=1):
            if files:
                before = [one for _, one in groups[:i]]
                found = read_pairs(files, data, row_errors, before=before)
                yield from ((split, pair) for pair in found)

    return split_pairs(), choice, row_errors, train.stride


def inspect_pairs(
    pairs: Iterable[tuple[str, Pair]],
    paths: Sequence[str | Path],
    settings: Settings,
    *,
    tokenizer: PairTokenizer | None = None,
    row_errors: RowErrors | None = None,
    reasons: Sequence[str] = (),
    stride: int = 1,
) -> Inspection:
    """Inspect pairs that have been read already, each with its split.

    Args:
        paths: The training file, or both files of parallel text.
        settings: Resolved, as `choose_settings` returns them.
        tokenizer: That of a model trained on these pairs; None: one is trained.
        stride: Of the training file, one row in so many is given.

    Raises: SettingsError, when the settings of the tokenizer contradict each other.
    """
    forms = [settings.tokenizer.source.unicode_form, settings.tokenizer.target.unicode_form]
    if forms != ["none", "none"]:  # all checks see what the model sees
        pairs = ((split, _to_forms(pair, *forms)) for split, pair in pairs)
    files, splits = group_rows(pairs, paths, settings.data, stride)
    findings = list(_find_invalid_rows(row_errors or RowErrors(), settings.data))
    findings += _find_empty_splits(files, splits)
    figures, notes = dict[str, SplitFigures](), list[str]()
    if "train" in splits:
        if tokenizer is None:
            tokenizer, notes = row_checks.train_tokenizer(splits["train"], settings)
        for name, rows in splits.items():
            figures[name], more = row_checks.measure_split(rows, tokenizer)
            notes += more
        for rows in files.values():
            findings += row_checks.find_long_rows(rows, tokenizer, settings.data)
        findings += row_checks.find_leaks(files)
        findings += row_checks.find_swapped(files)
        for check in _CHECKS_OF_A_FILE:
            findings += chain.from_iterable(map(check, files.values()))
        findings += character_checks.find_mixed_forms(files)
        findings += row_checks.find_dominant_target(files["train"])
        findings += character_checks.find_unseen_characters(files, settings.tokenizer)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Inspection(
        splits=figures,
        findings=tuple(findings),
        settings=settings,
        reasons=tuple(reasons),
        notes=(*(row_errors.layouts if row_errors else ()), *notes),
    )


def _to_forms(pair: Pair, source_form: UnicodeForm, target_form: UnicodeForm) -> Pair:
    source, target = pair.source, pair.target
    return pair._replace(
        source=to_unicode_form(source, source_form), target=to_unicode_form(target, target_form)
    )


def _find_invalid_rows(row_errors: RowErrors, data: DataSettings) -> Iterator[Finding]:
    """Report the rows that cannot be read, one finding per kind of error."""
    for kind, count in row_errors.counts.items():
        name, remedy = "broken_rows", "correct them"
        if kind == OVER_LONG:
            name, remedy = "long_rows", "raise data.max_characters"
        stops = getattr(data, name) == "error"
        does, otherwise = f"fit skips them (data.{name}=skip)", "train without them"
        if stops:
            does, otherwise = "fit stops at them", f"skip them with data.{name}=skip"
        examples = [
            Example(file=error.file, line=error.line, text=error.detail)
            for error in row_errors.examples
            if error.kind == kind
        ]
        yield Finding(
            kind=kind.lower().replace(" ", "_").replace("-", "_"),
            title=f"invalid rows: {kind}",
            severity="fault" if stops else "warning",
            count=count,
            message=f"{count:,} row{'s' * (count > 1)}: {kind}; {does}",
            remedy=f"{remedy}, or {otherwise}",
            examples=tuple(examples[:MOST_EXAMPLES]),
        )


def _find_empty_splits(
    files: Mapping[str, SplitRows], splits: Mapping[str, SplitRows]
) -> Iterator[Finding]:
    """Report that no row is left to train on or to validate on."""
    sources = files["train"].sources if "train" in files else []
    for name, purpose in (("train", "train"), ("valid", "validate")):
        if name not in splits:
            yield Finding(
                kind="empty_split", title=f"no row to {purpose} on", severity="fault", count=0,
                message=f"{len(sources):,} pairs with {len(set(sources)):,} different sources leave "
                f"none to {purpose} on; fit stops",
                remedy="give more pairs, a file of validation pairs with data.valid, or another "
                "data.valid_fraction",
                examples=(),
            )  # fmt: skip


def _skip_invalid(data: DataSettings) -> DataSettings:
    broken = "keep_empty" if data.broken_rows == "keep_empty" else "skip"
    return data.model_copy(update={"broken_rows": broken, "long_rows": "skip"})


def print_inspection(inspection: Inspection) -> None:
    """Print an inspection on standard output; markup in the user's text has no effect."""
    width = None if sys.stdout.isatty() else _WIDE
    console = TextConsole(width=width, highlight=False)
    console.print(_list_lengths(inspection))
    for note in inspection.notes:
        console.print(Text(note))
    console.print()
    for reason in inspection.reasons:
        console.print(Text(reason))
    for finding in inspection.findings:
        console.print()
        _show_finding(finding, console)
    severities = [finding.severity for finding in inspection.findings]
    counts = [(one, severities.count(one)) for one in SEVERITIES if one in severities]
    found = ", ".join(f"{count} {severity}{'s' * (count > 1)}" for severity, count in counts)
    console.print()
    console.print(Text(f"found: {found}" if found else "nothing found"))


def print_schema_check(found: DerivedSchema) -> None:
    """Print on standard error how many records the schema refuses, and the first of them."""
    console = TextConsole(
        stderr=True, width=None if sys.stderr.isatty() else _WIDE, highlight=False
    )
    for line in found.describe():
        console.print(Text(line))
    for finding in found.refused.values():
        _show_finding(finding, console)


def _list_lengths(inspection: Inspection) -> Table:
    data = inspection.settings.data
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("split", "rows", "sources", "lengths", "median", "95%", "99%", "max", "limit"):
        table.add_column(heading, justify="left" if heading in ("split", "lengths") else "right")
    for name, figures in inspection.splits.items():
        first = [name, f"{figures.rows:,}", f"{figures.sources:,}"]
        for measure, values in figures.lengths.items():
            limit = data.max_tokens if measure.endswith("tokens") else data.max_characters
            shown = [f"{values[key]:,.0f}" for key in ("median", "p95", "p99", "max")]
            table.add_row(*first, measure.replace("_", " "), *shown, f"{limit:,}")
            first = ["", "", ""]
    return table


def _show_finding(finding: Finding, console: Console) -> None:
    head = Text(f"{finding.severity}: ", style=_STYLES[finding.severity])
    console.print(head.append(finding.title, style="bold"))
    console.print(Padding(Text(finding.message), (0, 0, 0, 2), expand=False))
    for example in finding.examples[:_SHOWN]:
        place = Text(f"{name_row(example.file, example.line)}: ", style="dim")
        console.print(Padding(place.append(example.text, style="none"), (0, 0, 0, 4), expand=False))
    if finding.count > _SHOWN < len(finding.examples):
        console.print(Padding(Text("..."), (0, 0, 0, 4), expand=False))
    console.print(
        Padding(Text(f"to do: {finding.remedy}", style="italic"), (0, 0, 0, 2), expand=False)
    )
