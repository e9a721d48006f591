"""A resumed run equals an uninterrupted one."""

import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.numpy import load_file

import dragoman
from conftest import make_words, quiet_console, write_pairs
from dragoman import read_settings
from dragoman.commands.fit import fit
from dragoman.errors import CheckpointError, DataError, ModelFolderError, SettingsError
from dragoman.model_folder.folder import ModelFolder
from dragoman.settings import Settings
from dragoman.training import checkpoints
from dragoman.training.checkpoints import BEST, Checkpoints
from dragoman.training.logs import METRICS_FILE, read_curves
from dragoman.training.module import TransformerTraining
from dragoman.training.resume import MAY_CHANGE, RunRecord, find_resume_point
from runs import STEPS, results_of, settings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run with all its checkpoints, and the curves as they were at each of them."""
    folder = tmp_path_factory.mktemp("whole")
    pairs = write_pairs(folder / "pairs.tsv", 400)
    save, curves = Checkpoints.save, folder / "model.training" / METRICS_FILE

    def save_and_copy(self, trainer, **values):
        is_written = save(self, trainer, **values)
        if curves.is_file():
            shutil.copy(curves, folder / f"{trainer.global_step}.csv")
        return is_written

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "_NUM_KEPT", 1000)
        patch.setattr(Checkpoints, "save", save_and_copy)
        fit(pairs, folder / "model", settings(), console=quiet_console())
    return folder


def take_up(whole, to, step):
    """Copy the run as it was when killed after `step` steps; return its future model folder."""
    shutil.copytree(whole / "model.training", to / "model.training")
    curves = to / "model.training" / METRICS_FILE
    if (whole / f"{step}.csv").is_file():
        shutil.copy(whole / f"{step}.csv", curves)
    else:
        curves.unlink()
    for path in (to / "model.training" / "checkpoints").iterdir():
        if path.name not in (f"step-{step}.ckpt", BEST):
            path.unlink()
    return to / "model"


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_resuming_from_any_step_is_bit_identical(whole, tmp_path, step):
    out = take_up(whole, tmp_path, step)
    fit((), out, resume="must", console=quiet_console())
    assert results_of(out) == results_of(whole / "model")


def test_another_machine_is_warned_about_on_resume(whole, tmp_path, monkeypatch):
    out = take_up(whole, tmp_path, STEPS)
    record, num_threads = (
        find_resume_point(tmp_path / "model.training", []).record,
        torch.get_num_threads(),
    )
    assert record.machine["threads"] == str(num_threads)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    console = quiet_console()
    fit((), out, resume="must", console=console)
    logged = console.file.getvalue()
    assert (
        f"threads {record.machine['threads']}, now 77; ONEDNN_MAX_CPU_ISA none, now AVX2" in logged
    )
    assert "will not be bit-identical" in logged
    monkeypatch.undo()
    torch.set_num_threads(num_threads)  # the parity check has set 77
    shutil.rmtree(out)
    console = quiet_console()
    fit((), out, resume="must", console=console)
    assert "another machine" not in console.file.getvalue()


def test_the_time_before_a_resume_counts(whole, tmp_path):
    out = take_up(whole, tmp_path, STEPS - 1)
    path = tmp_path / "model.training" / "checkpoints" / f"step-{STEPS - 1}.ckpt"
    state = torch.load(path, weights_only=True)
    assert state["trained_s"] > 0.0
    torch.save({**state, "trained_s": 7200.0}, path)
    fit((), out, resume="must", console=quiet_console())
    assert ModelFolder.read(out).metrics["minutes"] > 120


def test_a_checkpoint_holds_the_record_and_the_state_of_each_process(whole):
    path = whole / "model.training" / "checkpoints" / "step-7.ckpt"
    state = torch.load(path, weights_only=True)
    assert state["dragoman"]["settings"]["training"]["max_steps"] == STEPS
    assert len(state["callbacks"]["RankStates"]["ranks"]) == 1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_longer_on_resume_equals_a_longer_run(tmp_path, optimizer):
    pairs = write_pairs(tmp_path / "pairs.tsv", 300)
    longer = ["--training.max_steps", "12"]
    even = ["--optimization.schedule", "inverse_sqrt", "--optimization.optimizer", optimizer]
    brief = settings("--training.max_steps", "7", *even)
    fit(pairs, tmp_path / "one", brief, console=quiet_console())
    fit((), tmp_path / "one", read_settings(None, longer), resume="must", console=quiet_console())
    fit(pairs, tmp_path / "two", settings(*longer, *even), console=quiet_console())
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert {name: array.tolist() for name, array in one.items()} == {
        name: array.tolist() for name, array in two.items()
    }
    metrics = ModelFolder.read(tmp_path / "one").metrics
    assert metrics["num_steps"] == 12


def test_a_run_with_weights_resumes_with_them(tmp_path):
    pairs = [write_pairs(tmp_path / "a.tsv", 300), write_pairs(tmp_path / "b.tsv", 100)]
    longer, even = ["--training.max_steps", "8"], ["--optimization.schedule", "inverse_sqrt"]
    weights, same = ["--data.weights", "0.3,2"], {"resume": "must", "console": quiet_console()}
    brief = settings("--training.max_steps", "3", *even, *weights)
    fit(pairs, tmp_path / "one", brief, console=quiet_console())
    with pytest.raises(SettingsError, match=r"weights: \[1.0, 2.0\], but the run was started with"):
        fit((), tmp_path / "one", read_settings(None, ["--data.weights", "1,2"]), **same)
    fit(pairs, tmp_path / "one", read_settings(None, [*longer, *weights]), **same)
    fit(pairs, tmp_path / "two", settings(*longer, *even, *weights), console=quiet_console())
    fit(pairs, tmp_path / "three", settings(*longer, *even), console=quiet_console())
    one, two, three = (results_of(tmp_path / name)[0] for name in ("one", "two", "three"))
    assert one == two != three


def test_a_forbidden_change_is_refused_by_name_and_an_allowed_one_is_applied(whole, tmp_path):
    out = take_up(whole, tmp_path, 5)
    typed = ["--model.dropout", "0.3", "--training.seed", "2", "--training.patience", "9"]
    with pytest.raises(SettingsError) as fault:
        fit((), out, read_settings(None, typed), resume="must", console=quiet_console())
    output = str(fault.value)
    assert "2 errors" in output
    assert "--model.dropout: 0.3, but the run was started with 0.2" in output
    assert "--training.seed: 2, but the run was started with 1" in output
    assert all(name.rstrip(".") in output for name in MAY_CHANGE)
    free = ["--training.max_steps", "6", "--training.batch_tokens", "128", "--model.dropout", "0.2"]
    model = fit((), out, read_settings(None, free), resume="must", console=quiet_console())
    assert model.settings.training.batch_tokens == 128
    assert model.settings.model.dropout == 0.2


def test_other_steps_on_resume_are_whole_with_validations_between(tmp_path, monkeypatch):
    pairs, sizes = write_pairs(tmp_path / "pairs.tsv", 400), [0]
    compute, close = TransformerTraining.training_step, TransformerTraining.on_before_optimizer_step
    monkeypatch.setattr(
        TransformerTraining, "training_step",
        lambda self, *batch: (sizes.append(sizes.pop() + 1), compute(self, *batch))[1],
    )  # fmt: skip
    monkeypatch.setattr(
        TransformerTraining, "on_before_optimizer_step",
        lambda self, *one: (sizes.append(0), close(self, *one))[1],
    )  # fmt: skip
    brief = settings("--training.accumulate", "1", "--training.max_steps", "7")
    fit(pairs, tmp_path / "model", brief, console=quiet_console())
    sizes[:] = [0]
    words = ["--training.accumulate", "2", "--training.max_steps", "22", "--training.patience", "0"]
    changed = read_settings(None, [*words, "--training.batch_tokens", "128"])
    fit((), tmp_path / "model", changed, resume="must", console=quiet_console())
    assert sizes == [2] * 15 + [0]
    validated = [at for at, _ in read_curves(tmp_path / "model.training")["valid_loss"]]
    assert validated == [4, 7, 8, 12, 16, 20, 22]


def test_data_files_may_be_deleted_and_changed_ones_are_refused(whole, tmp_path):
    out = take_up(whole, tmp_path, 12)
    (tmp_path / "same.tsv").write_bytes((whole / "pairs.tsv").read_bytes())
    (tmp_path / "other.tsv").write_text("a\tb\n")
    with pytest.raises(CheckpointError, match="not the pairs with which the run started"):
        fit(tmp_path / "other.tsv", out, resume="must", console=quiet_console())
    fit(tmp_path / "same.tsv", out, resume="must", console=quiet_console())

    pairs, console = write_pairs(tmp_path / "pairs.tsv", 200), quiet_console()
    brief = settings("--training.max_steps", "2", "--evaluation.report", "html")
    fit(pairs, tmp_path / "gone", brief, console=console)
    shutil.rmtree(tmp_path / "gone")
    pairs.unlink()
    fit((), tmp_path / "gone", resume="auto", console=console)
    assert "report: " in console.file.getvalue()  # with the inspection of the stored pairs
    assert "without an inspection" not in console.file.getvalue()
    assert dragoman.load(tmp_path / "gone", engine="torch").predict(["abc"])


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(whole, tmp_path):
    out = take_up(whole, tmp_path, 6)
    folder = tmp_path / "model.training" / "checkpoints"
    cut = (folder / "step-6.ckpt").read_bytes()
    (folder / "step-7.ckpt").write_bytes(cut[: len(cut) // 2])
    flipped = bytearray(cut)
    flipped[len(cut) // 2] ^= 1
    (folder / "step-8.ckpt").write_bytes(flipped)
    console = quiet_console()
    fit((), out, resume="must", console=console)
    output = console.file.getvalue()
    assert f"{folder / 'step-8.ckpt'}: damaged" in output.replace("\n", "")
    assert f"{folder / 'step-7.ckpt'}: not a complete checkpoint" in output.replace("\n", "")
    assert "resumed after step 6" in output
    assert results_of(out) == results_of(whole / "model")


def test_without_a_usable_checkpoint_or_data_nothing_is_touched(whole, tmp_path):
    out = take_up(whole, tmp_path, 6)
    folder = tmp_path / "model.training"
    (folder / "data" / "valid.arrow").rename(tmp_path / "valid.arrow")
    with pytest.raises(DataError, match=r"are incomplete: valid\.arrow missing"):
        fit((), out, resume="auto", console=quiet_console())
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"no checkpoint")
    pairs = write_pairs(tmp_path / "pairs.tsv", 200)
    for resume in ("auto", "must"):
        with pytest.raises(CheckpointError, match="no usable checkpoint"):
            fit(pairs, out, settings(), resume=resume, console=quiet_console())
    assert {path.read_bytes() for path in (folder / "checkpoints").iterdir()} == {b"no checkpoint"}


@pytest.mark.parametrize("name", ["train.arrow", "valid.text.arrow", "tokenizer.json"])
def test_changed_and_truncated_data_of_a_run_are_refused_by_name(whole, tmp_path, name):
    out = take_up(whole, tmp_path, 6)
    path = tmp_path / "model.training" / "data" / name
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    for other in (changed, content[:-8], content[:8], content + b"\n"):
        path.write_bytes(other)
        with pytest.raises(DataError, match=f"data: the data .* {name}: changed since the run"):
            fit((), out, resume="auto", console=quiet_console())


def test_fewer_steps_than_were_done_are_refused(whole, tmp_path):
    out = take_up(whole, tmp_path, 6)
    with pytest.raises(SettingsError, match=r"max_steps: 5, but the run has done 6 steps"):
        fit((), out, read_settings(None, ["--training.max_steps", "5"]), resume="auto")
    as_many = read_settings(None, ["--training.max_steps", "6"])
    fit((), out, as_many, resume="auto", console=quiet_console())
    assert ModelFolder.read(out).metrics["num_steps"] == 6


def test_auto_starts_a_new_run_and_leaves_a_complete_one_alone(tmp_path):
    pairs, out = write_pairs(tmp_path / "pairs.tsv", 200), tmp_path / "model"
    brief = settings("--training.max_steps", "2")
    with pytest.raises(CheckpointError, match="there is no run to resume"):
        fit(pairs, out, brief, resume="must", console=quiet_console())
    with pytest.raises(CheckpointError, match="give PAIRS"):
        fit((), out, brief, resume="auto", console=quiet_console())
    fit(pairs, out, brief, resume="auto", console=quiet_console())
    before = (out / "model.safetensors").stat().st_mtime_ns
    console = quiet_console()
    model = fit(pairs, out, brief, resume="auto", console=console)
    assert "already complete" in console.file.getvalue()
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert model.predict(["abc"])
    with pytest.raises(ModelFolderError, match="resume with --resume"):
        fit(pairs, out, brief, console=quiet_console())


def test_auto_replaces_only_a_run_without_a_checkpoint(tmp_path):
    pairs, brief = write_pairs(tmp_path / "pairs.tsv", 200), settings("--training.max_steps", "1")
    for name in ("kept", "kept.training"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("of somebody")
        (tmp_path / name / "model.safetensors").write_text("of somebody")
        with pytest.raises(ModelFolderError, match="already there"):
            fit(pairs, tmp_path / "kept", brief, resume="auto", console=quiet_console())
        assert (tmp_path / name / "config.yaml").read_text() == "of somebody"
        shutil.rmtree(tmp_path / name)
    fit(pairs, tmp_path / "model", brief, console=quiet_console())
    shutil.rmtree(tmp_path / "model")
    shutil.rmtree(tmp_path / "model.training" / "checkpoints")
    fit(pairs, tmp_path / "model", brief, resume="auto", console=quiet_console())
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_run_stopped_early_is_complete(tmp_path):
    words = "".join(f"{word}\t{word}\n" for word in make_words(200))
    (tmp_path / "pairs.tsv").write_text(words)
    # A learning rate of next to nothing: no score is better than the first.
    still = ["--optimization.learning_rate", "1e-12", "--training.valid_every", "1"]
    out, console = tmp_path / "model", quiet_console()
    fit(tmp_path / "pairs.tsv", out, settings(*still), console=console)
    steps = ModelFolder.read(out).metrics["num_steps"]
    assert steps < STEPS
    assert f"ends after step {steps} of {STEPS}: no better score" in console.file.getvalue()
    shutil.rmtree(out)
    fit((), out, resume="must", console=quiet_console())
    assert ModelFolder.read(out).metrics["num_steps"] == steps
    patient = read_settings(None, ["--training.patience", "0"])
    fit((), out, patient, resume="must", console=quiet_console())
    assert ModelFolder.read(out).metrics["num_steps"] == STEPS


TWO_RANKS = """
import sys
import lightning, torch
from pathlib import Path
from dragoman import PairDataModule, read_settings
from dragoman.model.transformer import Transformer
from dragoman.settings import OptimizationSettings
from dragoman.training.checkpoints import AtomicCheckpointIO
from dragoman.training.checkpoints import Checkpoints
from dragoman.training.module import TransformerTraining
from dragoman.training.resume import RngAndMetricState
from dragoman.training.trainer import WeightAveraging

