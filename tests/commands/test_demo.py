"""The pairs of `dragoman demo`."""

import hashlib
import re
import sys
import unicodedata
from datetime import date
from pathlib import Path

import babel
import pytest

from dragoman import Settings
from dragoman.commands import demo
from dragoman.commands.demo import DatePairs, write_date_pairs
from dragoman.configuration import find_conflicts
from dragoman.errors import DragomanError
from dragoman.reading.pairs import read_pairs
from dragoman.settings import DataSettings

GOLDEN_BABEL = "2.18.0"
GOLDEN_SHA256 = "bff7bf3d8e71f0c9b1920ed1f7ac6e45ec1383c05d8dabed2b2fbacedf80b49a"

DAYS_OF_EXAMPLES = ["2024-10-03", "2024-10-03", "2024-03-10", "2030-12-31", "2041-03-23"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DatePairs:
    return write_date_pairs(tmp_path_factory.mktemp("dates") / "new")


@pytest.fixture(scope="module")
def rows(files: DatePairs) -> dict[str, list[tuple[str, str]]]:
    return {split: read_rows(getattr(files, split)) for split in demo.NUM_ROWS}


def read_rows(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    pairs = [tuple(line.split("\t")) for line in lines]
    assert all(len(pair) == 2 for pair in pairs)
    return pairs


def test_each_file_has_its_number_of_rows(rows):
    assert {split: len(pairs) for split, pairs in rows.items()} == demo.NUM_ROWS


def test_no_day_is_in_two_splits(rows):
    train, valid, test = ({target for _, target in pairs} for pairs in rows.values())
    assert train.isdisjoint(valid)
    assert train.isdisjoint(test)
    assert valid.isdisjoint(test)


def test_no_source_occurs_twice(rows):
    sources = [source for pairs in rows.values() for source, _ in pairs]
    assert len(set(sources)) == len(sources)


def test_every_written_date_of_a_locale_means_one_day():
    """Over all days of some years, not only over the days that were drawn."""
    years = [1900, 1924, 1999, 2024, 2069, 2070, 2099]
    days = [date(y, m, d) for y in years for m in range(1, 13) for d in range(1, 29)]
    for forms in demo.read_forms():
        meanings: dict[str, set[date]] = {}
        for form in forms:
            for day in filter(form.can_write, days):
                meanings.setdefault(form.write(day), set()).add(day)
        assert all(len(meant) == 1 for meant in meanings.values())


def test_every_target_is_a_day_from_1900_to_2099(rows):
    for pairs in rows.values():
        for _, target in pairs:
            assert 1900 <= date.fromisoformat(target).year <= 2099
            assert len(target) == len("2024-10-03")


def test_a_source_holds_its_year_and_day(rows):
    for pairs in rows.values():
        for source, target in pairs:
            day = date.fromisoformat(target)
            numbers = {int(number) for number in re.findall(r"\d+", source)}
            assert day.day in numbers
            assert day.year in numbers or (day.year % 100 in numbers and 1970 <= day.year <= 2069)


def test_sources_are_typed_with_plain_characters(rows):
    for pairs in rows.values():
        for source, _ in pairs:
            assert re.fullmatch(r"<[a-zA-Z-]+> \S+( \S+)*", source)
            assert source.isascii() or all(
                unicodedata.category(c)[0] in "LNP" for c in source if c not in " <>"
            )
            assert unicodedata.is_normalized("NFC", source)


def test_every_language_is_equally_frequent(rows):
    tags = [source.split()[0] for source, _ in rows["train"]]
    counts = {tag: tags.count(tag) for tag in set(tags)}
    assert len(counts) == 10
    assert {"<en-US>", "<en-GB>", "<de>", "<ja>"} <= counts.keys()
    assert all(0.08 * len(tags) < count < 0.12 * len(tags) for count in counts.values())


def test_examples_show_days_that_are_not_trained_on(rows):
    trained_on = {target for _, target in rows["train"]}
    for day in map(date.fromisoformat, DAYS_OF_EXAMPLES):
        assert demo.split_of_day(day) == "test"
        assert day.isoformat() not in trained_on


def test_examples_are_written_forms_of_their_days():
    forms = [form for of_locale in demo.read_forms() for form in of_locale]
    for example, target in zip(demo.EXAMPLES, DAYS_OF_EXAMPLES, strict=True):
        assert example in {form.write(date.fromisoformat(target)) for form in forms}


def test_the_files_are_the_same_at_each_call(files: DatePairs, tmp_path: Path):
    again = write_date_pairs(tmp_path)
    for split in demo.NUM_ROWS:
        assert getattr(again, split).read_bytes() == getattr(files, split).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "test.tsv",
        "train.tsv",
        "valid.tsv",
    ]


def test_the_files_are_the_same_on_every_machine(files: DatePairs):
    if babel.__version__ != GOLDEN_BABEL:
        pytest.skip(f"the golden hash is that of Babel {GOLDEN_BABEL}, here is {babel.__version__}")
    content = b"".join(getattr(files, split).read_bytes() for split in demo.NUM_ROWS)
    assert hashlib.sha256(content).hexdigest() == GOLDEN_SHA256


def test_tags_are_read_as_features(files: DatePairs):
    settings = DataSettings(leading_tags=True)
    pairs = list(read_pairs([files.valid], settings))
    assert len(pairs) == demo.NUM_ROWS["valid"]
    assert all(len(pair.features) == 1 and not pair.source.startswith("<") for pair in pairs)


def test_a_missing_babel_is_reported_with_its_remedy(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "babel", None)  # as if it were not installed
    with pytest.raises(DragomanError, match=r'pip install "dragoman\[demo\]"'):
        write_date_pairs(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_settings_of_the_demo_are_valid():
    settings = Settings.model_validate(demo.SETTINGS)
    assert find_conflicts(settings) == []


def test_a_folder_of_another_purpose_is_not_used(tmp_path: Path):
    with pytest.raises(DragomanError, match="not a folder of this demo"):
        demo.demo(tmp_path)
