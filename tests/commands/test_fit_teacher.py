"""`fit --teacher`: what is predicted and trained on, once, and what never is."""

import json
import shutil

import pytest

import dragoman
from conftest import make_words, quiet_console, write_pairs
from dragoman.cli import main
from dragoman.commands.fit import dry_run, fit
from dragoman.commands.fit_teacher import hold_out_as, split_as, teach
from dragoman.data.run_data import RunData
from dragoman.errors import CheckpointError, SettingsError
from dragoman.model_folder.folder import ModelFolder, SeedIndex
from dragoman.presets import choose_settings
from dragoman.reading.pairs import Pair, read_pairs
from dragoman.reading.statistics import collect_statistics
from dragoman.settings import DataSettings
from dragoman.training.graceful_stop import SignalHandler
from dragoman.training.ranks import Ranks
from dragoman.training.run_context import RunContext, StartTimer
from processes import start_until
from runs import WORDS, results_of, settings

LEARN = ("--optimization.distillation", "0.5")


@pytest.fixture(scope="module")
def student(trained, tmp_path_factory):
    """Pairs with unlabelled sources, and a model of them that `trained` taught."""
    folder = tmp_path_factory.mktemp("student")
    pairs, unlabelled = write_pairs(folder / "pairs.tsv", 300), folder / "more.txt"
    words = [*make_words(60), *make_words(40, seed=7), *make_words(40, seed=7), "", "z" * 6000]
    unlabelled.write_text("".join(f"{word}\n" for word in words))
    console = quiet_console()
    typed = settings("--data.unlabelled", str(unlabelled), "--tokenizer.target.kind", "bpe",
                     "--tokenizer.target.vocab_size", "280")  # fmt: skip
    fit(pairs, folder / "model", typed, teacher=trained[0], console=console)
    return folder, console.file.getvalue()


