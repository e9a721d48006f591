"""Sources of the training pairs, answered by their targets where that is better than the model."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file, save_file

import dragoman
from conftest import BRIEF, SMALL, make_words, quiet_console
from dragoman import fit, read_settings
from dragoman.cli import main
from dragoman.configuration import as_settings
from dragoman.errors import ModelFolderError
from dragoman.evaluation.confidence import find_confidence, find_score
from dragoman.model_folder.memory import MEMORY, SourceGroups
from dragoman.reading.pairs import Pair
from dragoman.serving.messages import Prediction as Message
from dragoman.serving.messages import PredictRequest, describe_outputs

WORDS = make_words(300)
NAMES = dict(zip(WORDS, make_words(300, seed=1), strict=True))  # no rule: to be known by heart


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model that has learned little, of a file in which each source stands twice."""
    folder, console = tmp_path_factory.mktemp("memory"), quiet_console()
    lines = [f"{word}\t{NAMES[word]}\n" for word in WORDS]
    lines[1:1] = [f"{WORDS[1]}\tother\n"]  # a source with two targets
    (folder / "pairs.tsv").write_text("".join(lines + lines))
    (folder / "test.tsv").write_text("".join(lines[2:60]))
    words = [*SMALL, *BRIEF, "--training.max_steps", "60", "--training.monitor", "exact_match",
             "--evaluation.report", "html", "--data.test", str(folder / "test.tsv")]  # fmt: skip
    settings = read_settings(None, words)
    model = fit(folder / "pairs.tsv", folder / "model", settings, console=console)
    return folder / "model", model, " ".join(console.file.getvalue().split())


def test_sources_of_the_training_pairs_are_answered_by_their_targets(run):
    folder, trained, logged = run
    assert "memory: 2" in logged
    assert "MB; better than the model on" in logged
    known = [word for word in WORDS if trained.memory.find(word, ())]
    assert 250 < len(known) < 300
    assert WORDS[1] not in known
    for model in (trained, dragoman.load(folder), dragoman.load(folder, engine="torch")):
        found = [best for [best] in model.predict_n_best(known)]
        assert [one.text for one in found] == [NAMES[word] for word in known]
        assert found[0].memory_row.startswith(str(folder.with_name("pairs.tsv:")))
        assert found[0].confidence > 0.9
        alone = model.with_decoding(as_settings({"decoding.memory": "none"}, is_whole=False))
        assert alone.predict(known) != [one.text for one in found]
        [[other]] = model.predict_n_best(["hhhhhh"])
        assert other.memory_row == ""


def test_the_choice_and_its_reason_are_stored_and_the_scores_are_those_of_the_model(run):
    metrics = json.loads((run[0] / "metrics.json").read_text())
    assert "- memory: 2" in (run[0] / "README.md").read_text()
    assert metrics["decoding"]["reasons"][-1].startswith("memory: 2")
    assert [one["name"] for one in metrics["memory"]["tried"]] == ["model", "memory"]
    assert metrics["memory"]["tried"][1]["score"] > 90 > 20 > metrics["valid"]["exact_match"]
    # Most test pairs are training pairs; no validation source is a training source.
    assert [*metrics["memory"]["scores"]] == ["test"]
    both = metrics["memory"]["scores"]["test"]["exact_match"], metrics["test"]["exact_match"]
    assert both[0] > 70 > 20 > both[1]  # some of its sources are held out
    assert "with memory, test: exact match {:.2f} (the model alone: {:.2f})".format(*both) in run[2]
    assert "pairs.tsv:" in (run[0] / "report.html").read_text().split('<section id="neighbours"')[1]


@pytest.mark.parametrize(
    "decoding",
    [
        {"num_hypotheses": 2, "beam_size": 2}, {"method": "sampling"}, {"regex": "[a-h]+"},
        {"token_scores": True}, {"alignment": True}, {"forbidden_tokens": ["a"]}, {"memory": "none"},
        {"no_repeat_ngram": 9}, {"max_length": 2}, {"max_length_ratio": 0.0, "max_length_extra": 2},
        {"min_length": 30}, {"min_length_ratio": 9.0},
    ],
)  # fmt: skip
def test_what_memory_cannot_give_is_left_to_the_model(run, decoding):
    model = dragoman.load(run[0], {"decoding": decoding})
    [[best, *_]] = model.predict_n_best([WORDS[0]])
    assert best.memory_row == ""


