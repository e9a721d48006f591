"""Tables of columns, and which column is the source, the target, or a feature."""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from dragoman.errors import DataError, shorten
from dragoman.reading.row_errors import IN_MEMORY, RowError
from dragoman.settings import DataSettings

Row = tuple[int, Sequence[str]]
"""Number of the line, from 1, and the requested fields in the requested order."""
WHOLE_ROW: Final = -1
"""Requested as a column: the whole row, as a JSON object."""
_DEFAULTS = {"data.source": ("source", "1"), "data.target": ("target", "2")}
_SEPARATORS = {
    "\t": "tabs: set data.format=tsv, or data.separator=tab if cells have quotes",
    "|||": "'|||': replace it by one tab",
    ";": "semicolons: set data.separator=';'",
    ",": "commas: set data.format=csv (and data.header=no if the first line is a pair)",
    "|": "'|': set data.separator='|'",
    "  ": "runs of spaces: replace them by one tab",
}
_PARTS = re.compile(r"[A-Z]?[^\WA-Z\d_]+|[A-Z]+")  # input_text, inputText: two parts
_MOST_PARTS, _LONGEST_NAME = 3, 40  # of a name; a longer cell is text
_SOURCE = {"source", "src", "input"}
_TARGET = {"target", "tgt", "output"}
_SOURCE_LIKE, _TARGET_LIKE = (
    frozenset(names.split())
    for names in (
        "article document grapheme graphemes incorrect lemma noisy original orthography prompt "
        "query question raw sentence spelling text utterance word words wort frage quelle "
        "eingabe satz mot phrase texte palabra pregunta",
        "answer clean completion correct corrected form gold inflected inflection ipa json "
        "label laut normalized normalised phoneme phonemes phones phon prediction pronunciation "
        "record response result sql summary transcription transliteration translation antwort "
        "ausgabe aussprache lautschrift ziel zusammenfassung réponse traduction traducción "
        "respuesta",
    )
)
_LANGUAGES = {
    name: names.split()[0]
    for names in (
        "en eng english englisch anglais inglés",
        "de deu ger german deutsch allemand alemán",
        "fr fra fre french französisch français francés",
        "es spa spanish spanisch español espagnol",
        "it ita italian italienisch italiano italien",
        "pt por portuguese portugiesisch português portugais",
        "nl nld dutch niederländisch nederlands",
        "pl pol polish polnisch polski",
        "cs ces czech tschechisch čeština",
        "ru rus russian russisch русский",
        "uk ukr ukrainian ukrainisch українська",
        "tr tur turkish türkisch türkçe",
        "ar ara arabic arabisch العربية",
        "hi hin hindi हिन्दी",
        "ja jpn japanese japanisch 日本語",
        "ko kor korean koreanisch 한국어",
        "zh zho chinese chinesisch 中文",
        "fi fin finnish finnisch suomi",
        "hu hun hungarian ungarisch magyar",
        "sv swe swedish schwedisch svenska",
        "la lat latin latein",
        "el ell greek griechisch ελληνικά",
    )
    for name in names.split()
}
_USUAL = _SOURCE | _TARGET | _SOURCE_LIKE | _TARGET_LIKE | {*_LANGUAGES}
PREDICTED = {"score", "confidence", "is_complete"}  # columns that `dragoman predict` writes


@dataclass(frozen=True, kw_only=True)
class Table:
    """An open file: its header or first row, and a function that reads its rows."""

    file: str
    names: tuple[str, ...] | None  # names of the columns; None: they only have positions
    sample: tuple[str, ...]  # the header, or the fields of the first row; (): the file is empty
    read: Callable[[Sequence[int]], Iterator[Row | RowError]]
    """Yields the rows, once, with the columns at these indices, from 0, or WHOLE_ROW."""
    notes: Sequence[str] = ()  # how the file is read, in words, where that was found and not set
    is_by_line: bool = False  # each line is a row, whatever the lines before it
    nested: Sequence[str] = ()  # the last of `names`: fields of other columns, by their paths


class Columns(NamedTuple):
    """Indices of the columns in use, from 0, and the labels of the features in their symbols."""

    source: int
    target: int | None
    features: tuple[int, ...]
    labels: tuple[str, ...]
    by_position: bool = False
    """The settings name columns, but the file has no names: its columns are taken in their order."""


