import json
import shutil

import pytest

import dragoman
from conftest import make_words
from dragoman.commands.evaluate import evaluate_model, find_run, list_evaluations, name_evaluation
from dragoman.errors import DataError
from dragoman.evaluation.evaluation import summarize, write_evaluation
from dragoman.reading.pairs import Pair


def pairs_of(words):
    return [Pair(word, word.upper(), (), line, "p.tsv") for line, word in enumerate(words, 1)]


WORDS = make_words(60, seed=9)


def test_fit_writes_its_evaluations_into_the_folder(trained):
    folder, model = trained
    assert list_evaluations(folder) == ["valid"]
    rows, content = find_run(folder)
    assert content["rows"] == len(rows) == content["scores"]["rows"]
    assert all(row.line and row.file.endswith("pairs.tsv") for row in rows)
    assert content["scores"] == json.loads((folder / "metrics.json").read_text())["valid"]
    assert {row.hypothesis for row in rows} == set(model.predict([row.source for row in rows]))


def test_the_confidence_of_validation_rows_is_calibrated(trained):
    folder, _ = trained
    rows, content = find_run(folder)
    temperature = content["confidence"]["temperature"]
    model = dragoman.load(folder)
    assert model.temperature == temperature
    for row in rows[:5]:
        [[best]] = model.predict_n_best([row.source])
        assert best.confidence == pytest.approx(row.confidence, abs=1e-4)


def test_an_unseen_symbol_makes_a_group(trained):
    folder, model = trained
    counts = json.loads((folder / "token_counts.json").read_text())["source"]
    assert min(counts[4:]) > 0
    evaluation, _ = evaluate_model(model, pairs_of([*WORDS, "zzz"]), counts=counts)
    groups = {one["group"]: one["rows"] for one in evaluation.breakdown["rare symbols"]}
    assert groups == {"never": 1, "100 times or more": 60}


def test_references_with_letters_outside_of_the_vocabulary_are_counted_and_named(trained):
    pairs = [
        *pairs_of(WORDS),
        Pair("abc", "äB", (), 61, "p.tsv"),
        Pair("abd", "Ö", (), 62, "p.tsv"),
    ]
    pairs.append(Pair("abd", "ABD", (), 63, "p.tsv"))  # another reference, which can be emitted
    content = evaluate_model(trained[1], pairs)[0].to_dict()
    assert content["model"]["out_of_reach"] == {"rows": 1, "first": ["p.tsv:61: 'ä'"]}
    assert any("1 rows cannot be right" in line for line in summarize(content))
    assert not any("cannot be right" in line for line in summarize(find_run(trained[0])[1]))


def test_an_evaluation_is_found_by_its_name_its_folder_or_its_rows(trained, tmp_path):
    evaluation, _ = evaluate_model(trained[1], pairs_of(WORDS))
    write_evaluation(tmp_path / "words", evaluation)
    rows, content = find_run(tmp_path / "words")
    assert find_run(tmp_path / "words" / "rows.jsonl") == (rows, content)
    (tmp_path / "alone.jsonl").write_bytes((tmp_path / "words" / "rows.jsonl").read_bytes())
    assert find_run(tmp_path / "alone.jsonl") == (rows, {})
    assert [row.hypothesis for row in rows] == [row.hypothesis for row in evaluation.rows]


def test_another_file_beside_an_evaluation_is_read_itself(trained, tmp_path):
    evaluation, _ = evaluate_model(trained[1], pairs_of(WORDS))
    write_evaluation(tmp_path / "words", evaluation)
    other = tmp_path / "words" / "other.jsonl"
    other.write_text('{"source": "a", "references": ["b"], "hypothesis": "c"}\n')
    rows, content = find_run(other)
    assert [row.hypothesis for row in rows] == ["c"]
    assert content == {}


def test_a_missing_run_is_named(trained, tmp_path):
    with pytest.raises(DataError, match=r"no evaluation 'tset' \(it has: valid\)"):
        find_run(trained[0], "tset")
    with pytest.raises(DataError, match="expected a model folder"):
        find_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"), [("test.tsv.gz", "test"), ("a/b/x.jsonl", "x"), (".hidden", "pairs")]
)
def test_an_evaluation_has_the_name_of_its_file(name, expected, tmp_path):
    assert name_evaluation([tmp_path / name]) == expected


def test_evaluate_in_python_does_what_the_command_does(trained, tmp_path):
    model = shutil.copytree(trained[0], tmp_path / "model")
    pairs = tmp_path / "dev.tsv"
    pairs.write_text("".join(f"{w}\t{w if i % 2 else w.upper()}\n" for i, w in enumerate(WORDS)))
    out, report = tmp_path / "out", tmp_path / "report.html"
    found = dragoman.evaluate(
        model, pairs, engine="torch", threads=1, calibrate=True, out=out, report=report
    )
    assert isinstance(found, dragoman.Evaluation)
    assert found.scores.to_dict() == json.loads((out / "scores.json").read_text())["scores"]
    assert (found.speed["engine"], found.speed["quantization"]) == ("torch", "float32")
    assert json.loads((model / "calibration.json").read_text())["pairs"] == [str(pairs)]
    assert "</html>" in report.read_text()
    again = dragoman.evaluate(model, pairs, out=tmp_path / "again")
    assert again.confidence.temperature == found.confidence.temperature
    [comparison] = dragoman.compare([out, tmp_path / "again"])
    assert comparison.rows == len(WORDS)


def test_outputs_in_files_are_evaluated_in_python(tmp_path):
    for name, lines in (("hyp", "a\nb\n"), ("ref", "a\nc\n")):
        (tmp_path / f"{name}.txt").write_text(lines)
    found = dragoman.evaluate_outputs(tmp_path / "hyp.txt", tmp_path / "ref.txt")
    assert found.scores.to_dict()["exact_match"] == 50.0
