import json
import shutil

import pytest

import dragoman
from conftest import make_words
from dragoman.commands.compare import describe_comparison
from dragoman.commands.evaluate import evaluate_model, find_run, name_evaluation
from dragoman.errors import DataError, SettingsError
from dragoman.evaluation.evaluation import summarize, write_evaluation
from dragoman.reading.pairs import Pair


def pairs_of(words):
    return [Pair(word, word.upper(), (), line, "p.tsv") for line, word in enumerate(words, 1)]


WORDS = make_words(60, seed=9)


def test_fit_writes_its_evaluations_into_the_folder(trained):
    folder, model = trained
    assert [one.name for one in (folder / "evaluation").iterdir()] == ["valid"]
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
    ("names", "expected"),
    [
        (["test.tsv.gz"], "test"),
        (["a/b/x.jsonl"], "x"),
        ([".hidden"], "hidden"),
        (["test.v1.tsv"], "test.v1"),
        (["test.v2"], "test.v2"),
        (["news.2024.en.gz", "news.2024.de.gz"], "news.2024"),
    ],
)
def test_an_evaluation_has_the_name_of_its_file(names, expected, tmp_path):
    assert name_evaluation([tmp_path / name for name in names]) == expected


def test_only_the_model_with_its_own_settings_replaces_its_evaluation(trained, tmp_path):
    model = shutil.copytree(trained[0], tmp_path / "model")
    for name, words in (("test", WORDS), ("other", WORDS[:30])):
        (tmp_path / f"{name}.tsv").write_text("".join(f"{w}\t{w.upper()}\n" for w in words))

    def place(*words, models=(model,), pairs=tmp_path / "test.tsv", **options):
        settings = dragoman.read_settings(None, words)
        found = dragoman.evaluate(list(models), pairs, settings, into_model=True, **options)
        return found.folder.relative_to(model / "evaluation").as_posix()

    fast = ["--evaluation.resamples", "100"]
    assert place() == place("--decoding.beam_size", "1", engine="torch") == "test"
    assert place("--decoding.beam_size", "2", *fast) == "test,beam_size=2,resamples=100"
    assert place(quantization="int8") == "test,int8"
    assert place(models=(model, trained[0])).startswith("test,ensemble=model-")
    assert place("--decoding.regex", "[A-Z]*").startswith("test,settings-")
    (tmp_path / "new").mkdir()
    other = shutil.copy(tmp_path / "other.tsv", tmp_path / "new" / "test.tsv")
    assert place(pairs=other) == place(pairs=other) == "test-2"
    again = shutil.copy(tmp_path / "test.tsv", tmp_path / "new" / "test.tsv")
    assert place(pairs=again) == "test"
    shutil.copy(tmp_path / "other.tsv", again)  # changed since
    assert place(pairs=again) == "test"
    before = (model / "calibration.json").read_bytes()
    with pytest.raises(SettingsError, match="each model has its own calibration"):
        place(models=(model, trained[0]), calibrate=True)
    assert (model / "calibration.json").read_bytes() == before


def test_a_comparison_names_every_setting_that_differs(trained, tmp_path):
    pairs = tmp_path / "test.tsv"
    pairs.write_text("".join(f"{w}\t{w.upper()}\n" for w in WORDS))
    wide = dragoman.read_settings(None, ["--decoding.beam_size", "2"])
    for name, models, settings in (("a", 1, None), ("b", 1, wide), ("c", 2, None)):
        dragoman.evaluate(
            [trained[0]] * models, pairs, settings, out=tmp_path / name, engine="torch"
        )
    shutil.copy(tmp_path / "a" / "rows.jsonl", tmp_path / "rows.jsonl")
    runs = [tmp_path / name for name in ("a", "b", "c", "rows.jsonl")]
    beams, ensemble, unknown = dragoman.compare(runs)
    assert beams.different_settings == {"decoding.beam_size": ("1", "2")}
    assert "settings that differ: decoding.beam_size 1 -> 2" in describe_comparison(beams)[1]
    assert ensemble.different_settings == {"--ensemble": ("1 models", "2 models")}
    assert unknown.different_settings == {"settings": ("recorded", "not recorded")}
    old = tmp_path / "old"  # 0.1 recorded the decoding only, under names of then
    shutil.copytree(runs[0], old)
    content = json.loads((old / "scores.json").read_text())
    content["model"] = {"decoding": {"beam_size": 4, "cut_mark": " [truncated]"}}
    (old / "scores.json").write_text(json.dumps(content))
    seeds = f"{old},{runs[1]}"
    [found] = dragoman.compare([runs[0], seeds])
    assert found.different_settings["decoding.beam_size"] == ("1", "4, 2")
    assert found.to_dict()["different_settings"] == found.different_settings


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
    with pytest.raises(DataError, match="expected the name of a file, found list"):
        dragoman.evaluate_outputs(["a", "b"], tmp_path / "ref.txt")
    typed = {"evaluation.repeated_sources": "rows"}
    with pytest.raises(SettingsError, match=r"repeated_sources: each line .* is a row"):
        dragoman.evaluate_outputs(tmp_path / "hyp.txt", tmp_path / "ref.txt", None, typed)
