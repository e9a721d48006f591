import json
import random
import unicodedata
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import make_words
from dragoman.cli import main
from dragoman.commands.inspect import inspect, inspect_pairs, rank_targets
from dragoman.configuration import read_settings
from dragoman.errors import DataError
from dragoman.inspection import character_checks, findings, row_checks
from dragoman.inspection.findings import Inspection
from dragoman.reading.pairs import Pair, RowErrors, read_pairs
from dragoman.reading.statistics import is_in_part, split_of
from inspection.clean import SENTENCES, invent_rows, write_rows

NUM_ROWS = 900
IN_RUSSIAN, IN_VIETNAMESE, IN_FRENCH = 0, 9, 11


def find(path, *words: str) -> dict[str, list[int]]:
    """Return the lines of the examples by the kind of finding."""
    return lines_of(inspect(path, read_settings(None, words)))


def lines_of(inspection: Inspection) -> dict[str, list[int]]:
    found = {
        finding.kind: [one.line for one in finding.examples] for finding in inspection.findings
    }
    for finding in inspection.findings:
        assert finding.message
        assert finding.remedy
        assert finding.count >= len(finding.examples)
    return found


def of_language(language: int, how_many: int) -> list[int]:
    """Return the indices of some rows of one language."""
    return list(range(language, NUM_ROWS, len(SENTENCES)))[3 : 3 + how_many]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "pairs.tsv"


def test_nothing_is_found_in_clean_text_of_many_languages(file, tmp_path):
    write_rows(file, invent_rows(1500))
    held_out = write_rows(tmp_path / "valid.tsv", invent_rows(150, first=500))
    assert find(file) == {}
    assert find(file, "--data.valid", str(held_out)) == {}


@pytest.mark.parametrize(
    "make",
    [
        lambda n: (f"<V> <PST> wa{n}lk a letter{n}", f"wa{n}lked a letter{n}"),  # inflection
        lambda n: (f"recieve {n} lettres tommorow", f"receive {n} letters tomorrow"),  # spelling
        lambda n: (f"<de> {n % 28 + 1}. März {n}", f"{n}-03-{n % 28 + 1:02}"),
        lambda n: (f"thaw{n}", " ".join(f"θ ɔː β {n}")),  # IPA has Greek letters beside Latin ones
        lambda n: (f"%s файл{n} \\nпапка &nбок", f"%s file{n} \\nfolder &nbok"),
    ],
)
def test_nothing_is_found_where_the_sides_are_alike_or_in_symbols(file, make):
    write_rows(file, [make(n) for n in range(1000, 1600)])
    assert find(file) == {}


def garble(text: str) -> str:
    return text.encode("utf-8").decode("cp1252", errors="ignore")


def scramble(seed: str) -> str:
    """Return letters in an order in which no piece of a word comes twice."""
    return "".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyz", k=2400))