def test_a_prefix_and_a_given_target_are_left_to_the_model(run):
    model = dragoman.load(run[0])
    [[best]] = model.predict_n_best([WORDS[0]], prefixes=["ab"])
    [scored] = model.score([WORDS[0]], [NAMES[WORDS[0]]])
    assert (best.memory_row, scored.memory_row) == ("", "")


def test_files_and_the_server_mark_the_answers(run, tmp_path, capsys):
    folder = run[0]
    (tmp_path / "in.txt").write_text(f"{WORDS[0]}\nhhhhhh\n")
    given = ["predict", str(folder), "--input", str(tmp_path / "in.txt"), "--output"]
    row = f"{folder.with_name('pairs.tsv')}:1"
    assert main([*given, str(tmp_path / "out.jsonl")]) == 0
    assert "1 rows answered from the training pairs" in capsys.readouterr().err
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (first["text"], first["from"], first["row"]) == (NAMES[WORDS[0]], "memory", row)
    assert not {"from", "row"} & second.keys()
    assert main([*given, str(tmp_path / "out.parquet")]) == 0
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert (found["from"], found["row"]) == (["memory", None], [row, None])
    assert main([*given, str(tmp_path / "alone.jsonl"), "--memory", "none"]) == 0
    assert "memory" not in (tmp_path / "alone.jsonl").read_text()
    content = describe_outputs(
        dragoman.load(folder).predict_n_best([WORDS[0]])[0],
        PredictRequest(source=WORDS[0]),
        WORDS[0],
    )
    assert Message.model_validate(content).from_ == "memory"


@pytest.mark.parametrize("case", ["same", "other", "none"])
def test_an_ensemble_answers_from_a_table_that_all_its_models_have(run, tmp_path, case):
    folder = shutil.copytree(run[0], tmp_path / "model")
    tensors = load_file(folder / MEMORY)
    if case == "none":
        (folder / MEMORY).unlink()
    elif case == "other":  # the same sources, one with another target
        tensors["targets"][0] = tensors["targets"][1]
        dataclasses.replace(dragoman.load(folder).memory, tensors=tensors).write(folder)
    for folders in ([run[0], folder], [folder, run[0]]):
        [[best]] = dragoman.load(folders).predict_n_best([WORDS[0]])
        assert (best.text == NAMES[WORDS[0]], bool(best.memory_row)) == (case == "same",) * 2


def test_evaluate_says_what_memory_answered(run, tmp_path, capsys):
    folder, pairs = shutil.copytree(run[0], tmp_path / "model"), tmp_path / "own.tsv"
    pairs.write_text(f"{WORDS[0]}\t{NAMES[WORDS[0]]}\nhhhhhh\tno\n")
    assert main(["evaluate", str(folder), str(pairs)]) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 outputs are targets of the same sources in the training pairs" in shown
    assert "by origin of the output:" in shown
    content = json.loads((folder / "evaluation/own/scores.json").read_text())
    groups = {one["group"]: one for one in content["breakdown"]["origin of the output"]}
    assert groups["memory"]["exact_match"][0] == 100.0 > groups["model"]["exact_match"][0]
    found = dragoman.evaluate(folder, pairs, calibrate=True)
    assert not any(row.memory_row for row in found.rows)


def test_an_answer_of_the_longest_length_is_still_given(run):
    word = max(
        filter(lambda one: run[1].memory.find(one, ()), WORDS), key=lambda one: len(NAMES[one])
    )
    given = {}
    for most in (len(NAMES[word]), len(NAMES[word]) + 1):  # characters; the end counts
        model = dragoman.load(run[0], {"decoding": {"max_length": most}})
        given[most] = bool(model.predict_n_best([word])[0][0].memory_row)
    assert list(given.values()) == [False, True]


def test_no_memory_is_kept_for_a_search_that_it_cannot_answer(tmp_path):
    console = quiet_console()
    words = [*SMALL, *BRIEF, "--training.max_steps", "60", "--decoding.token_scores", "true"]
    model = fit(
        list(NAMES.items()) * 2, tmp_path / "model", read_settings(None, words), console=console
    )
    assert model.memory is None
    assert "memory:" not in console.file.getvalue()


