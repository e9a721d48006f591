import json
import os
import re
import resource
import time

import pytest
import torch

import dragoman
from conftest import BRIEF, SMALL, make_words, quiet_console, write_pairs
from dragoman import read_settings
from dragoman.cli import main
from dragoman.commands.fit import dry_run, fit
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import (
    DataError,
    DragomanError,
    ModelFolderError,
    SettingsError,
    TrainingError,
)
from dragoman.model_folder.folder import ModelFolder
from dragoman.training.module import TransformerTraining
from dragoman.training.run_context import StartTimer

UNSEEN = [w for w in make_words(1800) if w not in set(make_words(1500))]


def short(*more):
    return read_settings(None, [*SMALL, *BRIEF, *more])


def test_one_call_learns_what_the_pairs_show(trained):
    folder, model = trained
    predicted = model.predict(UNSEEN)
    right = sum(text == word.upper() for text, word in zip(predicted, UNSEEN, strict=True))
    assert right / len(UNSEEN) > 0.9
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["valid"]["exact_match"] > 90
    assert metrics["num_steps"] == 250
    assert sum(metrics["data"]["pairs"].values()) == 1500


def test_the_folder_holds_all_and_gives_the_same_output(trained):
    folder, model = trained
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "calibration.json", "config.yaml", "evaluation", "metrics.json",
        "model.safetensors", "report.html", "token_counts.json", "tokenizer.json",
    }  # fmt: skip
    again = dragoman.load(folder, engine="torch")
    assert again.predict(UNSEEN) == model.predict(UNSEEN)
    assert dragoman.predict(folder, ["abc"]) == model.predict(["abc"])
    for name, parameter in model.engine.networks[0].named_parameters():
        assert torch.equal(parameter, dict(again.engine.networks[0].named_parameters())[name])
    assert read_settings(folder / "config.yaml") == model.settings


def test_checkpoints_and_logs_stay_beside_the_model_and_hold_no_pickle(trained):
    folder = trained[0].with_name("model.training")
    names = {path.name for path in folder.iterdir()} - {"tensorboard"}  # where it is installed
    assert names == {"checkpoints", "data", "logs", "samples.jsonl"}
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]
    for name in ("best.ckpt", "step-125.ckpt", "step-250.ckpt"):
        state = torch.load(folder / "checkpoints" / name, weights_only=True)
        assert any(key.startswith("network.transformer.") for key in state["state_dict"])


def test_evaluate_gives_the_scores_of_the_folder(trained, tmp_path):
    pairs = tmp_path / "unseen.tsv"
    pairs.write_text("".join(f"{w}\t{w.upper()}\n{w}\tno\n" for w in UNSEEN))
    scores = dragoman.evaluate(trained[0], pairs).scores
    assert scores.rows == len(UNSEEN)
    assert scores.exact_match > 90


def test_the_same_seed_gives_the_same_weights(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", 200)
    models = [
        fit(pairs, tmp_path / name, short("--model.dropout", "0.2"), console=quiet_console())
        for name in ("one", "two")
    ]
    one, two = (list(model.engine.networks[0].parameters()) for model in models)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_each_validation_prints_a_line_without_a_terminal(tmp_path):
    pairs, console = write_pairs(tmp_path / "pairs.tsv", 200), quiet_console()
    fit(pairs, tmp_path / "model", short("--training.valid_every", "1"), console=console)
    logged = console.file.getvalue()
    for step in (1, 2, 3):
        assert f"step {step}: train_loss" in logged
    assert "token_error_rate" in logged


def test_a_score_that_is_no_number_does_not_end_the_training(tmp_path):
    pairs, valid = write_pairs(tmp_path / "pairs.tsv", 100), tmp_path / "valid.tsv"
    valid.write_text("abc\t\n")  # no token to be wrong
    words = ["--data.valid", str(valid), "--data.broken_rows", "keep_empty"]
    settings = short("--training.valid_every", "1", *words)
    fit(pairs, tmp_path / "model", settings, console=quiet_console())
    assert ModelFolder.read(tmp_path / "model").metrics["num_steps"] == 3


def test_a_model_folder_in_the_way_is_refused_and_kept(trained, tmp_path):
    folder = trained[0]
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ModelFolderError, match=r"already there.*--overwrite"):
        fit(write_pairs(tmp_path / "p.tsv", 50), folder, short(), console=quiet_console())
    assert (folder / "model.safetensors").read_bytes() == before