def read_outputs(folder):
    [path] = folder.glob("model.teacher/outputs-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_training_and_unlabelled_source_is_predicted_once(student, trained):
    folder, shown = student
    outputs = read_outputs(folder)
    sources = [one["input"]["source"] for one in outputs]
    assert len(set(sources)) == len(sources)
    assert {*make_words(40, seed=7)} - {*make_words(300)} <= {*sources}
    assert [one["text"] for one in outputs] == trained[1].predict(sources)
    assert "2 that cannot be used" in shown


def test_held_out_sources_are_not_trained_on_and_stay(student, trained):
    folder, shown = student
    pairs = json.loads((folder / "model" / "metrics.json").read_text())["data"]["pairs"]
    model = dragoman.load(folder / "model")
    assert model.settings.data.valid_fraction == trained[1].settings.data.valid_fraction
    like_teacher = hold_out_as(trained[1].settings, dragoman.read_settings())
    assert like_teacher.data.valid_fraction == model.settings.data.valid_fraction
    complete = [one for one in read_outputs(folder) if one["is_complete"]]
    assert pairs["train"] == 300 - pairs["valid"] + len(complete)
    held = [row["source"] for row in json_lines(folder / "model/evaluation/valid/rows.jsonl")]
    assert len(held) == pairs["valid"]
    assert not {*held} & {one["input"]["source"] for one in read_outputs(folder)}
    assert "left out: 0 unlabelled" not in shown


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_student_and_teacher_are_compared(student):
    folder, shown = student
    found = json.loads((folder / "model" / "metrics.json").read_text())["teacher"]
    assert found["teacher"]["exact_match"] > found["student"]["exact_match"]
    assert found["student"]["rows_per_s"] > 0
    assert "student: exact match" in shown
    assert "outputs of the model" in (folder / "model" / "README.md").read_text()


def test_sources_are_utf_8_whatever_the_encoding_of_the_teacher(trained, tmp_path):
    teacher, pairs = tmp_path / "teacher", tmp_path / "pairs.tsv"
    shutil.copytree(trained[0], teacher)
    config = teacher / "config.yaml"
    config.write_text(config.read_text().replace("encoding: auto", "encoding: cp1252"))
    pairs.write_text("".join(f"{word}é\t{word}\n" for word in make_words(30)), encoding="utf-8")
    console, typed = quiet_console(), settings("--training.teacher", str(teacher))
    context = RunContext(
        console=console, timer=StartTimer(), signals=SignalHandler(console), ranks=Ranks(console)
    )
    data = RunData.read([pairs], typed, tmp_path)
    assert {*teach(data, typed, tmp_path / "model", context)}
    read = [one["input"]["source"] for one in read_outputs(tmp_path)]
    assert read == [pair.source for pair in data.read_split("train")]


@pytest.mark.parametrize(
    ("of_teacher", "of_student"),
    [
        ({}, {"features_separator": ";"}),
        ({"features_separator": ";"}, {}),
        ({}, {"leading_tags": True}),
        ({"leading_tags": True}, {}),
        ({"records": "json", "record_fields": ("b", "a")}, {"records": "text"}),
        ({"records": "json", "record_fields": ("b", "a")}, {"records": "json"}),
    ],
)
def test_a_teacher_is_compared_on_pairs_as_it_reads_them(of_teacher, of_student, tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text('<x> walk\t{"a": 1, "b": 2}\tV;PST\n<y> go\t{"a": 3}\tV\n')
    teacher, student = (
        DataSettings.model_validate({"source": "1", "target": "2", "features": ["3"], **one})
        for one in (of_teacher, of_student)
    )
    pairs = read_pairs(path, student)
    assert [*split_as(teacher, pairs, student)] == [*read_pairs(path, teacher)]


def test_a_second_run_predicts_nothing_again(student, trained):
    folder, shown = student
    assert "teacher: predicting" in shown
    console, copy = quiet_console(), folder / "copy"
    copy.mkdir()
    shutil.copytree(folder / "model.teacher", copy / "model.teacher")
    typed = settings("--data.unlabelled", str(folder / "more.txt"), "--data.valid_fraction", "0.1")
    fit(folder / "pairs.tsv", copy / "model", typed, teacher=trained[0], console=console)
    assert "teacher: predicting" not in console.file.getvalue()


def test_a_killed_run_resumes_without_its_teacher(trained, tmp_path):
    pairs, teacher = write_pairs(tmp_path / "pairs.tsv", 100), tmp_path / "teacher"
    shutil.copytree(trained[0], teacher)
    fit(pairs, tmp_path / "whole", settings(), teacher=teacher, console=quiet_console())
    words = ["fit", pairs, "--teacher", teacher, "--out", tmp_path / "model", *WORDS]
    process = start_until("step-6.ckpt", words)
    process.kill()
    process.communicate()
    for path in (teacher, tmp_path / "model.teacher"):
        shutil.rmtree(path)
    console = quiet_console()
    fit((), tmp_path / "model", resume="must", console=console)
    assert "teacher: not compared" in console.file.getvalue()
    assert results_of(tmp_path / "model") == results_of(tmp_path / "whole")


def test_a_student_of_probabilities_reads_as_its_teacher_and_resumes_bit_exactly(trained, tmp_path):
    pairs, teacher = tmp_path / "pairs.tsv", tmp_path / "teacher"
    words = [word for word in make_words(300) if "h" not in word]  # the teacher knows it
    pairs.write_text("".join(f"{word}\t{word.upper()}\n" for word in words))
    for seed in (1, 2):
        shutil.copytree(trained[0], teacher / f"seed-{seed}")
    SeedIndex(seeds=(1, 2)).write(teacher)
    typed = settings(*LEARN, "--training.teacher", str(teacher))
    fit(pairs, tmp_path / "whole", typed, console=quiet_console())
    whole = ModelFolder.read(tmp_path / "whole")
    assert whole.tokenizer.to_dict() == trained[1].tokenizer.to_dict()
    assert "on its probabilities (weight 0.5)" in whole.card
    assert str(teacher / "seed-2" / "model.safetensors") in whole.metrics["data"]["sha256"]
    fit(pairs, tmp_path / "outputs", settings(), teacher=teacher, console=quiet_console())
    assert results_of(tmp_path / "whole")[0] != results_of(tmp_path / "outputs")[0]
    for name in ("model", "other"):
        shutil.copytree(tmp_path / "whole.training", tmp_path / f"{name}.training")
        first, *later = sorted((tmp_path / f"{name}.training/checkpoints").glob("step-*.ckpt"))
        for path in later:
            path.unlink()
        assert first.name != "step-14.ckpt"
    fit((), tmp_path / "model", resume="must", console=quiet_console())
    assert results_of(tmp_path / "model")[0] == results_of(tmp_path / "whole")[0]
    shutil.copy(tmp_path / "model/model.safetensors", teacher / "seed-2")
    with pytest.raises(CheckpointError, match="seed-2: not the teacher with which the run started"):
        fit((), tmp_path / "other", resume="must", console=quiet_console())


def test_probabilities_need_a_teacher_with_the_tokens_of_the_pairs(trained, tmp_path):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{word}ŋ\t{word.upper()}Ŋ\n" for word in make_words(30)))

    def refuse(match, *words, teacher=str(trained[0])):
        with pytest.raises(SettingsError, match=match):
            fit(pairs, tmp_path / "model", settings(*LEARN, *words), teacher=teacher,
                console=quiet_console())  # fmt: skip

    refuse("it lacks Ŋ ŋ: leave out rows")
    refuse("kind: 'bpe', but the teacher.* has 'characters'", "--tokenizer.source.kind", "bpe")
    refuse("it needs --teacher", teacher="")


def test_a_dry_run_predicts_nothing(trained, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", 100)
    used = dry_run(
        pairs, tmp_path / "model", settings("--training.teacher", str(trained[0])),
        console=quiet_console(),
    )  # fmt: skip
    assert used.training.teacher == str(trained[0])
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


def test_what_a_teacher_cannot_do_is_refused(trained, tmp_path, capsys):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{word}\t{word.upper()}\tV\n" for word in make_words(60)))
    typed = settings("--data.features", "3")
    with pytest.raises(SettingsError, match="it has the features none, these pairs 3"):
        fit(pairs, tmp_path / "model", typed, teacher=trained[0], console=quiet_console())
    words = ["--data.features", "3", "--unlabelled", str(pairs), "--out", str(tmp_path / "other")]
    assert main(["fit", str(pairs), *words]) == 2
    assert "these sources need --teacher" in capsys.readouterr().err


def test_the_fast_preset_has_a_deep_encoder_and_one_decoder_layer():
    pairs = [Pair(word, word.upper(), (), 1, "") for word in make_words(300)]
    statistics = collect_statistics(pairs)
    usual, fast = (
        choose_settings(settings_of, statistics).settings.model
        for settings_of in (
            dragoman.read_settings(),
            dragoman.read_settings(None, ["--preset", "fast"]),
        )
    )
    assert (fast.num_encoder_layers, fast.num_decoder_layers) == (6, 1)
    assert fast.d_model == usual.d_model
