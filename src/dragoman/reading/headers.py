"""Recognises the names that people give to columns: whether a line is a header, and what it names."""

import re
from collections.abc import Sequence

_PARTS = re.compile(r"[A-Z]?[^\WA-Z\d_]+|[A-Z]+")  # input_text, inputText: two parts
_MOST_PARTS, _MOST_CHARACTERS = 3, 40  # of a name; a longer cell is text
_SOURCE = {"source", "src", "input"}
_TARGET = {"target", "tgt", "output"}
_SOURCE_LIKE = frozenset(
    [
        "article",
        "document",
        "grapheme",
        "graphemes",
        "incorrect",
        "lemma",
        "noisy",
        "original",
        "orthography",
        "prompt",
        "query",
        "question",
        "raw",
        "sentence",
        "spelling",
        "text",
        "utterance",
        "word",
        "words",
        "wort",
        "frage",
        "quelle",
        "eingabe",
        "satz",
        "mot",
        "phrase",
        "texte",
        "palabra",
        "pregunta",
    ]
)
_TARGET_LIKE = frozenset(
    [
        "answer",
        "clean",
        "completion",
        "correct",
        "corrected",
        "form",
        "gold",
        "inflected",
        "inflection",
        "ipa",
        "json",
        "label",
        "laut",
        "normalized",
        "normalised",
        "phoneme",
        "phonemes",
        "phones",
        "phon",
        "prediction",
        "pronunciation",
        "record",
        "response",
        "result",
        "sql",
        "summary",
        "transcription",
        "transliteration",
        "translation",
        "antwort",
        "ausgabe",
        "aussprache",
        "lautschrift",
        "ziel",
        "zusammenfassung",
        "réponse",
        "traduction",
        "traducción",
        "respuesta",
    ]
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
_PREDICTED = {"score", "confidence", "is_complete"}  # columns that `dragoman predict` writes


def is_header(cells: Sequence[str], *, wanted: Sequence[str], is_csv: bool) -> bool:
    """Return whether the first line of a file names its columns.

    It does if it has a column that the settings name (`wanted`), a name for the source and one for
    the target, or two languages. In CSV, where headers are usual, one such name suffices. A
    dictionary may begin with the pair "Wort, word": both are names for a source, so not a header.
    """
    named = [cell for cell in cells if cell.strip()]
    if len(named) != len(set(named)) and not is_csv:
        return False
    if names_wanted(cells, wanted) or {*cells} >= _PREDICTED:
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


def is_prediction(lines: Sequence[str]) -> bool:
    """Return whether the first of `lines` is the header of a TSV file that dragoman wrote."""
    return any({*line.split("\t")} >= _PREDICTED for line in lines[:1])


def find_pair(names: Sequence[str]) -> tuple[int, int] | None:
    """Return the indices of the source and the target, if just one column is named as each.

    Where the target comes first, only "source" and "target" and their synonyms count.
    """
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
    if len(parts) > _MOST_PARTS or len(name) > _MOST_CHARACTERS:
        return []
    is_text = " " in name and not all(part in _USUAL for part in parts)
    return [] if is_text else parts