def test_memory_is_not_kept_where_it_is_no_better(tmp_path):
    """Each source has two targets: what is left tells nothing of the row that was left out."""
    words, console = make_words(200), quiet_console()
    pairs = [(word, one) for word in words for one in (word.upper(), word.title())]
    settings = read_settings(None, [*SMALL, *BRIEF, "--training.max_steps", "60"])
    model = fit(pairs, tmp_path / "model", settings, console=console)
    logged = " ".join(console.file.getvalue().split())
    assert "memory: none; it is no" in logged
    assert model.memory is None
    assert not (tmp_path / "model" / MEMORY).exists()


def test_too_few_repeated_sources_tell_nothing(trained):
    logged = (trained[0].parent / "console.txt").read_text()
    assert "memory: none; 0 repeated sources are too few" in " ".join(logged.split())


def test_groups_are_those_of_counting_them_by_hand():
    chance = random.Random(0)
    for size in (1, 2, 30, 300):
        pairs = [
            Pair(chance.choice("äbcde"), chance.choice("xy"), (chance.choice("12"),), i + 1, "f")
            for i in range(size)
        ]
        groups = SourceGroups.collect(pairs)
        by_source = {}
        for i, pair in enumerate(pairs):
            by_source.setdefault((pair.source, pair.features), []).append(i)
        assert sorted(groups.first) == sorted(rows[0] for rows in by_source.values())
        for left, other in zip(groups.left_out, groups.others, strict=True):
            [rows] = [rows for rows in by_source.values() if left in rows]
            assert left != other
            assert {pairs[i].target for i in rows if i != left} == {pairs[other].target}
        memory = groups.remember(pairs, ["f"], 0.9, 1 << 20)
        for (source, features), rows in by_source.items():
            targets, found = {pairs[i].target for i in rows}, memory.find(source, features)
            assert (found is None) == (len(targets) > 1)
            assert found is None or found == (*targets, f"f:{rows[0] + 1}")
        assert memory.find("a\u0308", ("1",)) == memory.find("ä", ("1",))
        assert groups.remember(pairs, ["f"], 0.9, memory.num_bytes - 1) is None or not len(memory)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("targets", lambda one: one + np.uint32(1000)),
        ("hashes", lambda one: one[::-1].copy()),
        ("ends", lambda one: one[:-1].copy()),
        ("lines", lambda one: one.astype(np.int64)),
    ],
)
def test_a_damaged_table_is_refused(run, tmp_path, name, change):
    folder = shutil.copytree(run[0], tmp_path / "model")
    tensors = load_file(folder / MEMORY)
    about = json.dumps({"files": ["pairs.tsv"], "confidence": 0.9})
    save_file({**tensors, name: change(tensors[name])}, folder / MEMORY, {"memory": about})
    with pytest.raises(ModelFolderError, match=r"memory\.safetensors: not a valid memory"):
        dragoman.load(folder)
    (folder / MEMORY).unlink()
    assert dragoman.load(folder).predict_n_best([WORDS[0]])[0][0].memory_row == ""


def test_records_from_memory_have_fields_and_their_confidence(run):
    model = dragoman.load(run[0], {"decoding.records": "json"})
    pairs = [Pair("abc", '{"name":"Zoe","age":[5,6]}', (), 7, "pairs in memory")]
    model.memory = SourceGroups.collect(pairs).remember(pairs, ["pairs in memory"], 0.9, 1000)
    [[best]] = model.predict_n_best(["abc"])
    assert (best.record, best.is_record) == ({"name": "Zoe", "age": [5, 6]}, True)
    found = [(one.field, one.value, one.confidence) for one in best.fields]
    assert found == [("name", "Zoe", 0.9), ("age", "5", 0.9), ("age", "6", 0.9)]
    assert best.memory_row == "pairs[6]"
    for temperature in (0.1, 1.0, 5.0):
        again = find_confidence(find_score(0.9, temperature), temperature)
        assert again == pytest.approx(0.9)


def test_an_export_says_that_it_leaves_out_the_memory(run, trained, tmp_path, capsys):
    folder = shutil.copytree(run[0], tmp_path / "model")
    assert main(["export", str(folder), "--to", "pytorch"]) == 0
    assert "pytorch: without the model's memory: " in capsys.readouterr().err
    assert "memory" in json.loads((folder / "pytorch" / "export.json").read_text())
    lines = list[str]()
    other = shutil.copytree(trained[0], tmp_path / "other")
    dragoman.export(other, "pytorch", report=lines.append)
    assert not lines
