"""`dragoman suggest`: which sources to label next, from those that have no target yet."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman.commands.output_formats import Layout, RowWriter
from dragoman.configuration import SettingsLike, as_settings, merge_settings
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import DataError, SettingsError
from dragoman.evaluation.confidence import round_confidence
from dragoman.predictor import Predictor
from dragoman.reading.pairs import Source, join_features, read_sources
from dragoman.reading.url_files import find_file
from dragoman.settings import DataSettings, DecodingSettings
from dragoman.storage import explain_failed_write, staged_file

_CANDIDATES = 10  # rows for each one to suggest: the least confident ones


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A source to label, and what the model makes of it."""

    line: int
    source: str  # as in the file, with its leading tags
    features: tuple[str, ...]  # values of the columns data.features
    output: str
    confidence: float


def suggest(
    path: str | Path | Sequence[str | Path],
    unlabelled: str | Path,
    *,
    rows: int = 200,
    output: str | Path | None = None,
    settings: SettingsLike = None,
    device: str = "auto",
    report: Callable[[str], None] = lambda _: None,
) -> list[Suggestion]:
    """Return the rows of the file `unlabelled` whose targets would teach the model most, best first.

    Of the ten times as many sources with the lowest calibrated confidence, each next one has the
    highest product of doubt (1 - confidence) and distance to the nearest that is chosen already.
    Distances are those of the encoder's mean states and of the lengths. So sources are hard, and
    differ from each other.

    Args:
        path: Model folder, best one of `fit --seeds`; or several.
        unlabelled: A file of sources, as `predict` takes it.
        output: File to write, to fill in: CSV if its name ends so, else TSV; see `to_table`.
        settings: Data and decoding sections override those of the model.
        report: Gets a line on how the file is read, on unusable rows, on a missing calibration, on
            sources that TSV changes.

    Raises: DataError, when the file cannot be read, or has no usable row.
    """
    if rows < 1:
        raise SettingsError(f"rows: {rows}; give 1 or more")
    typed = as_settings(settings, is_whole=False)
    typed = merge_settings(typed, {"decoding.memory": "none"}, overrule=True)
    model = Predictor.load(path, typed, engine="torch", device=device)
    assert isinstance(model.engine, TorchEngine)
    data, unusable = model.settings.data, list[int]()
    trained = model.model_folders[0].settings.data  # the columns may have other names than these
    labelled = data.model_copy(update={"features": model.feature_labels})
    found = dict[tuple[str, tuple[str, ...]], Suggestion]()
    read = read_sources(find_file(unlabelled), data, labels=model.feature_labels, report=report)
    for row, best_first in model.predict_rows(read):
        if not isinstance(row, Source) or not best_first:
            unusable.append(row.line)
        elif (row.source, row.features) not in found:
            values, tags = join_features(row.features, labelled)
            found[row.source, row.features] = Suggestion(
                line=row.line, source=" ".join((*tags, row.source)), features=tuple(values),
                output=best_first[0].text, confidence=best_first[0].confidence,
            )  # fmt: skip
    if not found:
        raise DataError(f"{unlabelled}: it has no source that the model can read")
    if unusable:
        report(f"{len(unusable):,} rows cannot be used, the first in line {unusable[0]}")
    if warning := model.describe_calibration():
        report(warning)
    keys, ranked = list(found), list(found.values())
    confidence = np.array([one.confidence for one in ranked])
    least = np.argsort(confidence, kind="stable")[: _CANDIDATES * rows]
    sources, features = zip(*(keys[i] for i in least), strict=True)
    ids = model.tokenizer.encode_sources(sources, features)
    states = model.engine.pool_states(ids)
    space = np.concatenate([states, np.log2([[len(one)] for one in ids])], axis=1)
    chosen = [ranked[i] for i in least[choose_spread(space, 1.0 - confidence[least], rows)]]
    if output is not None:
        layout: Layout = "csv" if Path(output).suffix.lower() == ".csv" else "tsv"
        changed = sum(re.search(r"[\t\r\n]", one.source) is not None for one in chosen)
        if changed and layout == "tsv":
            report(
                f"{output}: {changed:,} sources have tabs or line breaks, written as spaces; they no "
                "longer equal the sources of the file; name it .csv to keep them"
            )
        with explain_failed_write(f"{output}", DataError), staged_file(Path(output)) as partial:
            partial.write_text(to_table(chosen, trained, layout), encoding="utf-8", newline="\n")
    return chosen


def choose_spread(
    space: NDArray[np.floating[Any]], worth: NDArray[np.floating[Any]], count: int
) -> list[int]:
    """Return up to `count` rows of `space`, (N, D): worth much each, and far from each other.

    The first has the highest `worth`, (N,); each next one the highest product of it and of the
    distance to the nearest chosen row. Three rows at 0, 0.1 and 5 with the worths 1, 0.9 and 0.5: the
    first, then the third (0.5 * 5 against 0.9 * 0.1).

    Source: Sener and Savarese 2018 (greedy k-center), weighted.
    """
    chosen, distances = list[int](), np.ones(len(space))
    while len(chosen) < min(count, len(space)):
        gains = worth * distances
        gains[chosen] = -1.0
        chosen.append(int(gains.argmax()))
        distance = np.linalg.norm(space - space[chosen[-1]], axis=1)
        distances = distance if len(chosen) == 1 else np.minimum(distances, distance)
    return chosen


def to_table(rows: Sequence[Suggestion], data: DataSettings, layout: Layout = "tsv") -> str:
    """Return a table with the columns of a model's pairs, `data`, and an empty target.

    `fit` reads it by the settings of the model. After them are columns that it does not use: the
    model's output and its confidence, unless files have no header.
    """
    roles, has_header = (data.source, data.target, *data.features), data.header != "no"
    usual = ("source", "target", *(f"feature {one}" for one in data.features))
    places = [int(one) - 1 if one.isdigit() else i for i, one in enumerate(roles)]
    header = [f"column {i + 1}" for i in range(1 + max(places))]
    for place, role, name in zip(places, roles, usual, strict=True):
        header[place] = name if role == "auto" or role.isdigit() else role
    table = [[*header, "model_output", "confidence"]] if has_header else []
    for one in rows:
        cells = [""] * len(header)
        for place, value in zip(places, (one.source, "", *one.features), strict=True):
            cells[place] = value
        more = [one.output, str(round_confidence(one.confidence))] if has_header else []
        table.append([*cells, *more])
    return "".join(map(RowWriter(layout=layout, decoding=DecodingSettings()).join, table))