PROBLEMS = {
    "hidden_characters": (IN_RUSSIAN, lambda s, t: (s, f"{t[:6]}\u200b{t[6:]}")),
    "replacement_characters": (IN_RUSSIAN, lambda s, t: (f"\ufffd{s}", t)),
    "mojibake": (IN_FRENCH, lambda s, t: (garble(s), t)),
    "unicode_forms": (IN_VIETNAMESE, lambda s, t: (unicodedata.normalize("NFD", s), t)),
    "swapped": (IN_RUSSIAN, lambda s, t: (t, s)),
    "copies": (IN_RUSSIAN, lambda s, t: (s, s)),
    "odd_lengths": (IN_VIETNAMESE, lambda s, t: (s, "ok" + t[t.index(" ") : 8])),
    "empty_side": (IN_RUSSIAN, lambda s, t: (s, " ")),
    "wrong_number_of_columns": (IN_RUSSIAN, lambda s, t: (s, f"{t}\tmore")),
    "nul_character": (IN_RUSSIAN, lambda s, t: (s, f"{t}\0")),
    "over_long_side": (IN_RUSSIAN, lambda s, t: (s * 200, t)),
    "over_long_tokens": (IN_RUSSIAN, lambda s, t: (s + scramble(s), t + scramble(t))),
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_exactly_the_planted_rows_are_named(file, kind):
    language, plant = PROBLEMS[kind]
    rows = invent_rows(NUM_ROWS)
    planted = of_language(language, 3)
    for i in planted:
        rows[i] = plant(*rows[i])
    write_rows(file, rows)
    assert find(file) == {kind: [i + 1 for i in planted]}


@pytest.mark.parametrize(
    "character",
    ["\u200b", "\ufeff", "\u00ad", "\u202e", "\u0007", "\u0085", "\u2060", "\u2028", "\ue000", "\U000e0067", "\u200d"],
    ids=lambda character: f"U+{ord(character):04X}",
)  # fmt: skip
def test_a_hidden_character_is_named_and_shown(file, character):
    rows = invent_rows(NUM_ROWS)
    rows[150] = (rows[150][0], f"There{character} is an old desk")
    write_rows(file, rows)
    inspection = inspect(file)
    assert lines_of(inspection) == {"hidden_characters": [151]}
    assert f"There<U+{ord(character):04X}> is" in inspection.findings[0].examples[0].text


def test_a_repeated_row_is_named_with_the_first_one(file):
    rows = invent_rows(NUM_ROWS)
    rows[500] = rows[700] = rows[20]
    inspection = inspect(write_rows(file, rows))
    assert lines_of(inspection) == {"duplicates": [501, 701]}
    assert f"also in {file}:21" in inspection.findings[0].examples[0].text


def test_all_rows_of_a_source_with_several_targets_are_named(file):
    rows = invent_rows(NUM_ROWS)
    rows[500] = (rows[20][0], "Another target.")
    inspection = inspect(write_rows(file, rows))
    assert lines_of(inspection) == {"several_targets": [21, 501]}
    assert (
        "99.88%" in inspection.findings[0].message
    )  # of 856 rows, all but one; the others are held out


def test_features_belong_to_the_source(file):
    rows = [f"walk\t{tense}\twalk{tense} {n}\n" for n in range(2) for tense in ("ing", "ed")]
    more = [f"verb{n}\ted\tverbed{n}\n" for n in range(600)]
    file.write_text("".join(rows[:2] + more))
    words = ["--data.source=1", "--data.features=2", "--data.target=3"]
    assert find(file, *words) == {}
    file.write_text("".join(rows + more))
    assert find(file, *words) == {"several_targets": [1, 3, 2, 4]}


def test_a_leak_is_found_where_only_one_file_has_tags(file, tmp_path):
    file.write_text("".join(f"word{n}\tWORD{n}\n" for n in range(600)))
    path = tmp_path / "test.tsv"
    path.write_text("<de> other\tOTHER\nword7\tWORD7\n")
    words = ["--data.leading_tags=true", "--data.test", str(path)]
    assert find(file, *words)["leakage"] == [2]


def test_sources_of_a_test_file_that_are_trained_on_are_counted_and_named(file, tmp_path):
    rows = invent_rows(NUM_ROWS)
    test = invent_rows(60, first=500)
    test[7], test[9] = rows[100], (rows[200][0], "Another target.")
    write_rows(file, rows)
    path = write_rows(tmp_path / "test.tsv", test)
    inspection = inspect(
        file, read_settings(None, ["--data.test", str(path), "--data.valid_fraction=0"])
    )
    leak = next(finding for finding in inspection.findings if finding.kind == "leakage")
    assert [(one.file, one.line) for one in leak.examples] == [(str(path), 8), (str(path), 10)]
    assert "2 of 60 rows (3.3%) of test" in leak.message
    assert "1 of them with the same target" in leak.message
    assert f"{file}:101" in leak.examples[0].text


def test_characters_that_are_not_trained_on_are_named(file, tmp_path):
    write_rows(file, invent_rows(NUM_ROWS))
    valid = invent_rows(60, first=500)
    valid[5] = (valid[5][0], "The code is ABŻ-510 only")
    path = write_rows(tmp_path / "valid.tsv", valid)
    words = ["--data.valid", str(path), "--tokenizer.target.kind", "bpe"]
    inspection = inspect(file, read_settings(None, words))
    assert lines_of(inspection) == {"unseen_characters": [6]}
    assert "Ż (1)" in inspection.findings[0].message


def test_pairs_outside_of_the_training_fraction_are_left_out(file):
    rows = invent_rows(600)
    write_rows(file, rows)
    words = ["--data.train_fraction", "0.5", "--data.valid_fraction", "0.1"]
    splits = inspect(file, read_settings(None, words)).splits
    names = [
        split
        for source, _ in rows
        if (split := split_of(source, (), 0.1, 0.0)) == "valid" or is_in_part(source, 0.5)
    ]
    assert {name: one.rows for name, one in splits.items()} == Counter(names)


def test_symbols_that_are_not_trained_on_are_named(file, tmp_path):
    file.write_text("".join(f"word{n}\tt ʃ a\n" for n in range(100)))
    (tmp_path / "valid.tsv").write_text("word\ttʃ a\n")
    words = ["--data.valid", str(tmp_path / "valid.tsv"), "--tokenizer.target.kind", "symbols"]
    found = inspect(file, read_settings(None, words)).findings
    [unseen] = [one for one in found if one.kind == "unseen_characters"]
    assert (
        "target symbols that are not in the training data, 1 different ones: tʃ (1)"
        in unseen.message
    )


def test_a_target_of_many_rows_is_reported(file):
    rows = [(s, "yes" if n % 3 else t) for n, (s, t) in enumerate(invent_rows(NUM_ROWS))]
    inspection = inspect(write_rows(file, rows))
    assert [finding.kind for finding in inspection.findings] == ["dominant_target"]
    assert "yes" in inspection.findings[0].message


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(["hidden_characters", "empty_side", "copies", "duplicates"]),
    places=st.sets(st.integers(1, NUM_ROWS // len(SENTENCES) - 1), min_size=1, max_size=8),
)
def test_problems_in_any_rows_are_found(file, kind, places):
    rows = invent_rows(NUM_ROWS)
    planted = sorted(place * len(SENTENCES) for place in places)  # in Russian
    for i in planted:
        rows[i] = rows[0] if kind == "duplicates" else PROBLEMS[kind][1](*rows[i])
    assert find(write_rows(file, rows)) == {kind: [i + 1 for i in planted]}


def test_invalid_rows_do_not_stop_it_and_are_faults_where_fit_would_stop(file):
    rows = invent_rows(NUM_ROWS)
    rows[4] = (rows[4][0], "")
    write_rows(file, rows)
    assert [finding.severity for finding in inspect(file).findings] == ["fault"]
    lenient = inspect(file, read_settings(None, ["--data.broken_rows=skip"]))
    assert [finding.severity for finding in lenient.findings] == ["warning"]


def test_a_file_that_leaves_nothing_to_validate_on_is_a_fault(file):
    file.write_text("a\tA\n")
    assert "empty_split" in find(file)


def test_a_file_without_a_valid_row_is_refused(file):
    file.write_text("a\t\nb\t\n")
    with pytest.raises(DataError, match="none of its 2 rows can be used"):
        inspect(file)


def test_the_command_prints_lengths_limits_preset_and_findings(file, tmp_path, capsys):
    rows = invent_rows(NUM_ROWS)
    rows[4] = (rows[4][0], "[red]gone[/red]\u200b")
    write_rows(file, rows)
    valid = write_rows(tmp_path / "valid.tsv", invent_rows(60, first=500))
    assert main(["inspect", str(file), "--valid", str(valid)]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "900",
        "5,000",
        "1,024",
        "preset tiny",
        f"{file}:5:",
        "[red]gone[/red]<U+200B>",
    ):
        assert expected in printed
    assert main(["inspect", str(file), "--valid", str(valid), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == inspect(file, read_settings(None, ["--data.valid", str(valid)])).to_dict()
    assert content["splits"]["valid"]["files"] == [str(valid)]
    assert content["splits"]["train"]["source_tokens"]["max"] > 2
    assert content["preset"]["name"] == "tiny"


def test_lengths_in_tokens_are_those_of_fit(file):
    write_rows(file, [(f"w{n}", f"a b {n}") for n in range(500)])
    words = ["--tokenizer.source.kind=characters", "--tokenizer.target.kind=symbols"]
    lengths = inspect(file, read_settings(None, words)).splits["train"].lengths
    assert lengths["source_tokens"]["max"] == 5  # w, three digits, end
    assert lengths["target_tokens"]["min"] == lengths["target_tokens"]["max"] == 5  # both ends


def test_json_lines_with_line_breaks_in_them_are_inspected(tmp_path):
    rows = [{"source": f"a{n}\nb", "target": f"A{n}\r\nB"} for n in range(600)]
    rows[30]["target"] += "\x07"
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    inspection = inspect(path)
    assert lines_of(inspection) == {"hidden_characters": [31]}
    assert "a30↵b →" in inspection.findings[0].examples[0].text


def test_two_parallel_files_are_inspected_as_one(tmp_path):
    rows = invent_rows(NUM_ROWS)
    paths = [tmp_path / "text.a", tmp_path / "text.b"]
    for path, side in zip(paths, zip(*rows, strict=True), strict=True):
        path.write_text("".join(f"{line}\n" for line in side), "utf-8")
    assert lines_of(inspect(paths)) == {}


def test_a_validation_file_that_is_swapped_as_a_whole_is_named(file, tmp_path):
    rows = [
        pair for i, pair in enumerate(invent_rows(NUM_ROWS)) if i % len(SENTENCES) == IN_RUSSIAN
    ]
    held_out = [pair for i, pair in enumerate(invent_rows(300, first=NUM_ROWS)) if i % len(SENTENCES) == IN_RUSSIAN]  # fmt: skip
    write_rows(file, rows)
    swapped = write_rows(tmp_path / "valid.tsv", [(target, source) for source, target in held_out])
    inspection = inspect(file, read_settings(None, ["--data.valid", str(swapped)]))
    [finding] = [one for one in inspection.findings if one.kind == "swapped"]
    assert finding.count > 0.9 * len(held_out)
    assert finding.examples[0].file == str(swapped)


def test_pairs_that_have_been_read_give_the_same_inspection(file):
    rows = invent_rows(NUM_ROWS)
    rows[500] = rows[20]
    rows[4] = (rows[4][0], "")
    write_rows(file, rows)
    words = ["--data.broken_rows=skip"]
    wanted = inspect(file, read_settings(None, words))
    chosen, row_errors = wanted.settings, RowErrors()
    fraction = chosen.data.valid_fraction
    pairs = read_pairs(file, chosen.data, row_errors)
    by_split = sorted((split_of(pair.source, (), fraction, 0.0), pair) for pair in pairs)
    found = inspect_pairs(by_split, [file], chosen, row_errors=row_errors, reasons=wanted.reasons)
    assert found.to_dict() == wanted.to_dict()
    assert {finding.kind for finding in found.findings} == {"duplicates", "empty_side"}


def test_findings_and_lengths_of_a_sample_say_so(file, monkeypatch):
    monkeypatch.setattr(character_checks, "_SAMPLED_ROWS", 300)
    monkeypatch.setattr(row_checks, "_TRAINED_ROWS", 200)
    monkeypatch.setattr(row_checks, "_ENCODED_ROWS", 100)
    rows = [(source, f"{target}\x07") for source, target in invent_rows(NUM_ROWS)]
    inspection = inspect(write_rows(file, rows))
    [finding] = inspection.findings
    assert finding.count == 300
    assert "300 of 300 rows (100.0%) of pairs.tsv (a sample of its 900 rows)" in finding.message
    assert any("tokenizer trained on a sample of 200 rows" in note for note in inspection.notes)
    assert any(
        "lengths in tokens of train: a sample of 100 rows" in note for note in inspection.notes
    )


def test_outer_and_unusual_spaces_are_found_and_french_ones_are_in_place(tmp_path):
    rows = [(f"mot {n} ", f" ton {n}") for n in range(20)]
    rows += [(f"un\u00a0mot {n}", "x") for n in range(3)] + [("Il a dit\u00a0: «\u00a0J’ai", "x")]
    write_rows(tmp_path / "p.tsv", rows)
    kinds = {one.kind: one.count for one in inspect(tmp_path / "p.tsv").findings}
    assert (kinds["outer_spaces"], kinds["unusual_spaces"]) == (20, 3)


def test_two_spellings_are_one_where_the_form_is_nfd(tmp_path):
    write_rows(tmp_path / "p.tsv", [("é", "d"), ("e\u0301", "d")] * 2)
    assert "unicode_forms" in {one.kind for one in inspect(tmp_path / "p.tsv").findings}
    typed = read_settings(None, ["--tokenizer.source.unicode_form", "nfd"])
    heeded = {one.kind: one for one in inspect(tmp_path / "p.tsv", typed).findings}
    assert "unicode_forms" not in heeded
    assert heeded["duplicates"].count == 3


def test_the_pairs_of_data_train_are_inspected(tmp_path):
    write_rows(tmp_path / "p.tsv", [(f"s{n}", f"t{n}") for n in range(60)])
    settings = read_settings(None, ["--data.train", str(tmp_path / "p.tsv")])
    assert inspect((), settings) == inspect(tmp_path / "p.tsv", settings)


def test_of_very_many_rows_an_evenly_spread_sample_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "_MOST_ROWS", 1000)
    write_rows(tmp_path / "p.tsv", [(f"s{n % 3000}", f"t{n % 3000}") for n in range(6000)])
    write_rows(tmp_path / "v.tsv", [("s0", "t0"), *((f"v{n}", f"t{n}") for n in range(100))])
    for valid in ([], ["--data.valid", str(tmp_path / "v.tsv")]):
        inspection = inspect(tmp_path / "p.tsv", read_settings(None, valid))
        assert inspection.settings.preset == "small"
        figures = inspection.splits["train"]
        assert 2 * figures.sources == figures.rows <= 1000  # of the same rows
        assert any("evenly spread, of about" in note for note in inspection.notes)
        [duplicates] = [one for one in inspection.findings if one.kind == "duplicates"]
        assert "a sample of its 6,000 rows" in duplicates.message
        leaks = [one.message for one in inspection.findings if one.kind == "leakage"]
        assert bool(leaks) == bool(valid)
        assert all("(in a sample of 750 rows of train)" in leak for leak in leaks)
        unseen = [one for one in inspection.findings if one.kind == "unseen_characters"]
        assert len(unseen) == len(valid) / 2
        assert all(
            "not in a sample of 750 rows of the training data" in one.message for one in unseen
        )
        assert all(
            int(one.text[1:5].strip(" →t")) == (one.line - 1) % 3000 for one in duplicates.examples
        )


def test_wrong_targets_are_ranked_first_by_a_model(trained, tmp_path):
    words = make_words(60)
    wrong = {7: "HGFE", 20: "ABAB", 41: "CCC"}
    path = tmp_path / "pairs.tsv"
    path.write_text(
        "".join(f"{word}\t{wrong.get(i, word.upper())}\n" for i, word in enumerate(words, start=1))
    )
    found = inspect(path, model=trained[0])
    assert {one.line for one in found.suspects[:3]} == {*wrong}
    assert [one.output for one in found.suspects[:3]] == [
        words[one.line - 1].upper() for one in found.suspects[:3]
    ]
    assert found.findings[-1].kind == "doubtful_targets"
    odds = [one["log_odds"] for one in found.to_dict()["doubtful_targets"]]
    assert odds == sorted(odds, reverse=True)


def test_a_target_that_the_model_cannot_emit_is_the_most_doubtful(trained):
    pairs = [
        Pair(source, target, (), line, "pairs.tsv")
        for line, (source, target) in enumerate([("abc", "ABC"), ("bad", "HHH"), ("cab", "ß")], 1)
    ]
    assert [one.line for one in rank_targets(trained[1], pairs)] == [3, 2]