def test_overwrite_replaces_it(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", 200)
    fit(pairs, tmp_path / "model", short(), console=quiet_console())
    model = fit(
        pairs, tmp_path / "model", short("--model.d_model", "32"), overwrite=True,
        console=quiet_console(),
    )  # fmt: skip
    assert (
        model.engine.networks[0].d_model
        == dragoman.load(tmp_path / "model", engine="torch").engine.networks[0].d_model
        == 32
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "model.training", "pairs.tsv"]


@pytest.mark.parametrize(
    ("rows", "logged"),
    [
        ("one\tONE\n", "leave none for"),
        ("one\tONE\n" * 200, "200 pairs with 1 different sources leave none for"),
        ("", "the file is empty"),
        ("one column\n" * 5, "a pair needs two columns"),
        ("a\tb\n" + "x" * 100_000 + "\ty\n", r"pairs.tsv:2: the source has 100000 characters"),
        ("a\tb\nc\n", r"pairs.tsv:2: 1 column"),
    ],
)
def test_bad_data_leaves_nothing_behind(tmp_path, rows, logged):
    (tmp_path / "pairs.tsv").write_text(rows)
    with pytest.raises(DataError, match=logged):
        fit(tmp_path / "pairs.tsv", tmp_path / "model", short(), console=quiet_console())
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


def test_overwrite_leaves_alone_what_is_no_model_and_what_a_bad_run_would_lose(trained, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("x")
    pairs = write_pairs(tmp_path / "pairs.tsv", 50)
    with pytest.raises(ModelFolderError, match="not a model folder"):
        fit(pairs, tmp_path / "photos", short(), overwrite=True, console=quiet_console())
    assert (tmp_path / "photos" / "one.jpg").exists()

    checkpoints = trained[0].with_name("model.training") / "checkpoints"
    dry_run(pairs, trained[0], short(), overwrite=True, console=quiet_console())
    with pytest.raises(DataError):
        fit(tmp_path / "typo.tsv", trained[0], short(), overwrite=True, console=quiet_console())
    assert {path.name for path in checkpoints.iterdir()} == {
        "best.ckpt", "step-125.ckpt", "step-250.ckpt"
    }  # fmt: skip


def test_a_missing_accelerator_is_reported(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", 200)
    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(SettingsError, match=f"{missing} was not found"):
        settings = short("--training.accelerator", missing)
        fit(pairs, tmp_path / "model", settings, console=quiet_console())
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


def test_outputs_may_be_as_long_as_the_training_targets(tmp_path):
    rows = "".join(f"{w}\t{w * 30}\n" for w in make_words(100))
    (tmp_path / "pairs.tsv").write_text(rows)
    model = fit(tmp_path / "pairs.tsv", tmp_path / "model", short(), console=quiet_console())
    decoding = model.settings.decoding
    assert int(decoding.max_length_ratio * 4) + decoding.max_length_extra >= 3 * 30 + 1


def test_learned_positions_bound_the_outputs(tmp_path):
    words = [
        "--model.positions",
        "learned",
        "--model.max_positions",
        "12",
        "--data.max_tokens",
        "12",
    ]
    pairs = write_pairs(tmp_path / "pairs.tsv", 200)
    model = fit(pairs, tmp_path / "model", short(*words), console=quiet_console())
    assert all(len(text) <= 12 + len(" [truncated]") for text in model.predict(["abc"]))


def test_a_full_disk_at_the_start_is_an_error_and_loses_nothing(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", 1500)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as fault:
            fit(pairs, tmp_path / "model", short(), console=quiet_console())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert fault.value.filename == str(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


@pytest.mark.parametrize(
    "words",
    [
        ["--model.d_model", "4000000"],
        ["--model.num_encoder_layers", "1000000000"],
        ["--model.max_positions", "1000000000", "--model.positions", "learned"],
    ],
)
def test_a_model_too_large_for_the_machine_is_refused_with_its_bytes(tmp_path, words):
    pairs = write_pairs(tmp_path / "pairs.tsv", 100)
    with pytest.raises(SettingsError, match=r"need more than [\d,]{15,} bytes of memory.*lower"):
        fit(pairs, tmp_path / "model", short(*words), console=quiet_console())
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


@pytest.mark.parametrize("place", ["pairs", "out", "folder", "--data.test", "--decoding.choices"])
def test_a_name_that_is_not_utf8_is_refused_before_the_training(tmp_path, place):
    wrong = tmp_path / os.fsdecode(b"p\xe9")
    wrong.mkdir() if place == "folder" else wrong.write_text("a\tb\n")
    pairs = write_pairs(tmp_path / "pairs.tsv", 200)
    words = [place, str(wrong)] if place.startswith("--") else []
    out = {"out": wrong.with_name(f"{wrong.name}2"), "folder": wrong / "model"}
    with pytest.raises(DragomanError, match=r"p\\udce9.*not UTF-8.*rename") as fault:
        settings = short(*words)
        fit(wrong if place == "pairs" else pairs, out.get(place, tmp_path / "m"), settings)
    assert fault.value.args[0].isprintable()
    assert len([*tmp_path.rglob("*")]) == 2


def test_settings_at_odds_are_refused_before_the_data_are_read(tmp_path):
    settings = read_settings(None, ["--tokenizer.source.kind", "regex"])
    with pytest.raises(SettingsError, match=r"tokenizer\.source\.pattern"):
        fit(tmp_path / "missing.tsv", tmp_path / "model", settings, console=quiet_console())


@pytest.mark.parametrize("limit", [[], ["--training.max_minutes", "2"]])
def test_a_warm_up_longer_than_the_chosen_steps_is_refused(tmp_path, limit):
    settings = read_settings(None, ["--optimization.warmup_steps", "39999", *limit])
    pairs = write_pairs(tmp_path / "pairs.tsv", 60)
    with pytest.raises(SettingsError, match=r"^--optimization\.warmup_steps: 39999 is not less"):
        fit(pairs, tmp_path / "model", settings, console=quiet_console())


def test_a_missing_constraint_file_is_reported_before_the_training(tmp_path):
    settings = read_settings(None, ["--decoding.choices", str(tmp_path / "choices.txt")])
    pairs = write_pairs(tmp_path / "pairs.tsv", 200)
    with pytest.raises(SettingsError, match=r"decoding\.choices: .*choices\.txt: there is no such"):
        fit(pairs, tmp_path / "model", settings, console=quiet_console())
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


def test_rows_left_out_are_counted_and_named(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.tsv", 200)
    pairs.write_text(pairs.read_text() + "broken\n" + "a" * 40 + "\tb\n")
    console = quiet_console()
    words = ["--data.broken_rows", "skip", "--data.long_rows", "skip", "--data.max_tokens", "30"]
    model = fit(pairs, tmp_path / "model", short(*words), console=console)
    logged = console.file.getvalue()
    assert "pairs.tsv:201" in logged
    assert "pairs.tsv:202: 41 tokens, over data.max_tokens 30" in logged
    assert model.predict(["abc"])


def test_a_dry_run_prints_sizes_and_time_and_leaves_nothing(tmp_path):
    pairs, console = write_pairs(tmp_path / "pairs.tsv", 200), quiet_console()
    out = tmp_path / "model[1]"
    assert dry_run(pairs, out, short(), console=console).model.d_model == 64
    logged = console.file.getvalue()
    for part in ("parameters", "estimated time", "steps are", f"would write: {out}/"):
        assert part in logged
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


def test_the_settings_of_a_dry_run_are_a_config(tmp_path, capsys):
    pairs, config = write_pairs(tmp_path / "pairs.tsv", 100), tmp_path / "config.yaml"
    words = ["--tokenizer.source.kind", "regex", "--tokenizer.source.pattern", "[/a-z]+|."]
    assert main(["fit", str(pairs), "--dry-run", *SMALL, *BRIEF, *words]) == 0
    config.write_text(capsys.readouterr().out)
    assert "beam_size" not in config.read_text()  # still to be chosen
    used = read_settings(config)
    assert used.tokenizer.source.pattern == "[/a-z]+|."
    assert used.decoding.truncation_mark == " [truncated]"
    assert main(["fit", str(pairs), "--dry-run", "--config", str(config)]) == 0
    assert capsys.readouterr().out == config.read_text()


def test_slow_first_steps_do_not_count_in_the_estimated_time(tmp_path, monkeypatch):
    slow, step = iter([0.5] * 4), TransformerTraining.training_step

    def step_slowly(*arguments):
        time.sleep(next(slow, 0.0))
        return step(*arguments)

    monkeypatch.setattr(TransformerTraining, "training_step", step_slowly)
    pairs, console = write_pairs(tmp_path / "pairs.tsv", 50), quiet_console()
    dry_run(pairs, tmp_path / "model", short("--training.batch_tokens", "64"), console=console)
    assert float(re.search(r"at ([\d.]+) s a step", console.file.getvalue())[1]) < 0.4


def test_a_time_limit_chooses_the_steps_and_the_schedule_ends_with_them(tmp_path):
    pairs, console = write_pairs(tmp_path / "pairs.tsv", 200), quiet_console()
    words = [*SMALL[: SMALL.index("--training.max_steps")], "--training.max_minutes", "60"]
    planned = dry_run(pairs, tmp_path / "model", read_settings(None, words), console=console)
    max_steps = planned.training.max_steps
    assert f"time limit: {max_steps:,} steps, at " in console.file.getvalue()
    assert max_steps > 3000  # of the preset, which takes seconds
    assert max_steps / 41 < planned.training.valid_every < max_steps / 4

    words += ["--training.max_steps", "70"]  # by hand: the limit only stops the run
    typed = dry_run(pairs, tmp_path / "model", read_settings(None, words), console=quiet_console())
    assert (typed.training.max_steps, typed.training.valid_every) == (70, 4)


def test_the_start_tells_how_it_computes_and_how_long_it_took(tmp_path):
    pairs, console = write_pairs(tmp_path / "pairs.tsv", 200), quiet_console()
    words = ["--training.accelerator", "cpu", "--training.precision", "32-true"]
    settings = short(*words, "--training.implementation", "reference", "--training.accumulate", "2")
    fit(pairs, tmp_path / "model", settings, console=console)
    logged = console.file.getvalue()
    assert "precision: 32-true on cpu: as set; reference implementation\n" in logged
    [line] = [line for line in logged.splitlines() if line.startswith("first step after")]
    assert 0.0 < float(line.split()[3]) < 100.0


def test_a_dry_run_prints_the_time_of_each_phase(tmp_path):
    pairs, console, clock = write_pairs(tmp_path / "pairs.tsv", 200), quiet_console(), StartTimer(9)
    clock.mark("program and libraries")
    dry_run(pairs, tmp_path / "model", short(), console=console, timer=clock)
    lines = console.file.getvalue().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("first step after"))
    phases = ("program", "pairs", "tokenizer", "network", "trainer", "first")
    logged = [line.split()[0] for line in lines[first + 1 :] if line.endswith(" s")]
    assert [name for name in logged if name in phases] == list(phases)
    assert abs(sum(clock.phases.values()) - clock.total_s) < 0.1


def test_a_second_run_takes_prepared_data_from_the_cache_and_gives_the_same_weights(tmp_path):
    rows = "".join(f"{w * 100}\t{w.upper() * 100}\n" for w in make_words(1300))
    (tmp_path / "pairs.tsv").write_text(rows)
    (tmp_path / "valid.tsv").write_text("abc\tABC\n")
    where = ["--data.cache", f"{tmp_path}/cache", "--data.valid", f"{tmp_path}/valid.tsv"]
    weights = []
    # The first run in a process has other last bits than those after CTranslate2 has computed in it.
    fit(tmp_path / "valid.tsv", tmp_path / "zero", short(*where), console=quiet_console())
    for name, logged in (("one", "kept in the cache"), ("two", "from the cache")):
        console = quiet_console()
        settings = short(*where, "--training.max_steps", "1")
        fit(tmp_path / "pairs.tsv", tmp_path / name, settings, console=console)
        assert f"prepared data: {logged} {tmp_path / 'cache'}" in console.file.getvalue()
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
        config = (tmp_path / name / "config.yaml").read_text()
        assert str(tmp_path / "cache") not in config
        assert read_settings(tmp_path / name / "config.yaml").data.cache == "auto"
    assert weights[0] == weights[1]


def test_parallel_files_features_and_a_test_part_go_through(tmp_path):
    words = make_words(300)
    (tmp_path / "source.txt").write_text("".join(f"{w}\n" for w in words))
    (tmp_path / "target.txt").write_text("".join(f"{w.upper()}\n" for w in words))
    files = [tmp_path / "source.txt", tmp_path / "target.txt"]
    settings = short("--data.test_fraction", "0.2")
    model = fit(files, tmp_path / "parallel", settings, console=quiet_console())
    assert "test" in json.loads((tmp_path / "parallel" / "metrics.json").read_text())
    assert model.settings.data.format == "parallel"

    rows = "".join(f"{case}\t{w}\t{w.upper() if case == 'up' else w}\n" for w in words for case in ("up", "low"))  # fmt: skip
    (tmp_path / "tagged.tsv").write_text(rows)
    columns = ["--data.features", "1", "--data.source", "2", "--data.target", "3"]
    model = fit(
        tmp_path / "tagged.tsv", tmp_path / "tagged", short(*columns), console=quiet_console()
    )
    assert set(model.tokenizer.features) == {"1=up", "1=low"}


def test_the_variables_of_a_slurm_job_change_nothing(tmp_path, monkeypatch):
    for name, value in (("NTASKS", "2"), ("JOB_NAME", "fit"), ("JOB_ID", "7")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    pairs, settings = (
        write_pairs(tmp_path / "pairs.tsv", 200),
        short("--training.accelerator", "cpu"),
    )
    dry_run(pairs, tmp_path / "model", settings, console=quiet_console())
    model = fit(pairs, tmp_path / "model", settings, console=quiet_console())
    assert isinstance(model.engine, TorchEngine)
    assert model.engine.device.type == "cpu"  # also beside a GPU


def test_scoring_out_of_memory_says_what_to_lower_and_can_be_resumed(tmp_path, monkeypatch):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    pairs, out = write_pairs(tmp_path / "pairs.tsv", 200), tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr("dragoman.commands.fit.evaluate_run", run_out)
        with pytest.raises(TrainingError) as fault:
            fit(pairs, out, short(), console=quiet_console())
    assert "out of memory on the scoring of held-out pairs: lower decoding.batch_" in str(
        fault.value
    )
    assert "--resume auto" in str(fault.value)
    smaller = read_settings(None, ["--decoding.batch_tokens", "500"])
    fit((), out, smaller, console=quiet_console(), resume="must")
    assert (out / "model.safetensors").is_file()


def test_pairs_may_be_those_of_the_settings(tmp_path):
    words = ["--data.train", str(write_pairs(tmp_path / "pairs.tsv", 200))]
    assert dry_run((), tmp_path / "model", short(*words), console=quiet_console())
    model = fit((), tmp_path / "model", short(*words), console=quiet_console())
    assert model.predict(["abc"])