class Losses(lightning.Callback):
    def on_train_batch_end(self, trainer, module, outputs, *_):
        with open(f"{sys.argv[2]}/losses-{trainer.global_rank}.txt", "a") as file:
            print(trainer.global_step, outputs["loss"].item().hex(), file=file)

def train(pairs, folder, max_steps, checkpoint):
    words = ["--training.batch_tokens", "128", "--data.cache", "none"]
    data = PairDataModule(pairs, read_settings(None, words))
    data.prepare_data()
    torch.manual_seed(0)
    module = TransformerTraining(
        Transformer(data.tokenizer.source_vocab_size, 16, 2, 1, 32, dropout=0.2,
                    target_vocab_size=data.tokenizer.target_vocab_size),
        OptimizationSettings(schedule="constant", warmup_steps=2))
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp_spawn", max_steps=max_steps, max_epochs=-1,
        logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, accumulate_grad_batches=2, val_check_interval=6,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, default_root_dir=folder,
        plugins=[AtomicCheckpointIO()],
        callbacks=[WeightAveraging(0.9),
                   RngAndMetricState(), Losses(),
                   Checkpoints(Path(folder) / "checkpoints", 7, "valid_loss", "min")])
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    torch.save([p.detach() for p in module.parameters()], f"{folder}/weights.pt")