def label_columns(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Return a label for each of `count` columns: its name, its position, or "source".

    Columns with the same name, except the first, get their position: "note (3)".
    """
    if names is None:
        return ("source",) if count == 1 else tuple(str(place) for place in range(1, count + 1))
    labels = dict[str, None]()
    for place, name in enumerate(names, start=1):
        label = name
        while label in labels or (label != name and label in names):
            label += f" ({place})"
        labels[label] = None
    return tuple(labels)


def dump_row(labels: Sequence[str], fields: Sequence[object]) -> str:
    """Return a row as a JSON object: see `dump_value`; NaN is null, and infinities are text."""
    row = dict(zip(labels, fields, strict=True))
    try:
        return json.dumps(row, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # JSON has neither
        return dump_value(_replace_non_finite(row))


def _replace_non_finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {name: _replace_non_finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_replace_non_finite, value)]
    return value


def dump_value(value: object) -> str:
    """Return a value as JSON; what JSON does not have becomes text."""
    return json.dumps(value, ensure_ascii=False, default=str)


def empty_table(file: str) -> Table:
    """Return the table of an empty file."""
    return Table(file=file, names=None, sample=(), read=lambda _: iter(()))


def choose_columns(
    table: Table,
    settings: DataSettings,
    labels: Sequence[str] | None = None,
    *,
    has_target: bool = True,
) -> Columns:
    """Find the columns of pairs, or of rows to predict: those of training, perhaps without the target.

    The only column of a file to predict, without header, is the source, whatever its name in training.
    If it has one column less than the settings need, it has no target: the columns after the target
    move forward by one.

    Args:
        labels: Those of the features of a trained model; None: the features as typed, so that
            files with and without a header give the same symbols.
        has_target: Rows are pairs.

    Raises: DataError, naming the columns that were found.
    """
    names, count = table.names or (), len(table.sample)
    if has_target and labels == () and (table.file, table.names, count) == (IN_MEMORY, None, 2):
        return Columns(0, 1, (), ())  # rows (source, target), whatever the model's own files were
    if not has_target and count == 1 and table.names is None and not settings.features:
        return Columns(0, None, (), ())
    if labels is not None and (
        found := _take_in_order(table, settings, labels, has_target=has_target)
    ):
        return found
    source, target, is_auto = settings.source, settings.target, False
    absent: int | None = None
    if source == target == "auto":
        is_auto = count - len(settings.features) > 2
        others = {name.casefold() for name in settings.features}
        trained = {name.casefold() for name in settings.columns[: 1 + has_target]}
        if trained and trained <= {name.casefold() for name in names}:
            is_auto, (source, target) = False, settings.columns
        elif pair := find_pair(names):
            is_auto, source, target = False, names[pair[0]], names[pair[1]]
        elif not has_target:
            free = ["" if name.casefold() in others else name for name in names]
            index = find_source(free)
            source = source if index is None else names[index]
    elif "auto" in (source, target):  # the other column, if just one has a usual name of it
        used = {one.casefold() for one in (source, target, *settings.features)}
        role = "source" if source == "auto" else "target"
        free = [
            name
            for place, name in enumerate(names, start=1)
            if find_role(name) == role and not used & {name.casefold(), str(place)}
        ]
        if len(free) == 1 and role not in names:
            source, target = (free[0], target) if role == "source" else (source, free[0])
    if has_target and count == 1:
        raise DataError(_describe_one_column(table))
    if has_target and is_auto:
        raise DataError(
            f"{table.file}: {_describe_columns(table)}; choose the pair with data.source=1 "
            "data.target=2 (positions or, with a header, names), and data.features for others"
        )
    if not has_target and table.names is None:
        position = 2 if target == "auto" else _read_position(target)
        given = (_read_position(column) for column in (source, *settings.features))
        if count == max(position or 0, *(one or 0 for one in given)) - 1:
            absent = position
    wanted = [("data.source", source), ("data.target", target)][: 1 + has_target]
    wanted += [("data.features", column) for column in settings.features]
    first, *rest = find_columns(table, wanted, absent)
    second = rest.pop(0) if has_target else None
    return _label(table, Columns(first, second, tuple(rest), settings.features), labels)


def follow_columns(table: Table, first: Table, settings: DataSettings) -> DataSettings:
    """Return the settings to read a table of pairs by the columns of the `first` one of its run.

    Both have names, and data.source and data.target are auto. The order of its columns does not
    count. Without these columns, it needs usual names for both sides.

    Raises: DataError, when it has neither.
    """
    assert first.names is not None
    assert table.names is not None
    if table.names == first.names or len(table.names) == 1:
        return settings
    pair = choose_columns(first, settings)
    assert pair.target is not None
    source, target = first.names[pair.source], first.names[pair.target]
    names = {name.casefold() for name in table.names}
    if {source.casefold(), target.casefold()} <= names:
        return settings.model_copy(update={"source": source, "target": target})
    if find_pair(table.names):
        return settings
    raise DataError(
        f"{table.file}: {_describe_columns(table)}; {source!r} and {target!r}, the source and the target "
        f"of {first.file}, are not both among them: rename the columns, or set data.source and "
        "data.target (1 and 2, if these are their positions in all files)"
    )


def _take_in_order(
    table: Table, settings: DataSettings, labels: Sequence[str], *, has_target: bool
) -> Columns | None:
    """Return the columns of a file without header that has no others than a trained model needs.

    Their order is that of the positions in the settings, or source, target, features. None: the
    positions suffice, or there are other columns.
    """
    wanted = (settings.source, settings.target, *settings.features)
    places = [_read_position(column) or i for i, column in enumerate(wanted, start=1)]
    is_named = any(_read_position(one) is None and one != "auto" for one in wanted)
    count = len(table.sample)
    if table.names is not None or not (is_named or count < max(places) - (not has_target)):
        return None
    order = sorted(range(len(wanted)), key=places.__getitem__)
    if not has_target and count == len(wanted) - 1:
        order.remove(1)
    elif count != len(wanted):
        return None
    place_of = {role: place for place, role in enumerate(order)}
    features = tuple(place_of[role] for role in range(2, len(wanted)))
    found = Columns(place_of[0], place_of.get(1), features, settings.features, by_position=True)
    return _label(table, found, labels)


def _label(table: Table, columns: Columns, labels: Sequence[str] | None) -> Columns:
    """Return the columns with the features of a trained model, in its order.

    A column that has the name of a feature in any case, typed or in the file, is that feature; the
    others are the other features, in their order.
    """
    if labels is None:
        return columns
    free = dict(zip(columns.features, columns.labels, strict=True))
    chosen: dict[str, int] = {}
    for label in labels:
        for index, typed in free.items():
            names = {typed.casefold(), *([table.names[index].casefold()] if table.names else [])}
            if label.casefold() in names:
                chosen[label] = index
                del free[index]
                break
    rest = iter(free)
    features = [chosen[one] if one in chosen else next(rest) for one in labels]
    return columns._replace(features=tuple(features), labels=tuple(labels))


def find_columns(
    table: Table, wanted: Sequence[tuple[str, str]], absent: int | None = None
) -> list[int]:
    """Return the index of each wanted column, given with its setting. Names precede positions.

    Positions after the `absent` one move forward by one.

    Raises: DataError, with all columns that are missing, ambiguous, or used twice.
    """
    names = table.names or ()
    indices, errors = list[int](), list[str]()
    for setting, column in wanted:
        if column == "auto" and setting in _DEFAULTS:
            name, place = _DEFAULTS[setting]
            column = name if name in names else place
        error = ""
        position = _read_position(column)
        named = [name for name in names if name == column]
        if not named and position is None:
            named = [name for name in names if name.casefold() == column.casefold()]
        if named:
            position = names.index(named[0]) + 1
            if len(named) > 1:
                error = f"{len(named)} columns have this name"
        elif position is None:
            error = _describe_missing(table, column)
        else:
            position -= absent is not None and position > absent
            if not 1 <= position <= len(table.sample):
                error = "there is no such column"
        indices.append((position or 1) - 1)
        if error:
            errors.append(f"{setting}={column}: {error}")
    if errors:
        found = _describe_columns(table)
        raise DataError.gather([f"{table.file}: {error}; {found}" for error in errors])
    for index in indices:
        if indices.count(index) > 1:
            raise DataError(
                f"{table.file}: column {index + 1} is used twice by data.source, data.target and "
                f"data.features; {_describe_columns(table)}"
            )
    return indices


def _describe_missing(table: Table, column: str) -> str:
    if table.file == IN_MEMORY and table.names is None:
        return "the rows have no names; give dicts, or the column's position, from 1"
    if table.names is None:
        return (
            "the file has no header to find a name in; set data.header=yes, or give the column's "
            "position, from 1"
        )
    near = difflib.get_close_matches(column, table.names, n=1)
    return f"there is no such column; did you mean {near[0]!r}?" if near else "no such column"


def _read_position(column: str) -> int | None:
    return int(column) if column.isascii() and column.isdigit() and len(column) < 10 else None


def _describe_columns(table: Table) -> str:
    count = len(table.sample)
    kind = "the first row has" if table.names is None else "it has"
    shown = ", ".join(shorten(repr(field), 40) for field in table.sample[:20])
    more = ", ..." if count > 20 else ""
    return f"{kind} {count} column{'s' if count > 1 else ''}: {shown}{more}"


def _describe_one_column(table: Table) -> str:
    text = table.sample[0].strip()
    found = f"{table.file}: a pair needs two columns, but {_describe_columns(table)}"
    if text.startswith("{"):
        return f"{found}; it looks like JSON: set data.format=jsonl"
    for mark, guess in _SEPARATORS.items():
        if mark in text:
            return f"{found}; it seems to be separated by {guess}"
    if table.names is not None:
        return (
            f"{found}; source and target must be two columns; a field of a nested column is "
            "given as data.source=translation.en"
        )
    return f"{found}; put the source, a tab and the target on each line"


def is_header(cells: Sequence[str], *, wanted: Sequence[str], is_csv: bool) -> bool:
    """Return whether the first line of a file names its columns.

    It does if it has a column that the settings name (`wanted`), a name for the source and one for
    the target, or two languages. In CSV, where headers are usual, one such name suffices. A
    dictionary may begin with the pair "Wort, word": both are names for a source, so not a header.
    """
    named = [cell for cell in cells if cell.strip()]
    if len(named) != len(set(named)) and not is_csv:
        return False
    if names_wanted(cells, wanted) or {*cells} >= PREDICTED:
        return True
    roles = [find_role(cell) for cell in cells]
    languages = {language for cell in cells if (language := _find_language(cell, is_csv=is_csv))}
    if is_csv:
        return any(roles) or len(languages) > 1
    return {"source", "target"} <= {*roles} or len(languages) > 1


def names_wanted(cells: Sequence[str], wanted: Sequence[str]) -> bool:
    """Return whether a cell is a column that the settings name, in any case."""
    named = {name.casefold() for name in wanted if name != "auto" and not name.isdigit()}
    return any(cell.casefold() in named for cell in cells)


def find_pair(names: Sequence[str]) -> tuple[int, int] | None:
    """Return the indices of the source and the target, if just one column is named as each.

    Where the target comes first, only "source" and "target" and their synonyms count.
    """
    if names.count("source") == names.count("target") == 1:
        return names.index("source"), names.index("target")
    roles = [find_role(name) for name in names]
    if roles.count("source") != 1 or roles.count("target") != 1:
        return None
    source, target = roles.index("source"), roles.index("target")
    are_plain = bool({*_split(names[source])} & _SOURCE and {*_split(names[target])} & _TARGET)
    return (source, target) if source < target or are_plain else None


def find_source(names: Sequence[str]) -> int | None:
    """Return the index of the source, if just one column is named as such, and none as the target."""
    roles = [find_role(name) for name in names]
    return roles.index("source") if roles.count("source") == 1 and "target" not in roles else None


def find_role(name: str) -> str:
    """Return "source" or "target" for a usual name of such a column, else ""."""
    parts = _split(name)
    for part in parts:
        if part in _SOURCE | _TARGET:
            return "source" if part in _SOURCE else "target"
    if _TARGET_LIKE & {*parts}:
        return "target"
    return "source" if _SOURCE_LIKE & {*parts} else ""


def _find_language(name: str, *, is_csv: bool) -> str:
    """Return the code of the language in a name; codes alone are words in some language."""
    parts = _split(name)
    found = [_LANGUAGES[part] for part in parts if part in _LANGUAGES]
    is_code = len(parts) == 1 and len(parts[0]) < 4
    return found[0] if found and (is_csv or not is_code) else ""


def _split(name: str) -> list[str]:
    """Return the words of a name; none if it is text: with spaces, it must have usual words only."""
    parts = [part.casefold() for part in _PARTS.findall(name)]
    if len(parts) > _MOST_PARTS or len(name) > _LONGEST_NAME:
        return []
    is_text = " " in name and not all(part in _USUAL for part in parts)
    return [] if is_text else parts