if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None)
"""


def test_resuming_two_processes_is_bit_identical(tmp_path):
    (tmp_path / "two.py").write_text(TWO_RANKS)
    pairs = write_pairs(tmp_path / "pairs.tsv", 300)

    def train(name, max_steps, *checkpoint):
        (tmp_path / name).mkdir(exist_ok=True)
        subprocess.run(
            [sys.executable, tmp_path / "two.py", pairs, tmp_path / name, str(max_steps), *checkpoint],
            check=True, capture_output=True, timeout=250,
        )  # fmt: skip
        losses = [(tmp_path / name / f"losses-{rank}.txt").read_text() for rank in (0, 1)]
        return torch.load(tmp_path / name / "weights.pt", weights_only=True), losses

    weights, losses = train("whole", 17)
    train("part", 7)
    again, other_losses = train("part", 17, str(tmp_path / "part" / "checkpoints" / "step-7.ckpt"))
    assert other_losses == losses
    assert losses[0] != losses[1]
    assert all(torch.equal(one, other) for one, other in zip(weights, again, strict=True))


def test_a_damaged_best_checkpoint_is_reported_and_replaced(whole, tmp_path):
    out = take_up(whole, tmp_path, 7)
    best = tmp_path / "model.training" / "checkpoints" / BEST
    best.write_bytes(best.read_bytes()[:-100])
    console = quiet_console()
    fit((), out, resume="must", console=console)
    assert "best.ckpt: not a complete checkpoint" in console.file.getvalue()
    assert "the next validation writes a new best checkpoint" in console.file.getvalue()
    assert torch.load(best, weights_only=True)["global_step"] >= 8


def test_a_record_with_renamed_settings_loads():
    resolved = Settings.model_validate({"training": {"implementation": "reference"}})
    record = RunRecord(
        version="0.1.0",
        settings=resolved,
        typed={"training.implementation": "reference"},
        precision="32-true",
        pairs=("pairs.tsv",),
        sha256={},
        data_sha256={},
        machine={},
    )
    content = record.model_dump(mode="json")
    content["settings"]["training"]["path"] = content["settings"]["training"].pop("implementation")
    content["typed"] = {"training.path": "reference"}
    assert RunRecord.read(content) == record
